"""The spool's policy: what to drop when it is full, what to send next, what to forget. Numbers and sizes only.

The records themselves stand in the adapter's database; this rule knows of each stream (a priority, see
``messages.Stream``) its numbers ``base … next - 1`` without gaps, and their sizes. Within a stream:

* Sending is go-back-N: from ``base`` on, at most ``window`` records ahead of what the hub has acknowledged. Silence,
  and every reconnect, starts again from ``base``. The hub drops what it has already.
* Across streams the most urgent goes first, each within its own window, so that alarms never wait behind samples.
* Over the byte budget the least urgent stream loses its oldest records. A jump of ``base`` tells the hub how many.
* A coalesced record (a state snapshot) replaces the newest of its stream in place if that was never sent. It always
  does, for an outdated state must not be sent: where nothing less urgent can give way to its growth, the budget is
  exceeded by that.

Only durably stored records may be sent: a number that was sent and then lost in a power cut would be given again.
Should that happen all the same (a restored backup), the hub's mark is ahead of us: :class:`Acked` then says ``torn``
and the adapter makes a new epoch. What it does not handle: bodies, time of day, the hub's side.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

import msgspec

from skerry_modules.messages import Stream


class SpoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes are of stored records; seconds are monotonic."""

    max_bytes: int = 64 * 1024 * 1024
    max_record_bytes: int = 8 * 1024 * 1024
    window: int = 64  # records in flight per stream
    window_bytes: int = 1024 * 1024  # in flight over all streams; one record may always go
    resend_s: float = 10.0  # silence before a stream is sent again from its base
    resend_max_s: float = 300.0  # the silence doubles each time, up to this


class Kept(msgspec.Struct, frozen=True):
    """What the adapter's database holds of one stream when it is opened; ``sizes`` from ``base`` on."""

    base: int
    sizes: tuple[int, ...] = ()


class Appended(msgspec.Struct, frozen=True):
    """Store the record under ``seq`` (over the old one if ``replaces``) and delete ``dropped`` (stream → up to which
    number). ``seq`` is 0 where the record itself found no room: then nothing is stored."""

    seq: int
    replaces: bool = False
    dropped: dict[int, int] = {}


class Sending(msgspec.Struct, frozen=True):
    """Publish this record now, with this base."""

    stream: int
    seq: int
    base: int


class Acked(msgspec.Struct, frozen=True):
    """Delete up to these numbers. ``torn``: the hub has numbers that we have not given yet; make a new epoch."""

    upto: dict[int, int] = {}
    torn: bool = False


class _Lane:
    """One stream."""

    __slots__ = ("base", "bytes", "cursor", "head", "quiet_s", "sent_max", "sizes", "waits_until")

    def __init__(self, kept: Kept, resend_s: float) -> None:
        self.base = kept.base
        self.sizes = array("L", kept.sizes)
        self.head = 0  # index of base in sizes; the front is cut off now and then
        self.bytes = sum(kept.sizes)
        self.cursor = kept.base
        self.sent_max = self.next - 1  # after a start we cannot know what was sent: assume all
        self.quiet_s = resend_s
        self.waits_until: float | None = None

    @property
    def next(self) -> int:
        return self.base + len(self.sizes) - self.head

    def size_of(self, seq: int) -> int:
        return self.sizes[self.head + seq - self.base]

    def forget(self, upto: int) -> int:
        """Drop the records up to and with ``upto``; return their bytes."""
        gone = sum(self.size_of(seq) for seq in range(self.base, upto + 1))
        self.head += upto + 1 - self.base
        self.base = upto + 1
        self.bytes -= gone
        self.cursor = max(self.cursor, self.base)
        if self.head > 1024 and self.head * 2 > len(self.sizes):
            del self.sizes[: self.head]
            self.head = 0
        return gone


class SpoolPolicy:
    """Bookkeeping of one spool. Not thread-safe: the adapter calls it from one place.

    Args:
        settings: limits.
        kept: per stream, what the database held when it was opened; a stream that is missing starts at number 1.
    """

    def __init__(self, settings: SpoolSettings | None = None, kept: Mapping[int, Kept] | None = None) -> None:
        self.settings = settings or SpoolSettings()
        held = kept or {}
        self._lanes = {int(s): _Lane(held.get(int(s), Kept(1)), self.settings.resend_s) for s in Stream}
        self._bytes = sum(lane.bytes for lane in self._lanes.values())
        self._connected = False
        self.dropped: dict[int, int] = {}
        """Records dropped for want of room since the start, by stream; shown in the health message."""

    # -- what the adapter and the health message want to know

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def records(self) -> int:
        return sum(lane.next - lane.base for lane in self._lanes.values())

    def base(self, stream: int) -> int:
        return self._lanes[stream].base

    def next_seq(self, stream: int) -> int:
        return self._lanes[stream].next

    # -- writing

    def append(self, stream: int, size: int, *, coalesce: bool = False) -> Appended:
        """A new record of ``size`` bytes comes. Call it, then store and delete in one transaction, then :meth:`due`."""
        lane = self._lanes[stream]
        if coalesce and lane.next > lane.base and lane.next - 1 > lane.sent_max:
            newest = lane.next - 1
            old = lane.size_of(newest)
            lane.sizes[-1] = size
            lane.bytes += size - old
            self._bytes += size - old
            return Appended(newest, replaces=True, dropped=self._evict(0, stream))
        if size > min(self.settings.max_record_bytes, self.settings.max_bytes):
            self._count(stream, 1)
            return Appended(0)
        dropped = self._evict(size, stream)
        if self._bytes + size > self.settings.max_bytes:
            self._count(stream, 1)
            return Appended(0, dropped=dropped)
        lane.sizes.append(size)
        lane.bytes += size
        self._bytes += size
        return Appended(lane.next - 1, dropped=dropped)

    def _evict(self, size: int, stream: int) -> dict[int, int]:
        """Make room for ``size`` bytes: the least urgent streams first, none more urgent than ``stream``."""
        dropped: dict[int, int] = {}
        for victim in sorted(self._lanes, reverse=True):
            if victim < stream:
                break
            lane = self._lanes[victim]
            over = self._bytes + size - self.settings.max_bytes
            upto = lane.base - 1
            spare = 1 if size == 0 and victim == stream else 0  # never the record that was just replaced
            while over > 0 and upto + 1 < lane.next - spare:
                upto += 1
                over -= lane.size_of(upto)
            if upto >= lane.base:
                self._count(victim, upto + 1 - lane.base)
                self._bytes -= lane.forget(upto)
                dropped[victim] = upto
        return dropped

    def _count(self, stream: int, records: int) -> None:
        self.dropped[stream] = self.dropped.get(stream, 0) + records

    # -- sending

    def connected(self, now: float) -> None:
        """The link is up: everything unacknowledged goes again, from each base."""
        self._connected = True
        for lane in self._lanes.values():
            self._rewind(lane)
            lane.quiet_s = self.settings.resend_s

    def disconnected(self) -> None:
        self._connected = False

    @staticmethod
    def _rewind(lane: _Lane) -> None:
        lane.cursor = lane.base
        lane.waits_until = None

    def due(self, now: float) -> list[Sending]:
        """What to publish now, in order. Each record is named once per round; call again after acks and time."""
        if not self._connected:
            return []
        for lane in self._lanes.values():
            if lane.waits_until is not None and now >= lane.waits_until:
                self._rewind(lane)
                lane.quiet_s = min(lane.quiet_s * 2, self.settings.resend_max_s)
        found: list[Sending] = []
        flight = sum(self._in_flight(lane) for lane in self._lanes.values())
        for stream, lane in self._lanes.items():
            while lane.cursor < min(lane.next, lane.base + self.settings.window):
                size = lane.size_of(lane.cursor)
                if flight and flight + size > self.settings.window_bytes:
                    break
                flight += size
                found.append(Sending(stream, lane.cursor, lane.base))
                lane.sent_max = max(lane.sent_max, lane.cursor)
                lane.cursor += 1
                if lane.waits_until is None:
                    lane.waits_until = now + lane.quiet_s
        return found

    @staticmethod
    def _in_flight(lane: _Lane) -> int:
        return sum(lane.size_of(seq) for seq in range(lane.base, lane.cursor))

    @property
    def next_deadline(self) -> float | None:
        """When to call :meth:`due` again though nothing happened; None: no need."""
        if not self._connected:
            return None
        return min((lane.waits_until for lane in self._lanes.values() if lane.waits_until is not None), default=None)

    def acked(self, marks: Mapping[int, int], now: float) -> Acked:
        """The hub's durable marks came. Old and repeated marks change nothing."""
        upto: dict[int, int] = {}
        torn = False
        for stream, mark in marks.items():
            lane = self._lanes.get(stream)
            if lane is None:
                continue
            torn = torn or mark >= lane.next
            known = min(mark, lane.next - 1)
            if known < lane.base:
                continue
            self._bytes -= lane.forget(known)
            upto[stream] = known
            lane.quiet_s = self.settings.resend_s
            lane.waits_until = now + lane.quiet_s if lane.cursor > lane.base else None
        return Acked(upto, torn)

    def renewed(self) -> None:
        """The spool has a new epoch: the hub knows nothing of it; all that is left goes again, as never sent."""
        for lane in self._lanes.values():
            self._rewind(lane)
            lane.sent_max = lane.base - 1

    def snapshot(self) -> dict[int, Kept]:
        """What a database would hold now (for tests and for dumps)."""
        return {stream: Kept(lane.base, tuple(lane.sizes[lane.head :])) for stream, lane in self._lanes.items()}


def kept(rows: Iterable[tuple[int, int, int]], next_seqs: Mapping[int, int]) -> dict[int, Kept]:
    """Build ``kept`` from database rows ``(stream, seq, size)`` in order, and each stream's next number.

    A stream without rows must still go on from where it was: numbers are never given twice in one epoch.
    """
    found: dict[int, tuple[int, list[int]]] = {}
    for stream, seq, size in rows:
        base, sizes = found.setdefault(stream, (seq, []))
        if seq != base + len(sizes):  # a hole cannot be: drops take from the front only
            found[stream] = (seq, [size])
            continue
        sizes.append(size)
    held = {stream: Kept(base, tuple(sizes)) for stream, (base, sizes) in found.items()}
    for stream, following in next_seqs.items():
        held.setdefault(stream, Kept(following))
    return held
