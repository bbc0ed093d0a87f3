"""The one write path for what devices send: offered by the link's thread, written in batches by one thread here.

Rules:

* :meth:`Ingest.offer` only enqueues. Where the queue is full, :meth:`Ingest.has_room` says so and the link stops
  reading; what is offered all the same is dropped and counted, since the device sends again what is not acknowledged.
* A batch is one transaction: rows and stream marks together. Only after its commit are devices acknowledged, so a hub
  that dies between receiving and committing has lost nothing, and one that dies after it has doubled nothing.
* A database that is away is waited for, with the batch in hand. A message that the database cannot take (a number too
  large, say) is found by writing halves of the batch, refused, and the rest goes on.
* What is refused is counted by code and told as an event of the device, not more than one per code and ``refusal_s``.

Not handled here: chunks (:mod:`skerry_hub.delivery`), pruning (:mod:`skerry_hub.streaming`).
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from skerry_hub.clock import now_ms
from skerry_hub.ingest.lanes import Lanes, SpoolKey
from skerry_hub.ingest.rows import Batch, Item, Patch, Refusal
from skerry_hub.ingest.sql import Writer, marks_of
from skerry_hub.rules.hails import spread_s
from skerry_modules import messages, topics
from skerry_modules.errors import ResourceError

if TYPE_CHECKING:
    from skerry_hub.bus import Bus
    from skerry_hub.db import Database

log = logging.getLogger(__name__)

Publish = Callable[[str, bytes], bool]
"""(topic, payload): publish at QoS 1; False where it could not be handed to the broker."""


class IngestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the write path."""

    queue_messages: int = 20_000
    queue_bytes: int = 64 * 1024 * 1024
    batch_messages: int = 2000
    batch_bytes: int = 16 * 1024 * 1024
    linger_s: float = 0.02  # a small batch waits so long for company: each commit is an fsync
    ack_s: float = 0.1  # acknowledgements of one spool are put together for so long …
    ack_messages: int = 16  # … or until so many messages are committed
    lanes: int = 200_000  # streams of spools whose marks stay in memory; beyond, they are read again
    devices_s: float = 2.0  # how long the list of registered devices is trusted
    seen_s: float = 5.0  # how exactly "last seen" is kept
    refusal_s: float = 10.0
    reconnects_per_s: float = 500.0  # devices that may come back in one second: each ack says how long that takes all
    retry_first_s: float = 0.1
    retry_max_s: float = 5.0


class Counters(msgspec.Struct):
    """What happened since the start."""

    offered: int = 0
    dropped: int = 0  # for want of room
    committed: int = 0
    batches: int = 0
    duplicates: int = 0
    gaps: int = 0
    lost: int = 0  # records that devices' spools had dropped
    refused: Counter[str] = msgspec.field(default_factory=Counter)


class Ingest:
    """The queue and its writer thread.

    Args:
        db: where rows go.
        bus: nudged after each commit.
        publish: sends acknowledgements.
        on_hello: called, after the commit, with the hellos of a batch (device → hello).
        on_room: called when the queue has room again.
    """

    def __init__(
        self,
        db: Database,
        bus: Bus,
        publish: Publish,
        *,
        on_hello: Callable[[dict[str, messages.Hello]], None] = lambda hellos: None,
        on_room: Callable[[], None] = lambda: None,
        settings: IngestSettings | None = None,
    ) -> None:
        self.settings = settings or IngestSettings()
        self.counters = Counters()
        self._db, self._bus, self._publish = db, bus, publish
        self._on_hello, self._on_room = on_hello, on_room
        self._queue: collections.deque[Item] = collections.deque()
        # Each is changed by one thread only: their difference is what waits.
        self._bytes_in = self._bytes_out = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._boots: dict[str, str] = {}
        self._boots_at = -1e9
        self._seen: dict[str, int] = {}
        self._lanes = Lanes(self._read_marks)
        self._acks: dict[SpoolKey, tuple[int, float]] = {}  # messages, since
        self._told: dict[tuple[str, str], float] = {}
        self._untold: Counter[tuple[str, str]] = Counter()

    # -- for everyone -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write and acknowledge what was offered, then end; gives up on a database that is away."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(30)
            self._thread = None

    def offer(self, device: str, kind: str, payload: bytes) -> bool:
        """Enqueue one message; False where it was dropped for want of room. Called by the link's thread."""
        self.counters.offered += 1
        if len(self._queue) >= 2 * self.settings.queue_messages or self._waiting >= 2 * self.settings.queue_bytes:
            self.counters.dropped += 1
            return False
        self._bytes_in += len(payload)
        self._queue.append(Item(device, kind, payload, now_ms()))
        if not self._wake.is_set():
            self._wake.set()
        return True

    def refuse(self, device: str, code: str, message: str) -> None:
        """Count and tell a message that was refused before it came here."""
        self._queue.append(Item(device, "", f"{code}\n{message}".encode(), now_ms()))
        self._wake.set()

    def has_room(self) -> bool:
        return len(self._queue) < self.settings.queue_messages and self._waiting < self.settings.queue_bytes

    @property
    def _waiting(self) -> int:
        return self._bytes_in - self._bytes_out

    @property
    def backlog(self) -> int:
        """Messages that wait to be written."""
        return len(self._queue)

    def forget_devices(self) -> None:
        """Look at the list of devices again before the next batch: some were registered or removed."""
        self._boots_at = -1e9

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                if self._queue:
                    self._linger()
                    self._write(self._take())
                elif self._stopping.is_set():
                    self._flush_acks(everything=True)
                    return
                else:
                    self._wake.wait(self.settings.ack_s if self._acks else 1.0)
                    self._wake.clear()
                self._flush_acks()
            except Exception:
                # Nothing may end this thread: what it held was not acknowledged, so it comes again.
                log.exception("a batch of messages failed; the devices will send it again")
                self._forget()

    def _linger(self) -> None:
        if len(self._queue) < self.settings.batch_messages and not self._stopping.is_set():
            self._stopping.wait(self.settings.linger_s)

    def _take(self) -> list[Item]:
        had_room = self.has_room()
        items: list[Item] = []
        size = 0
        while self._queue and len(items) < self.settings.batch_messages and size < self.settings.batch_bytes:
            item = self._queue.popleft()
            size += len(item.payload) if item.kind else 0
            items.append(item)
        self._bytes_out += size
        if not had_room and self.has_room():
            self._on_room()
        return items

    def _write(self, items: list[Item]) -> None:
        backoff = self.settings.retry_first_s
        while True:
            try:
                self._commit(items)
                return
            except Exception as error:
                self._forget()
                if not _is_away(error):
                    if len(items) == 1:
                        self._skip(items[0], error)
                        return
                    break
                if self._stopping.is_set():
                    raise
                log.warning("cannot write to the database (%s); trying again", error)
                self._stopping.wait(backoff)
                backoff = min(self.settings.retry_max_s, backoff * 2)
        middle = len(items) // 2
        self._write(items[:middle])
        self._write(items[middle:])

    def _skip(self, item: Item, error: Exception) -> None:
        """A message that the database will never take: count its number as taken, and say so."""
        log.warning("cannot store a %s message of %s: %s", item.kind, item.device, error)
        whole = Batch(self._lanes, self._boots.get)
        whole.add(item)
        whole.close()
        marks_only = Batch(self._lanes, self._boots.get)
        marks_only.marks, marks_only.spools = whole.marks, whole.spools
        text_ = f"cannot store a {item.kind} message: {type(error).__name__}"
        marks_only.refusals = [Refusal(item.device, "message.malformed", text_, item.received_at)]
        self._finish(marks_only)

    def _commit(self, items: list[Item]) -> None:
        self._refresh_devices(items)
        batch = Batch(self._lanes, self._boots.get)
        batch.add_all(items)
        batch.close()
        self._finish(batch)
        self.counters.committed += len(items)

    def _finish(self, batch: Batch) -> None:
        """Write a closed batch, commit, then tell everyone."""
        told = self._refused(batch)
        self._mark_seen(batch)
        if batch.marks or batch.patches or batch.states or told:
            with self._db.engine.begin() as connection:
                writer = Writer(connection)
                writer.write(batch)
                writer.events(told)
        self.counters.batches += 1
        self.counters.duplicates += batch.duplicates
        self.counters.gaps += batch.gaps
        self.counters.lost += batch.lost
        for device, patch in batch.patches.items():
            if patch.boot is not None:
                self._boots[device] = patch.boot
            # An offline device that speaks is to be seen online at once.
            self._seen[device] = 0 if patch.online is False else patch.seen_at or 0
        now = time.monotonic()
        for spool, count in batch.spools.items():
            waiting, since = self._acks.get(spool, (0, now))
            # A hello (count 0) is answered at once: its device waits to know what the hub has.
            urgent = self.settings.ack_messages if count == 0 else count
            self._acks[spool] = (waiting + urgent, since)
        if batch.hellos:
            self._on_hello(batch.hellos)
        self._nudge(batch, bool(told))

    def _mark_seen(self, batch: Batch) -> None:
        """Keep ``seen_at`` fresh, but not by one more statement for each message."""
        for device, at in batch.seen.items():
            patch = batch.patches.get(device)
            if patch is None and at - self._seen.get(device, 0) >= self.settings.seen_s * 1000:
                batch.patches[device] = Patch(online=True, presence_at=at, seen_at=at)
            elif patch is not None:
                patch.seen_at = at

    def _nudge(self, batch: Batch, told: bool) -> None:
        touched = {device for device, _epoch in batch.spools} | batch.patches.keys()
        nudges = {f"device:{device}" for device in touched}
        if batch.patches:
            nudges.add("fleet")
        if batch.events or told:
            nudges.add("events")
        if batch.samples:
            nudges.add("samples")
        if batch.results:
            nudges.add("models")  # a version's page shows what was measured
        if nudges:
            self._bus.publish(*nudges)

    def _refused(self, batch: Batch) -> list[tuple[Any, ...]]:
        """Count what was refused; events for what was not told lately."""
        rows: list[tuple[Any, ...]] = []
        now = time.monotonic()
        for refusal in batch.refusals:
            self.counters.refused[refusal.code] += 1
            key = (refusal.device, refusal.code)
            if now - self._told.get(key, -1e9) < self.settings.refusal_s:
                self._untold[key] += 1
                continue
            if len(self._told) > 10_000:  # made-up names must not fill the memory
                self._told.clear()
                self._untold.clear()
            self._told[key] = now
            data = msgspec.json.encode({"unreported": self._untold.pop(key, 0)}).decode()
            head = (refusal.device, refusal.at, refusal.at, messages.Severity.WARNING.value)
            rows.append((*head, refusal.code, refusal.message[:4096], "", 0, data))
        return rows

    def _flush_acks(self, *, everything: bool = False) -> None:
        now = time.monotonic()
        settings = self.settings
        spread = spread_s(len(self._boots), settings.reconnects_per_s)
        for spool, (count, since) in list(self._acks.items()):
            if not everything and count < settings.ack_messages and now - since < settings.ack_s:
                continue
            del self._acks[spool]
            device, epoch = spool
            marks = self._lanes.marks(spool)  # a hello asks for some that nothing of this run has loaded
            ack = messages.Ack(messages.FORMAT, bytes.fromhex(epoch), marks, spread_s=spread)
            # One that is lost is made up for: the device sends again and is acknowledged again.
            self._publish(topics.down(device, "ack"), messages.encode(ack))

    # -- what is committed --------------------------------------------------------------------------------------------

    def _read_marks(self, device: str, epoch: str) -> Iterable[tuple[int, int, int]]:
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            return marks_of(connection, device, epoch)

    def _refresh_devices(self, items: list[Item]) -> None:
        now = time.monotonic()
        age = now - self._boots_at
        # A name that is not in the list may be brand new; but made-up names must not cost a query per batch.
        strangers = age > 0.2 and any(item.device not in self._boots for item in items if item.kind)
        if age < self.settings.devices_s and not strangers:
            return
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            rows = connection.execute(text("SELECT id, boot FROM device")).all()
        boots = {str(row[0]): str(row[1]) for row in rows}
        if self._boots.keys() - boots.keys() or len(self._lanes.known) > self.settings.lanes:
            self._lanes.forget()  # a device that was removed has none; one registered again has new ones
        self._boots, self._boots_at = boots, now

    def _forget(self) -> None:
        """A transaction failed: believe only what the database says."""
        self._lanes.forget()
        self._seen.clear()
        self._boots_at = -1e9


def _is_away(error: BaseException) -> bool:
    """Whether waiting may help: no connection, a lock, a full disk."""
    if isinstance(error, ResourceError):
        return True
    seen: BaseException | None = error
    while seen is not None:
        if any(kind.__name__ in ("OperationalError", "InterfaceError") for kind in type(seen).__mro__):
            return True
        seen = seen.__cause__
    return False


__all__ = ["Counters", "Ingest", "IngestSettings"]
