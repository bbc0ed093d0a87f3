"""``skerry modules convert``: a model in another form, proven against its original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.text import Text

from skerry import scaffold
from skerry.cli import output
from skerry.cli.output import Json
from skerry_modules.errors import InputError

if TYPE_CHECKING:
    from skerry.convert.report import Calibrator, Conversion, Options, Precision, Progress, Target


Source = Annotated[
    Path, typer.Argument(help="A module's folder or package, .onnx, .pkl or .joblib (scikit-learn), .pt2 (torch).")
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="The new module's folder. \\[default: NAME-ENGINE-PRECISION]")
]
To = Annotated[str, typer.Option("--to", help="The engine: onnx, or openvino (writes OpenVINO IR).")]
PrecisionName = Annotated[str, typer.Option("--precision", help="f32, f16, int8-static or int8-dynamic.")]
Name = Annotated[str, typer.Option("--name", help="The new module's name. \\[default: the original's]")]
SampleFiles = Annotated[
    list[Path], typer.Option("--samples", help=".npz, .parquet or a folder of them, to judge with; may be repeated.")
]
CalibrationFiles = Annotated[
    list[Path],
    typer.Option("--calibration", help="As --samples, for int8-static. \\[default: every other one of --samples]"),
]
Labels = Annotated[str, typer.Option("--labels", help="The array of right answers in an .npz.")]
Argmax = Annotated[
    list[str], typer.Option("--argmax", help="Output that chooses a class, or none. \\[default: all that have scores]")
]
Agreement = Annotated[
    float, typer.Option("--min-agreement", min=0, max=1, help="Share of samples that must come out the same.")
]
Delta = Annotated[
    float | None,
    typer.Option(
        "--max-delta",
        min=0,
        help="Largest |Δ| of any float output. \\[default: 0.001 for f32, 0.01 for f16, 0.1 for int8, times the "
        "output's spread where that is below 1]",
    ),
]
CalibratorName = Annotated[str, typer.Option("--calibrator", help="int8-static: minmax, entropy or percentile.")]
PerChannel = Annotated[bool, typer.Option(help="int8: a scale for each channel of a weight.")]
ReduceRange = Annotated[bool, typer.Option("--reduce-range", help="int8: 7-bit weights, for processors without VNNI.")]
CalibrationRows = Annotated[int, typer.Option(min=1, help="Samples to calibrate with, at most.")]
GateRows = Annotated[int, typer.Option(min=1, help="Samples to judge with, at most.")]
Timing = Annotated[float, typer.Option(min=0, help="Seconds of timing for each batch size; 0: none.")]
InputName = Annotated[
    str, typer.Option("--input-name", help="What the input of a scikit-learn estimator shall be called.")
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Load a .pkl, .joblib or .pt2, which runs what its author wrote.")
]


def convert(
    source: Source,
    out: Out = None,
    to: To = "onnx",
    precision: PrecisionName = "f32",
    name: Name = "",
    samples: SampleFiles = [],
    calibration: CalibrationFiles = [],
    labels: Labels = "label",
    argmax: Argmax = [],
    min_agreement: Agreement = 0.99,
    max_delta: Delta = None,
    calibrator: CalibratorName = "minmax",
    per_channel: PerChannel = True,
    reduce_range: ReduceRange = False,
    calibration_rows: CalibrationRows = 512,
    gate_rows: GateRows = 10_000,
    timing_s: Timing = 1.0,
    input_name: InputName = "x",
    trust_pickle: TrustPickle = False,
    json: Json = False,
) -> None:
    """Convert or quantise a model, judge it sample by sample against its original, and write it as a module.

    What fails the gate is not written: exit code 1, and the worst samples are named.
    """
    from skerry.convert import Options

    options = Options(
        min_agreement=min_agreement,
        max_delta=max_delta,
        argmax=tuple(argmax),
        calibrator=cast("Calibrator", calibrator),
        per_channel=per_channel,
        reduce_range=reduce_range,
        calibration_rows=calibration_rows,
        gate_rows=gate_rows,
        labels=labels,
        timing_s=timing_s,
        input_name=input_name,
        trust_pickle=trust_pickle,
    )
    target = out or Path(f"{name or scaffold.slug(source.resolve().stem)}-{to}-{precision}")
    _run(source, target, to=to, precision=precision, name=name, data=(samples, calibration), options=options, json=json)


def _run(
    source: Path,
    target: Path,
    *,
    to: str,
    precision: str,
    name: str,
    data: tuple[list[Path], list[Path]],
    options: Options,
    json: bool,
) -> None:
    from skerry import convert as converting

    try:
        with _steps() as progress:
            report = converting.convert(
                source,
                target,
                to=cast("Target", to),  # the conversion checks these, and says what it takes
                precision=cast("Precision", precision),
                name=name,
                samples=data[0] or None,
                calibration=data[1] or None,
                options=options,
                progress=progress,
            )
    except converting.GateFailed as error:
        _tell(error.report, json=json)
        output.fail(InputError(error.code, error.message), as_json=json)  # the report is on stdout already
        raise typer.Exit(output.EXIT_BAD) from error
    _tell(report, json=json)
    if not json:
        output.say(f"wrote {target}; next: skerry deploy {target} --to TAG=VALUE, or skerry modules pack {target}")


@contextmanager
def _steps() -> Iterator[Progress]:
    """A bar per step on stderr; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=output.err, transient=True, disable=not output.err.is_terminal)
    tasks: dict[str, int] = {}

    def update(step: str, done: int, total: int) -> None:
        if step not in tasks:
            tasks[step] = int(bar.add_task(step, total=total))
        bar.update(tasks[step], completed=done, total=total)  # type: ignore[arg-type]

    with bar:
        yield update


def _tell(report: Conversion, *, json: bool) -> None:
    if json:
        output.emit(report)
        return
    verdict, calibration = report.verdict, report.calibration
    share = f"{verdict.agreement:.2%} (at least {verdict.min_agreement:.2%})"
    deltas = [(f"max |Δ| {one.name}", f"{one.max_delta:.3g} (at most {one.bar:.3g})") for one in verdict.outputs]
    output.facts(
        [
            ("module", report.name),
            ("from", f"{report.origin.kind} {report.origin.of} {report.origin.digest[:16]}"),
            ("to", f"{report.engine} {report.precision}"),
            ("calibrated on", f"{calibration.rows} of {calibration.source}" if calibration else ""),
            ("gate", Text("passed", style="green") if report.ok else Text("FAILED", style="bold red")),
            ("agreement", f"{verdict.agreed} of {verdict.cases} samples, {share}"),
            *deltas,
            ("golden test", _golden(report)),
        ]
    )
    output.table(("", "before", "after", "change"), _figures(report), empty="")
    rows = [(miss.name, miss.output, miss.expected, miss.got, f"{miss.delta:.3g}") for miss in verdict.worst]
    if rows:
        output.table(("worst sample", "output", "original", "converted", "|Δ|"), rows, empty="")
    for note in report.notes:
        output.say(note)


def _golden(report: Conversion) -> str:
    if not report.ok or report.tolerance is None:
        return ""
    within = f"within {report.tolerance.absolute:g} + {report.tolerance.relative:g} × |original|"
    return f"{within}, {report.tolerance.min_pass:.2%} of the cases"


def _figures(report: Conversion) -> list[tuple[str, str, str, str]]:
    before, after = report.before, report.after
    rows = [
        ("scored by", before.engine, after.engine, ""),
        ("size", output.size(before.size), output.size(after.size), _times(before.size, after.size)),
    ]
    if before.accuracy is not None and after.accuracy is not None:
        change = f"{after.accuracy - before.accuracy:+.2%}"
        rows.append(("accuracy", f"{before.accuracy:.2%}", f"{after.accuracy:.2%}", change))
    for old, new in zip(before.latency, after.latency, strict=True):
        many = f"p50, {old.rows} row{'s' if old.rows > 1 else ''}"
        rows.append((many, f"{old.p50_us:g} µs", f"{new.p50_us:g} µs", _times(old.p50_us, new.p50_us)))
    return rows


def _times(before: float, after: float) -> str:
    return f"× {after / before:.2f}" if before else ""
