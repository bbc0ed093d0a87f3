"""What a version did since it was last asked: per endpoint and role, and the distributions of all its rows."""

from __future__ import annotations

from skerry_agent.ports import PartCounters, VersionCounters
from skerry_agent.serving import orders
from skerry_modules.histogram import Histogram
from skerry_modules.messages import Agreement


class _Part:
    __slots__ = ("agreement", "errors", "latency", "rejected", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = self.rejected = 0
        self.latency = Histogram()
        self.agreement = Agreement()


class Counters:
    """One version's. ``add`` is on the way of every request."""

    def __init__(self) -> None:
        self._parts: dict[tuple[bytes, bool], _Part] = {}
        self._inputs: dict[str, Histogram] = {}
        self._outputs: dict[str, Histogram] = {}
        self._steps: dict[str, Histogram] = {}

    def part(self, endpoint: bytes, shadow: bool) -> _Part:
        found = self._parts.get((endpoint, shadow))
        if found is None:
            found = self._parts[endpoint, shadow] = _Part()
        return found

    def add(self, endpoint: bytes, shadow: bool, seconds: float, failed: bool) -> None:
        """One request was answered."""
        part = self._parts.get((endpoint, shadow)) or self.part(endpoint, shadow)
        part.requests += 1
        if failed:
            part.errors += 1
        part.latency.add(seconds * 1e6)

    def answered(self, endpoint: bytes, latency: Histogram) -> None:
        """Many were answered well; µs."""
        part = self.part(endpoint, False)
        part.requests += latency.count
        part.latency.merge(latency)

    def refused(self, endpoint: bytes, shadow: bool) -> None:
        """One was answered without being scored, for what it did to workers before."""
        part = self.part(endpoint, shadow)
        part.requests += 1
        part.errors += 1

    def rejected(self, endpoint: bytes) -> None:
        self.part(endpoint, False).rejected += 1

    def compared(self, endpoint: bytes, found: Agreement) -> None:
        part = self.part(endpoint, True)
        part.agreement = merge(part.agreement, found)

    def observed(self, found: orders.Observed) -> None:
        """What the worker saw of its rows."""
        pairs = ((self._inputs, found.inputs), (self._outputs, found.outputs), (self._steps, found.steps))
        for into, news in pairs:
            for name, wire in news.items():
                histogram = Histogram.from_wire(wire)
                if name in into:
                    into[name].merge(histogram)
                else:
                    into[name] = histogram

    @property
    def traffic(self) -> tuple[int, int]:
        """(requests, errors), of all endpoints and roles."""
        parts = self._parts.values()
        return sum(part.requests for part in parts), sum(part.errors for part in parts)

    def take(self) -> VersionCounters:
        """All of it, beginning anew."""
        parts, self._parts = self._parts, {}
        inputs, outputs, self._inputs, self._outputs = self._inputs, self._outputs, {}, {}
        steps, self._steps = self._steps, {}
        latency = Histogram()
        for part in parts.values():
            latency.merge(part.latency)
        return VersionCounters(
            requests=sum(part.requests for part in parts.values()),
            errors=sum(part.errors for part in parts.values()),
            rejected=sum(part.rejected for part in parts.values()),
            latency_us=latency.to_wire(),
            inputs={name: histogram.to_wire() for name, histogram in inputs.items()},
            outputs={name: histogram.to_wire() for name, histogram in outputs.items()},
            steps={name: histogram.to_wire() for name, histogram in steps.items()},
            parts=tuple(
                PartCounters(
                    endpoint=endpoint.decode(errors="replace"),
                    role="shadow" if shadow else "live",
                    requests=part.requests,
                    errors=part.errors,
                    rejected=part.rejected,
                    latency_us=part.latency.to_wire(),
                    agreement=part.agreement,
                )
                for (endpoint, shadow), part in parts.items()
            ),
        )


def merge(one: Agreement, other: Agreement) -> Agreement:
    """Both together."""
    return Agreement(
        rows=one.rows + other.rows,
        agreed=one.agreed + other.agreed,
        within=one.within + other.within,
        worst=max(one.worst, other.worst),
        dropped=one.dropped + other.dropped,
        failed=one.failed + other.failed,
    )
