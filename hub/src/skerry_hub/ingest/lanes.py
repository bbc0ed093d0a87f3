"""How far each stream of each spool has come: the marks in memory, as the database has them.

A :class:`Lane` is one stream of one spool. A batch moves the lanes that it hears of, and its transaction writes them.
Whoever finds that a transaction failed calls :meth:`Lanes.forget`, and they are read again: nothing that was moved
and not committed is believed. No I/O but the reader that is handed in; used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

SpoolKey = tuple[str, str]
"""(device, epoch in hex)."""

Reader = Callable[[str, str], Iterable[tuple[int, int, int]]]
"""(device, epoch in hex) to the committed (stream, mark, lost) of that spool."""


class Lane:
    """One stream of one spool: its mark, and how many records the device had to drop.

    ``heard`` and ``changed`` are of the batch in hand: messages to be acknowledged, and whether the mark is to be
    written. ``at`` is when the newest message came.
    """

    __slots__ = ("at", "changed", "heard", "lost", "mark", "spool", "stream")

    def __init__(self, spool: SpoolKey, stream: int, mark: int = 0, lost: int = 0) -> None:
        self.spool, self.stream, self.mark, self.lost = spool, stream, mark, lost
        self.changed = False
        self.at = 0
        self.heard = 0


class Lanes:
    """All lanes that were heard of since the last :meth:`forget`.

    ``known`` finds them by what a message names, without a call: (device, epoch, stream).
    """

    def __init__(self, read: Reader) -> None:
        self._read = read
        self.known: dict[tuple[str, bytes, int], Lane] = {}
        self._spools: dict[SpoolKey, dict[int, Lane]] = {}

    def open(self, device: str, epoch: bytes, stream: int) -> Lane:
        """The lane of a message, read from the database where it is new here."""
        spool = device, epoch.hex()
        lanes = self._spool(spool)
        lane = lanes.get(stream)
        if lane is None:
            lane = lanes[stream] = Lane(spool, stream)
        self.known[device, epoch, stream] = lane
        return lane

    def marks(self, spool: SpoolKey) -> dict[int, int]:
        """Stream to mark: what is acknowledged. Asked between batches, when all that stands here is committed."""
        return {stream: lane.mark for stream, lane in sorted(self._spool(spool).items()) if lane.mark}

    def forget(self) -> None:
        """Believe only what the database says, from now on."""
        self.known.clear()
        self._spools.clear()

    def _spool(self, spool: SpoolKey) -> dict[int, Lane]:
        lanes = self._spools.get(spool)
        if lanes is None:
            lanes = {stream: Lane(spool, stream, mark, lost) for stream, mark, lost in self._read(*spool)}
            self._spools[spool] = lanes
        return lanes
