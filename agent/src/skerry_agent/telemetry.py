"""What the versions did, on its way to the hub and to the soak.

Every ``traffic_s`` the counters of each version are taken; their deltas are ``Traffic`` for the brain, and gather in
a window that becomes one :class:`~skerry_modules.messages.Telemetry` per version every ``telemetry_s``. A version
that did nothing in a window says nothing: an idle fleet is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from skerry_agent.ports import DataPlane, VersionCounters
from skerry_agent.rules.effects import Traffic
from skerry_agent.spool import wall_ms
from skerry_modules.histogram import Histogram
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Distribution, Telemetry
from skerry_modules.tensors import TensorSpec

_EMPTY: Final = Distribution()


class Window:
    """What one version did since ``start`` (ms)."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.requests = self.errors = self.rejected = 0
        self._latency = _EMPTY
        self._inputs: dict[str, Distribution] = {}
        self._outputs: dict[str, Distribution] = {}

    def add(self, counters: VersionCounters) -> None:
        self.requests += counters.requests
        self.errors += counters.errors
        self.rejected += counters.rejected
        self._latency = merged(self._latency, counters.latency_us)
        for mine, theirs in ((self._inputs, counters.inputs), (self._outputs, counters.outputs)):
            for name, distribution in theirs.items():
                mine[name] = merged(mine.get(name, _EMPTY), distribution)

    @property
    def empty(self) -> bool:
        return not (self.requests or self.errors or self.rejected)

    def close(self, module: str, version: int, digest: str, endpoint: str, end: int) -> Telemetry:
        return Telemetry(
            module=module,
            version=version,
            digest=digest,
            endpoint=endpoint,
            start=self.start,
            end=end,
            requests=self.requests,
            errors=self.errors,
            rejected=self.rejected,
            latency_us=self._latency,
            inputs=self._inputs,
            outputs=self._outputs,
        )


def merged(left: Distribution, right: Distribution) -> Distribution:
    """Both together. Where a side is empty the other is returned as it is; other edges begin anew (a new baseline)."""
    if left == _EMPTY:
        return right
    if right == _EMPTY:
        return left
    if left.edges != right.edges:
        return right
    histogram = Histogram.from_wire(left)
    histogram.merge(Histogram.from_wire(right))
    return histogram.to_wire()


class _Version:
    def __init__(self, module: str, version: int, inputs: tuple[TensorSpec, ...]) -> None:
        self.module = module
        self.version = version
        self.inputs = inputs
        self.endpoint = ""
        self.window = Window(wall_ms())


class Telemeter:
    """Follows the loaded versions. Implements :class:`skerry_agent.driver.Loaded`.

    Args:
        plane: whose counters are taken.
        put: keeps a telemetry message for the hub.
        post: tells the brain.
        traffic_s, telemetry_s: see the module's text.
    """

    def __init__(
        self,
        plane: DataPlane,
        put: Callable[[Telemetry], None],
        post: Callable[[Traffic], None],
        *,
        traffic_s: float,
        telemetry_s: float,
    ) -> None:
        self._plane = plane
        self._put = put
        self._post = post
        self._traffic_s = traffic_s
        self.telemetry_s = telemetry_s
        self._versions: dict[str, _Version] = {}

    def loaded(self, digest: str, module: str, version: int, manifest: Manifest) -> None:
        self._plane.take_counters(digest)  # the golden test's own requests are nobody's traffic
        self._versions[digest] = _Version(module, version, manifest.inputs)

    def unloaded(self, digest: str) -> None:
        if version := self._versions.get(digest):
            self._look(digest, version)
            self._send(digest, version)
            del self._versions[digest]

    def routed(self, endpoint: str, digests: tuple[str, ...]) -> None:
        for digest, version in self._versions.items():
            if digest in digests:
                version.endpoint = endpoint
            elif version.endpoint == endpoint:
                version.endpoint = ""

    def specs_of(self, endpoint: str) -> tuple[TensorSpec, ...] | None:
        """The declared inputs of the version that an endpoint routes to; None while there is none."""
        for version in self._versions.values():
            if version.endpoint == endpoint:
                return version.inputs
        return None

    def names(self) -> list[dict[str, Any]]:
        """What is loaded, for status."""
        return [
            {"digest": digest, "module": one.module, "version": one.version, "endpoint": one.endpoint}
            for digest, one in self._versions.items()
        ]

    async def run(self) -> None:
        """Until cancelled."""
        closes = time.monotonic() + self.telemetry_s
        while True:
            await asyncio.sleep(self._traffic_s)
            for digest, version in list(self._versions.items()):
                self._look(digest, version)
            if time.monotonic() >= closes:
                closes = time.monotonic() + self.telemetry_s
                self.flush()

    def flush(self) -> None:
        """End all windows now."""
        for digest, version in list(self._versions.items()):
            self._look(digest, version)
            self._send(digest, version)

    def _look(self, digest: str, version: _Version) -> None:
        counters = self._plane.take_counters(digest)
        if counters.requests or counters.errors or counters.rejected:
            version.window.add(counters)
            self._post(Traffic(digest, counters.requests, counters.errors))

    def _send(self, digest: str, version: _Version) -> None:
        window, version.window = version.window, Window(wall_ms())
        if not window.empty:
            self._put(
                window.close(version.module, version.version, digest, version.endpoint or version.module, wall_ms())
            )
