"""What a conversion is asked for and what it tells: typed, and JSON-able as it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from skerry.convert import gate
from skerry_modules.errors import InputError

Target = Literal["onnx", "openvino"]
Precision = Literal["f32", "f16", "int8-static", "int8-dynamic"]
Calibrator = Literal["minmax", "entropy", "percentile"]

TARGETS: Final[tuple[Target, ...]] = ("onnx", "openvino")
PRECISIONS: Final[tuple[Precision, ...]] = ("f32", "f16", "int8-static", "int8-dynamic")
CALIBRATORS: Final[tuple[Calibrator, ...]] = ("minmax", "entropy", "percentile")
NO_ARGMAX: Final = "none"
"""As ``Options.argmax``: no output chooses a class (regression, reconstruction)."""

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Told a step's name, what is done of it, and all of it."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to convert, and what the gate demands.

    Attributes:
        min_agreement: share of samples that must come out as the original's.
        max_delta: largest |Δ| of any float output; None: by precision and the output's spread (``gate.default_bar``).
        argmax: outputs that choose a class. Empty: the golden test's, else every float output with at least two scores
            a row; ``("none",)``: none does.
        calibrator: how static quantisation chooses each tensor's range.
        per_channel: static: a scale per channel of a weight, not one for all.
        reduce_range: static and dynamic: 7-bit weights, which processors without VNNI need for exact sums.
        calibration_rows: samples used for calibration, at most.
        gate_rows: samples held to the gate, at most.
        golden_cases: cases of the new golden test where the original module has none of its own.
        labels: the array in ``--samples`` that holds the right class or value of each row.
        timing_s: seconds spent on timing at each batch size; 0: do not time.
        input_name: what the input of a scikit-learn estimator that is read from a file shall be called.
        trust_pickle: load estimators and exported programs, which run code of their own.
    """

    min_agreement: float = gate.MIN_AGREEMENT
    max_delta: float | None = None
    argmax: tuple[str, ...] = ()
    calibrator: Calibrator = "minmax"
    per_channel: bool = True
    reduce_range: bool = False
    calibration_rows: int = 512
    gate_rows: int = 10_000
    golden_cases: int = 32
    labels: str = "label"
    timing_s: float = 1.0
    input_name: str = "x"
    trust_pickle: bool = False


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """The median of one call with so many rows, in microseconds; one thread, calls of both models taken in turn."""

    rows: int
    p50_us: float
    calls: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One model: what scored it, its files' bytes, the share of labels it meets, and how long it takes."""

    engine: str
    size: int
    accuracy: float | None = None
    latency: tuple[Latency, ...] = ()


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What was converted. ``digest`` is the module's, or the SHA-256 of the model file (or of the ONNX it became)."""

    kind: str
    name: str
    digest: str
    of: Literal["module", "file", "onnx"]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What static quantisation saw: rows, where from, and a SHA-256 of the arrays."""

    rows: int
    source: str
    sha256: str


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """How it came out. ``folder`` is the new module's, None where the gate refused it."""

    ok: bool
    folder: str | None
    name: str
    engine: Target
    precision: Precision
    origin: Origin
    before: Figures
    after: Figures
    verdict: gate.Verdict
    tolerance: gate.Tolerance | None = None
    calibration: Calibration | None = None
    method: dict[str, str | bool] = {}
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class GateFailed(InputError):  # noqa: N818 - what happened, as the caller catches it
    """The converted model is not its original's equal. Nothing was written. ``data["report"]`` is the whole report."""

    @property
    def report(self) -> Conversion:
        return msgspec.convert(self.data["report"], Conversion)


def refused(report: Conversion) -> GateFailed:
    """The error that a failed gate is."""
    named = "; ".join(
        f"{miss.name or miss.sample}: {miss.output} {miss.expected} became {miss.got}" for miss in report.verdict.worst
    )
    text = (
        f"cannot make a version of {report.name} as {report.engine} {report.precision}: "
        f"{'; '.join(report.verdict.problems)}. Worst: {named or 'none'}. Calibrate with more or other samples, choose "
        "another precision, or declare what you accept with --min-agreement and --max-delta"
    )
    return GateFailed("convert.gate_failed", text, report=msgspec.to_builtins(report))
