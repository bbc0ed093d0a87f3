"""The agent's ports: what its rules and its daemon need of the outside, each named for its role.

Adapters: ``mqtt`` (Link), ``disk`` (ModuleStore), ``spool`` (Spool), ``serving`` (DataPlane),
``engines/{onnx,openvino,pynq,python}`` (Engine), ``sources/*`` (Source).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from skerry_modules.manifest import Manifest
from skerry_modules.messages import Agreement, Distribution, Route, Tensor
from skerry_modules.profiles import Limits

if TYPE_CHECKING:  # numpy stays out of the agent process: it costs 20 MB
    import numpy as np

    from skerry_agent.sources import Row

Arrays: TypeAlias = "dict[str, np.ndarray[Any, Any]]"
"""Tensors by name, row-major."""


class LoadedModel(Protocol):
    """A model in memory, inside a worker process."""

    def run(self, inputs: Arrays) -> Arrays:
        """Score one batch. Raises ``SkerryError`` (``scoring.failed``) with the engine's own words."""
        ...

    def close(self) -> None:
        """Give memory and devices back."""
        ...


class Engine(Protocol):
    """One runtime. ``preload`` runs in the zygote: import the runtime, open nothing; ``load`` runs in the worker."""

    name: str
    exclusive: bool
    """The device holds one model of this engine at a time (an FPGA holds one design).

    The data plane then swaps by queue, drain, reconfigure, golden test, resume or restore: a ``load`` while another
    version of this engine is loaded first holds that version's requests back, lets those in flight end and stops its
    worker (which frees the device); when the new version serves, requests go on there, and if it is unloaded without
    having served, the version before is loaded again and takes up the requests that waited.
    """

    def version(self) -> str:
        """The runtime's version, or an empty string where it is not installed."""
        ...

    def preload(self) -> None: ...

    def load(self, folder: Path, manifest: Manifest, cache: Path) -> LoadedModel:
        """Raises ``SkerryError``: ``install.load_failed``, or ``unschedulable.operator`` naming the operator."""
        ...


class GoldenReport(msgspec.Struct, frozen=True):
    """How the golden test went; ``worst`` is the largest error in units of the tolerance."""

    passed: bool
    cases: int
    failed: int
    worst: float
    message: str


class PartCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What a version did for one endpoint in one role (``live`` or ``shadow``)."""

    endpoint: str
    role: str = "live"
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    latency_us: Distribution = Distribution()
    agreement: Agreement = Agreement()


class VersionCounters(msgspec.Struct, frozen=True):
    """What a version did since the last call, in all and in parts."""

    requests: int
    errors: int
    rejected: int
    latency_us: Distribution
    inputs: dict[str, Distribution]
    outputs: dict[str, Distribution]
    parts: tuple[PartCounters, ...] = ()
    steps: dict[str, Distribution] = {}  # microseconds in each step of a pipeline


class DataPlane(Protocol):
    """HTTP front, workers, routes: what scores. All methods are coroutine-safe on one event loop."""

    async def load(
        self,
        digest: str,
        folder: Path,
        manifest: Manifest,
        version: int,
        limits: Limits,
        *,
        environment: str = "",
    ) -> dict[str, Any]:
        """Start a worker with the model; returns facts (load_ms, memory). Raises SkerryError ``install.*``.

        ``environment`` is the folder of the environment that it runs in; empty: the agent's own.
        """
        ...

    async def golden(self, digest: str, folder: Path, manifest: Manifest) -> GoldenReport: ...

    async def warm(self, digest: str, manifest: Manifest, rounds: int = 3) -> None: ...

    async def infer(self, endpoint: str, inputs: Arrays, *, timeout_s: float | None = None) -> Arrays:
        """Score through the same path as HTTP clients do (for sources and golden replay)."""
        ...

    async def infer_tensors(
        self, endpoint: str, inputs: dict[str, Tensor], *, timeout_s: float | None = None
    ) -> dict[str, Tensor]:
        """As ``infer``, without numpy: for sources in the agent process."""
        ...

    def set_routes(
        self,
        endpoint: str,
        routes: tuple[Route, ...],
        digests: tuple[str, ...],
        shadow: tuple[Route, ...] = (),
        shadow_digests: tuple[str, ...] = (),
    ) -> None: ...

    def forget(self, endpoint: str) -> None:
        """There is no such endpoint any more: 404 from now on."""
        ...

    async def unload(self, digest: str) -> None:
        """Drain, then stop."""
        ...

    def take_counters(self, digest: str) -> VersionCounters:
        """Counters since the last call; zero for an unknown digest."""
        ...

    def traffic(self, digest: str) -> tuple[int, int]:
        """(requests, errors) since :meth:`take_counters`, without taking them; cheap, for the soak."""
        ...

    on_exit: Callable[[str, str, bool], None]  # (digest, reason, restarting)
    on_sample: Callable[[str, Any], None]  # (digest, messages.Sample)


class Source(Protocol):
    """Where inputs come from when nobody calls: a dataset replay, a watched folder, an MQTT topic.

    ``rows`` yields until there is no more, and may be closed at any time; ``close`` then gives back what it holds.
    """

    def rows(self) -> AsyncGenerator[Row, None]: ...

    def close(self) -> None: ...
