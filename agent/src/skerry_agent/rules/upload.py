"""One result's way to the hub, chunk by chunk, without I/O: what to send now, from what the hub said and the time.

The hub is asked first what it lacks: after a restart or a reconnect only that goes again. Then chunks go out, a few
at a time, each kept as "on its way" until an answer no longer lacks it. Silence forgets what was on its way and asks
again, less and less often. It ends when the hub says ``over``.

Does not handle: the file, priorities (the caller asks only when nothing more urgent waits).
"""

from __future__ import annotations

from typing import Final

import msgspec

from skerry_modules import chunks

ASK: Final = -1
"""The number of a piece that carries nothing and asks what is lacking."""


class UploadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds are monotonic."""

    window: int = 4  # chunks on their way at most
    quiet_s: float = 5.0  # silence before the hub is asked again
    quiet_max_s: float = 60.0  # the silence doubles each time, up to this


class Upload:
    """One result of ``size`` bytes. ``over`` once the hub needs nothing more of it."""

    def __init__(self, size: int, settings: UploadSettings, *, connected: bool) -> None:
        self.total = chunks.count(size)
        self.over = False
        self._settings = settings
        self._connected = connected
        self._lacks: list[int] | None = None  # None: to be asked
        self._flight: set[int] = set()
        self._quiet_s = settings.quiet_s
        self._ask_at: float | None = None

    @property
    def progress(self) -> float:
        """The share that the hub has."""
        if self.over:
            return 1.0
        return 0.0 if self._lacks is None else 1.0 - len(self._lacks) / self.total

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`due` wants to be asked again, though nothing happened."""
        return self._ask_at if self._connected and not self.over else None

    def due(self, now: float) -> list[int]:
        """Numbers of the chunks to send now, or :data:`ASK`."""
        if self.over or not self._connected:
            return []
        if self._ask_at is not None and now >= self._ask_at:
            self._quiet_s = min(self._quiet_s * 2, self._settings.quiet_max_s)
            self._lacks, self._ask_at = None, None
            self._flight.clear()
        if self._lacks is None:
            if self._ask_at is not None:
                return []
            self._ask_at = now + self._quiet_s
            return [ASK]
        free = self._settings.window - len(self._flight)
        found = [number for number in self._lacks if number not in self._flight][: max(free, 0)]
        self._flight.update(found)
        if found:
            self._ask_at = now + self._quiet_s
        return found

    def taken(self, bitmap: bytes, over: bool, now: float) -> None:
        """The hub said what it lacks."""
        self.over = self.over or over
        before = len(self._lacks) if self._lacks is not None else self.total + 1
        self._lacks = list(chunks.decode_bitmap(bitmap, self.total))
        self._flight.intersection_update(self._lacks)
        if len(self._lacks) < before:
            self._quiet_s = self._settings.quiet_s
        # Nothing lacking and not over: the hub checks the whole; it is asked again should that answer get lost.
        self._ask_at = now + self._quiet_s

    def linked(self, up: bool) -> None:
        """The link came up or went down: what was on its way may be lost."""
        self._connected = up
        self._lacks, self._ask_at = None, None
        self._flight.clear()
        self._quiet_s = self._settings.quiet_s
