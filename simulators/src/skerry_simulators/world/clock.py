"""Virtual time: a heap of what happens when. Nothing sleeps; an hour passes as fast as its events can be handled."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """``now`` is seconds since the world began. Events at the same time happen in the order they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, when: float, action: Callable[..., Any], *arguments: Any) -> None:
        self._number += 1
        heapq.heappush(self._heap, (max(when, self.now), self._number, action, arguments))

    def after(self, seconds: float, action: Callable[..., Any], *arguments: Any) -> None:
        self.at(self.now + seconds, action, *arguments)

    def run_until(self, end: float, limit: int = 1_000_000) -> int:
        """Let time pass; returns how many events happened.

        Raises:
            RuntimeError: more than ``limit`` events: something asks for time without end.
        """
        count = 0
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, action, arguments = heapq.heappop(heap)
            action(*arguments)
            count += 1
            if count > limit:
                raise RuntimeError(f"more than {limit} events until {end}: the last one was {action}")
        self.now = end
        return count
