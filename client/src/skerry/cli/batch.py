"""``skerry batch``: score a table or a folder on devices or on the hub, watch it, fetch what came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from skerry.cli import output
from skerry.cli.context import hub
from skerry.cli.output import Json, Reason
from skerry.client import Client
from skerry.types import BatchDetail, BatchShare
from skerry_modules.errors import InputError

app = typer.Typer(help="Score tables and folders on devices or on the hub.", no_args_is_help=True)

HUB = "hub"
Id = Annotated[int, typer.Argument(help="The job's number.", min=1)]


@app.command()
def start(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME:VERSION, an endpoint, or a module (its newest version).")],
    on: Annotated[str, typer.Option("--on", help="Where: TagName=TagValue, device:ID, '*' for all devices, or hub.")],
    given: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="A .parquet or .csv, a folder of .npz, .npy and .json, or one of them."),
    ] = None,
    device_input: Annotated[
        str, typer.Option("--device-input", metavar="PATH", help="Instead: what lies at this path on each device.")
    ] = "",
    columns: Annotated[
        str, typer.Option(metavar="A,B", help="The input's columns in order. \\[default: by name]")
    ] = "",
    keep: Annotated[str, typer.Option(metavar="A,B", help="Columns that go beside the scores, as an id.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="Rows of one request at most.")] = 1024,
    part_rows: Annotated[int, typer.Option("--part-rows", min=1, help="Rows that a kill may cost.")] = 2000,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Fetch the result into it when it is done.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until it has ended.")] = True,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Begin a job: an input is uploaded once, cut into parts, and shared out among the devices."""
    if (given is None) == (not device_input):
        raise InputError("request.invalid", "cannot begin: give --input PATH, or --device-input for data on devices")
    if folder is not None and not wait:
        raise InputError(
            "request.invalid", "cannot fetch without waiting: leave out --no-wait, or `skerry batch fetch`"
        )
    wishes = {
        "columns": _names(columns),
        "keep": _names(keep),
        "rows": rows,
        "part_rows": part_rows,
        "reason": reason,
    }
    with hub(context) as client:
        upload = ""
        if given is not None:
            with output.progress_bar(f"uploading {given.name}") as update:
                upload = client.upload_batch_input(given, progress=update)
            wishes["input"] = given.name
        job = client.start_batch(model, target_of(on), upload=upload, path=device_input, **wishes)
        if not json:
            output.say(f"batch job {job.id}: {job.module}:{job.version} on {on}")
        if wait:
            job = follow(client, job, json=json)
        if folder is not None and job.result_size:
            _fetch(client, job.id, folder, json=True)
    _tell(job, folder, json=json)
    if job.ended and job.state != "done":
        raise typer.Exit(output.EXIT_BAD)


@app.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[str, typer.Option(help="queued, running, done, failed or cancelled.")] = "",
    module: Annotated[str, typer.Option(help="Of one module only.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 30,
    json: Json = False,
) -> None:
    """Jobs, newest first."""
    with hub(context) as client:
        found = client.batches(state=state, module=module, limit=limit)
    if json:
        output.emit(found)
        return
    rows = [
        (
            one.id,
            f"{one.module}:{one.version}",
            one.target,
            one.input,
            output.state(one.state),
            f"{one.progress:.0%}",
            f"{one.scored:,}",
            f"{one.errors:,}" if one.errors else "",
            output.when(one.created_at),
            one.created_by,
        )
        for one in found
    ]
    columns = ("id", "model", "on", "input", "state", "done", "rows", "errors", "begun", "by")
    output.table(columns, rows, empty="No batch job yet: `skerry batch start NAME:VERSION --input FILE --on site=lab`.")


@app.command()
def show(
    context: typer.Context,
    job: Id,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until it has ended.")] = False,
    parts: Annotated[bool, typer.Option("--parts", help="Every part too.")] = False,
    json: Json = False,
) -> None:
    """One job: how far it is, what each device does of it, and why something failed."""
    with hub(context) as client:
        found = client.batch(job)
        if watch and not found.ended:
            found = follow(client, found, json=json)
        listed = list(client.batch_parts(job)) if parts else []
    if json:
        output.emit({**msgspec.to_builtins(found), "part_list": listed} if parts else found)
        return
    _show(found)
    if parts:
        rows = [
            (
                one.number,
                output.state(one.state),
                one.device,
                one.units,
                one.scored,
                one.errors or "",
                one.attempts,
                one.code,
                one.message,
            )
            for one in listed
        ]
        columns = ("part", "state", "device", found.unit or "rows", "scored", "errors", "given", "code", "message")
        output.table(columns, rows, empty="It has no parts yet.")


@app.command()
def cancel(context: typer.Context, job: Id, reason: Reason = "", json: Json = False) -> None:
    """End a job before its time; devices are told to stop."""
    with hub(context) as client:
        found = client.cancel_batch(job, reason=reason)
    if json:
        output.emit(found)
    else:
        output.say(f"batch job {job} is cancelled")


@app.command()
def fetch(
    context: typer.Context,
    job: Id,
    folder: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to.")] = Path(),
    json: Json = False,
) -> None:
    """Download a job's scores (Parquet) and the rows that could not be scored (JSONL)."""
    with hub(context) as client:
        _fetch(client, job, folder, json=json)
        found = client.batch(job)
    if found.state != "done":
        output.say(f"this is only a part: the job is {found.state}: {found.message}")
        raise typer.Exit(output.EXIT_BAD)


def target_of(on: str) -> str:
    """``hub``, ``device:ID`` or a tag query, as the hub takes it."""
    kind, colon, device = on.partition(":")
    return f"id={device}" if colon and kind == "device" else on


def follow(client: Client, job: BatchDetail, *, json: bool) -> BatchDetail:
    """Show a job as it goes on until it has ended: a bar, lines where stderr is no terminal."""
    newest = job
    with _bar(job, quiet=json) as drawn:
        for newest in client.watch_batch(job.id):
            drawn(newest)
    return newest


class _Drawn:
    """One bar for the job and one line for what it waits for; without a terminal a line per change of state."""

    def __init__(self, bar: Progress, task: TaskID, *, quiet: bool) -> None:
        self._bar, self._task, self._quiet = bar, task, quiet
        self._said: tuple[str, str] = ("", "")

    def __call__(self, job: BatchDetail) -> None:
        if not output.err.is_terminal:
            if not self._quiet and self._said != (job.state, job.message):
                self._said = (job.state, job.message)
                output.say(f"batch job {job.id}: {job.state}{f', {job.message}' if job.message else ''}")
            return
        self._bar.update(
            self._task,
            total=job.units or None,
            completed=round(job.progress * job.units),
            text=" ".join(filter(None, (job.unit, f"{job.errors:,} errors" if job.errors else "", job.message))),
        )


@contextmanager
def _bar(job: BatchDetail, *, quiet: bool) -> Iterator[_Drawn]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    shown = output.err.is_terminal and not quiet
    bar = Progress(*columns, console=output.err, transient=True, disable=not shown)
    task = bar.add_task(f"{job.module}:{job.version}", total=None, text="")
    with bar:
        yield _Drawn(bar, task, quiet=quiet)


def _fetch(client: Client, job: int, folder: Path, *, json: bool) -> None:
    with output.progress_bar(f"fetching job {job}") as update:
        found = client.fetch_batch(job, folder, progress=update)
    if json:
        return
    output.out.print(found.scores, soft_wrap=True)
    if found.errors:
        output.out.print(found.errors, soft_wrap=True)


def _tell(job: BatchDetail, folder: Path | None, *, json: bool) -> None:
    if json:
        output.emit(job)
        return
    if not job.ended:
        output.say(f"it goes on: `skerry batch show {job.id} --watch`")
        return
    _show(job)
    if job.result_size:
        where = f"in {folder}" if folder is not None else f"`skerry batch fetch {job.id}` downloads it"
        output.say(f"scores: {output.size(job.result_size)}, {where}")


def _show(job: BatchDetail) -> None:
    amount = f"{round(job.progress * job.units):,} of {job.units:,} {job.unit}" if job.units else "not known yet"
    output.facts(
        [
            ("batch job", job.id),
            ("model", f"{job.module}:{job.version}{f' (endpoint {job.endpoint})' if job.endpoint else ''}"),
            ("on", job.target),
            ("input", f"{job.input}{' on each device' if job.source == 'device' else ''}"),
            ("keeps", ", ".join(job.keep)),
            ("state", output.state(job.state)),
            ("done", f"{job.progress:.0%}, {amount}"),
            ("scored", f"{job.scored:,} rows"),
            ("errors", f"{job.errors:,} rows could not be scored" if job.errors else ""),
            ("parts", ", ".join(f"{count} {state}" for state, count in sorted(job.parts.items()))),
            ("why" if job.code else "note", f"{job.message}{f' [{job.code}]' if job.code else ''}"),
            ("begun", f"{output.when(job.created_at)} by {job.created_by}"),
            ("reason", job.reason),
            ("ended", output.when(job.ended_at) if job.ended else ""),
        ]
    )
    columns = ("device", "online", "parts", "done", "now", "rows", "errors", "last trouble")
    output.table(columns, [_share(one) for one in job.shares], empty="No device has a part yet.")


def _share(one: BatchShare) -> Sequence[object]:
    online = "yes" if one.online and one.serves else "does not serve it" if one.online else "no"
    now = f"{one.progress:.0%}" if one.running else "–"
    trouble = f"{one.message} [{one.code}]" if one.code else ""
    return (one.device, online, one.parts, one.done, now, f"{one.scored:,}", one.errors or "", trouble)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
