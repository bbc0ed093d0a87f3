"""Requests of low priority (``X-Skerry-Priority: low``): batch jobs that must not be felt by live traffic.

At most one is with a version's worker at a time, and it goes there only when nothing else waits or is being scored, or
when it has waited for ``low_wait_s``, so that a batch moves on even under a load that never pauses. What a live request
then loses is at most the time of one such request, which the sender keeps short: every answer tells it how live
traffic fared with and without it (``X-Skerry-Live``).

They are not counted in a version's telemetry, since a batch's bad rows and long requests say nothing of its health.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from skerry_agent.serving import oip
from skerry_agent.serving.exchange import Exchange

if TYPE_CHECKING:
    from skerry_agent.rules.dispatch import Ticket
    from skerry_agent.serving.version import Version

WINDOW_S: Final = 2.0
"""Live requests that were answered within this time are told of."""
KEPT: Final = 512


class Recent:
    """The last live requests of a version: when they were answered, how long they took, and if beside a low one."""

    __slots__ = ("_found", "beside")

    def __init__(self) -> None:
        self.beside = False  # a request of low priority is with the worker
        self._found: deque[tuple[float, float, bool]] = deque(maxlen=KEPT)

    @property
    def last(self) -> float:
        """When the last was answered; minus infinity if none was."""
        return self._found[-1][0] if self._found else float("-inf")

    def add(self, now: float, seconds: float) -> None:
        self._found.append((now, seconds, self.beside))

    def header(self, now: float, took_s: float) -> bytes:
        """``X-Skerry-Live``: requests and p99 in µs of all, then of those with no low one beside them; and how long
        this low one was with the worker."""
        new = [(seconds, beside) for when, seconds, beside in self._found if now - when <= WINDOW_S]
        everyone = sorted(seconds for seconds, _ in new)
        calm = sorted(seconds for seconds, beside in new if not beside)
        told = (len(everyone), _p99_us(everyone), len(calm), _p99_us(calm), round(took_s * 1e6))
        return b"X-Skerry-Live: requests=%d, p99-us=%d, calm=%d, calm-p99-us=%d, took-us=%d\r\n" % told


def _p99_us(values: list[float]) -> int:
    return round(values[(len(values) - 1) * 99 // 100] * 1e6) if values else 0


class Low:
    """One request of low priority: an ``Item`` that tells the room of its end."""

    __slots__ = ("_exchange", "_room", "began", "body", "endpoint", "json", "released", "ticket", "timeout_s")

    low = True
    shadow = False
    after: Callable[[int, bytes], None] | None = None

    def __init__(self, room: Room, exchange: Exchange, timeout_s: float) -> None:
        self._room = room
        self._exchange = exchange
        self.endpoint = exchange.endpoint
        self.body = exchange.body
        self.json = exchange.json
        self.began = exchange.began
        self.timeout_s = timeout_s
        self.ticket: Ticket | None = None
        self.released = 0.0

    def reply(self, status: int, code: str, json: int, body: bytes) -> None:
        now = time.monotonic()
        self._exchange.extra = self._room.recent.header(now, now - self.released if self.released else 0.0)
        self._exchange.reply(status, code, json, body)
        self._room.ended(self)


class Room:
    """Where the requests of low priority of one version wait."""

    def __init__(self, version: Version, wait_s: float, limit: int) -> None:
        self.recent = version.recent
        self._version = version
        self._wait_s = wait_s
        self._limit = limit
        self.waiting: deque[Low] = deque()
        self._out: Low | None = None
        self._timer: asyncio.TimerHandle | None = None

    def take(self, exchange: Exchange, timeout_s: float) -> None:
        """Answer it when there is time for it, or 429 at once."""
        if len(self.waiting) >= self._limit:
            text = f"cannot score now: {self._limit} requests of low priority wait; try again after a second"
            exchange.reply(429, "scoring.overloaded", -1, oip.error_body(text))
            return
        low = Low(self, exchange, timeout_s)
        exchange.cancel = lambda: self._leave(low)
        self.waiting.append(low)
        self.look()

    @property
    def empty(self) -> bool:
        """Nothing waits here, and nothing from here is with the worker."""
        return self._out is None and not self.waiting

    def look(self) -> None:
        """Send the next one if the version has nothing else to do; called whenever it may have come to rest."""
        if self._out is not None or not self.waiting:
            return
        if self._version.idle:
            self._release()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._waited)

    def _waited(self) -> None:
        self._timer = None
        if self._out is None and self.waiting:
            self._release()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        low = self._out = self.waiting.popleft()
        self.recent.beside = True
        low.released = time.monotonic()
        low.ticket = self._version.submit(low, low.timeout_s)

    def ended(self, low: Low) -> None:
        """It was answered, or nobody wants the answer any more."""
        if low is self._out:
            self._out = None
            self.recent.beside = False
            # Not at once: a live request that came meanwhile goes first.
            asyncio.get_running_loop().call_soon(self.look)

    def _leave(self, low: Low) -> None:
        """Its client has left."""
        if low is not self._out:
            self.waiting.remove(low)
        elif low.ticket is not None:
            self._version.forget(low.ticket)
            self.ended(low)

    def close(self, text: str) -> None:
        """The version stops: nobody is left without an answer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.waiting:
            self.waiting.popleft().reply(503, "scoring.not_ready", -1, oip.error_body(text))
