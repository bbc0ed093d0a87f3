"""One board, many versions: the data plane swaps them under load, through real workers, and drops nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.parts import built, read
from skerry_agent.rules.dispatch import Dispatch, Ticket
from skerry_agent.serving.plane import Plane
from skerry_agent.serving.settings import ServingSettings
from skerry_modules import profiles
from skerry_modules.errors import SkerryError
from skerry_modules.messages import Route

pytestmark = pytest.mark.pynq

LIMITS = profiles.get("simulated-fpga").limits
ENDPOINT = "digits"
GOOD, BETTER, BROKEN = "a" * 64, "b" * 64, "c" * 64
QUALITY = {GOOD: "good", BETTER: "better", BROKEN: "broken"}
NUMBER = {GOOD: 1, BETTER: 2, BROKEN: 3}


def folder(digest: str) -> Path:
    return built("digits-fpga", quality=QUALITY[digest])[0]


class Device:
    """A plane with what a brain would do to it."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.exits: list[tuple[str, str, bool]] = []
        plane.on_exit = lambda *told: self.exits.append(told)

    async def load(self, digest: str, place: Path | None = None) -> dict[str, Any]:
        where = place or folder(digest)
        return await self.plane.load(digest, where, read(where), NUMBER[digest], LIMITS)

    async def prove(self, digest: str) -> bool:
        report = await self.plane.golden(digest, folder(digest), read(folder(digest)))
        return report.passed

    def route(self, digest: str) -> None:
        self.plane.set_routes(ENDPOINT, (Route(module="digits-fpga", version=NUMBER[digest]),), (digest,))

    async def swap(self, new: str, old: str) -> bool:
        """Load, prove, route, unload the one before; or give the device back."""
        await self.load(new)
        if not await self.prove(new):
            await self.plane.unload(new)
            return False
        self.route(new)
        await self.plane.unload(old)
        return True


@asynccontextmanager
async def device(tmp_path: Path) -> AsyncIterator[Device]:
    plane = Plane(ServingSettings(http="", cache=str(tmp_path)))
    await plane.start()
    try:
        yield Device(plane)
    finally:
        await plane.stop()


class Load:
    """Clients that ask one row after another; ``answers`` are (row, winning digit)."""

    def __init__(self, plane: Plane, clients: int = 4) -> None:
        self._plane = plane
        self._pixels = np.load(folder(GOOD) / "heldout.npz")["input.pixels"]
        self._stop = False
        self.answers: list[np.ndarray[Any, Any]] = []
        self.failures: list[BaseException] = []
        self._tasks = [asyncio.create_task(self._ask(client)) for client in range(clients)]

    async def _ask(self, row: int) -> None:
        while not self._stop:
            try:
                found = await self._plane.infer(ENDPOINT, {"pixels": self._pixels[row : row + 1]})
                self.answers.append(found["probabilities"])
            except SkerryError as error:
                self.failures.append(error)
                await asyncio.sleep(0.01)

    async def more(self, count: int = 20) -> None:
        """Until so many more answers came."""
        wanted = len(self.answers) + count
        async with asyncio.timeout(30):
            while len(self.answers) < wanted:
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_PYNQ_DEVICE", "skerry_simulators.fpga.device")


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_versions_swap_under_load_and_no_request_fails(tmp_path: Path) -> None:
    async def body() -> None:
        async with device(tmp_path) as board:
            await board.load(GOOD)
            assert await board.prove(GOOD)
            board.route(GOOD)
            load = Load(board.plane)
            await load.more()
            for new, old in [(BETTER, GOOD), (GOOD, BETTER)] * 3:
                assert await board.swap(new, old)
                await load.more()
            await load.end()
            assert load.failures == []
            assert board.exits == [], "a swap is no crash"

    run(body)


def test_a_version_that_fails_its_proof_gives_the_board_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with device(tmp_path) as board:
            await board.load(GOOD)
            board.route(GOOD)
            load = Load(board.plane)
            await load.more()
            before = load.answers[-1]
            assert not await board.swap(BROKEN, GOOD)
            await load.more()
            await load.end()
            assert load.failures == []
            assert load.answers[-1].shape == before.shape
            one = (await board.plane.infer(ENDPOINT, {"pixels": load._pixels[:1]}))["probabilities"]
            expected = np.load(folder(GOOD) / "golden.npz")["output.probabilities"][:1]
            assert np.allclose(one, expected, atol=1e-6), "the version before answers, not the broken one"

    run(body)


def test_a_version_that_cannot_load_gives_the_board_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with device(tmp_path) as board:
            await board.load(GOOD)
            board.route(GOOD)
            load = Load(board.plane)
            await load.more()
            spoiled = tmp_path / "spoiled"
            spoiled.mkdir()
            for path in folder(BETTER).iterdir():
                (spoiled / path.name).symlink_to(path)
            (spoiled / "digits.bit").unlink()
            (spoiled / "digits.bit").symlink_to(folder(GOOD) / "digits.bit")
            with pytest.raises(SkerryError) as caught:
                await board.load(BETTER, spoiled)
            assert caught.value.code == "board.wrong_bitstream"
            await load.more()
            await load.end()
            assert load.failures == []

    run(body)


def test_traffic_goes_back_if_the_new_version_fails_while_it_serves(tmp_path: Path) -> None:
    """As in a soak: the new one serves, the one before is kept, and takes over again."""

    async def body() -> None:
        async with device(tmp_path) as board:
            await board.load(GOOD)
            board.route(GOOD)
            load = Load(board.plane)
            await load.more()
            await board.load(BETTER)
            board.route(BETTER)
            await load.more()
            board.route(GOOD)  # waits in the queue until the device is free
            await board.plane.unload(BETTER)
            await load.more()
            await load.end()
            assert load.failures == []
            assert board.exits == []

    run(body)


def test_two_modules_do_not_take_the_board_from_each_other(tmp_path: Path) -> None:
    async def body() -> None:
        async with device(tmp_path) as board:
            await board.load(GOOD)
            board.route(GOOD)
            load = Load(board.plane)
            await load.more()
            other = msgspec.structs.replace(read(folder(BETTER)), name="letters")
            with pytest.raises(SkerryError) as caught:
                await board.plane.load(BETTER, folder(BETTER), other, 1, LIMITS)
            assert caught.value.code == "board.busy"
            assert "and digits-fpga 1 serves; take that off the device first" in caught.value.message
            await load.more()
            await load.end()
            assert load.failures == []
            board.plane.set_routes(ENDPOINT, (), ())  # it was taken off, and its worker is about to go
            await board.plane.load(BETTER, folder(BETTER), other, 1, LIMITS)
            await board.plane.unload(GOOD)
            assert await board.prove(BETTER)

    run(body)


def test_a_killed_worker_takes_the_board_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with device(tmp_path) as board:
            facts = await board.load(GOOD)
            board.route(GOOD)
            load = Load(board.plane)
            await load.more()
            os.kill(facts["pid"], signal.SIGKILL)
            await load.more()
            await load.end()
            assert load.failures == []
            assert board.exits == [(GOOD, "signal 9", True)]

    run(body)


def test_a_board_that_hangs_is_named_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with device(tmp_path) as board:
            with pytest.raises(SkerryError) as caught:
                await board.load(GOOD)
            assert caught.value.code == "board.hang"
            assert "did not end within" in caught.value.message

    monkeypatch.setenv("SKERRY_FPGA_FAULTS", "hang")
    run(body)


@given(sizes=st.lists(st.integers(0, 100), max_size=20), sent=st.integers(0, 5), left=st.sets(st.integers(0, 19)))
def test_what_is_handed_over_is_what_waits_and_still_wants_an_answer(
    sizes: list[int], sent: int, left: set[int]
) -> None:
    queue = Dispatch(window=sent, window_bytes=1000, queue_requests=50, queue_bytes=5000, run_limit_s=1.0)
    tickets = [Ticket(number, None, size, 10.0) for number, size in enumerate(sizes)]
    assert all(queue.offer(ticket) for ticket in tickets)
    flying = queue.send(0.0)
    for ticket in tickets:
        ticket.done = ticket.number in left
    taken = queue.take_waiting()
    assert taken == [ticket for ticket in tickets if ticket not in flying and not ticket.done]
    assert list(queue.flying.values()) == flying
    assert queue.take_waiting() == []
    assert queue.offer(Ticket(99, None, 5000, 10.0)), "their bytes are no longer counted"
