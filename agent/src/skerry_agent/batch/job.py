"""``skerry-agent batch``: one job from its input to its output. Wires the package; decides nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from skerry_agent.batch.parts import FORMATS, FRAMES, Done, Job, Parts, begun, opened
from skerry_agent.batch.progress import Lines, Progress
from skerry_agent.batch.rows import Model, RowError, Segment
from skerry_agent.batch.scoring import Blocks
from skerry_agent.batch.tables import Table, open_table
from skerry_agent.rules.pace import Pace, PaceSettings
from skerry_modules.errors import InputError
from skerry_modules.scorer import Scorer

NICENESS = 10
"""Reading and writing give way to everything else on the device; scoring gives way by its low priority."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to score. ``rows`` bounds a request, ``part_rows`` what a kill can cost."""

    url: str
    model: str
    version: str
    input: Path
    output: Path
    columns: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    part_rows: int = 2000
    rows: int = 1024
    timeout_s: float = 60.0
    patience_s: float = 300.0
    restart: bool = False
    header: bool | None = None  # of a table: None: it tells by itself
    told: bool = False  # progress as JSON lines, for the program that started this one


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended. ``resumed`` rows were scored by an earlier run."""

    model: str
    version: str
    output: str
    errors_file: str
    rows: int
    errors: int
    resumed: int
    seconds: float
    rows_per_s: float


def run(order: Order, stream: TextIO | None = None) -> Summary:
    """Score everything that is not scored yet. Progress goes to ``stream``: stderr where none is given.

    Raises:
        SkerryError: the job cannot begin or go on. What is done stays done: the same call goes on from there.
    """
    _check(order)
    began = time.monotonic()
    metadata = Scorer(order.url, order.model, _version(order)).metadata(order.timeout_s)
    version = metadata.versions[0]
    model = Model(metadata)
    table = open_table(
        order.input, model, part_rows=order.part_rows, chosen=order.columns, kept=order.keep, header=order.header
    )
    job = Job(
        input=str(order.input.resolve()),
        print=table.print,
        model=order.model,
        version=version,
        part_rows=order.part_rows,
        columns=order.columns,
        kept=order.keep,
        output=order.output.suffix.lower(),
    )
    scorer = Scorer(order.url, order.model, version, retries=0, low=True)
    files = table.unit == "files"
    with opened(order.output, job, model, files=files, kept=table.kept, restart=order.restart) as parts:
        os.nice(max(0, NICENESS - os.nice(0)))  # a process may score several jobs
        before = list(parts.done.values())
        resumed = sum(done.rows + done.errors for done in before)
        title = f"{order.model} {version}"
        progress = _progress(order, title, table, before, stream)
        pace = Pace(PaceSettings(max_rows=order.rows))
        blocks = Blocks(scorer, model, pace, timeout_s=order.timeout_s, patience_s=order.patience_s, told=progress.rows)
        try:
            _score(table, parts, blocks, progress)
        finally:
            blocks.close()
            scorer.channel.close()
            progress.close()
        rows, failed = (sum(getattr(done, key) for done in parts.done.values()) for key in ("rows", "errors"))
        errors_file = parts.join(table.parts)
    seconds = time.monotonic() - began
    return Summary(
        model=order.model,
        version=version,
        output=str(order.output),
        errors_file=str(errors_file or ""),
        rows=rows,
        errors=failed,
        resumed=resumed,
        seconds=round(seconds, 3),
        rows_per_s=round((rows + failed - resumed) / max(seconds, 1e-3), 1),
    )


def _score(table: Table, parts: Parts, blocks: Blocks, progress: Progress) -> None:
    """Part by part; each is on the disk before the next is begun."""
    for part in table.read(set(parts.done)):
        segments: list[Segment] = []
        errors: list[RowError] = list(part.errors)
        for block in part.blocks:
            found, wrong = blocks.score(block)
            segments += found
            errors += wrong
        parts.finish(part.number, segments, errors, part.units)
        progress.units(part.units)


def _progress(order: Order, title: str, table: Table, before: Sequence[Done], stream: TextIO | None) -> Progress:
    done = sum(one.units for one in before)
    if not order.told:
        return Progress(title, table.units, table.unit, done, stream)
    rows, errors = (sum(getattr(one, key) for one in before) for key in ("rows", "errors"))
    return Lines(title, table.units, table.unit, done, rows=rows, errors=errors, stream=stream)


def _check(order: Order) -> None:
    if order.output.suffix.lower() not in (*FORMATS, FRAMES):
        raise InputError("request.invalid", f"cannot write {order.output}: its name must end in {', '.join(FORMATS)}")
    if not order.output.parent.is_dir():
        raise InputError("request.invalid", f"cannot write {order.output}: there is no such folder; make it")
    if order.part_rows < 1 or order.rows < 1:
        raise InputError("request.invalid", "cannot use --part-rows or --rows below 1")


def _version(order: Order) -> str | None:
    """The version that was asked for, or the one that the job was begun with: it is scored by one version alone."""
    if order.version:
        return order.version
    before = None if order.restart else begun(order.output)
    if before is not None and before.model == order.model:
        return before.version
    versions = Scorer(order.url, order.model).metadata(order.timeout_s).versions
    if len(versions) > 1:
        raise InputError(
            "request.invalid",
            f"cannot choose between the versions {', '.join(versions)} of {order.model}, which share its traffic; "
            "name one with --module-version",
        )
    return None


def told(summary: Summary) -> dict[str, Any]:
    """The summary as JSON has it."""
    found: dict[str, Any] = msgspec.to_builtins(summary)
    return found
