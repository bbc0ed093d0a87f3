"""The driver's contract: order, saving before doing, one slow effect per digest, outcomes as events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.shell.daemon import module_folder
from skerry_agent.disk import Disk
from skerry_agent.driver import Driver
from skerry_agent.ports import GoldenReport
from skerry_agent.rules import effects as fx
from skerry_agent.statefile import StateFile
from skerry_modules.chunks import CHUNK_BYTES, count
from skerry_modules.compatibility import DeviceFacts
from skerry_modules.errors import PeerError, ResourceError
from skerry_modules.messages import Event, Severity, Want
from skerry_modules.package import build_index, digest_of, index_bytes, read_folder
from skerry_modules.profiles import Limits


class Brain:
    """Answers each event as scripted, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[fx.Event] = []
        self.answer: Callable[[fx.Event], list[fx.Effect]] = lambda _: []
        self.next_deadline: float | None = None

    def handle(self, event: fx.Event, now: float) -> list[fx.Effect]:
        if not isinstance(event, fx.Tick):
            self.heard.append(event)
        return self.answer(event)

    def outcomes(self) -> list[fx.Event]:
        return [event for event in self.heard if isinstance(event, fx.Done | fx.Failed)]


class World:
    """Everything around the driver, written down in one list in the order in which it happened."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.load: Callable[[], Any] = lambda: {"load_ms": 1}
        self.report = GoldenReport(True, 4, 0, 0.1, "")

    # the data plane
    async def _load(self, digest: str, *_: Any) -> Any:
        self.log.append(("load", digest))
        found = self.load()
        return await found if asyncio.iscoroutine(found) else found

    async def golden(self, digest: str, *_: Any) -> GoldenReport:
        return self.report

    async def warm(self, digest: str, *_: Any) -> None:
        self.log.append(("warm", digest))

    async def unload(self, digest: str) -> None:
        self.log.append(("unload", digest))

    def set_routes(self, endpoint: str, routes: Any, digests: Any, *_: Any) -> None:
        if endpoint == "broken":
            raise RuntimeError("a fault of the data plane")
        self.log.append(("routes", endpoint, digests))

    def forget(self, endpoint: str) -> None:
        self.log.append(("forget", endpoint))

    # link and spool
    def subscribe_chunks(self, digest: str) -> None:
        self.log.append(("subscribe", digest))

    def unsubscribe_chunks(self, digest: str) -> None:
        self.log.append(("unsubscribe", digest))

    def send_want(self, want: Want) -> None:
        self.log.append(("want", want.digest))

    def report_state(self, state: bytes) -> None:
        self.log.append(("report", state))

    def emit(self, event: Event) -> None:
        self.log.append(("emit", event.code))

    # telemetry
    def loaded(self, digest: str, module: str, version: int, manifest: Any) -> None:
        self.log.append(("loaded", digest, module, version))

    def unloaded(self, digest: str) -> None: ...

    def routed(self, endpoint: str, digests: Any) -> None: ...


class Rig:
    def __init__(self, folder: Path) -> None:
        self.brain, self.world = Brain(), World()
        self.disk = Disk(folder, reserve_mb=0, sync_chunks=4)
        self.state = StateFile(folder)
        folder.mkdir(exist_ok=True)

    def run(self, scenario: Callable[[Driver], Any]) -> None:
        async def main() -> None:
            with ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(1) as state:
                world: Any = self.world
                plane = type("Plane", (), {"load": world._load, "golden": world.golden, "warm": world.warm})()
                plane.unload, plane.set_routes, plane.forget = world.unload, world.set_routes, world.forget
                outside = type("Outside", (), {"report": staticmethod(world.report_state)})()
                for name in ("subscribe_chunks", "unsubscribe_chunks", "send_want", "emit"):
                    setattr(outside, name, getattr(world, name))
                driver = Driver(
                    self.brain,
                    disk=self.disk,
                    state=self.state,
                    disk_thread=disk,
                    state_thread=state,
                    plane=plane,
                    outside=outside,
                    watcher=world,
                    limits=Limits(memory_mb=100, disk_mb=100),
                    facts=DeviceFacts,
                    backlog=4 * CHUNK_BYTES,
                )
                await driver.boot("b1")
                task = asyncio.create_task(driver.run())
                async with asyncio.timeout(20):
                    await scenario(driver)
                task.cancel()
                await asyncio.wait([task])
                await driver.settle()

        asyncio.run(main())

    async def do(self, driver: Driver, *effects: fx.Effect) -> None:
        """Have the brain ask for ``effects`` once, and wait until they were taken up."""
        asked = fx.Connected()
        self.brain.answer = lambda event: list(effects) if event is asked else []
        heard = len(self.brain.heard)
        driver.post(asked)
        await until(lambda: len(self.brain.heard) > heard)
        await asyncio.sleep(0)

    async def outcome(self, driver: Driver, *effects: fx.Effect) -> Any:
        before = len(self.brain.outcomes())
        await self.do(driver, *effects)
        await until(lambda: len(self.brain.outcomes()) > before)
        return self.brain.outcomes()[-1]

    def hold(self, folder: Path) -> str:
        """Put a module's objects into the store; its digest."""
        self.disk.prepare()
        index, sources = build_index(folder, read_folder(folder))
        blobs = {digest_of(index_bytes(index)): index_bytes(index)}
        blobs |= {sha256: path.read_bytes() for sha256, path in sources.items()}
        for sha256, data in blobs.items():
            for part in range(count(len(data))):
                piece = data[part * CHUNK_BYTES : (part + 1) * CHUNK_BYTES]
                self.disk.store_chunk(sha256, part, len(data), piece)
            self.disk.complete(sha256, len(data))
        return digest_of(index_bytes(index))


async def until(check: Callable[[], object]) -> None:
    while not check():
        await asyncio.sleep(0.002)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "state")


def test_a_save_is_durable_before_the_next_effect(rig: Rig) -> None:
    at_subscribe: list[bytes | None] = []
    rig.world.subscribe_chunks = lambda _: at_subscribe.append(StateFile(rig.disk.objects.parent).load())  # type: ignore[method-assign]

    async def scenario(driver: Driver) -> None:
        await rig.do(driver, fx.Save(b"one"), fx.Subscribe("d"))
        await until(lambda: at_subscribe)

    rig.run(scenario)
    assert at_subscribe == [b"one"]


def test_after_a_failed_save_nothing_of_its_list_is_done_and_the_brain_hears_next(rig: Rig) -> None:
    async def scenario(driver: Driver) -> None:
        loop = asyncio.get_running_loop()

        def refuse(_: bytes) -> None:
            # Comes while the save is under way, and must wait behind its failure.
            loop.call_soon_threadsafe(driver.post, fx.Disconnected())
            raise ResourceError("resource.no_space", "cannot write")

        rig.state.save = refuse  # type: ignore[method-assign]
        told = fx.Emit(Event(severity=Severity.INFO, code="c", message=""))
        await rig.do(driver, fx.Save(b"two"), fx.Subscribe("d"), told)
        await until(lambda: any(isinstance(event, fx.Disconnected) for event in rig.brain.heard))

    rig.run(scenario)
    kinds = [type(event).__name__ for event in rig.brain.heard]
    assert kinds == ["Booted", "Connected", "Failed", "Disconnected"]
    failed = rig.brain.heard[2]
    assert isinstance(failed, fx.Failed)
    assert (failed.effect, failed.code) == ("Save", "resource.no_space")
    assert rig.world.log == []


def test_a_module_from_chunks_to_loaded(rig: Rig, tmp_path: Path) -> None:
    digest = rig.hold(module_folder(tmp_path / "m"))

    async def scenario(driver: Driver) -> None:
        found = await rig.outcome(driver, fx.ReadIndex(digest))
        assert digest_of(found.data["index"]) == digest
        assert isinstance(found.data["facts"], DeviceFacts)
        assert await rig.outcome(driver, fx.Install(digest)) == fx.Done("Install", digest, {})
        loaded = await rig.outcome(driver, fx.Load(digest, 10.0, "double", 7))
        assert loaded.data == {"load_ms": 1}
        assert ("loaded", digest, "double", 7) in rig.world.log
        assert isinstance(await rig.outcome(driver, fx.Golden(digest, 10.0)), fx.Done)
        assert await rig.outcome(driver, fx.Warm(digest, 10.0)) == fx.Done("Warm", digest, {})
        rig.world.report = GoldenReport(False, 4, 4, 1e4, "4 of 4 cases differ")
        failed = await rig.outcome(driver, fx.Golden(digest, 10.0))
        assert (failed.code, failed.message) == ("install.golden_failed", "4 of 4 cases differ")
        await rig.do(driver, fx.Unload(digest), fx.Remove(digest, (digest,)))
        await until(lambda: not rig.disk.folder_of(digest).exists())

    rig.run(scenario)
    assert ("unload", digest) in rig.world.log


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (PeerError("unschedulable.operator", "uses Foo"), "unschedulable.operator"),
        (RuntimeError("boom"), "internal.bug"),
        (None, "install.load_timeout"),
    ],
)
def test_how_loading_fails_is_an_event_with_its_code(
    rig: Rig, tmp_path: Path, fault: Exception | None, code: str
) -> None:
    digest = rig.hold(module_folder(tmp_path / "m"))

    async def hang() -> None:
        if fault:
            raise fault
        await asyncio.sleep(60)

    rig.world.load = hang

    async def scenario(driver: Driver) -> None:
        await rig.outcome(driver, fx.Install(digest))
        failed = await rig.outcome(driver, fx.Load(digest, 0.05))
        assert (failed.effect, failed.digest, failed.code) == ("Load", digest, code)

    rig.run(scenario)


def test_a_missing_object_is_named_so_that_it_is_fetched_again(rig: Rig, tmp_path: Path) -> None:
    digest = rig.hold(module_folder(tmp_path / "m"))
    victim = min(path.name for path in rig.disk.objects.iterdir() if path.name != digest)
    (rig.disk.objects / victim).unlink()

    async def scenario(driver: Driver) -> None:
        failed = await rig.outcome(driver, fx.Install(digest))
        assert (failed.code, failed.data["objects"]) == ("package.digest_mismatch", [victim])
        failed = await rig.outcome(driver, fx.ReadIndex("0" * 64))
        assert (failed.code, failed.data["objects"]) == ("package.digest_mismatch", ["0" * 64])

    rig.run(scenario)


def test_environments_that_could_not_be_judged_go_when_the_index_is_back(rig: Rig, tmp_path: Path) -> None:
    digest = rig.hold(module_folder(tmp_path / "m"))
    index = rig.disk.objects / digest
    whole = index.read_bytes()
    left = rig.disk.folder / "environments" / ("e" * 64)

    async def scenario(driver: Driver) -> None:
        await rig.outcome(driver, fx.Install(digest))
        left.mkdir()
        index.chmod(0o644)
        index.write_bytes(b"torn")
        await rig.do(driver, fx.Remove("0" * 64))
        await driver._on_disk(lambda: None)
        assert left.is_dir()  # the version might need it
        assert index.read_bytes() == b"torn"  # only looked at: whoever uses it deletes it and has it fetched again
        index.write_bytes(whole)
        await rig.outcome(driver, fx.Install(digest))
        assert not left.exists()

    rig.run(scenario)


def test_unload_ends_what_runs_and_its_outcome_never_comes(rig: Rig, tmp_path: Path) -> None:
    digest = rig.hold(module_folder(tmp_path / "m"))
    ended: list[str] = []

    async def slow() -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")
        return {}

    rig.world.load = slow

    async def scenario(driver: Driver) -> None:
        await rig.outcome(driver, fx.Install(digest))
        await rig.do(driver, fx.Load(digest, 30.0))
        await until(lambda: ("load", digest) in rig.world.log)
        outcomes = len(rig.brain.outcomes())
        await rig.do(driver, fx.Unload(digest))
        await until(lambda: ended)
        await asyncio.sleep(0.02)
        assert len(rig.brain.outcomes()) == outcomes

    rig.run(scenario)


def test_slow_effects_of_one_digest_follow_each_other(rig: Rig, tmp_path: Path) -> None:
    digest = rig.hold(module_folder(tmp_path / "m"))
    running, most = 0, 0

    async def slow() -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return {}

    rig.world.load = slow

    async def scenario(driver: Driver) -> None:
        await rig.outcome(driver, fx.Install(digest))
        outcomes = len(rig.brain.outcomes())
        await rig.do(driver, *(fx.Load(digest, 30.0) for _ in range(4)))
        await until(lambda: len(rig.brain.outcomes()) == outcomes + 4)

    rig.run(scenario)
    assert most == 1


def test_chunks_are_stored_in_order_silently_and_failures_are_told(rig: Rig) -> None:
    import hashlib

    data = bytes(CHUNK_BYTES) + b"end"
    digest = hashlib.sha256(data).hexdigest()

    async def scenario(driver: Driver) -> None:
        done = await rig.outcome(
            driver,
            fx.StoreChunk(digest, 0, len(data), data[:CHUNK_BYTES]),
            fx.StoreChunk(digest, 1, len(data), b"end"),
            fx.CompleteObject(digest, len(data)),
        )
        assert done == fx.Done("CompleteObject", digest, {})
        failed = await rig.outcome(driver, fx.StoreChunk("1" * 64, 0, 10, b"too short"))
        assert (failed.effect, failed.code) == ("StoreChunk", "message.malformed")
        assert len(rig.brain.outcomes()) == 2

    rig.run(scenario)


def test_chunks_beyond_the_backlog_are_dropped_not_piled_up(rig: Rig) -> None:
    async def scenario(driver: Driver) -> None:
        for part in range(10):
            driver.post(fx.ChunkArrived("0" * 64, part, bytes(CHUNK_BYTES)))
        assert driver.chunks_dropped == 6
        await until(lambda: sum(isinstance(event, fx.ChunkArrived) for event in rig.brain.heard) == 4)
        driver.post(fx.ChunkArrived("0" * 64, 10, bytes(CHUNK_BYTES)))
        await until(lambda: sum(isinstance(event, fx.ChunkArrived) for event in rig.brain.heard) == 5)

    rig.run(scenario)


def test_an_effect_that_breaks_is_told_and_the_rest_goes_on(rig: Rig) -> None:
    async def scenario(driver: Driver) -> None:
        await rig.do(driver, fx.SetRoutes("broken", (), ()), fx.SetRoutes("fine", (), ()))
        await until(lambda: ("routes", "fine", ()) in rig.world.log)

    rig.run(scenario)
    assert ("emit", "internal.bug") in rig.world.log
