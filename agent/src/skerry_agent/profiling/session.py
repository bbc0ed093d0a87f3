"""One profile: workers in turn, what each found, and what follows from it.

Every engine and number of threads gets workers of its own, forked from a zygote as those that serve: one loads with an
empty cache (the first load on a device, with whatever it compiles), one loads again and scores under load. Then the
recommended memory limit is tried: a worker that has just that much must load and score, else the limit is raised.

Workers run at low priority and one at a time. The whole has a deadline: what does not fit before it is left out and
named, and if nothing was measured by then, that is the outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from skerry_agent import engines
from skerry_agent.profiling.orders import Measure, Measured, Timed
from skerry_agent.rules import profile_plan, recommend
from skerry_agent.rules.profile_plan import Wanted, Way
from skerry_agent.serving import frames, orders
from skerry_agent.serving.exits import exit_reason
from skerry_agent.serving.frames import Frame, Kind
from skerry_agent.serving.link import WorkerLink
from skerry_agent.serving.nursery import Nursery
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.measurement import Measurement, ModuleProfile, Setting, Unmeasured

LOG_LINES: Final = 20
ZYGOTE_S: Final = 60.0
CONFIRM_TRIES: Final = 3
NICENESS: Final = 19
"""The lowest priority: what serves goes first."""
_ORDER: Final = 1
Progress = Callable[[float, str], None]
"""(share done, what is being measured)."""


class Subject(msgspec.Struct, kw_only=True):
    """What is measured, for whom, and what it may take. ``room_mb``: of memory, for one worker at a time."""

    folder: Path
    manifest: Manifest
    module: str
    version: int
    digest: str
    device: str
    profile: str
    room_mb: int
    cache: Path | None  # of exclusive engines, whose lock stands there; None: a folder of its own
    scratch: Path | None = None  # where folders of its own are made; None: the system's (memory, on many devices)
    environment: str = ""  # the folder of the one that it runs in; empty: the agent's own
    niceness: int = NICENESS
    affinity: tuple[int, ...] = ()


class Session:
    """One profile; see the module's text."""

    def __init__(self, subject: Subject, wanted: Wanted, deadline_s: float, progress: Progress) -> None:
        self._subject = subject
        self._wanted = wanted
        self._began = time.monotonic()
        self._end = self._began + deadline_s
        self._tell = progress
        self._nurseries: dict[str, Nursery] = {}
        self._measured: list[Measurement] = []
        self._unmeasured: list[Unmeasured] = []
        self._inputs, self._simulated = "", False

    async def run(self) -> ModuleProfile:
        """Measure.

        Raises:
            SkerryError: ``unschedulable.memory`` before anything is started; ``measure.failed`` where no setting gave
                numbers, with the first one's reason; ``command.deadline``.
        """
        ways = profile_plan.ways(self._subject.manifest, self._wanted, engines.available(), self._cores())
        self._check_room()
        try:
            for number, way in enumerate(ways):
                self._tell(number / (len(ways) + 1), f"{way.engine}, {way.threads} threads")
                await self._way(way)
            self._tell(len(ways) / (len(ways) + 1), "memory")
            return await self._conclude(ways)
        finally:
            for nursery in self._nurseries.values():
                nursery.close()

    def _cores(self) -> int:
        return len(self._subject.affinity) or len(os.sched_getaffinity(0))

    def _check_room(self) -> None:
        need, room = self._subject.manifest.resources.memory_mb, self._subject.room_mb
        if need > room:
            raise ResourceError(
                "unschedulable.memory",
                f"cannot profile {self._subject.module} here: needs {need} MB, the device leaves {room} MB; "
                "take another module off the device, or profile on one with more memory",
            )

    # -- one engine with one number of threads

    async def _way(self, way: Way) -> None:
        settings = [Setting(engine=way.engine, threads=way.threads, batch=batch) for batch in way.batches]
        left = self._end - time.monotonic()
        if left < self._wanted.seconds:
            self._skip(settings, "command.deadline", "cannot measure it: the time ran out; allow more")
            return
        exclusive = engines.get(way.engine).exclusive
        with self._cache(exclusive) as cache:
            try:
                async with asyncio.timeout(left):
                    await self._fill(way, cache)
            except TimeoutError:
                self._skip(settings, "command.deadline", "cannot measure it: the time ran out; allow more")
            except SkerryError as error:
                self._skip(settings, error.code, error.message)

    async def _fill(self, way: Way, cache: Path) -> None:
        """First and second load, and every batch. A batch that ends its worker is named, and the smaller ones stand."""
        room = self._subject.room_mb
        first = await self._measure(way, cache, (way.batches[0],), 0.0, room)
        batches = way.batches
        lost: list[Unmeasured] = []
        while True:
            try:
                found = await self._measure(way, cache, batches, self._wanted.seconds, room)
                break
            except SkerryError as error:
                if error.code != "measure.failed" or len(batches) == 1:
                    raise
                setting = Setting(engine=way.engine, threads=way.threads, batch=batches[-1])
                lost.append(Unmeasured(setting=setting, code=error.code, message=error.message[:500]))
                batches = batches[:-1]
        self._inputs, self._simulated = found.inputs, self._simulated or found.simulated
        self._measured += [_measurement(way, one, first, found) for one in found.timed]
        self._unmeasured += lost
        for refused in found.refused:
            setting = Setting(engine=way.engine, threads=way.threads, batch=refused.batch)
            self._skip([setting], refused.code, refused.message)

    def _skip(self, settings: list[Setting], code: str, message: str) -> None:
        self._unmeasured += [Unmeasured(setting=one, code=code, message=message[:500]) for one in settings]

    async def _measure(
        self, way: Way, cache: Path, batches: tuple[int, ...], seconds: float, memory_mb: int
    ) -> Measured:
        """One worker from its start to its end.

        Raises:
            SkerryError: the engine or module does not load; ``measure.failed``: the worker ended.
        """
        subject = self._subject
        order = Measure(
            folder=str(subject.folder),
            manifest=profile_plan.variant(subject.manifest, way.engine, way.threads),
            cache=str(cache),
            batches=batches,
            seconds=seconds,
        )
        zygote = engines.zygote_of(order.manifest)
        if zygote not in self._nurseries:
            self._nurseries[zygote] = Nursery(zygote, ZYGOTE_S, environment=subject.environment)
        nursery = self._nurseries[zygote]
        spawn = orders.Spawn(serial=0, data_mb=memory_mb, niceness=subject.niceness, affinity=subject.affinity)
        async with _worker(nursery, spawn, subject.module) as (link, answer):
            body = msgspec.msgpack.encode(order)
            link.send(frames.pack(Kind.MEASURE, _ORDER, size=len(body)), body)
            return msgspec.msgpack.decode(await answer, type=Measured)

    # -- what follows

    async def _conclude(self, ways: list[Way]) -> ModuleProfile:
        subject, wishes = (
            self._subject,
            recommend.Wishes(tolerance=self._wanted.tolerance, latency_ms=self._wanted.latency_ms),
        )
        best = recommend.recommend(self._measured, wishes, prefer=subject.manifest.engine)
        if best is None:
            raise self._failure()
        chosen = Way(
            engine=best.setting.engine,
            threads=best.setting.threads,
            batches=tuple(one.setting.batch for one in self._of(best.setting.engine, best.setting.threads)),
            own=False,
        )
        memory, confirmed = await self._confirm(chosen, best.memory_mb)
        reasons = best.reasons
        if memory != best.memory_mb:
            reasons += (f"memory: a worker with {best.memory_mb} MB did not get by; {memory} MB",)
        best = msgspec.structs.replace(best, memory_mb=memory, confirmed=confirmed, reasons=reasons)
        return ModuleProfile(
            module=subject.module,
            version=subject.version,
            digest=subject.digest,
            device=subject.device,
            profile=subject.profile,
            machine=machine(),
            cores=os.cpu_count() or 1,
            at=int(time.time() * 1000),
            took_s=round(time.monotonic() - self._began, 3),
            niceness=subject.niceness,
            inputs=self._inputs,
            simulated=self._simulated,
            memory_mb=await self._own_memory(ways, wishes, chosen, memory),
            measurements=tuple(self._measured),
            unmeasured=tuple(self._unmeasured),
            recommendation=best,
        )

    async def _own_memory(self, ways: list[Way], wishes: recommend.Wishes, chosen: Way, memory: int) -> int:
        """What the module needs as its manifest stands, for requests of as many rows as were measured."""
        own = next(way for way in ways if way.own)
        if (own.engine, own.threads) == (chosen.engine, chosen.threads):
            return memory
        mine = self._of(own.engine, own.threads)
        wanted = recommend.memory_limit(mine, wishes)
        if not wanted:  # it could not be measured: what it declares stands
            return self._subject.manifest.resources.memory_mb
        batches = tuple(one.setting.batch for one in mine)
        tried, _ = await self._confirm(msgspec.structs.replace(own, batches=batches), wanted)
        return tried

    def _of(self, engine: str, threads: int) -> list[Measurement]:
        return [one for one in self._measured if (one.setting.engine, one.setting.threads) == (engine, threads)]

    async def _confirm(self, way: Way, memory_mb: int) -> tuple[int, bool]:
        """(a limit that a worker got by with, whether that was seen): it loads from nothing and scores."""
        exclusive = engines.get(way.engine).exclusive
        for _ in range(CONFIRM_TRIES):
            left = self._end - time.monotonic()
            with self._cache(exclusive) as cache:
                try:
                    async with asyncio.timeout(left):
                        found = await self._measure(way, cache, way.batches, 0.0, memory_mb)
                    if not found.refused:
                        return memory_mb, True
                except TimeoutError:
                    return memory_mb, False
                except SkerryError:
                    pass
            memory_mb = recommend.raised(memory_mb)
        return memory_mb, False

    @contextlib.contextmanager
    def _cache(self, shared: bool) -> Iterator[Path]:
        """An empty folder for what an engine compiles, or the shared one."""
        if shared and self._subject.cache is not None:
            yield self._subject.cache
            return
        folder = Path(tempfile.mkdtemp(prefix="skerry-profile-", dir=self._subject.scratch))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _failure(self) -> SkerryError:
        codes = {one.code for one in self._unmeasured}
        if codes == {"command.deadline"}:
            return ResourceError(
                "command.deadline",
                f"cannot profile {self._subject.module}: no setting was measured within the deadline; allow more time",
            )
        bad = next((one.golden for one in self._measured), "")
        why = self._unmeasured[0].message if self._unmeasured else f"its golden test {bad}"
        return PeerError("measure.failed", f"cannot profile {self._subject.module}: {why}"[:500])


@contextlib.asynccontextmanager
async def _worker(
    nursery: Nursery, spawn: orders.Spawn, name: str
) -> AsyncIterator[tuple[WorkerLink, asyncio.Future[bytes]]]:
    """A worker, and the answer that it will give; it is killed on the way out."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_frame(_link: WorkerLink, frame: Frame) -> None:
        if frame.kind != Kind.ANSWER or answer.done():
            return
        if frame.status == 200:
            answer.set_result(frame.body)
            return
        try:
            orders.raise_failure(frame.body)
        except SkerryError as error:
            answer.set_exception(error)

    def on_exit(link: WorkerLink, status: int) -> None:
        link.close_log()
        if answer.done():
            return
        reason = exit_reason(status)
        words = f"; its last words: {link.tail[-1]}" if link.tail else ""
        if reason == "memory":
            words = f"; it had {spawn.data_mb} MB"
        answer.set_exception(PeerError("measure.failed", f"cannot measure {name}: its worker ended ({reason}){words}"))

    link = await WorkerLink.open(
        nursery,
        spawn,
        f"{name}/profile",
        LOG_LINES,
        on_frame=on_frame,
        on_lost=lambda _link: None,  # its end is told by the zygote
        on_exit=on_exit,
    )
    try:
        yield link, answer
    finally:
        nursery.kill(link.serial)
        link.close()
        answer.cancel()


def _measurement(way: Way, one: Timed, first: Measured, found: Measured) -> Measurement:
    return Measurement(
        setting=Setting(engine=way.engine, threads=way.threads, batch=one.batch),
        engine_version=found.engine_version,
        runs=one.runs,
        rounds=one.rounds,
        p50_us=one.p50_us,
        p90_us=one.p90_us,
        p99_us=one.p99_us,
        p99_low_us=one.p99_low_us,
        max_us=one.max_us,
        spread=one.spread,
        rows_per_s=one.rows_per_s,
        cpu_percent=one.cpu_percent,
        cpu_us_per_row=one.cpu_us_per_row,
        others_percent=one.others_percent,
        first_load_ms=first.load_ms,
        load_ms=found.load_ms,
        peak_mb=one.peak_mb,
        steady_mb=one.steady_mb,
        limit_mb=max(one.limit_mb, first.limit_mb),
        golden=found.golden,
    )


def machine() -> str:
    """The processor's name, for people."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.partition(":")[2].strip()[:200]
    return platform.machine()


def free_mb() -> int:
    """MB that the machine could give now."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 1_000_000
    return 0
