"""Watchdog decisions: when crashes are a loop, and whether a soak has failed. Counts and times in, verdicts out.

One crash is not a verdict: the data plane restarts the worker and repeats the request. A loop is, and so is a worker
that cannot be restarted. In a soak the bar is lower: a candidate has a healthy version to go back to.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec


class HealthSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a version that has traffic."""

    crash_limit: int = 3  # so many crashes or hangs within the window make a loop
    crash_window_s: float = 120.0  # a crash counts towards a loop for so long
    soak_crash_limit: int = 2  # so many in one soak fail it
    tell_s: float = 30.0  # at most one event about each kind of a version's crashes in this time
    error_rate: float = 0.05  # a larger share of requests on which the model fails makes it unhealthy, fails its soak
    error_requests: int = 20  # the share of errors is judged from this many requests on


class Crashes:
    """The exits of one version's worker that are recent enough to count."""

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self._times: deque[float] = deque()
        self.last_reason = ""

    def add(self, reason: str, now: float) -> None:
        self._times.append(now)
        self.last_reason = reason

    def recent(self, now: float) -> int:
        while self._times and self._times[0] + self._settings.crash_window_s <= now:
            self._times.popleft()
        return len(self._times)

    def looping(self, now: float) -> bool:
        return self.recent(now) >= self._settings.crash_limit

    @property
    def forgotten_at(self) -> float | None:
        """When the newest of them stops counting."""
        return self._times[-1] + self._settings.crash_window_s if self._times else None

    @property
    def code(self) -> str:
        """The reason code that the last exit stands for."""
        return "run.hang" if self.last_reason.startswith("hang") else "run.crash_loop"


class Errors:
    """The requests on which a serving version failed of late, few a minute or thousands a second alike.

    They are counted until enough have come to judge by, and then, while all is well, over at most ten times as many.
    """

    _MANY: Final = 10

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self._requests = self._errors = 0
        self.until: float | None = None
        """While it errs: when that is forgotten, should nobody ask it any more."""

    def traffic(self, requests: int, errors: int, now: float) -> str:
        """Count requests; why the version errs, in words, if it is from now on that it does."""
        limits, was = self._settings, self.until is not None
        self._requests += requests
        self._errors += errors
        if was and errors:
            self.until = now + limits.crash_window_s
        if self._requests < limits.error_requests:
            return ""
        counted = (self._errors, self._requests)
        erring = self._errors > limits.error_rate * self._requests
        self.until = now + limits.crash_window_s if erring else None
        if erring or was or self._requests >= self._MANY * limits.error_requests:
            self._requests = self._errors = 0
        return "" if was or not erring else _share(*counted, limits)

    def tick(self, now: float) -> None:
        if self.until is not None and now >= self.until:
            self.until = None


class Soak:
    """One candidate under live traffic."""

    def __init__(self, soak_s: float, settings: HealthSettings, now: float, when: str = " during the soak") -> None:
        self._settings = settings
        self._when = when
        self.started = now
        self.ends = now + max(soak_s, 0.0)
        self.requests = 0
        self.errors = 0
        self.crashes = 0

    def traffic(self, requests: int, errors: int) -> None:
        self.requests += requests
        self.errors += errors

    def progress(self, now: float) -> float:
        length = self.ends - self.started
        return 1.0 if length <= 0 else min(1.0, max(0.0, (now - self.started) / length))

    def failure(self) -> str:
        """Why the soak has failed, in words; empty while it has not."""
        limits = self._settings
        if self.crashes >= limits.soak_crash_limit:
            passes = limits.soak_crash_limit - 1
            return f"its worker crashed or hung {self.crashes} times during the soak; at most {passes} is let pass"
        if self.requests >= limits.error_requests and self.errors > limits.error_rate * self.requests:
            return _share(self.errors, self.requests, limits, self._when)
        return ""

    def final_failure(self) -> str:
        """As :meth:`failure`, at the soak's end: few requests are then judged too, if most of them failed."""
        if 0 < self.requests < self._settings.error_requests and 2 * self.errors > self.requests:
            return f"it failed on {self.errors} of the {self.requests} requests that came during the soak"
        return self.failure()


def _share(errors: int, requests: int, limits: HealthSettings, when: str = "") -> str:
    share = 100 * errors / requests
    limit = 100 * limits.error_rate
    return f"it failed on {errors} of {requests} requests ({share:.1f} %){when}; the limit is {limit:g} %"
