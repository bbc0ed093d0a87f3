"""What the downloads of a device share: a clock that runs only while it is connected, and when it last heard a chunk.

One link carries all objects, and the hub sends them in turn: what one download waits for may stand in line behind
another's chunks for minutes. So silence, and the time after which a download is given up, are the device's.
"""

from __future__ import annotations

from typing import Final

EPSILON_S: Final = 1e-6  # adding up seconds leaves a rest; without this a deadline could come again and again

_PATIENCE: Final = 4
"""Silence lasts at least so many times as long as chunks are seen to take: less would ask for what is on its way."""


class Reception:
    """The device's ear. ``chunks`` counts the new chunks of all objects; ``heard_clock`` is when the last one came."""

    def __init__(self) -> None:
        self.connected = False
        self.chunks = 0
        self.heard_clock = 0.0
        self._interval = 0.0  # seconds between new chunks, smoothed
        self._passed = 0.0  # connected seconds until …
        self._since = 0.0  # … this moment

    def clock(self, now: float) -> float:
        """Seconds that the device was connected, all told."""
        return self._passed + (now - self._since) if self.connected else self._passed

    def when(self, clock: float) -> float:
        """The moment at which the clock will show ``clock``, if the link stays up."""
        return self._since + clock - self._passed

    def up(self, now: float) -> None:
        self._passed, self._since, self.connected = self.clock(now), now, True

    def down(self, now: float) -> None:
        self._passed, self._since, self.connected = self.clock(now), now, False

    def postpone(self, seconds: float) -> None:
        """Nothing that was asked for could begin for so long: it does not count."""
        self._since += seconds

    def heard(self, now: float, since_clock: float) -> None:
        """A new chunk came; it was listened for since ``since_clock`` at the latest."""
        clock = self.clock(now)
        gap = max(0.0, clock - max(self.heard_clock, since_clock))
        self._interval = (3 * self._interval + gap) / 4 if self.chunks else gap
        self.heard_clock = clock
        self.chunks += 1

    def patience(self, least_s: float) -> float:
        """Seconds of silence after which something may be lost: more where chunks come slowly."""
        return max(least_s, _PATIENCE * self._interval)
