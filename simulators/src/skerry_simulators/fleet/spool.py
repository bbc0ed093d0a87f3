"""A light device's spool: in memory, numbered and kept until the hub has acknowledged, as the protocol asks."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from skerry_modules import messages

WINDOW: Final = 64
RESEND_S: Final = 10.0


class Lane:
    """One stream: records from ``base`` on, in order."""

    __slots__ = ("base", "cursor", "records", "waits_until")

    def __init__(self) -> None:
        self.base = 1
        self.cursor = 1  # the next number to send
        self.records: deque[tuple[str, int, Any]] = deque()
        self.waits_until = 0.0


class LightSpool:
    """All streams of one device. ``due`` gives payloads to publish."""

    def __init__(self, epoch: bytes) -> None:
        self.epoch = epoch
        self.acknowledged = 0
        self._lanes = {int(stream): Lane() for stream in messages.Stream}

    def __len__(self) -> int:
        return sum(len(lane.records) for lane in self._lanes.values())

    def put(self, kind: str, body: Any, at: int) -> None:
        self._lanes[int(messages.STREAM_OF[kind])].records.append((kind, at, body))

    def restart(self) -> None:
        """A new connection: whatever was on its way is sent again."""
        for lane in self._lanes.values():
            lane.cursor = lane.base

    def due(self, now: float) -> list[tuple[str, bytes]]:
        """(kind, payload) to publish now: what was not sent, and after silence what was."""
        out: list[tuple[str, bytes]] = []
        for stream, lane in self._lanes.items():
            if lane.cursor > lane.base and now >= lane.waits_until:
                lane.cursor = lane.base
            end = min(lane.base + len(lane.records), lane.base + WINDOW)
            while lane.cursor < end:
                kind, at, body = lane.records[lane.cursor - lane.base]
                up = messages.Up(messages.FORMAT, self.epoch, stream, lane.cursor, lane.base, at, body)
                out.append((kind, messages.encode(up)))
                lane.cursor += 1
                lane.waits_until = now + RESEND_S
        return out

    def acked(self, ack: messages.Ack) -> None:
        """Forget what the hub has committed."""
        if ack.epoch != self.epoch:
            return
        for stream, mark in ack.marks.items():
            lane = self._lanes.get(stream)
            while lane and lane.records and lane.base <= mark:
                lane.records.popleft()
                lane.base += 1
                self.acknowledged += 1
            if lane:
                lane.cursor = max(lane.cursor, lane.base)
