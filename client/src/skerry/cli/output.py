"""How the commands speak: tables for people, JSON for programs, errors on stderr with their code, and exit codes.

Exit codes: 0 done · 1 done, but what was asked about did not come out well (a rollout that failed) · 2 the caller's
input · 3 the other side's message or package · 4 something is missing now: hub, space, a package · 70 a bug of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from skerry.types import Event
from skerry_modules.errors import SkerryError

EXIT_BAD: Final = 1
EXIT_CODES: Final = {"input": 2, "peer": 3, "resource": 4, "bug": 70}

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why, for the record.")]
TagList = Annotated[list[str], typer.Option("--tag", "-t", help="TagName=TagValue; may be repeated.")]
KeyName = Annotated[str, typer.Option("--key", "-k", help="Signing key: a name or a file. \\[env: SKERRY_KEY]")]

out: Final = Console(highlight=False)
err: Final = Console(stderr=True, highlight=False)

_PHASE_STYLES: Final = {
    "Healthy": "green",
    "Transitioning": "cyan",
    "Unhealthy": "yellow",
    "Failed": "red",
    "Unschedulable": "magenta",
    "succeeded": "green",
    "running": "cyan",
    "assigned": "cyan",
    "paused": "yellow",
    "failed": "red",
    "rolled-back": "red",
    "rolling-back": "yellow",
    "aborted": "yellow",
    "unschedulable": "magenta",
    "error": "red",
    "critical": "bold red",
    "warning": "yellow",
}


def emit(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.buffer.flush()


def emit_line(value: Any) -> None:
    """One line of JSON Lines."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def say(text: str) -> None:
    """A step, on stderr: stdout is for results."""
    err.print(Text("• ", style="cyan") + Text(text), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """A table, or a sentence where there is nothing to show."""
    if not rows:
        out.print(empty, style="dim")
        return
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    picture(made)


def picture(made: RenderableType) -> None:
    """On a terminal as wide as that is; piped as wide as it needs to be, so that nothing wraps."""
    if out.is_terminal:
        out.print(made)
    else:
        Console(highlight=False, width=400).print(made)


def facts(pairs: Sequence[tuple[str, Any]]) -> None:
    """Names and values, those without a value left out."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value not in ("", None, {}, (), []):
            made.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    picture(made)


def state(text: str) -> Text:
    """A phase, state or severity in its colour."""
    return Text(text, style=_PHASE_STYLES.get(text, ""))


def when(ms: int) -> str:
    """A time for people, in the local zone."""
    if not ms:
        return "–"
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def version(event: Event) -> str:
    """The module's version that an event is about, if any."""
    return f"{event.module}:{event.version}" if event.module else ""


def tags_text(tags: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(tags.items()))


def parse_tags(items: Sequence[str]) -> dict[str, str]:
    """``TagName=TagValue``, each its own or comma-separated.

    Raises:
        InputError: ``query.invalid``.
    """
    from skerry_modules.errors import InputError

    found = {}
    for part in (piece.strip() for item in items for piece in item.split(",")):
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise InputError("query.invalid", f"cannot use the tag {part!r}: write TagName=TagValue")
        found[name] = value
    return found


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while bytes flow; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    task = bar.add_task(label, total=None)

    def update(done: int, total: int) -> None:
        bar.start()  # with the first bytes, not before: what comes before them may take a while and speak
        bar.update(task, completed=done, total=total or None)

    try:
        yield update
    finally:
        bar.stop()


def fail(error: SkerryError, *, as_json: bool) -> int:
    """Tell an error and return the exit code for its family."""
    if as_json:
        body = {"code": error.code, "family": error.family, "message": error.message, "data": error.data}
        sys.stderr.write(msgspec.json.encode(body, enc_hook=str).decode() + "\n")
    else:
        err.print(
            Text("error: ", style="bold red") + Text(error.message) + Text(f" [{error.code}]", style="dim"),
            soft_wrap=True,
        )
    return EXIT_CODES.get(error.family, EXIT_CODES["bug"])


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is lost; without a terminal only ``--yes`` goes on."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("this cannot be undone: say --yes")
    typer.confirm(question, abort=True, err=True)


def is_interactive() -> bool:
    return out.is_terminal and os.environ.get("TERM") != "dumb"
