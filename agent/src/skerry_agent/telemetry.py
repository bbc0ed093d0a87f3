"""What the versions did, on its way to the hub and to the soak.

Every ``traffic_s`` the brain hears how many requests each version had and how many failed; every ``telemetry_s`` the
counters of each version are taken and become one :class:`~skerry_modules.messages.Telemetry` per endpoint and role. A
version that did nothing in a window says nothing: an idle fleet is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from skerry_agent.ports import DataPlane, PartCounters
from skerry_agent.rules.effects import Traffic
from skerry_agent.spool import wall_ms
from skerry_modules.histogram import latency_quantiles
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Telemetry
from skerry_modules.tensors import TensorSpec


class _Version:
    def __init__(self, module: str, version: int, inputs: tuple[TensorSpec, ...]) -> None:
        self.module = module
        self.version = version
        self.inputs = inputs
        self.endpoints: set[str] = set()
        self.start = wall_ms()
        self.told = (0, 0)  # requests and errors of this window that the brain has heard of


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
                version.endpoints.add(endpoint)
            else:
                version.endpoints.discard(endpoint)

    def specs_of(self, endpoint: str) -> tuple[TensorSpec, ...] | None:
        """The declared inputs of the version that an endpoint routes to; None while there is none."""
        for version in self._versions.values():
            if endpoint in version.endpoints:
                return version.inputs
        return None

    def names(self) -> list[dict[str, Any]]:
        """What is loaded, for status."""
        return [
            {
                "digest": digest,
                "module": one.module,
                "version": one.version,
                "endpoint": ", ".join(sorted(one.endpoints)),
            }
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
        requests, errors = self._plane.traffic(digest)
        before, version.told = version.told, (requests, errors)
        if version.told != before:
            self._post(Traffic(digest, requests - before[0], errors - before[1]))

    def _send(self, digest: str, version: _Version) -> None:
        start, version.start = version.start, wall_ms()
        counters, version.told = self._plane.take_counters(digest), (0, 0)
        parts = counters.parts or (
            PartCounters(
                endpoint=min(version.endpoints, default=version.module),
                requests=counters.requests,
                errors=counters.errors,
                rejected=counters.rejected,
                latency_us=counters.latency_us,
            ),
        )
        busiest = max(parts, key=lambda part: part.requests)
        late = counters.inputs or counters.outputs or counters.steps  # a worker tells of its rows a little later
        for part in parts:
            if part.requests or part.errors or part.rejected or part.agreement.dropped or (late and part is busiest):
                p50, p99 = latency_quantiles(part.latency_us)
                self._put(
                    Telemetry(
                        module=version.module,
                        version=version.version,
                        digest=digest,
                        endpoint=part.endpoint or version.module,
                        start=start,
                        end=version.start,
                        requests=part.requests,
                        errors=part.errors,
                        rejected=part.rejected,
                        p50_us=p50,
                        p99_us=p99,
                        latency_us=part.latency_us,
                        inputs=counters.inputs if part is busiest else {},
                        outputs=counters.outputs if part is busiest else {},
                        steps=counters.steps if part is busiest else {},
                        role=part.role,
                        agreement=part.agreement,
                    )
                )
