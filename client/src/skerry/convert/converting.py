"""From an original to a module that may stand for it: convert, score both, judge, time, write.

The order is the promise: nothing is written until the gate has passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from skerry import scaffold
from skerry.convert import folder, gate, onnx, openvino, originals, runtimes, timing
from skerry.convert import samples as sampling
from skerry.convert.data import Data, fixed, gather, rows_of
from skerry.convert.originals import Original
from skerry.convert.report import (
    CALIBRATORS,
    NO_ARGMAX,
    PRECISIONS,
    TARGETS,
    Calibration,
    Conversion,
    Figures,
    Options,
    Precision,
    Progress,
    Target,
    refused,
)
from skerry.convert.samples import Samples
from skerry_modules.errors import InputError
from skerry_modules.manifest import is_name


def check_request(to: str, precision: str, name: str, options: Options) -> None:
    """What cannot be meant, before any work.

    Raises:
        InputError: ``convert.unsupported``.
    """
    if to not in TARGETS:
        raise _bad(f"convert to {to!r}: choose {' or '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise _bad(f"convert to the precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision == "f16" and to != "openvino":
        raise _bad("convert to f16 for onnx: its CPU kernels compute in f32; choose openvino, or int8-static")
    if name and not is_name(name):
        raise _bad(f"name the module {name!r}: use 1 to 63 of a-z, 0-9 and '-'")
    if options.calibrator not in CALIBRATORS:
        raise _bad(f"calibrate by {options.calibrator!r}: choose {', '.join(CALIBRATORS)}")
    if not 0 <= options.min_agreement <= 1:
        raise _bad(f"hold to an agreement of {options.min_agreement}: it is a share, from 0 to 1")
    if options.max_delta is not None and not options.max_delta >= 0:
        raise _bad(f"hold to a |Δ| of {options.max_delta}: it must not be negative")
    for field in ("calibration_rows", "gate_rows", "golden_cases"):
        if getattr(options, field) < 1:
            raise _bad(f"use {field} = {getattr(options, field)}: it must be at least 1")


def check_original(original: Original) -> None:
    """A module that fails its own golden test is not converted: the new one's would bless what the old one caught.

    Raises:
        InputError: ``convert.broken_original``.
    """
    manifest, place = original.manifest, original.folder
    if manifest is None or place is None or manifest.golden is None:
        return
    inputs = sampling.golden(place, manifest)
    assert inputs is not None  # there is a golden test
    expected = sampling.golden_outputs(place, manifest)
    got = runtimes.score_all(original.score, inputs.inputs, rows_of(original.inputs))
    good, cases = gate.meets_golden(manifest.golden, expected, got)
    if not expected or good < manifest.golden.min_pass * cases:
        raise InputError(
            "convert.broken_original",
            f"cannot convert the module {manifest.name}: it fails its own golden test here ({good} of {cases} cases "
            "pass); mend it first, or its faults would become the new module's expected outputs",
        )


def run(
    original: Original,
    out: Path,
    work: Path,
    *,
    to: Target,
    precision: Precision,
    given: Samples | None,
    calibration: Samples | None,
    options: Options,
    name: str = "",
    progress: Progress = lambda *_: None,
) -> Conversion:
    """Convert and judge; write the module's folder if the gate lets it pass.

    Args:
        original: what to convert.
        out: the new module's folder; ``work``: one for what is made on the way.
        to: the engine; ``precision``: of weights and sums.
        given: samples to judge with, and to calibrate with where ``calibration`` is None.
        calibration: samples for static quantisation alone.
        options: the gate's bars and the rest.
        name: the new module's; by default the original's.
        progress: told steps, rows done and rows in all.

    Raises:
        GateFailed: ``convert.gate_failed``.
        InputError: ``convert.*``, ``manifest.*``.
        ResourceError: ``resource.missing_dependency``.
    """
    check_original(original)
    data = gather(original, given, calibration, precision, options)
    target = work / folder.model_name(to)
    told = _step(progress, "score the original")
    reference = runtimes.score_all(original.score, data.judged.inputs, rows_of(original.inputs), told)
    _make(original, target, work, precision=precision, data=data, options=options, progress=progress)
    score = (runtimes.open_onnx if to == "onnx" else runtimes.open_openvino)(target, original.output_names)
    judged = _judge(original, score, reference, data, precision=precision, options=options, progress=progress)
    made = Figures(engine=_engine(to), size=originals.size_of(target))
    before, after = _figures((original, reference), (score, made), data, judged, options=options, progress=progress)
    report = Conversion(
        ok=judged.verdict.ok,
        folder=str(out) if judged.verdict.ok else None,
        name=name or (original.manifest.name if original.manifest else scaffold.slug(original.origin.name)),
        engine=to,
        precision=precision,
        method=_method(precision, options),
        origin=original.origin,
        before=before,
        after=after,
        verdict=judged.verdict,
        tolerance=judged.tolerance,
        calibration=_calibration(data),
        versions={**original.tools, **originals.versions("skerry", *(("openvino",) if to == "openvino" else ()))},
        notes=(*data.notes, *_losses(before, after)),
    )
    if not report.ok:
        raise refused(report)
    folder.write(original, target, out, golden=(data.golden.inputs, judged.expected), report=report)
    return report


def _figures(
    before: tuple[Original, gate.Arrays],
    after: tuple[runtimes.Score, Figures],
    data: Data,
    judged: Judged,
    *,
    options: Options,
    progress: Progress,
) -> tuple[Figures, Figures]:
    """Size, accuracy and, of what passed the gate, times of the original and of what was made."""
    (original, reference), (score, made) = before, after
    accuracy = _accuracy(original, judged.argmax, reference, data)
    was = Figures(engine=original.engine, size=original.size, accuracy=accuracy)
    made = msgspec.structs.replace(made, accuracy=_accuracy(original, judged.argmax, judged.got, data))
    if not judged.verdict.ok or options.timing_s <= 0:
        return was, made
    return _timed((original, was), (score, made), data, options, progress)


# -- the model ---------------------------------------------------------------------------------------------------------


def _make(
    original: Original,
    target: Path,
    work: Path,
    *,
    precision: Precision,
    data: Data,
    options: Options,
    progress: Progress,
) -> None:
    made = original.onnx
    if precision == "int8-static":
        assert data.calibration is not None  # gathered for this precision
        made = work / "static.onnx"
        onnx.quantise_static(original.onnx, made, data.calibration.inputs, options, _step(progress, "calibrate"))
    elif precision == "int8-dynamic":
        made = work / "dynamic.onnx"
        onnx.quantise_dynamic(original.onnx, made, options)
    if target.suffix == ".onnx":
        target.write_bytes(made.read_bytes())
    else:
        openvino.to_ir(made, target, half=precision == "f16")


def _method(precision: Precision, options: Options) -> dict[str, str | bool]:
    if precision == "int8-static":
        return {
            "format": "QDQ",
            "calibrator": options.calibrator,
            "per_channel": options.per_channel,
            "reduce_range": options.reduce_range,
        }
    if precision == "int8-dynamic":
        return {"per_channel": options.per_channel, "reduce_range": options.reduce_range}
    return {}


# -- the gate ----------------------------------------------------------------------------------------------------------


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict and what it was reached on. ``expected`` are the original's outputs for the golden inputs."""

    verdict: gate.Verdict
    tolerance: gate.Tolerance
    argmax: tuple[str, ...]
    got: dict[str, Any]
    expected: dict[str, Any]


def _judge(
    original: Original,
    score: runtimes.Score,
    reference: gate.Arrays,
    data: Data,
    *,
    precision: Precision,
    options: Options,
    progress: Progress,
) -> Judged:
    bars, argmax = _demands(original, reference, precision, options)
    rows = rows_of(original.inputs)
    # A row alone may be answered otherwise than among others: dynamic ranges are those of all rows of a call, and
    # engines choose other kernels (OpenVINO 2026.4's ReduceLogSumExp is right for one row and wrong for eight).
    sizes = (1, rows) if fixed(original.inputs) < 0 else (rows,)
    tell = _step(progress, "score the converted")
    scored = {size: runtimes.score_all(score, data.judged.inputs, size, tell) for size in sizes}
    got, verdict = _worst(reference, scored, bars, argmax, options)
    expected = runtimes.score_all(original.score, data.golden.inputs, rows)
    verdict, tolerance = _prove(original, verdict, expected, runtimes.score_all(score, data.golden.inputs, rows))
    return Judged(
        verdict=_named(verdict, data.judged), tolerance=tolerance, argmax=argmax, got=dict(got), expected=expected
    )


def _demands(
    original: Original, reference: gate.Arrays, precision: Precision, options: Options
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Bars of |Δ|, and the outputs that choose a class."""
    share = gate.DELTA_SHARES[precision]
    bars = {
        name: gate.default_bar(array, share) if options.max_delta is None else options.max_delta
        for name, array in reference.items()
    }
    golden = original.manifest.golden if original.manifest else None
    argmax = options.argmax or ((golden.argmax,) if golden and golden.argmax else gate.decisions(reference))
    argmax = tuple(name for name in argmax if name != NO_ARGMAX)
    for name in argmax:
        if name not in reference or name not in gate.decisions(reference):
            raise _bad(f"hold {name!r} to its arg-max: it is no float output with at least two scores a row")
    return bars, argmax


def _worst(
    reference: gate.Arrays,
    scored: Mapping[int, gate.Arrays],
    bars: dict[str, float],
    argmax: tuple[str, ...],
    options: Options,
) -> tuple[gate.Arrays, gate.Verdict]:
    """The gate's verdict on the worst of several ways to score the same rows, by rows a call."""
    judged = [
        (gate.judge(reference, got, bars=bars, argmax=argmax, min_agreement=options.min_agreement), size)
        for size, got in scored.items()
    ]
    verdict, size = min(judged, key=lambda pair: (pair[0].ok, pair[0].agreement, -pair[0].max_delta))
    said = tuple(f"{problem} (scored with {size} row{'s' * (size > 1)} a call)" for problem in verdict.problems)
    return scored[size], msgspec.structs.replace(verdict, problems=said)


def _prove(
    original: Original, verdict: gate.Verdict, expected: gate.Arrays, got: gate.Arrays
) -> tuple[gate.Verdict, gate.Tolerance]:
    """The golden test's tolerance; a model that would fail its own test does not pass."""
    golden = original.manifest.golden if original.manifest else None
    if any(got[name].shape != want.shape for name, want in expected.items()):
        return verdict, gate.Tolerance(absolute=0.0, relative=0.0, argmax="", min_pass=0.0)
    tolerance = gate.fit_tolerance(
        expected,
        got,
        verdict,
        absolute=golden.absolute if golden else gate.ABSOLUTE,
        relative=golden.relative if golden else gate.RELATIVE,
    )
    bars = {one.name: one.bar for one in verdict.outputs}
    again = gate.judge(expected, got, bars=bars, argmax=(), min_agreement=0.0)
    problems = [f"golden test: {problem}" for problem in again.problems]
    if tolerance.min_pass == 0:
        problems.append("golden test: no case of it comes out as the original's")
    if problems and verdict.ok:
        verdict = msgspec.structs.replace(verdict, ok=False, problems=tuple(problems))
    return verdict, tolerance


def _named(verdict: gate.Verdict, judged: Samples) -> gate.Verdict:
    worst = tuple(msgspec.structs.replace(miss, name=judged.names[miss.sample]) for miss in verdict.worst)
    return msgspec.structs.replace(verdict, worst=worst)


# -- figures -----------------------------------------------------------------------------------------------------------


def _accuracy(original: Original, argmax: Sequence[str], outputs: gate.Arrays, data: Data) -> float | None:
    """The share of labelled rows whose class is the label's; None without labels, or where nothing chooses a class."""
    if data.labels is None or not argmax or argmax[0] not in outputs:
        return None
    chosen = outputs[argmax[0]][: len(data.labels)].argmax(axis=-1)
    spec = next((one for one in original.outputs if one.name == argmax[0]), None)
    known = {label: at for at, label in enumerate(spec.labels)} if spec else {}
    named = [known.get(str(label), -1) for label in data.labels.tolist()]
    truth = np.asarray(named) if known and min(named) >= 0 else data.labels
    if truth.dtype.kind not in "iu" or truth.shape != chosen.shape:
        return None
    return round(float((chosen == truth).mean()), 6)


def _timed(
    old: tuple[Original, Figures],
    new: tuple[runtimes.Score, Figures],
    data: Data,
    options: Options,
    progress: Progress,
) -> tuple[Figures, Figures]:
    (original, before), (score, after) = old, new
    pairs = []
    sizes = timing.sizes(fixed(original.inputs), len(data.judged))
    for done, rows in enumerate(sizes):
        progress("time both in turn", done, len(sizes))
        pairs.append(timing.interleaved(original.score, score, data.judged.inputs, rows, options.timing_s))
    progress("time both in turn", len(sizes), len(sizes))
    return (
        msgspec.structs.replace(before, latency=tuple(pair[0] for pair in pairs)),
        msgspec.structs.replace(after, latency=tuple(pair[1] for pair in pairs)),
    )


def _calibration(data: Data) -> Calibration | None:
    if data.calibration is None:
        return None
    return Calibration(rows=len(data.calibration), source=data.calibration.source, sha256=data.calibration.sha256())


def _losses(before: Figures, after: Figures) -> list[str]:
    """What the conversion made worse here, although it passed."""
    notes = [
        f"slower here with {old.rows} row{'s' if old.rows > 1 else ''} a call ({old.p50_us:g} µs became "
        f"{new.p50_us:g} µs): measure it on the device before you roll it out"
        for old, new in zip(before.latency, after.latency, strict=True)
        if new.p50_us > 1.05 * old.p50_us
    ]
    if after.size > before.size:
        notes.append(f"larger than the original: {before.size} bytes became {after.size}")
    return notes


def _engine(to: Target) -> str:
    tool = "onnxruntime" if to == "onnx" else "openvino"
    return f"{tool} {originals.versions(tool).get(tool, '')}".rstrip()


def _step(progress: Progress, name: str) -> Any:
    return lambda done, total: progress(name, done, total)


def _bad(problem: str) -> InputError:
    return InputError("convert.unsupported", f"cannot {problem}")
