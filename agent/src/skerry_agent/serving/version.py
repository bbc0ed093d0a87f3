"""One loaded module version: its worker, its queue, and what happens when the worker dies or hangs.

The rules (who is sent, who is blamed, who is late) are in ``rules.dispatch``; this performs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import struct
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_agent.ports import VersionCounters
from skerry_agent.rules.dispatch import Dispatch, Ticket
from skerry_agent.serving import frames, oip, orders
from skerry_agent.serving.alarm import Alarm
from skerry_agent.serving.copies import DROPPED, Copies
from skerry_agent.serving.counters import Counters
from skerry_agent.serving.exits import exit_reason, in_step
from skerry_agent.serving.frames import Frame, Kind
from skerry_agent.serving.item import Events, Item
from skerry_agent.serving.lending import Lender
from skerry_agent.serving.link import WorkerLink
from skerry_agent.serving.nursery import Nursery
from skerry_agent.serving.ordering import CONTROL, Ordering
from skerry_agent.serving.quarantine import TEXT, Quarantine
from skerry_agent.serving.settings import ServingSettings
from skerry_agent.serving.yielding import Recent, Room
from skerry_modules import messages
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.profiles import Limits

log = logging.getLogger(__name__)

_INFER: Final = int(Kind.INFER)
_SHADOW: Final = int(Kind.SHADOW)
_ANSWER: Final = int(Kind.ANSWER)
_PACK: Final = frames.HEAD.pack
_SUSPENDED: Final = "suspended"
RECALL_S: Final = 0.5
"""A worker that is ended at once has so long to give a connection back that it was lent."""


class Version:
    """A module version that is loaded, or being loaded."""

    def __init__(
        self,
        digest: str,
        folder: Path,
        manifest: Manifest,
        number: int,
        limits: Limits,
        *,
        settings: ServingSettings,
        nursery: Nursery,
        events: Events,
        capture_rate: float,
    ) -> None:
        self.digest = digest
        self.folder = folder
        self.manifest = manifest
        self.number = number
        self.ready = False
        self.stopping = False
        self.suspended = False  # its device is lent to another version; requests wait
        self.admitted = False  # was routed once: clients may ask for this version by its number
        self.facts: dict[str, Any] = {}
        self.recent = Recent()
        self.room = Room(self, settings.low_wait_s, settings.low_requests)
        self._settings = settings
        self._limits = limits
        self._nursery = nursery
        self._events = events
        self._capture_rate = capture_rate
        self._dispatch = Dispatch(
            window=settings.window,
            window_bytes=settings.window_bytes,
            queue_requests=settings.queue_requests,
            queue_bytes=settings.queue_bytes,
            run_limit_s=manifest.resources.request_timeout_s,
        )
        self._link: WorkerLink | None = None
        self._orders = Ordering()
        self._next = 1
        self._failures = 0
        self._batch_rows = -1  # rows scored together, as the first worker proved; −1: not known yet
        self._respawning: asyncio.Task[None] | None = None
        self._alarm = Alarm(self._look)
        self._drained: asyncio.Future[None] | None = None
        self._landed: asyncio.Event | None = None  # awaited by a suspend: nothing is with the worker any more
        self._quarantine = Quarantine()
        self._counters = Counters()
        self.copies = Copies(self, settings, self._counters)  # scored in shadow
        self.lender = Lender(self, self._counters)  # of connections, to the worker

    # -- requests

    def submit(self, item: Item, timeout_s: float, *, pinned: bool = False) -> Ticket | None:
        """Queue a request; None: it was refused and answered."""
        timeout = min(timeout_s, self.manifest.resources.request_timeout_s)
        if not self._quarantine.empty and self._quarantine.holds(item.body):
            if not item.low:
                self._counters.refused(item.endpoint, item.shadow)
            item.reply(*Quarantine.answer())
            return None
        ticket = Ticket(self._next, item, len(item.body), item.began + timeout, pinned)
        self._next += 1
        if self.lender.out:
            self.lender.recall()
        link = self._link
        if link is not None and self.ready and self._dispatch.board(ticket, item.began):
            if ticket.deadline < self._alarm.at:
                self._alarm.by(ticket.deadline)
            self._ship(link, ticket, item.began)
            return ticket
        return ticket if self._enqueue(ticket) else None

    def _enqueue(self, ticket: Ticket) -> bool:
        if not self._dispatch.offer(ticket):
            self._counters.rejected(ticket.item.endpoint)
            text = f"cannot score now: {self._settings.queue_requests} requests wait; try again after a second"
            ticket.item.reply(429, "scoring.overloaded", -1, oip.error_body(text))
            return False
        self._alarm.by(ticket.deadline)
        self._pump()
        return True

    @property
    def taken(self) -> int:
        """A number that grows with every request and order."""
        return self._next

    @property
    def worker(self) -> WorkerLink | None:
        return self._link

    @property
    def lends(self) -> bool:
        """Whether its worker may serve a client by itself now: it has proven itself and has nothing else to do."""
        link = self._link
        calm = self.ready and self._dispatch.idle and self.room.empty and not self.copies.aside
        return calm and not self.stopping and self._quarantine.empty and link is not None and link.scored

    def hand_over(self, other: Version) -> None:
        """Let another version answer the requests that wait here, but for those that asked for this very one."""
        for ticket in self._dispatch.take_waiting():
            if ticket.pinned:
                self._dispatch.offer(ticket)
                continue
            ticket.number, ticket.kills = other._next, 0
            other._next += 1
            other._enqueue(ticket)

    def forget(self, ticket: Ticket) -> None:
        """Its client has left: do not score it if that has not begun."""
        self._dispatch.forget(ticket)
        self._tell_idle()

    def _pump(self) -> None:
        link = self._link
        if link is None or not self.ready:
            return
        now = time.monotonic()
        for ticket in self._dispatch.send(now):
            self._ship(link, ticket, now)

    def _ship(self, link: WorkerLink, ticket: Ticket, now: float) -> None:
        """Send what the rules have put among those under way."""
        item, flying = ticket.item, self._dispatch.flying
        name, body = item.endpoint, item.body
        if self.copies.aside != item.shadow:
            if not item.shadow:
                self.copies.answers(link, now)
            elif self._orders.idle:
                self.copies.step_aside(link, now, flying)
        kind = _SHADOW if item.shadow else _INFER
        head = _PACK(len(name) + len(body), kind, ticket.alone, 0, ticket.number, item.json, len(name), 0) + name
        if len(flying) > 1:
            link.send_soon(head, body)
        else:  # a worker that waits gets it at once
            link.send(head, body)

    def _on_frame(self, link: WorkerLink, frame: Frame) -> None:
        if link is not self._link:
            return
        if frame.kind == _ANSWER:
            if frame.number >= CONTROL:
                self._orders.answered(frame)
                return
            link.scored = True
            now = time.monotonic()
            ticket = self._dispatch.answered(frame.number, now)
            if self._dispatch.waiting:
                self._pump()
            if ticket is not None:
                self._finish(ticket, now, frame.status, frame.name.decode(), frame.json, frame.body)
            self._tell_idle()
        elif frame.kind == Kind.SAMPLE:
            self._events.sampled(self.digest, msgspec.msgpack.decode(frame.body, type=messages.Sample))
        elif frame.kind == Kind.COPY:
            self.lender.copied(frame.number, frame.json, frame.body)
        elif frame.kind == Kind.BACK:
            self.lender.back(frame.number, frame.body)
            self._tell_idle()
        elif frame.kind == Kind.OBSERVED:
            found = msgspec.msgpack.decode(frame.body, type=orders.Observed)
            self._counters.observed(found)
            for code, text in found.failures.items():
                self._events.noticed(self.digest, code, text)

    def _finish(  # noqa: PLR0917
        self, ticket: Ticket, now: float, status: int, code: str, json: int, body: bytes
    ) -> None:
        ticket.done = True
        item = ticket.item
        item.reply(status, code, json, body)  # before all else: its client waits
        if not item.low and not (item.shadow and status in DROPPED):
            seconds = now - item.began
            self._counters.add(item.endpoint, item.shadow, seconds, status >= 500)
            if not item.shadow:
                self.recent.add(now, seconds)
        if status == 200 and item.after is not None:
            item.after(json, body)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being scored."""
        return self._dispatch.idle and not self.lender.out

    @property
    def traffic(self) -> tuple[int, int]:
        """(requests, errors) since the counters were taken."""
        self.lender.collect()
        return self._counters.traffic

    def take_counters(self) -> VersionCounters:
        self.lender.collect()
        return self._counters.take()

    # -- deadlines

    def _look(self) -> None:
        """Answer what is late, kill what hangs. One timer per version: it costs a request nothing."""
        now = time.monotonic()
        late = self._dispatch.expired(now)
        for ticket in late:
            seconds = now - ticket.item.began
            text = f"cannot score within the deadline: {seconds:.3g} s have passed; ask less, or allow more time"
            self._finish(ticket, now, 503, "scoring.deadline", -1, oip.error_body(text))
        if self._dispatch.hangs(now) and (self.ready or self.suspended):
            if self.copies.spare(self._link, next(iter(self._dispatch.flying))):
                self._dispatch.head_since = now
            else:
                self.kill("hang")
        when = self._dispatch.next_look()
        if when is not None:
            self._alarm.by(max(when, now + 0.005))
        self._tell_idle()

    def _tell_idle(self) -> None:
        """Wake those who wait for the worker or the queue to be empty."""
        if self.room.waiting:
            self.room.look()
        if self._landed is not None and not self._dispatch.flying:
            self._landed.set()
        if self._drained is not None and self._dispatch.idle and not self._drained.done():
            self._drained.set_result(None)

    def kill(self, reason: str) -> None:
        """End the worker at once; it is started again unless the version stops."""
        if self._link is not None and not self._link.killed_for:
            self._link.killed_for = reason
            self._nursery.kill(self._link.serial, signal.SIGKILL)

    # -- the worker's life

    async def start(self) -> dict[str, Any]:
        """Start the worker and load the model.

        Returns:
            Facts: ``load_ms``, ``memory`` (private bytes), ``pid``, ``engine`` (version).

        Raises:
            SkerryError: ``install.load_failed``, ``install.load_timeout``, ``unschedulable.operator``,
                ``unschedulable.engine``.
        """
        limit = self.manifest.resources.load_timeout_s
        await self._nursery.ready()  # the engine's own start has a time of its own: the module is not to blame for it
        try:
            async with asyncio.timeout(limit):
                self.facts = await self._bring_up()
        except TimeoutError:
            raise ResourceError(
                "install.load_timeout",
                f"cannot load {self.manifest.name} {self.number}: it did not load within {limit:g} s",
            ) from None
        return self.facts

    async def _bring_up(self) -> dict[str, Any]:
        order = orders.Spawn(
            serial=0,
            data_mb=min(self.manifest.resources.memory_mb, self._limits.memory_mb),
            niceness=self._limits.niceness,
            affinity=self._limits.cpu_affinity,
        )
        self._link = await WorkerLink.open(
            self._nursery,
            order,
            f"{self.manifest.name}/{self.number}",
            self._settings.log_lines,
            on_frame=self._on_frame,
            on_lost=self._on_lost,
            on_exit=self._on_exit,
            awake_s=self._settings.awake_s if self.manifest.batching.max_rows > 1 else 0.0,
        )
        self.copies.aside = False  # a new process
        load = orders.Load(
            digest=self.digest,
            folder=str(self.folder),
            manifest=self.manifest,
            version=self.number,
            cache=self._settings.cache,
            cache_entries=self._settings.cache_entries,
            cache_bytes=self._settings.cache_bytes,
            report_s=self._settings.report_s,
            observe_one_in=self._settings.observe_one_in,
            capture_rate=self._capture_rate,
            batch_rows=self._batch_rows,
        )
        facts = msgspec.msgpack.decode(await self.call(Kind.LOAD, msgspec.msgpack.encode(load)))
        self._learn(facts)
        self.ready = self._link.served = True
        self._quarantine.capture(self._link)
        self._pump()
        return facts  # type: ignore[no-any-return]

    def _learn(self, facts: dict[str, Any]) -> None:
        """What the load proved holds for later workers of this version too; what it lacks is told once."""
        first, self._batch_rows = self._batch_rows < 0, facts["batch_rows"]
        self._dispatch.batched = self._batch_rows > 1
        for code, text in facts["notes"]:
            if first:
                self._events.noticed(self.digest, code, text)

    async def call(self, kind: Kind, body: bytes = b"") -> bytes:
        """Give the worker an order and wait for its answer. Cancelling it kills the worker: it may hang.

        Raises:
            SkerryError: what the worker raised; ``install.load_failed`` if it died.
        """
        if self._link is None or self._link.exited:
            raise PeerError("install.load_failed", f"cannot reach the worker of {self.manifest.name}: it is starting")
        self.copies.come_back(self._link)
        return await self._orders.give(self._link, kind, body, lambda: self.kill("hang"))

    def _on_lost(self, link: WorkerLink) -> None:
        """The worker's socket closed: it died."""
        if link is not self._link:
            return
        self._link = None
        was_ready, self.ready = self.ready, False
        for ticket in self._dispatch.crashed(self._settings.kill_limit):
            self._refuse(ticket)
        self.lender.lost(link)
        self._tell_idle()
        if self.stopping:
            self._settle()
        elif was_ready:
            self._failures = 0 if link.scored else self._failures + 1
            self._respawning = asyncio.get_running_loop().create_task(self._respawn())

    def _on_exit(self, link: WorkerLink, status: int) -> None:
        """The zygote tells how it ended; comes just before or after the socket closes."""
        reason = (link.killed_for or exit_reason(status)) + in_step(self.manifest, link.title)
        lines = f"; its last words: {link.tail[-1]}" if link.tail else ""
        link.close_log()
        if link is not self._link:
            self.lender.lost(link)  # we had closed its socket before
        text = f"cannot go on with {self.manifest.name} {self.number}: its worker ended ({reason}){lines}"
        if reason.startswith("memory"):
            text += f"; it may have {min(self.manifest.resources.memory_mb, self._limits.memory_mb)} MB"
        self._orders.lost(link, text)
        if link.served and not self.stopping and link.killed_for != _SUSPENDED:
            log.warning("worker of %s %s ended: %s%s", self.manifest.name, self.number, reason, lines)
            self._events.worker_exited(self.digest, reason, True)

    async def _respawn(self) -> None:
        """Start it again, soon the first time, then at growing intervals, until it loads or the version stops."""
        while not self.stopping:
            if self._failures:
                delay = self._settings.respawn_delay_s * 2 ** min(self._failures - 1, 16)
                await asyncio.sleep(min(delay, self._settings.respawn_delay_max_s))
            try:
                await self.start()
            except SkerryError as error:
                self._failures += 1
                log.warning("cannot start %s %s again: %s", self.manifest.name, self.number, error.message)
                self._close_link()
                self._events.worker_exited(self.digest, f"start: {error.code}", True)
                continue
            return

    def _refuse(self, ticket: Ticket) -> None:
        """It ended too many workers."""
        self._quarantine.add(ticket)
        self._events.noticed(self.digest, "scoring.quarantined", TEXT)
        self._finish(ticket, time.monotonic(), *Quarantine.answer())

    def set_capture_rate(self, rate: float) -> None:
        self._capture_rate = rate
        if self._link is not None:
            body = struct.pack("<d", rate)
            self._link.send(frames.pack(Kind.CONFIGURE, 0, size=len(body)), body)

    async def suspend(self, drain_s: float) -> None:
        """Give the device back for a while: requests in flight end (at most ``drain_s``), the others wait."""
        await self.lender.home(drain_s)
        self.suspended, self.ready = True, False
        await self._stop_respawning()
        if self._dispatch.flying and self._link is not None:
            self._landed = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._landed.wait()
            self._landed = None
        await self._flush()
        for ticket in self._dispatch.crashed(self._settings.kill_limit):  # what did not end is sent again later
            self._refuse(ticket)
        if self._link is not None:
            self._link.killed_for = _SUSPENDED
        self._close_link()

    def resume(self) -> None:
        """Take the device again, in the background, and go on with the requests that waited."""
        self.suspended = False
        self._failures = 0
        self._respawning = asyncio.get_running_loop().create_task(self._respawn())

    async def _stop_respawning(self) -> None:
        if self._respawning is not None:
            self._respawning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._respawning
            self._respawning = None

    async def _flush(self) -> None:
        """Have the worker tell what it observed and has not told."""
        if self._link is not None:
            with contextlib.suppress(SkerryError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.call(Kind.FLUSH)

    async def stop(self, drain_s: float) -> None:
        """Let requests in flight end (at most ``drain_s``), then end the worker."""
        self.copies.drop()
        self.copies.come_back(self._link)
        await self.lender.home(max(drain_s, RECALL_S))
        if drain_s > 0 and not self._dispatch.idle:
            self._drained = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._drained
        self.stopping = True
        self.ready = False
        await self._stop_respawning()
        self._alarm.clear()
        if drain_s > 0:
            await self._flush()
        self._settle()
        self._close_link()
        if not self.lender.out:
            self.lender.close()

    def _settle(self) -> None:
        """Nobody is left without an answer."""
        text = f"cannot score: {self.manifest.name} {self.number} was stopped; ask again"
        self.room.close(text)
        for ticket in self._dispatch.drop_all():
            self._finish(ticket, time.monotonic(), 503, "scoring.not_ready", -1, oip.error_body(text))

    def _close_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._nursery.kill(link.serial)  # at once: a worker in a loop would not see its socket close
            link.close()
