"""Requests and latency over time, folded from the windows that devices report. Pure but for the arrays it keeps.

A window's requests are spread over the buckets it covers, by the time in each, and its latency distribution counts in
each of them, so devices that report every 2 s and every 60 s add up without saw teeth. The newest buckets, which some
devices have not reported yet, are left out: by the longest window seen.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np

from skerry_modules.histogram import LOG2_EDGES, Histogram
from skerry_modules.messages import Distribution

BINS: Final = len(LOG2_EDGES) - 1
MAX_WINDOW_MS: Final = 600_000
"""A longer window is a clock that jumped; it counts as this long."""
MIN_SHOWN: Final = 24
"""Buckets that are shown at least, so that a chart that begins is not one point stretched over its width."""
SLACK_MS: Final = 2_000
"""How long a finished window may take from the device into the database and still be waited for."""


class _LatencyOnly(msgspec.Struct):
    """The one part of a ``messages.Telemetry`` that is read here; the rest is skipped, which is cheaper."""

    latency_us: Distribution = Distribution()


_latency = msgspec.msgpack.Decoder(_LatencyOnly)


class Series:
    """Buckets of ``width`` ms that move on with time; ``length`` of them are kept."""

    def __init__(self, width: int, length: int) -> None:
        self.width = width
        self.length = length
        self._newest = 0  # number of the newest bucket, time // width
        self._requests = np.zeros(length)
        self._errors = np.zeros(length)
        self._counts = np.zeros((length, BINS), dtype=np.int64)
        self._lag = width

    def move(self, now: int) -> None:
        """Forget what is too old to show at ``now``."""
        newest = now // self.width
        shift = min(max(newest - self._newest, 0), self.length)
        if shift:
            for array in (self._requests, self._errors, self._counts):
                array[:] = np.roll(array, -shift, axis=0)
                array[-shift:] = 0
            self._newest = newest

    def add(self, start: int, end: int, requests: int, errors: int, body: bytes) -> None:
        """Fold one window in. What lies outside the kept time is dropped; a body that cannot be read has no latency."""
        start = max(start, end - MAX_WINDOW_MS)
        first, last = start // self.width, max(start, end - 1) // self.width
        base = self._newest - self.length + 1
        low, high = max(first - base, 0), min(last - base, self.length - 1)
        if high < low:
            return
        self._lag = max(self._lag, end - start)
        lefts = (np.arange(low, high + 1) + base) * self.width
        covered = np.minimum(lefts + self.width, end) - np.maximum(lefts, start)
        share = covered / (end - start) if end > start else 1.0
        self._requests[low : high + 1] += requests * share
        self._errors[low : high + 1] += errors * share
        counts = _counts(body)
        if counts:
            self._counts[low : high + 1, : len(counts)] += counts

    def shown(self, now: int) -> Points:
        """The buckets that are complete at ``now``."""
        complete = (now - self._lag - SLACK_MS) // self.width  # number of the first bucket that is not
        end = min(self.length, max(1, complete - (self._newest - self.length + 1)))
        first = min(self._first(), max(0, end - MIN_SHOWN))
        times = [(self._newest - self.length + 1 + place) * self.width for place in range(first, end)]
        rate = self._requests[first:end] * (1000 / self.width)
        errors = self._errors[first:end] * (1000 / self.width)
        quantiles = [_quantiles(row) for row in self._counts[first:end]]
        return Points(
            times=times,
            rate=[round(float(value), 3) for value in rate],
            errors=[round(float(value), 3) for value in errors],
            p50=[low for low, _ in quantiles],
            p99=[high for _, high in quantiles],
        )

    def _first(self) -> int:
        """The bucket in which the first request came: before it is nothing to show."""
        used = np.flatnonzero(self._requests)
        return max(0, int(used[0]) - 1) if len(used) else self.length


class Points(msgspec.Struct, frozen=True):
    """What a chart shows: start of each bucket in ms, requests/s, errors/s, latency quantiles in µs (None: no data)."""

    times: list[int]
    rate: list[float]
    errors: list[float]
    p50: list[float | None]
    p99: list[float | None]

    @property
    def empty(self) -> bool:
        return not any(self.rate)

    def now(self, values: list[Any]) -> Any:
        """The newest value, None if there is none."""
        return values[-1] if values else None


def _counts(body: bytes) -> tuple[int, ...]:
    try:
        wire = _latency.decode(body).latency_us
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()
    return wire.counts if not wire.edges and len(wire.counts) <= BINS else ()


def _quantiles(counts: Any) -> tuple[float | None, float | None]:
    if not counts.any():
        return None, None
    merged = Histogram()
    merged.counts = counts.tolist()
    used = [place for place, number in enumerate(merged.counts) if number]
    merged.minimum, merged.maximum = LOG2_EDGES[used[0]], LOG2_EDGES[used[-1] + 1]
    low, high = merged.quantile(0.5), merged.quantile(0.99)
    return (None, None) if math.isnan(low) else (round(low, 1), round(high, 1))
