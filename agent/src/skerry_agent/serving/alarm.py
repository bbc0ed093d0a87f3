"""One timer that goes off at the earliest of the times it was asked for: thousands of deadlines cost one of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable


class Alarm:
    """``at`` is when it goes off (monotonic seconds; infinity: never). Callers compare with it before they call
    :meth:`by`, so that most requests, whose deadline is later than one before, cost a comparison."""

    __slots__ = ("_handle", "_ring", "at")

    def __init__(self, ring: Callable[[], None]) -> None:
        self.at = math.inf
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None

    def by(self, when: float) -> None:
        """Go off at ``when`` at the latest."""
        if when >= self.at:
            return
        self.clear()
        self.at = when
        self._handle = asyncio.get_running_loop().call_later(max(when - time.monotonic(), 0.0), self._off)

    def clear(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self.at = None, math.inf

    def _off(self) -> None:
        self._handle, self.at = None, math.inf
        self._ring()
