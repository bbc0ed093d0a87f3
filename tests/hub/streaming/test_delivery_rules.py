"""The chunk planner against a model of brokers and links: each chunk once for all, at the pace of those who keep up."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_hub.rules.delivery import DeliverySettings, Planner
from skerry_modules import chunks

DIGEST = "a" * 64


@dataclass
class SimDevice:
    """A device behind a first-in-first-out broker queue and a link of ``rate`` chunks per second."""

    name: str
    total: int
    rate: float
    joins_at: float = 0.0
    drop: float = 0.0
    silent: bool = False
    report_every: int = 4
    alone: bool = True
    held: set[int] = field(default_factory=set)
    queue: list[int] = field(default_factory=list)
    credit: float = 0.0
    received: int = 0
    unreported: int = 0
    reported_at: float = -1e9
    done_at: float | None = None
    peak_queue: int = 0

    def bitmap(self) -> bytes:
        lacking = [part for part in range(self.total) if part not in self.held]
        return chunks.encode_bitmap(lacking, self.total) if lacking else b""

    def step(self, dt: float, dice: random.Random) -> None:
        self.peak_queue = max(self.peak_queue, len(self.queue))
        self.credit = min(self.credit + self.rate * dt, max(1.0, self.rate * dt) + 1)
        while self.queue and self.credit >= 1 and not self.silent:
            self.credit -= 1
            part = self.queue.pop(0)
            self.received += 1
            if dice.random() >= self.drop:
                self.held.add(part)
                self.unreported += 1

    def wants_to_report(self, now: float) -> bool:
        if self.silent and self.reported_at > 0:
            return False
        return self.unreported >= self.report_every or now - self.reported_at >= 1.0 or len(self.held) == self.total


def simulate(
    devices: list[SimDevice], total: int, options: DeliverySettings | None = None, limit_s: float = 2000, seed: int = 1
) -> list[int]:
    """Run until every device that speaks is done; returns the parts in order of publication."""
    dice = random.Random(seed)
    planner = Planner(options)
    published: list[int] = []
    now, dt = 0.0, 0.02
    while now < limit_s and any(d.done_at is None and not d.silent for d in devices):
        now += dt
        for device in devices:
            if now < device.joins_at or device.done_at is not None:
                continue
            device.step(dt, dice)
            if device.wants_to_report(now):
                size = total * chunks.CHUNK_BYTES
                planner.want(device.name, DIGEST, size, device.bitmap(), now, alone=device.alone)
                device.reported_at, device.unreported = now, 0
                if len(device.held) == total:
                    device.done_at = now
        for _ in range(1000):
            decisions = planner.plan(now)
            if not decisions:
                break
            for decision in decisions:
                listening = [d for d in devices if now >= d.joins_at and d.done_at is None]
                if decision.device:
                    listening = [d for d in listening if d.name == decision.device]
                    assert listening[0].alone, "sent where it is not heard"
                if not any(d.drop for d in devices):  # where chunks are lost the hub can only judge by reports
                    assert any(decision.part not in d.held for d in listening), "published what everybody has"
                published.append(decision.part)
                for device in listening:
                    device.queue.append(decision.part)
    return published


def test_devices_told_at_the_same_time_share_one_publication_of_each_chunk() -> None:
    devices = [SimDevice(f"d{i}", 128, rate=500, joins_at=0.001 * i) for i in range(50)]
    published = simulate(devices, 128)
    assert sorted(published) == list(range(128))
    assert all(device.done_at is not None for device in devices)


def test_a_late_joiner_costs_only_what_it_missed() -> None:
    early = SimDevice("early", 1000, rate=100)
    late = SimDevice("late", 1000, rate=100, joins_at=1.0)
    published = simulate([early, late], 1000)
    assert late.done_at is not None
    # What was published before it came: what the link took in that second, and a window in flight.
    assert 1000 < len(published) <= 1000 + 100 + DeliverySettings().window_max_chunks


def test_what_one_device_lost_does_not_load_the_links_of_others() -> None:
    """Where none hears what is for it alone, it is sent to all, as before."""

    def beside(*, alone: bool) -> float:
        devices = [SimDevice(f"d{i}", 300, rate=50, drop=0.05, alone=alone) for i in range(10)]
        simulate(devices, 300)
        return sum(device.received for device in devices) - 10 * 300 / 0.95

    assert beside(alone=True) < beside(alone=False) / 4


def test_a_gap_of_many_is_filled_once_for_all() -> None:
    planner, size = Planner(), 10 * chunks.CHUNK_BYTES
    names = [f"d{number}" for number in range(20)]
    few = DeliverySettings().alone_devices

    def said(lacking: dict[str, list[int]], now: float) -> list[tuple[str, int]]:
        for name, parts in lacking.items():
            planner.want(name, DIGEST, size, chunks.encode_bitmap(parts, 10), now, alone=True)
        return sorted((publish.device, publish.part) for publish in planner.plan(now + 1))

    assert said({name: list(range(10)) for name in names}, 0.0) == [("", part) for part in range(10)]
    for name in names:
        planner.reconnected(name, 2.0)
    # Two lack the first chunk, one more than a few the second, all the last one.
    lacking = {name: [9] for name in names}
    for name in names[: few + 1]:
        lacking[name] = [1, 9]
    for name in names[:2]:
        lacking[name] = [0, 1, 9]
    assert said(lacking, 3.0) == [("", 1), ("", 9), ("d0", 0), ("d1", 0)]
    assert planner.plan(5.0) == []


def test_a_gap_that_was_sent_alone_and_lost_is_sent_again() -> None:
    planner, size = Planner(), 30 * chunks.CHUNK_BYTES
    for name in ("one", "two"):
        planner.want(name, DIGEST, size, chunks.encode_bitmap(range(30), 30), 0.0, alone=True)
    assert len(planner.plan(1.0)) == 30
    # All but the first chunk has come to "one", nothing yet to "two".
    planner.want("one", DIGEST, size, chunks.encode_bitmap([0], 30), 2.0, alone=True)
    (gap,) = planner.plan(3.0)
    assert (gap.device, gap.part) == ("one", 0)
    planner.unpublished(gap, 3.0)
    (gap,) = planner.plan(4.0)
    assert (gap.device, gap.part) == ("one", 0)
    planner.want("one", DIGEST, size, chunks.encode_bitmap([0], 30), 6.0, alone=True)
    assert planner.plan(7.0) == []  # it flies
    planner.want("one", DIGEST, size, chunks.encode_bitmap([0], 30), 4.0 + DeliverySettings().resend_s, alone=True)
    (gap,) = planner.plan(20.0)
    assert (gap.device, gap.part) == ("one", 0)


def test_a_silent_device_holds_the_others_for_no_longer_than_the_setting() -> None:
    def run(others: list[SimDevice]) -> float:
        fast = SimDevice("fast", 1000, rate=400)
        simulate([fast, *others], 1000)
        assert fast.done_at is not None
        return fast.done_at

    alone = run([])
    with_silent = run([SimDevice("mute", 1000, rate=400, silent=True)])
    assert with_silent <= alone + DeliverySettings().hold_s + 0.5


def test_a_slow_device_does_not_hold_the_fast_ones_and_still_ends_complete() -> None:
    fast = [SimDevice(f"fast{i}", 600, rate=300) for i in range(3)]
    slow = SimDevice("slow", 600, rate=6)
    simulate([*fast, slow], 600)
    assert slow.done_at is not None
    alone = SimDevice("alone", 600, rate=300)
    simulate([alone], 600)
    assert alone.done_at is not None
    for device in fast:
        assert device.done_at is not None
        assert device.done_at <= alone.done_at + 3 * DeliverySettings().hold_s


def test_no_broker_queue_grows_past_the_window() -> None:
    device = SimDevice("d", 2000, rate=20)
    simulate([device], 2000)
    assert device.done_at is not None
    assert device.peak_queue <= DeliverySettings().window_start_chunks + 1


def test_after_a_reconnect_only_what_is_lacking_is_published_again() -> None:
    planner = Planner()
    size = 10 * chunks.CHUNK_BYTES
    planner.want("d", DIGEST, size, chunks.encode_bitmap(range(10), 10), 0.0)
    assert [p.part for p in planner.plan(1.0)] == list(range(10))
    planner.reconnected("d", 2.0)
    planner.want("d", DIGEST, size, chunks.encode_bitmap([7, 8], 10), 2.0)
    assert planner.plan(2.01) == []  # gathered first
    assert [p.part for p in planner.plan(3.0)] == [7, 8]
    planner.want("d", DIGEST, size, b"", 4.0)
    assert planner.idle


def test_a_want_said_again_while_chunks_fly_publishes_nothing_twice() -> None:
    planner = Planner()
    size = 10 * chunks.CHUNK_BYTES
    bitmap = chunks.encode_bitmap(range(10), 10)
    planner.want("d", DIGEST, size, bitmap, 0.0)
    assert len(planner.plan(1.0)) == 10
    for now in (1.1, 2.0, 3.0):
        planner.want("d", DIGEST, size, bitmap, now)
        assert planner.plan(now + 0.5) == []
    planner.want("d", DIGEST, size, bitmap, 1.0 + DeliverySettings().resend_s)
    assert len(planner.plan(20.0)) == 10  # nothing came for so long: it is lost


def test_what_cannot_be_read_is_abandoned_and_nothing_else() -> None:
    planner, other = Planner(), "b" * 64
    size = 4 * chunks.CHUNK_BYTES
    for name in ("one", "two"):
        for digest in (DIGEST, other):
            planner.want(name, digest, size, b"\x0f", 0.0)
    assert planner.abandon(DIGEST, 0.0) == ["one", "two"]
    assert planner.abandon(DIGEST, 0.0) == []
    assert {publish.digest for publish in planner.plan(1.0)} == {other}
    planner.want("one", DIGEST, size, b"\x0f", 2.0)  # it is back
    assert {publish.digest for publish in planner.plan(3.0)} == {DIGEST}


def test_a_silent_device_is_forgotten() -> None:
    planner = Planner()
    planner.want("d", DIGEST, 1000, b"\x01", 0.0)
    deadline = planner.next_deadline(0.0)
    assert deadline is not None
    planner.plan(1.0)
    planner.plan(1.0 + DeliverySettings().silent_s)
    assert planner.idle
    assert planner.next_deadline(100.0) is None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    total=st.integers(1, 90),
    shapes=st.lists(
        st.tuples(
            st.floats(1, 500),
            st.floats(0, 3),
            st.sampled_from([0.0, 0.0, 0.05, 0.4]),
            st.integers(1, 20),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_whatever_the_links_do_every_device_that_speaks_ends_complete(
    seed: int, total: int, shapes: list[tuple[float, float, float, int, bool, bool]]
) -> None:
    devices = [
        SimDevice(f"d{i}", total, rate, joins, drop, silent=silent and i > 0, report_every=every, alone=alone)
        for i, (rate, joins, drop, every, silent, alone) in enumerate(shapes)
    ]
    published = simulate(devices, total, seed=seed)
    assert all(device.done_at is not None for device in devices if not device.silent)
    if all(device.drop == 0 and device.joins_at == 0 for device in devices):
        assert len(published) == total


@given(st.binary(max_size=40), st.integers(0, 200 * chunks.CHUNK_BYTES))
def test_any_bitmap_is_safe(bitmap: bytes, size: int) -> None:
    planner = Planner()
    planner.want("d", DIGEST, size, bitmap, 0.0)
    for decision in planner.plan(10.0):
        assert decision.part < chunks.count(size)


# -- several objects of one device, which stand in one line


@dataclass
class Line:
    """One device behind a link that takes ``chunk_s`` per chunk of any object, first in, first out."""

    chunk_s: float
    sizes: dict[str, int]  # chunks by object
    lost: set[int] = field(default_factory=set)  # places in the line
    planner: Planner = field(default_factory=Planner)
    now: float = 0.0
    sent: list[tuple[str, int]] = field(default_factory=list)
    arrived: int = 0
    free_at: float = 0.0

    def __post_init__(self) -> None:
        self.lacking = {digest: set(range(total)) for digest, total in self.sizes.items()}

    def ask(self, digest: str) -> None:
        lacking = self.lacking[digest]
        bitmap = chunks.encode_bitmap(lacking, self.sizes[digest]) if lacking else b""
        self.planner.want("d", digest, self.sizes[digest] * chunks.CHUNK_BYTES, bitmap, self.now)

    def run(self, digests: list[str], *, ask_s: float) -> None:
        """Until these are here, asking for all of them every ``ask_s``."""
        asked = -1e9
        while any(self.lacking[digest] for digest in digests):
            if self.now - asked >= ask_s:
                asked = self.now
                for digest in digests:
                    self.ask(digest)
            while batch := self.planner.plan(self.now):
                if self.arrived == len(self.sent):
                    self.free_at = self.now + self.chunk_s
                self.sent += [(one.digest, one.part) for one in batch]
            if self.arrived < len(self.sent) and self.now >= self.free_at:
                digest, part = self.sent[self.arrived]
                if self.arrived not in self.lost:
                    self.lacking[digest].discard(part)
                    if not self.lacking[digest]:
                        self.ask(digest)
                self.arrived += 1
                self.free_at = self.now + self.chunk_s
            self.now += 0.1
            assert self.now < 10_000, "it never ends"


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 10), st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_what_stands_behind_the_chunks_of_another_object_is_not_sent_twice(chunk_s: float, totals: list[int]) -> None:
    line = Line(chunk_s, {"first": 2} | {str(n): total for n, total in enumerate(totals)})
    line.run(["first"], ask_s=1000.0)  # from it the hub knows how long a chunk takes
    line.run([digest for digest in line.sizes if digest != "first"], ask_s=max(15.0, chunk_s))
    assert len(line.sent) == len(set(line.sent)) == sum(line.sizes.values())


def test_a_chunk_lost_between_those_of_another_object_is_sent_again_while_they_come() -> None:
    line = Line(0.5, {"a": 200, "b": 3})
    line.lost = {1, 2, 3}
    line.run(["a", "b"], ask_s=5.0)
    parts = [number for number, (digest, _) in enumerate(line.sent) if digest == "b"]
    assert len(parts) > 3 or line.lost.isdisjoint(parts)
    assert max(parts) < 150
    assert len(line.sent) <= 203 + 3


def test_the_pace_of_a_device_is_remembered_from_one_object_to_the_next() -> None:
    line = Line(8.0, {str(n): 1 for n in range(10)})
    for digest in line.sizes:
        line.run([digest], ask_s=6.0)
    assert len(line.sent) <= 10 + 2, "only before the first chunk has come may the hub be impatient"
    line.planner.want("d", "new", chunks.CHUNK_BYTES, chunks.encode_bitmap([0], 1), line.now + 10_000)
    assert not line.planner._resting
