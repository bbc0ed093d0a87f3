"""What a virtual device has to tell: its spool on the disk, under the agent's real policy, and what is acknowledged."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from skerry_agent.rules.brain import Brain
from skerry_agent.rules.spool import Kept, SpoolPolicy, SpoolSettings
from skerry_modules import messages
from skerry_modules.messages import STREAM_OF, Ack, Sample, Up

if TYPE_CHECKING:
    from skerry_simulators.world.world import World

SPOOL = SpoolSettings(max_bytes=20_000, max_record_bytes=15_000, window=8, resend_s=5.0, resend_max_s=60.0)


def _size(kind: str) -> int:
    """Bytes of a record in the spool, about."""
    return 200 + len(kind)


class Teller:
    """The part of a device that keeps records until the hub has them. ``brain`` is None while the power is off."""

    def __init__(self, world: World, device: str) -> None:
        self.id = device
        self.world = world
        self.rng = random.Random(world.rng.random())
        # the disk
        self.rows: dict[int, dict[int, tuple[str, Any]]] = {s: {} for s in STREAM_OF.values()}
        self.next_seq: dict[int, int] = {}
        self.epoch = self.rng.randbytes(4)
        self.full = False
        self._undeleted: list[tuple[int, int, tuple[str, Any]]] = []
        # memory
        self.brain: Brain | None = None
        self.policy = SpoolPolicy(SPOOL)
        self.boots = 0
        self.connected = False
        self._spool_at: float | None = None
        self._samples = 0
        self._booted_at = 0.0
        self._reached = 0.0

    def greet_again(self) -> None:
        """The hub asks to be greeted anew."""
        raise NotImplementedError

    @property
    def mono(self) -> float:
        """The device's own monotonic clock: it starts anew with each boot."""
        return max(self.world.clock.now - self._booted_at, self._reached)

    def read_spool(self) -> None:
        """A start: what the disk holds is what is still to be told."""
        self.policy = SpoolPolicy(SPOOL, self._kept())

    def _kept(self) -> dict[int, Kept]:
        """What the spool's database holds: the records without a gap up to the newest."""
        held = {}
        for stream, rows in self.rows.items():
            base = following = self.next_seq.get(stream, 1)
            while base - 1 in rows:
                base -= 1
            for seq in [seq for seq in rows if seq < base]:
                del rows[seq]
            held[int(stream)] = Kept(base, tuple(_size(rows[seq][0]) for seq in range(base, following)))
        return held

    def bring_back(self) -> None:
        """The power goes: of the deletions since the last commit, only a prefix was flushed."""
        for stream, seq, row in self._undeleted:
            if self.rng.random() < 0.5:
                break
            self.rows[stream][seq] = row
        self._undeleted.clear()

    def sample(self) -> None:
        """The module scores something worth keeping."""
        if self.brain is None:
            return
        self._samples += 1
        name = f"{self.id}-{self._samples}"
        self.keep("sample", Sample(id=name, module="m", version=1, digest="", at=0, inputs={}))

    def keep(self, kind: str, body: Any, *, coalesce: bool = False) -> None:
        """Store a record durably, then send what is due."""
        stream = STREAM_OF[kind]
        if self.full:
            return
        appended = self.policy.append(stream, _size(kind), coalesce=coalesce)
        for lane, upto in appended.dropped.items():
            self._drop(lane, upto)
        if appended.seq:
            self.rows[stream][appended.seq] = (kind, body)
            self.next_seq[stream] = max(self.next_seq.get(stream, 1), appended.seq + 1)
            if kind == "sample":
                self.world.truth.appended[body.id] = self.id
        self._undeleted.clear()  # this commit took the earlier deletions along
        self.pump()

    def _drop(self, stream: int, upto: int) -> None:
        for seq in [seq for seq in self.rows[stream] if seq <= upto]:
            kind, body = self.rows[stream].pop(seq)
            if kind == "sample":
                self.world.truth.dropped.add(body.id)

    def pump(self) -> None:
        """Publish what the policy says, and come back when it wants to."""
        if self.brain is None:
            return
        for sending in self.policy.due(self.mono):
            kind, body = self.rows[sending.stream][sending.seq]
            up = Up(1, self.epoch, sending.stream, sending.seq, sending.base, 0, body)
            self.world.network.up(self.id, kind, messages.encode(up))
        due = self.policy.next_deadline
        if due is not None and (self._spool_at is None or due < self._spool_at):
            self._spool_at = due
            self.world.clock.at(due + self._booted_at, self._spool_due, self.boots, due)

    def _spool_due(self, boot: int, due: float) -> None:
        if boot == self.boots and self._spool_at == due:
            self._spool_at = None
            self._reached = max(self._reached, due)
            self.pump()

    def acked(self, ack: Ack) -> None:
        if ack.again and self.connected:
            self.greet_again()
        if ack.epoch != self.epoch:
            return
        acked = self.policy.acked(ack.marks, self.mono)
        for stream, upto in acked.upto.items():
            for seq in sorted(seq for seq in self.rows[stream] if seq <= upto):
                row = self.rows[stream].pop(seq)
                self._undeleted.append((stream, seq, row))
                if row[0] == "sample":
                    self.world.truth.acknowledged.add(row[1].id)
        self._undeleted.reverse()
        self.pump()
