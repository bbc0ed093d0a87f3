"""Nudges inside one hub: "something about this topic changed, look again". Never data, so nothing is lost by a miss.

Topics: ``fleet``, ``device:<id>``, ``rollout:<id>``, ``models``, ``samples``, ``events``. A listener gets the set of
topics that were nudged since it last looked, so a slow one costs a set of names and no queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator


class _Listener:
    """One waiting reader: its loop, a wake-up, and what was nudged meanwhile."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.event = asyncio.Event()
        self.topics: set[str] = set()
        self.closed = False


class Bus:
    """Publish from any thread; listen from any event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[_Listener] = set()
        self._closed = False

    def publish(self, *topics: str) -> None:
        """Nudge. Safe from any thread, never blocks, never fails."""
        with self._lock:
            for listener in self._listeners:
                sleeping = not listener.topics
                listener.topics.update(topics)
                if sleeping and topics:
                    self._wake(listener)

    async def listen(self, *, quiet_s: float | None = None) -> AsyncIterator[frozenset[str]]:
        """Sets of nudged topics for as long as the bus is open; an empty set after ``quiet_s`` of silence."""
        listener = _Listener()
        with self._lock:
            if self._closed:
                return
            self._listeners.add(listener)
        try:
            while True:
                try:
                    await asyncio.wait_for(listener.event.wait(), quiet_s)
                except TimeoutError:
                    yield frozenset()
                    continue
                with self._lock:
                    topics, listener.topics = frozenset(listener.topics), set()
                    listener.event.clear()
                    closed = self._closed
                if topics:
                    yield topics
                if closed:
                    return
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def close(self) -> None:
        """End every ``listen``, so that a stopping server does not wait for its streams."""
        with self._lock:
            self._closed = True
            for listener in self._listeners:
                self._wake(listener)

    def reopen(self) -> None:
        with self._lock:
            self._closed = False

    @staticmethod
    def _wake(listener: _Listener) -> None:
        try:
            listener.loop.call_soon_threadsafe(listener.event.set)
        except RuntimeError:  # its loop ended between our look and the call: it listens no more
            listener.closed = True
