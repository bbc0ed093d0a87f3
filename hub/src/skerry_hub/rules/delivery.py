"""Which chunk to publish next, and when: one publication for every device that lacks it, paced by what they report.

Pure: time is an argument (monotonic seconds), the answers are :class:`Publish` decisions. The simulator runs it on a
virtual clock, the hub in a thread.

How it works:

* A device's want is a snapshot of what it lacks. The planner keeps, per device and object, what it *lacks* and what is
  *flying* to it (published since, not reported yet). Only what some device lacks and what is not flying to it is
  published: nobody is sent what everybody has.
* Wants are gathered for ``gather_s`` before the first chunk goes out. A device subscribes before it asks, so what was
  published in the ``recent_s`` before its first want is presumed to be on its way to it: devices told at the same time
  share one publication although their first wants are spread. A chunk that was published before goes out again only
  after those never published.
* What was published before and few devices still need goes to each of them alone, on its own topic, where they can hear
  that: on the object's topic it would load the links of all others that are still listening.
* Each device has a window of flying chunks that follows the rate at which it reports; it bounds what a broker queues
  for it. The devices that keep up set the pace. One that blocks the others for ``hold_s`` is *left behind*: it no
  longer holds them, hears what they are sent, and gets its gaps afterwards at its own pace.
* A chunk counts as lost when the device reports having ``reorder_chunks`` that were published after it (of whichever
  object: a device's chunks stand in one line), or when nothing of any object has arrived for ``resend_s``. After a
  reconnect (:meth:`Planner.reconnected`) nothing is flying, since a clean session's queue is gone.
* A device that says nothing for ``silent_s`` is forgotten; its next want brings it back.

Bit sets are plain integers with chunk 0 in bit 0, as in the wire's bitmap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import msgspec

from skerry_modules import chunks


class DeliverySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the planner. ``*_s`` are seconds, ``*_chunks`` counts of 64 KiB chunks."""

    gather_s: float = 0.05
    recent_s: float = 0.5  # longer than the jitter of a device's first want
    presumed_s: float = 1.0  # what was only presumed to come counts as lost after so long
    window_start_chunks: int = 64
    window_min_chunks: int = 8
    window_max_chunks: int = 256
    window_s: float = 1.0  # the window aims to hold what the device takes in this time
    hold_s: float = 1.0
    alone_devices: int = 4  # at most so many are sent a chunk each for themselves; more share one on the object's topic
    reorder_chunks: int = 8
    resend_s: float = 5.0
    silent_s: float = 60.0
    remember_s: float = 600.0  # how long the pace of a device is kept that wants nothing just now
    burst_chunks: int = 32  # at most so many decisions per call, so that the caller can look at its own queue between


class Publish(msgspec.Struct, frozen=True):
    """Publish chunk ``part`` of the object ``digest`` (``size`` bytes), now: on the object's topic or, where it names
    a ``device``, on that one's own."""

    digest: str
    size: int
    part: int
    device: str = ""


class _Receiver:
    """One device and one object."""

    __slots__ = (
        "alone",
        "flown",
        "flying",
        "lacking",
        "presumed",
        "progress_at",
        "ready_at",
        "reported_at",
        "waits_since",
    )

    def __init__(self, lacking: int, now: float, ready_at: float) -> None:
        self.lacking = lacking
        self.flying = 0
        self.flown: dict[int, int] = {}  # part -> the publication since which it flies
        self.alone: dict[int, int] = {}  # part -> its latest publication for this device alone
        self.presumed = 0  # of what flies: published before the first want
        self.ready_at = ready_at
        self.reported_at = now
        self.progress_at = now  # when it last got something, or when the first of what flies was published
        self.waits_since: float | None = None  # the same, whatever was taken for lost and sent again since

    @property
    def needs(self) -> int:
        return self.lacking & ~self.flying

    def fly(self, parts: int, numbers: Mapping[int, int], now: float) -> None:
        """These were published just now, as these publications."""
        if parts and not self.flying:
            self.progress_at = now
            if self.waits_since is None:
                self.waits_since = now
        for part in _bits(parts & ~self.flying):
            self.flown[part] = numbers[part]
        self.flying |= parts

    def land(self, flying: int) -> None:
        """Only ``flying`` is still on its way."""
        for part in _bits(self.flying & ~flying):
            del self.flown[part]
            self.alone.pop(part, None)
        self.flying &= flying
        self.presumed &= flying


class _Transfer:
    """One object and the devices that lack parts of it."""

    __slots__ = ("digest", "log", "published", "receivers", "size", "times")

    def __init__(self, digest: str, size: int) -> None:
        self.digest = digest
        self.size = size
        self.receivers: dict[str, _Receiver] = {}
        self.published = 0  # bit set of what was ever published
        self.log: dict[int, int] = {}  # part -> number of its latest publication …
        self.times: dict[int, float] = {}  # … and when it was


class _Device:
    """The pace of one device, over all objects it wants."""

    __slots__ = ("alone", "arrivals", "blocked_since", "interval", "left_behind", "newest", "progress_at", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.alone = False  # whether it hears chunks on its own topic
        self.blocked_since: float | None = None
        self.left_behind = False
        self.arrivals: list[tuple[float, int]] = []
        self.interval = 0.0  # seconds between reports that brought something, smoothed
        self.progress_at = -math.inf  # when it last got something of any object
        self.newest = 0  # the newest publication that it is known to have got


class Planner:
    """All transfers of one hub. Feed wants, ask :meth:`plan` for decisions, wait until :meth:`next_deadline`."""

    def __init__(self, settings: DeliverySettings | None = None) -> None:
        self.settings = settings or DeliverySettings()
        self._transfers: dict[str, _Transfer] = {}
        self._devices: dict[str, _Device] = {}
        self._resting: dict[str, tuple[float, _Device]] = {}  # since when, oldest first: those that want nothing
        self._publications = 0
        self._turn = 0

    @property
    def idle(self) -> bool:
        return not self._transfers

    def receivers(self, digest: str) -> dict[str, int]:
        """How many chunks each device still lacks of an object, for people to look at."""
        transfer = self._transfers.get(digest)
        return {device: r.lacking.bit_count() for device, r in transfer.receivers.items()} if transfer else {}

    # -- what devices say -------------------------------------------------------------------------------------------

    def want(self, device: str, digest: str, size: int, bitmap: bytes, now: float, *, alone: bool = False) -> None:
        """Take a device's snapshot of what it lacks. An empty bitmap, or one of zeros: it has all. ``alone``: it hears
        chunks on its own topic too."""
        total = chunks.count(size)
        lacking = int.from_bytes(bitmap, "little") & ((1 << total) - 1)
        if lacking == 0:
            self._finished(device, digest, now)
            return
        transfer = self._transfers.setdefault(digest, _Transfer(digest, size))
        pace = self._pace_of(device)
        pace.alone = alone
        receiver = transfer.receivers.get(device)
        if receiver is None:
            transfer.receivers[device] = joined = _Receiver(lacking, now, now + self.settings.gather_s)
            self._presume(transfer, joined, now)
            return
        self._report(transfer, receiver, pace, lacking, now)

    def _pace_of(self, device: str) -> _Device:
        pace = self._devices.get(device)
        if pace is None:
            _, pace = self._resting.pop(device, (0.0, None))
            pace = self._devices[device] = pace or _Device(self.settings.window_start_chunks)
        return pace

    def _finished(self, device: str, digest: str, now: float) -> None:
        """It has all of an object: the last of it came since its last report."""
        transfer = self._transfers.get(digest)
        receiver = transfer.receivers.get(device) if transfer else None
        if transfer is not None and receiver is not None:
            self._report(transfer, receiver, self._devices[device], 0, now)
        self._leave(device, digest, now)

    def _presume(self, transfer: _Transfer, joined: _Receiver, now: float) -> None:
        for part in _bits(joined.lacking & transfer.published):
            if now - transfer.times[part] <= self.settings.recent_s:
                joined.presumed |= 1 << part
                joined.flown[part] = transfer.log[part]
        joined.flying = joined.presumed

    def reconnected(self, device: str, now: float) -> None:
        """The device has a new session: whatever was on its way to it is gone."""
        for transfer in self._transfers.values():
            receiver = transfer.receivers.get(device)
            if receiver is not None:
                receiver.land(0)
                receiver.waits_since = None
                receiver.ready_at = math.inf  # what we know of it is old: its next want says what it really lacks
                receiver.progress_at = receiver.reported_at = now

    def unpublished(self, publish: Publish, now: float) -> None:
        """A decision could not be carried out: nothing of it flies."""
        transfer = self._transfers.get(publish.digest)
        if transfer is None:
            return
        for device, receiver in transfer.receivers.items():
            if publish.device in ("", device):
                receiver.land(receiver.flying & ~(1 << publish.part))
                receiver.ready_at = max(receiver.ready_at, now + self.settings.gather_s)

    def abandon(self, digest: str, now: float) -> list[str]:
        """The object cannot be read: forget all that was wanted of it. Returns who wanted it."""
        transfer = self._transfers.get(digest)
        waiting = sorted(transfer.receivers) if transfer else []
        for device in waiting:
            self._leave(device, digest, now)
        return waiting

    def forget(self, device: str) -> None:
        """The device is gone, or no longer wants anything."""
        for digest in list(self._transfers):
            self._leave(device, digest, 0.0)
        self._resting.pop(device, None)

    def _leave(self, device: str, digest: str, now: float) -> None:
        transfer = self._transfers.get(digest)
        if transfer is None or transfer.receivers.pop(device, None) is None:
            return
        if not transfer.receivers:
            del self._transfers[digest]
        if not any(device in other.receivers for other in self._transfers.values()):
            pace = self._devices.pop(device)
            pace.blocked_since, pace.left_behind = None, False
            self._resting[device] = (now, pace)

    def _report(self, transfer: _Transfer, receiver: _Receiver, pace: _Device, lacking: int, now: float) -> None:
        arrived = receiver.lacking & ~lacking
        had_needs = receiver.needs != 0
        lost = self._overtaken(transfer, receiver, pace, arrived & receiver.flying, lacking)
        receiver.reported_at = now
        # What it lacks again that it had before was damaged, or could not be stored: it is not flying.
        receiver.land(lacking & receiver.lacking & ~lost)
        receiver.lacking = lacking
        silence = now - max(receiver.progress_at, pace.progress_at)
        if arrived:
            waited = now - (receiver.progress_at if receiver.waits_since is None else receiver.waits_since)
            pace.interval = (3 * pace.interval + waited) / 4 if pace.interval else waited
            receiver.waits_since = now if receiver.flying else None
            receiver.progress_at = pace.progress_at = now
            self._follow(pace, arrived.bit_count(), now)
        elif receiver.flying and silence >= max(self.settings.resend_s, 4 * pace.interval):
            receiver.land(0)  # on a slow link patience grows with the time that a chunk takes
        elif receiver.presumed and silence >= max(self.settings.presumed_s, 4 * pace.interval):
            receiver.land(receiver.flying & ~receiver.presumed)
        if receiver.needs and (not had_needs or receiver.ready_at == math.inf):
            receiver.ready_at = now + self.settings.gather_s

    def _overtaken(self, transfer: _Transfer, receiver: _Receiver, pace: _Device, arrived: int, lacking: int) -> int:
        """What flies, is still lacking, and was published well before something that has arrived."""
        # The first of several publications that flew is all that an arrival proves; the last is what must be overtaken.
        pace.newest = max([pace.newest, *(receiver.flown[part] for part in _bits(arrived))])
        waiting = receiver.flying & lacking
        horizon = pace.newest - self.settings.reorder_chunks
        if not waiting or horizon <= 0:
            return 0
        latest = ((part, max(transfer.log[part], receiver.alone.get(part, 0))) for part in _bits(waiting))
        return sum(1 << part for part, number in latest if number < horizon)

    def _follow(self, pace: _Device, arrived: int, now: float) -> None:
        """Let the window follow the rate at which chunks arrive, at most doubling, at most halving per report."""
        settings = self.settings
        pace.arrivals.append((now, arrived))
        horizon = now - settings.window_s
        while len(pace.arrivals) > 1 and pace.arrivals[0][0] <= horizon:
            pace.arrivals.pop(0)
        in_time = sum(count for _, count in pace.arrivals)
        wanted = max(pace.window // 2, min(pace.window * 2, 2 * in_time))
        pace.window = max(settings.window_min_chunks, min(settings.window_max_chunks, wanted))

    # -- what to publish ----------------------------------------------------------------------------------------------

    def plan(self, now: float) -> list[Publish]:
        """What to publish now, at most ``burst_chunks``; call again at once while it returns something."""
        self._expire(now)
        out: list[Publish] = []
        digests = list(self._transfers)
        self._turn += 1
        for offset in range(len(digests)):
            room = self.settings.burst_chunks - len(out)
            if room <= 0:
                break
            transfer = self._transfers[digests[(self._turn + offset) % len(digests)]]
            share = max(1, room // (len(digests) - offset))
            out += self._batch(transfer, share, now)
        return out

    def next_deadline(self, now: float) -> float | None:
        """When :meth:`plan` has to be called again if nothing is heard until then; None: nothing to wait for."""
        settings = self.settings
        deadline: float | None = None
        for transfer in self._transfers.values():
            for device, receiver in transfer.receivers.items():
                times = [receiver.reported_at + settings.silent_s]
                if receiver.needs and receiver.ready_at > now:
                    times.append(receiver.ready_at)
                pace = self._devices[device]
                if pace.blocked_since is not None and not pace.left_behind:
                    times.append(pace.blocked_since + settings.hold_s)
                soonest = min(times)
                deadline = soonest if deadline is None else min(deadline, soonest)
        return deadline

    def _expire(self, now: float) -> None:
        limit = now - self.settings.silent_s
        for digest, transfer in list(self._transfers.items()):
            for device, receiver in list(transfer.receivers.items()):
                if receiver.reported_at <= limit:
                    self._leave(device, digest, now)
        while self._resting:
            device = next(iter(self._resting))
            if now - self._resting[device][0] <= self.settings.remember_s:
                break
            del self._resting[device]

    def _flying_to(self, device: str) -> int:
        return sum(
            transfer.receivers[device].flying.bit_count()
            for transfer in self._transfers.values()
            if device in transfer.receivers
        )

    def _rooms(self, transfer: _Transfer, now: float) -> dict[str, int]:
        """Free window of each device of a transfer; notes who blocks and who is left behind."""
        rooms: dict[str, int] = {}
        for device in transfer.receivers:
            pace = self._devices[device]
            flying = self._flying_to(device)
            rooms[device] = pace.window - flying
            if rooms[device] > 0:
                pace.blocked_since = None
                if flying <= pace.window // 2:
                    pace.left_behind = False
            elif pace.blocked_since is None:
                pace.blocked_since = now
            elif now - pace.blocked_since >= self.settings.hold_s:
                pace.left_behind = True
        return rooms

    def _batch(self, transfer: _Transfer, limit: int, now: float) -> list[Publish]:
        rooms = self._rooms(transfer, now)
        wanted = 0
        for device, receiver in transfer.receivers.items():
            if rooms[device] > 0 and receiver.ready_at <= now:
                wanted |= receiver.needs
        if not wanted:
            return []
        pacing = [
            room
            for device, room in rooms.items()
            if not self._devices[device].left_behind and transfer.receivers[device].lacking & wanted
        ]
        room = max(0, min(limit, min(pacing) if pacing else max(rooms.values())))
        fresh = wanted & ~transfer.published
        parts = _first(fresh, room)
        if fresh.bit_count() > len(parts):
            self._published(transfer, parts, now)
            return [Publish(transfer.digest, transfer.size, part) for part in parts]
        out, shared = self._alone(transfer, wanted & transfer.published, rooms, limit - len(parts), now)
        parts += _first(shared, min(room, limit - len(out)) - len(parts))
        self._published(transfer, parts, now)
        # In the order of their numbers: what arrives out of it counts as lost.
        return [*out, *(Publish(transfer.digest, transfer.size, part) for part in parts)]

    def _alone(
        self, transfer: _Transfer, again: int, rooms: dict[str, int], limit: int, now: float
    ) -> tuple[list[Publish], int]:
        """Of what was published before: what goes to single devices, and the parts that are better shared."""
        out: list[Publish] = []
        shared = 0
        # Shared, it takes one of the hub's publications and a chunk of each listener's link; alone, both of each taker.
        most = min(self.settings.alone_devices, len(transfer.receivers) // 2)
        for part in _first(again, limit):
            bit = 1 << part
            needing = (device for device, receiver in transfer.receivers.items() if receiver.needs & bit)
            takers = list(itertools.islice(needing, most + 1))
            if len(takers) > most or not all(self._devices[device].alone for device in takers):
                shared |= bit
                continue
            for device in takers:
                receiver = transfer.receivers[device]
                if rooms[device] <= 0 or receiver.ready_at > now or len(out) >= limit:
                    continue
                rooms[device] -= 1
                self._publications += 1
                receiver.fly(bit, {part: self._publications}, now)
                receiver.alone[part] = self._publications
                out.append(Publish(transfer.digest, transfer.size, part, device))
        return out, shared

    def _published(self, transfer: _Transfer, parts: list[int], now: float) -> None:
        mask = 0
        for part in parts:
            self._publications += 1
            transfer.log[part] = self._publications
            transfer.times[part] = now
            mask |= 1 << part
        transfer.published |= mask
        for receiver in transfer.receivers.values():
            receiver.fly(receiver.lacking & mask, transfer.log, now)


def _bits(value: int) -> Iterator[int]:
    while value:
        low = value & -value
        yield low.bit_length() - 1
        value ^= low


def _first(value: int, count: int) -> list[int]:
    found: list[int] = []
    for part in _bits(value):
        if len(found) >= count:
            break
        found.append(part)
    return found
