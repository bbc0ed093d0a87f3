"""What the chart script draws, as plain values: times in seconds, one list per line, None for a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from skerry_hub.console.queries.device import HealthPoints
from skerry_hub.console.series import Points

SPANS: Final = {"15m": 900_000, "1h": 3_600_000, "6h": 21_600_000, "24h": 86_400_000}
"""Spans that a device's charts offer, ms."""

SPAN_NAMES: Final = {"15m": "15 minutes", "1h": "hour", "6h": "6 hours", "24h": "24 hours"}


@dataclass(frozen=True)
class Chart:
    """``labels`` are (name, colour token) per line; ``span`` completes "last …"."""

    series: list[Sequence[float | None]]
    labels: list[tuple[str, str]]
    span: str

    @property
    def empty(self) -> bool:
        """Nothing but gaps and zeros: words say more than a flat line."""
        return not any(value for line in self.series[1:] for value in line)


def _times(times: Sequence[int]) -> list[float]:
    return [at / 1000 for at in times]


def requests(points: Points, span: str) -> Chart:
    return Chart(
        [_times(points.times), points.rate, points.errors], [("requests", "line-1"), ("errors", "line-bad")], span
    )


def latency(points: Points, span: str) -> Chart:
    return Chart([_times(points.times), points.p50, points.p99], [("p50", "line-1"), ("p99", "line-2")], span)


def cpu(points: HealthPoints, span: str) -> Chart:
    return Chart([_times(points.times), points.cpu], [("all cores", "line-1")], span)


def memory(points: HealthPoints, span: str) -> Chart:
    return Chart([_times(points.times), points.memory], [("used", "line-3")], span)


def disk(points: HealthPoints, span: str) -> Chart:
    return Chart([_times(points.times), points.disk], [("used", "line-4")], span)


def temperature(points: HealthPoints, span: str) -> Chart:
    return Chart([_times(points.times), points.temperature], [("temperature", "line-2")], span)
