"""What a measuring worker is told, and what it tells. msgpack."""

from __future__ import annotations

import msgspec

from skerry_modules.manifest import Manifest


class Measure(msgspec.Struct, kw_only=True):
    """Load the module and score it. ``seconds`` per batch; 0: only load, and score each batch once."""

    folder: str
    manifest: Manifest
    cache: str
    batches: tuple[int, ...]
    seconds: float


class Timed(msgspec.Struct, kw_only=True):
    """One batch's numbers; units as in ``skerry_modules.measurement.Measurement``."""

    batch: int
    runs: int
    rounds: int
    p50_us: float
    p90_us: float
    p99_us: float
    p99_low_us: float
    max_us: float
    spread: float
    rows_per_s: float
    cpu_percent: float
    cpu_us_per_row: float
    others_percent: float
    peak_mb: float
    steady_mb: float
    limit_mb: float


class Refused(msgspec.Struct, kw_only=True):
    """A batch that the model did not take."""

    batch: int
    code: str
    message: str


class Measured(msgspec.Struct, kw_only=True):
    """A worker's whole answer."""

    engine_version: str
    load_ms: float
    limit_mb: float  # loading included
    golden: str
    inputs: str
    simulated: bool
    timed: list[Timed] = []
    refused: list[Refused] = []
