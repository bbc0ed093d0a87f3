"""Performs what the brain asks for, over the real disk, workers and link, and tells it how each thing ended.

One task takes events in order, hands each to the brain, and performs the effects that come back:

* ``Save`` is awaited, so that nothing that follows from a decision happens before the decision is durable. When it
  fails, the rest of its list is not performed and the brain hears of it next.
* Slow effects run in the background, at most one per digest; ``Unload`` and ``Remove`` end what runs for theirs.
* Everything that touches the disk's store runs in one thread, in order; scoring never waits for it.

It decides nothing: which step comes next, what to retry and what to report is the brain's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from typing import Any, Final, Protocol

from skerry_agent import environments
from skerry_agent.disk import Disk
from skerry_agent.ports import DataPlane
from skerry_agent.rules import effects as fx
from skerry_agent.spool import wall_ms
from skerry_agent.statefile import StateFile
from skerry_modules.compatibility import DeviceFacts, with_memory
from skerry_modules.errors import ResourceError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Event, Severity, Want
from skerry_modules.profiles import Limits

log = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_LATE: Final = {
    "Load": ("install.load_timeout", "the model did not load within {:g} s (resources.load_timeout_s)"),
    "Golden": ("install.golden_timeout", "its golden test did not end within {:g} s"),
    "Warm": ("install.warm_failed", "its warm-up did not end within {:g} s"),
}


class Brain(Protocol):
    """What the driver needs of :class:`skerry_agent.rules.brain.Brain`."""

    def handle(self, event: fx.Event, now: float) -> list[fx.Effect]: ...

    @property
    def next_deadline(self) -> float | None: ...


class Outside(Protocol):
    """What the driver sends over the link or into the spool; :mod:`skerry_agent.app` wires it."""

    def subscribe_chunks(self, digest: str) -> None: ...

    def unsubscribe_chunks(self, digest: str) -> None: ...

    def send_want(self, want: Want) -> None: ...

    def report(self, state: bytes) -> None: ...

    def emit(self, event: Any) -> None: ...


class Loaded(Protocol):
    """Told which versions are loaded and routed, so that telemetry knows their names."""

    def loaded(self, digest: str, module: str, version: int, manifest: Manifest) -> None: ...

    def unloaded(self, digest: str) -> None: ...

    def routed(self, endpoint: str, digests: tuple[str, ...]) -> None: ...


class Driver:
    """See the module's text.

    Args:
        brain: the rules.
        disk, state: the store and the saved state.
        disk_thread, state_thread: executors of exactly one thread each.
        plane: what scores.
        outside: link and spool.
        watcher: told what is loaded.
        limits: what modules may take, from the profile.
        facts: describes the device; called in the disk's thread.
        backlog: bytes of chunks that may wait for the disk.
        after: called after the brain has taken in an event, before its effects.
    """

    def __init__(
        self,
        brain: Brain,
        *,
        disk: Disk,
        state: StateFile,
        disk_thread: Executor,
        state_thread: Executor,
        plane: DataPlane,
        outside: Outside,
        watcher: Loaded,
        limits: Limits,
        facts: Callable[[], DeviceFacts],
        backlog: int,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._brain = brain
        self._disk = disk
        self._state = state
        self._disk_thread = disk_thread
        self._state_thread = state_thread
        self._plane = plane
        self._outside = outside
        self._watcher = watcher
        self._limits = limits
        self._facts = facts
        self._backlog = backlog
        self._after = after
        self._environments = environments.Environments(disk.folder, disk.objects)
        self._queue: deque[fx.Event] = deque()
        self._ready = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._manifests: dict[str, Manifest] = {}
        self._waiting_bytes = 0
        self._saved: bytes | None = None
        self._wanted: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self.chunks_dropped = 0
        self.fell_back = False  # whether the newest saved state was damaged
        self.handled = 0

    # -- events ------------------------------------------------------------------------------------------------------

    def post(self, event: fx.Event) -> None:
        """Queue an event for the brain; from the event loop's thread."""
        if isinstance(event, fx.ChunkArrived):
            if self._waiting_bytes + len(event.payload) > self._backlog:
                self.chunks_dropped += 1  # the disk is behind; the chunk is asked for again
                return
            self._waiting_bytes += len(event.payload)
        self._queue.append(event)
        self._ready.set()

    def _post_from_thread(self, event: fx.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has the agent
            self._loop.call_soon_threadsafe(self.post, event)

    async def boot(self, boot: str) -> None:
        """Look at the disk and give the brain its first event."""
        held = await self._on_disk(self._disk.prepare)
        await self._on_disk(self._environments.prepare)
        await self._on_disk(self._environments.collect, self._disk.environments_needed)
        self._saved = saved = await self._loop.run_in_executor(self._state_thread, self._state.load)
        self.fell_back = self._state.fell_back
        await self._handle(
            fx.Booted(boot, saved, held.complete, wall_ms(), partial=held.partial, installed=held.installed)
        )

    async def run(self) -> None:
        """Until cancelled."""
        next_tick = time.monotonic() + _TICK_S
        while True:
            now = time.monotonic()
            deadline = self._brain.next_deadline
            due = min(next_tick, deadline) if deadline is not None else next_tick
            if self._queue:
                event = self._queue.popleft()
                if isinstance(event, fx.ChunkArrived):
                    self._waiting_bytes -= len(event.payload)
                await self._handle(event)
            elif now >= due:
                next_tick = now + _TICK_S
                await self._handle(fx.Tick(wall_ms()))
            else:
                self._ready.clear()
                # Not wait_for: before Python 3.12 it may swallow a cancellation that meets the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due - now):
                        await self._ready.wait()
                continue
            await asyncio.sleep(0)  # a burst of chunks must not starve the requests that share this loop

    async def _handle(self, event: fx.Event) -> None:
        self.handled += 1
        effects = self._brain.handle(event, time.monotonic())
        self._after()
        await self._perform(effects)

    # -- effects -----------------------------------------------------------------------------------------------------

    async def _perform(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Save):
                error = await self._save(effect.state)
                if error:
                    self._queue.appendleft(fx.Failed("Save", "", error.code, error.message))
                    return
                continue
            try:
                self._start(effect)
            except Exception as error:
                log.exception("%s broke", type(effect).__name__)
                text = f"cannot perform {type(effect).__name__}: {type(error).__name__}: {error}; see the agent's log"
                self._outside.emit(Event(severity=Severity.ERROR, code="internal.bug", message=text))

    async def _save(self, state: bytes) -> SkerryError | None:
        if state == self._saved:
            return None
        try:
            await self._loop.run_in_executor(self._state_thread, self._state.save, state)
        except SkerryError as error:
            return error
        self._saved = state
        return None

    def _start(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Subscribe(digest):
                self._wanted.add(digest)
                self._outside.subscribe_chunks(digest)
            case fx.Unsubscribe(digest):
                self._wanted.discard(digest)
                self._outside.unsubscribe_chunks(digest)
            case fx.SendWant(digest, size, bitmap):
                self._outside.send_want(Want(digest=digest, size=size, bitmap=bitmap, alone=True))
            case fx.StoreChunk():
                self._store(effect)
            case fx.CompleteObject(digest, size):
                self._background(effect, digest, lambda: self._complete(digest, size))
            case fx.ListParts(digest, size):
                self._background(effect, digest, lambda: self._list_parts(digest, size))
            case fx.ReadIndex(digest):
                self._background(effect, digest, lambda: self._on_disk(self._read_index, digest))
            case fx.Install(digest):
                self._background(effect, digest, lambda: self._install(digest))
            case fx.Load():
                self._background(effect, effect.digest, lambda: self._load(effect), effect.timeout_s)
            case fx.Golden(digest, timeout_s):
                self._background(effect, digest, lambda: self._golden(digest), timeout_s)
            case fx.Warm(digest, timeout_s):
                self._background(effect, digest, lambda: self._warm(digest), timeout_s)
            case fx.SetRoutes(endpoint, routes, digests):
                self._plane.set_routes(endpoint, routes, digests, effect.shadow, effect.shadow_digests)
                if effect.gone:
                    self._plane.forget(endpoint)
                self._watcher.routed(endpoint, digests)
            case fx.Unload(digest):
                self._unload(digest)
            case fx.Remove(digest, objects):
                self._remove(digest, objects)
            case fx.Report(state):
                self._outside.report(state)
            case fx.Emit(event):
                self._outside.emit(event)
            case _:
                raise AssertionError(f"an effect nobody performs: {effect}")

    # -- in the background -------------------------------------------------------------------------------------------

    def _background(
        self, effect: Any, digest: str, work: Callable[[], Awaitable[dict[str, Any]]], timeout_s: float | None = None
    ) -> None:
        before = self._running.get(digest)
        task = self._loop.create_task(self._outcome(type(effect).__name__, digest, work, timeout_s, before))
        self._running[digest] = task
        task.add_done_callback(lambda done: self._ended(digest, done))

    def _ended(self, digest: str, task: asyncio.Task[None]) -> None:
        if self._running.get(digest) is task:
            del self._running[digest]

    async def _outcome(
        self,
        name: str,
        digest: str,
        work: Callable[[], Awaitable[dict[str, Any]]],
        timeout_s: float | None,
        before: asyncio.Task[None] | None,
    ) -> None:
        """Run one slow effect, after the one before for the same digest, and post how it ended."""
        if before:
            await asyncio.wait([before])
        try:
            async with asyncio.timeout(timeout_s):
                data = await work()
        except SkerryError as error:
            self.post(fx.Failed(name, digest, error.code, error.message, dict(error.data)))
        except TimeoutError:
            code, text = _LATE.get(name, ("internal.bug", f"{name} did not end within {{:g}} s"))
            self.post(fx.Failed(name, digest, code, f"cannot go on: {text.format(timeout_s)}"))
        except Exception as error:
            log.exception("%s of %s broke", name, digest[:12])
            self.post(fx.Failed(name, digest, "internal.bug", f"cannot finish {name}: {type(error).__name__}: {error}"))
        else:
            self.post(fx.Done(name, digest, data))

    def _cancel(self, digest: str) -> None:
        if task := self._running.pop(digest, None):
            task.cancel()

    async def _on_disk(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._disk_thread, function, *arguments)

    # -- the store ---------------------------------------------------------------------------------------------------

    def _store(self, effect: fx.StoreChunk) -> None:
        """Quick, frequent, and silent unless it fails."""
        size = len(effect.data)
        self._waiting_bytes += size
        work = self._disk_thread.submit(self._disk.store_chunk, effect.digest, effect.part, effect.size, effect.data)
        work.add_done_callback(lambda done: self._stored(effect.digest, size, done))

    def _stored(self, digest: str, size: int, done: Future[None]) -> None:
        """In the disk's thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._drained, size)
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, SkerryError):
            self._post_from_thread(fx.Failed("StoreChunk", digest, error.code, error.message))
        elif error:
            log.error("storing a chunk of %s broke", digest[:12], exc_info=error)
            self._post_from_thread(fx.Failed("StoreChunk", digest, "internal.bug", f"cannot store a chunk: {error}"))

    def _drained(self, size: int) -> None:
        self._waiting_bytes -= size

    async def _list_parts(self, digest: str, size: int) -> dict[str, Any]:
        try:
            return {"parts": await self._on_disk(self._disk.parts, digest, size)}
        except ResourceError:
            # Before giving up for want of space: downloads that nobody waits for any more may go.
            if not await self._on_disk(self._disk.drop_partials, self._wanted | {digest}):
                raise
            return {"parts": await self._on_disk(self._disk.parts, digest, size)}

    async def _complete(self, digest: str, size: int) -> dict[str, Any]:
        await self._on_disk(self._disk.complete, digest, size)
        return {}

    def _read_index(self, digest: str) -> dict[str, Any]:
        from skerry_modules.index import DEFAULT_LIMITS

        index = self._disk.read_object(digest, DEFAULT_LIMITS.max_index_bytes)
        built = sorted(self._environments.present())
        return {
            "index": index,
            "free_disk_mb": self._disk.free_mb(),
            "facts": self._facts(),
            "environments": built,
        }

    async def _install(self, digest: str) -> dict[str, Any]:
        index = await self._on_disk(self._disk.index, digest)
        await self._on_disk(self._disk.install, digest, index)
        # While this index was damaged or gone nothing could be collected; and a build may need the room.
        await self._on_disk(self._environments.collect, self._disk.environments_needed)
        target = await self._on_disk(lambda: environments.target_for(index, self._facts()))
        if target is None or index.facts.environment is None:
            return {}
        return await self._environments.build(index.facts.environment, target)

    # -- the data plane ----------------------------------------------------------------------------------------------

    async def _load(self, effect: fx.Load) -> dict[str, Any]:
        digest = effect.digest
        index = await self._on_disk(self._disk.index, digest)
        # The declared memory is the author's word for the most; it gives way only to a need that is known to be more.
        most = max(index.manifest.resources.memory_mb, effect.memory_mb)
        manifest = self._manifests[digest] = with_memory(index.manifest, most)
        folder = self._disk.folder_of(digest)
        lock = index.facts.environment
        options = {"environment": str(self._environments.path(lock))} if lock is not None else {}
        facts = await self._plane.load(digest, folder, manifest, effect.version, self._limits, **options)
        self._watcher.loaded(digest, effect.module or manifest.name, effect.version, manifest)
        return facts

    async def _golden(self, digest: str) -> dict[str, Any]:
        from skerry_modules.errors import PeerError

        report = await self._plane.golden(digest, self._disk.folder_of(digest), self._manifest(digest))
        facts = {"cases": report.cases, "failed": report.failed, "worst": report.worst}
        if not report.passed:
            raise PeerError("install.golden_failed", report.message, **facts)
        return facts

    async def _warm(self, digest: str) -> dict[str, Any]:
        await self._plane.warm(digest, self._manifest(digest))
        return {}

    def _manifest(self, digest: str) -> Manifest:
        return self._manifests[digest]

    def _unload(self, digest: str) -> None:
        self._cancel(digest)
        self._watcher.unloaded(digest)
        self._manifests.pop(digest, None)
        task = self._loop.create_task(self._plane.unload(digest))
        self._unloading.add(task)
        task.add_done_callback(self._unloaded)

    def _unloaded(self, task: asyncio.Task[None]) -> None:
        self._unloading.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("unloading broke", exc_info=error)

    def _remove(self, digest: str, objects: tuple[str, ...]) -> None:
        """Disk work is in order, so what was queued for these before is over when they go."""
        for one in (digest, *objects):
            if one:
                self._cancel(one)
        work = self._disk_thread.submit(self._remove_and_collect, digest, objects)
        work.add_done_callback(_log_failure)

    def _remove_and_collect(self, digest: str, objects: tuple[str, ...]) -> None:
        """In the disk's thread."""
        self._disk.remove(digest, objects)
        if digest:
            self._environments.collect(self._disk.environments_needed)

    async def settle(self) -> None:
        """End all that runs in the background (when the agent stops)."""
        for task in (*self._running.values(), *self._unloading):
            task.cancel()
        await asyncio.gather(*self._running.values(), *self._unloading, return_exceptions=True)
        await self._on_disk(self._disk.close)


def _log_failure(done: Future[Any]) -> None:
    if not done.cancelled() and (error := done.exception()):
        log.error("removing files broke", exc_info=error)
