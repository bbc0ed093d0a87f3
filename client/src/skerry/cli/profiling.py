"""``skerry modules profile`` and ``profiles``: what a module needs, measured, and what to set because of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from skerry import measuring
from skerry.cli import output
from skerry.cli.context import hub, parse_version
from skerry.cli.output import Json, Reason
from skerry.client import Client
from skerry.types import Command, StoredProfile
from skerry_modules import package
from skerry_modules.errors import InputError, ResourceError
from skerry_modules.measurement import Measurement, ModuleProfile, threads_text, time_text

_POLL_S = 0.5


def profile(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="NAME:VERSION, or with --local a module's folder.")],
    device: Annotated[str, typer.Option("--device", "-d", help="The device that measures it.")] = "",
    local: Annotated[bool, typer.Option("--local", help="Measure on this machine.")] = False,
    engines: Annotated[str, typer.Option(metavar="A,B", help="\\[default: all that can load the model]")] = "",
    threads: Annotated[str, typer.Option(metavar="N,M", help="\\[default: 1,2,4… up to the processors]")] = "",
    batches: Annotated[str, typer.Option(metavar="N,M", help="Rows of one request. \\[default: 1,8,32]")] = "",
    seconds: Annotated[float, typer.Option(help="Scoring time of each setting.")] = 1.0,
    latency_ms: Annotated[float, typer.Option("--latency-ms", help="What a batch's p99 may be.")] = 1000.0,
    tolerance: Annotated[float, typer.Option(help="How far from the best p99 a cheaper setting may be.")] = 0.1,
    deadline: Annotated[float, typer.Option(metavar="S", help="When it must have ended.")] = 300.0,
    for_profile: Annotated[
        str, typer.Option("--for-profile", metavar="NAME", help="With --local: the firmware profile it holds for.")
    ] = "",
    store: Annotated[bool, typer.Option(help="With --local: keep it with the version.")] = True,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Measure a module under load: latency, throughput, CPU and memory by engine, threads and batch."""
    if local == bool(device):
        raise InputError("request.invalid", "cannot profile: say --device D, or --local for this machine")
    if device:
        wishes = {
            "engines": [name for name in engines.split(",") if name],
            "threads": _numbers(threads),
            "batches": _numbers(batches),
            "seconds": seconds,
            "latency_ms": latency_ms,
            "tolerance": tolerance,
            "deadline_s": deadline,
            "reason": reason,
        }
        with hub(context) as client:
            found = _on_device(client, *parse_version(module), device, wishes)
    else:
        options = ["--engines", engines, "--threads", threads, "--batches", batches, "--seconds", str(seconds)]
        options += ["--latency-ms", str(latency_ms), "--tolerance", str(tolerance), "--deadline", str(deadline)]
        options += ["--for-profile", for_profile]
        found = _here(context, module, options, store=store)
    if json:
        output.emit(found)
    else:
        show(found)


def profiles(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="NAME:VERSION.", metavar="NAME:VERSION")],
    device: Annotated[str, typer.Option("--device", "-d", help="Show the one that this device measured, whole.")] = "",
    json: Json = False,
) -> None:
    """What a version was measured to need, by machine."""
    with hub(context) as client:
        found = client.profiles_of(*parse_version(version))
    if device:
        found = [one for one in found if one.device == device]
    if json:
        output.emit(found)
    elif device and found:
        show(found[0].body)
    else:
        _list(found)


def _on_device(client: Client, name: str, version: int, device: str, wishes: dict[str, object]) -> ModuleProfile:
    told = client.measure(name, version, device, **wishes)
    with _progress(f"{name}:{version} on {device}") as update:
        while not told.ended:
            time.sleep(_POLL_S)
            told = client.command(told.id)
            update(told.progress, told.message)
    if told.state != "done":
        raise ResourceError(*_why(told))
    return next(one.body for one in client.profiles_of(name, version) if one.device == device)


def _why(told: Command) -> tuple[str, str]:
    from skerry_modules.errors import CODES

    code = told.code if told.code in CODES else "measure.failed"
    return code, told.message or f"cannot say why {told.device} did not measure it: {told.code}"


def _here(context: typer.Context, module: str, options: list[str], *, store: bool) -> ModuleProfile:
    if Path(module).is_dir():
        with _progress(module) as update:
            return measuring.measure_here(Path(module), options, update)
    name, number = parse_version(module)
    with hub(context) as client, tempfile.TemporaryDirectory(prefix="skerry-profile-") as temporary:
        file, folder = Path(temporary) / f"module{package.SUFFIX}", Path(temporary) / "module"
        detail = client.version(name, number)
        client.download(name, number, file)
        with package.read_package(file) as opened:
            opened.verify()
            if opened.digest != detail.digest:
                raise InputError("package.digest_mismatch", f"cannot use {module}: it is not what the hub registered")
        package.unpack(file, folder)
        with _progress(module) as update:
            found = measuring.measure_here(folder, options, update)
        # What was measured is this version, byte for byte, whatever packing the folder again would give.
        found = msgspec.structs.replace(found, version=number, digest=detail.digest)
        if store:
            client.add_profile(name, number, found)
    return found


def show(found: ModuleProfile) -> None:
    """A profile for people."""
    best, setting = found.recommendation, found.recommendation.setting
    output.facts(
        [
            ("module", f"{found.module}:{found.version}" if found.version else found.module),
            ("measured on", f"{found.device or 'this machine'} ({found.machine}, {found.cores} cores)"),
            ("for", found.profile),
            ("when", f"{output.when(found.at)}, in {found.took_s:.0f} s, niceness {found.niceness}"),
            ("inputs", found.inputs),
            ("simulated", "a simulated board: its times mean nothing" if found.simulated else ""),
        ]
    )
    columns = (
        "engine",
        "threads",
        "batch",
        "p50",
        "p90",
        "p99",
        "±",
        "rows/s",
        "CPU",
        "load",
        "memory",
        "golden",
        "runs",
    )
    output.table(columns, [_row(one) for one in found.measurements], empty="nothing was measured")
    for one in found.unmeasured:
        output.say(f"{one.setting.engine}, {one.setting.threads} threads, batch {one.setting.batch}: {one.message}")
    output.facts(
        [
            ("recommended", f"engine {setting.engine}, threads {setting.threads}, max_rows {best.max_rows}"),
            ("memory_mb", f"{best.memory_mb}{'' if best.confirmed else ' (not tried)'}"),
            *(("because", reason) for reason in best.reasons),
            ("as it stands", f"its manifest's own setting needs {found.memory_mb} MB"),
        ]
    )


def _row(one: Measurement) -> tuple[str, ...]:
    return (
        one.setting.engine,
        str(one.setting.threads),
        str(one.setting.batch),
        *(time_text(value) for value in (one.p50_us, one.p90_us, one.p99_us)),
        f"{one.spread:.0%}",
        f"{one.rows_per_s:.0f}",
        f"{one.cpu_percent:.0f} %",
        f"{one.load_ms:.0f} ms",
        f"{one.limit_mb:.1f} MB",
        one.golden,
        str(one.runs),
    )


def _list(found: list[StoredProfile]) -> None:
    rows = [
        (
            one.device or "(no device)",
            one.profile or "–",
            f"{one.memory_mb} MB",
            f"{one.body.recommendation.setting.engine}, {threads_text(one.body.recommendation.setting.threads)}",
            f"{one.body.recommendation.memory_mb} MB",
            "simulated" if one.simulated else "",
            output.when(one.at),
            one.measured_by,
        )
        for one in found
    ]
    columns = ("device", "profile", "needs", "recommended", "with", "", "when", "by")
    output.table(columns, rows, empty="Nobody measured it yet: `skerry modules profile NAME:VERSION --device D`.")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise InputError("request.invalid", f"cannot read {text!r}: give whole numbers, as 1,2,4") from None


@contextmanager
def _progress(label: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr; nothing where that is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        console=output.err,
        transient=True,
        disable=not output.err.is_terminal,
    )
    task = bar.add_task(label, total=1.0, text="")
    with bar:
        yield lambda share, text: bar.update(task, completed=share, text=text)
