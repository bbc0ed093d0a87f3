"""Parts in hand on a device: the room that they take, and how they end. The disk is real; of the way to the hub the
test decides when something arrives."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.disk import Disk
from skerry_agent.jobs.command import PartScorer
from skerry_agent.jobs.folders import RESULT, Folders
from skerry_agent.settings import Batch
from skerry_modules.batches import PartOrder
from skerry_modules.errors import InputError, ResourceError, SkerryError
from skerry_modules.messages import Command

SIZE = 600_000


def order(part: int, *, job: int = 7, content: str = "", size: int = SIZE) -> PartOrder:
    digest = hashlib.sha256((content or str(part)).encode()).hexdigest()
    return PartOrder(job=job, part=part, module="m", version=1, kind="table", input=digest, size=size)


def command(part: PartOrder) -> Command:
    return Command(id=f"c{part.part}", name="batch", arguments=msgspec.to_builtins(part), deadline_s=60)


class Way:
    """To the hub and back: what is fetched comes at once, what is sent has arrived when the test says so."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.came_up = asyncio.Event()
        self.on_unwanted: Callable[[int, int], None] = lambda job, part: None
        self.fetched: list[str] = []
        self.sending: list[int] = []
        self.asked: list[tuple[int, int]] = []
        self.arrived = asyncio.Semaphore(0)

    async def fetch(self, digest: str, size: int, _tell: Callable[[float], None]) -> Path:
        self.fetched.append(digest)
        (self.disk.objects / digest).write_bytes(bytes(size))
        return self.disk.objects / digest

    async def send(self, part: PartOrder, path: Path, _tell: Callable[[float], None]) -> None:
        assert path.is_file()
        self.sending.append(part.part)
        await self.arrived.acquire()

    def ask(self, job: int, part: int) -> None:
        self.asked.append((job, part))


class Desk:
    """A scorer of parts that have been scored already: what is left is their room and their way."""

    def __init__(self, folder: Path, budget_mb: int = 1) -> None:
        disk = Disk(folder, reserve_mb=0, sync_chunks=1)
        self.folders = Folders(disk, budget_mb=budget_mb, spare_mb=0)
        self.way = Way(disk)
        self.told: list[str] = []
        self.scorer = PartScorer(
            [folder / "inputs"],
            Batch(budget_mb=budget_mb),
            self.folders,
            self.way,  # type: ignore[arg-type]
            address=lambda: "",
            connected=lambda: True,
            on_disk=_at_once,
        )

    def scored(self, part: PartOrder) -> None:
        """An earlier run came to the end of a part; its input stands there too."""
        (self.folders.begin(part) / RESULT).write_bytes(b"rows")
        (self.way.disk.objects / part.input).write_bytes(bytes(part.size))

    def begin(self, part: PartOrder) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.scorer(command(part), lambda _share, text: self.told.append(text)))

    def objects(self) -> set[str]:
        return {path.name for path in self.way.disk.objects.iterdir()}


async def _at_once(work: Callable[[], Any]) -> Any:
    return work()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_a_part_for_which_there_is_no_room_waits_for_the_one_before_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        first, second = order(0), order(1)
        desk.scored(first)
        before = desk.begin(first)
        await settle()
        after = desk.begin(second)
        await settle()
        assert desk.way.sending == [0]
        assert desk.way.fetched == [], "600 KB and 600 KB are more than 1 MB"
        assert desk.told[-1] == "waiting: for room"
        desk.way.arrived.release()
        await settle()
        assert before.result() == {}
        assert desk.way.fetched == [second.input], "there is room now"
        assert desk.objects() == {second.input}
        with pytest.raises(ResourceError, match="the agent serves nowhere"):
            await after
        assert desk.folders.held() == [(7, 1)], "it goes on from there"

    run(scenario())


def test_a_part_that_never_fits_is_refused_and_takes_no_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        with pytest.raises(ResourceError, match=r"cannot take a part of 1\.2 MB: .* raise batch\.budget_mb"):
            await desk.begin(order(0, size=1_200_000))
        assert desk.folders.held() == []

    run(scenario())


def test_what_the_hub_does_not_want_any_more_goes_whether_it_is_in_hand_or_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, budget_mb=10)
        parts = [order(number) for number in range(3)]
        for part in parts:
            desk.scored(part)
        going = [desk.begin(part) for part in parts[:2]]
        await settle()
        with pytest.raises(ResourceError, match="it is in hand here already"):
            await desk.begin(parts[0])
        looking = asyncio.ensure_future(desk.scorer.look_after())
        await settle()
        assert desk.way.asked == [(7, 2)], "only about what nobody works on"
        desk.way.came_up.set()
        await settle()
        assert desk.way.asked == [(7, 2)] * 2, "again when the hub comes back"
        desk.way.on_unwanted(7, 1)
        desk.way.on_unwanted(7, 2)
        desk.way.on_unwanted(7, 2)
        await settle()
        with pytest.raises(InputError) as caught:
            await going[1]
        assert caught.value.code == "batch.cancelled"
        assert desk.folders.held() == [(7, 0)]
        assert desk.objects() == {parts[0].input}
        await desk.scorer.stop(Command(id="s", name="batch-stop", arguments={"job": 7}, deadline_s=1), _told_nobody)
        with pytest.raises(SkerryError):
            await going[0]
        assert (desk.folders.held(), desk.objects()) == ([], set())
        looking.cancel()

    run(scenario())


def _told_nobody(_share: float, _text: str) -> None:
    raise AssertionError("nothing is told of a stop")


def test_a_stop_of_one_part_leaves_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path, budget_mb=10)
        for one in (order(0), order(1), order(1, job=8)):
            desk.scored(one)
        stop = Command(id="s", name="batch-stop", arguments={"job": 7, "part": 1}, deadline_s=1)
        await desk.scorer.stop(stop, _told_nobody)
        assert desk.folders.held() == [(7, 0), (8, 1)]

    run(scenario())


CONTENTS = st.sampled_from(("a", "b"))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), CONTENTS), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_an_input_stays_as_long_as_a_part_here_is_scored_from_it(
    tmp_path_factory: pytest.TempPathFactory, begun: list[tuple[int, str]], forgotten: list[int]
) -> None:
    disk = Disk(tmp_path_factory.mktemp("d"), reserve_mb=0, sync_chunks=1)
    folders = Folders(disk, budget_mb=10, spare_mb=0)
    folders.prepare()
    held: dict[int, str] = {}
    for number, content in begun:
        part = order(number, content=content, size=10)
        folders.begin(part)
        (disk.objects / part.input).write_bytes(b"0123456789")
        held[number] = part.input
    for number in forgotten:
        folders.forget((7, number))
        held.pop(number, None)
    folders.prepare()  # as after a start
    assert folders.held() == sorted((7, number) for number in held)
    assert {path.name for path in disk.objects.iterdir()} == set(held.values())
