"""How fast a batch job may score without live traffic feeling it: pure rules.

A job sends one or two requests at a time, and what a live request can lose to it is the time that one of them takes. So
the rows of a request are chosen by time: as many as last ``slice_s``, fewer (``live_slice_s``) while others ask the
same version, and then it rests after each for as long as that took: half of the live requests meet no batch at all.
Every answer tells the p99 of live requests with and without a batch request beside them; where the first is worse than
the second by more than allowed, requests shrink by half, and at the smallest size the pause between them grows. When
it is better again, both come back slowly. A refusal (429, 503) halves and pauses too.

Does not handle: other modules' traffic on the same cores (the operating system shares those), time (an argument).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec


class Live(NamedTuple):
    """Live requests of the version in the last two seconds: all, and those with no batch request beside them."""

    requests: int = 0
    p99_us: int = 0
    calm: int = 0
    calm_p99_us: int = 0
    took_us: int = 0  # the batch request itself, with the worker


_HEADER: Final = re.compile(
    r"requests=(\d{1,9}), p99-us=(\d{1,12}), calm=(\d{1,9}), calm-p99-us=(\d{1,12}), took-us=(\d{1,12})"
)


def parse_live(header: str) -> Live | None:
    """The header ``X-Skerry-Live``; None: another server, or an older agent."""
    found = _HEADER.fullmatch(header)
    return Live(*map(int, found.groups())) if found else None


class PaceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the pace.

    Attributes:
        max_rows: rows of one request at most.
        slice_s: how long a request may take while nobody else asks.
        live_slice_s: and while others do.
        worse_factor: live p99 may grow by this factor.
        worse_us: and by so much.
        enough: fewer live requests than this in two seconds give no p99.
        pause_min_s: the first pause; doubled while it does not help.
        pause_max_s: the longest.
    """

    max_rows: int = 1024
    slice_s: float = 0.05
    live_slice_s: float = 0.002
    worse_factor: float = 1.5
    worse_us: int = 500
    enough: int = 50
    pause_min_s: float = 0.01
    pause_max_s: float = 2.0


class Pace:
    """The pace of one job. Read ``rows``, ``in_flight`` and ``pause_s`` before each request."""

    def __init__(self, settings: PaceSettings | None = None) -> None:
        self.settings = settings or PaceSettings()
        self.rows = min(16, self.settings.max_rows)
        self.in_flight = 1
        self.pause_s = 0.0
        self._calm_us = 0  # p99 of live requests alone, as last known

    def answered(self, rows: int, seconds: float, live: Live | None) -> None:
        """A request of ``rows`` rows was answered after ``seconds``, of which some may have been spent waiting."""
        settings = self.settings
        busy = live is not None and live.requests > 0
        self.in_flight = 1 if busy else 2
        if live is not None and live.took_us:
            seconds = live.took_us / 1e6
        if live is not None and live.calm >= settings.enough:
            self._calm_us = live.calm_p99_us
        if live is not None and self._is_worse(live):
            self._slower()
            return
        self.pause_s = self.pause_s / 2 if self.pause_s > settings.pause_min_s else 0.0
        if busy:
            self.pause_s = max(self.pause_s, min(seconds, settings.pause_max_s))
        wanted = settings.live_slice_s if busy else settings.slice_s
        fits = int(rows * wanted / max(seconds, 1e-6))
        self.rows = max(1, min(self.rows * 2, fits, settings.max_rows))

    def _is_worse(self, live: Live) -> bool:
        settings = self.settings
        if live.requests < settings.enough or not self._calm_us:
            return False
        return live.p99_us > max(self._calm_us * settings.worse_factor, self._calm_us + settings.worse_us)

    def refused(self) -> None:
        """429, 503, or nobody answered."""
        self.in_flight = 1
        self.rows = max(1, self.rows // 2)
        self.pause_s = min(max(self.pause_s * 2, 0.1), self.settings.pause_max_s)

    def too_large(self) -> None:
        """The request was too large, or took longer than its deadline."""
        self.rows = max(1, self.rows // 2)

    def _slower(self) -> None:
        if self.rows > 1:
            self.rows //= 2
        else:
            self.pause_s = min(max(self.pause_s * 2, self.settings.pause_min_s), self.settings.pause_max_s)
