"""``skerry rollouts``: start, preview and watch them; pause, resume, abort."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from skerry.cli import output
from skerry.cli.context import hub, resolve_version
from skerry.cli.output import Json, Reason
from skerry.client import Client
from skerry.types import Plan, RolloutDetail

app = typer.Typer(
    help="Take a version to devices in waves, and turn back by itself where it fails.", no_args_is_help=True
)

Id = Annotated[int, typer.Argument(help="The rollout's number.", metavar="ROLLOUT")]
Version = Annotated[str, typer.Argument(help="NAME:VERSION; NAME alone is the newest.", metavar="VERSION")]
Target = Annotated[str, typer.Option("--to", help="Devices: TagName=TagValue,… or '*' for all.")]
# The defaults are the hub's own, since a plan leaves out what was not said; a test holds these texts to them.
Waves = Annotated[
    str, typer.Option("--waves", help="Devices or shares so far, as 1,25%,100%. \\[default: one canary, then the rest]")
]
Soak = Annotated[
    float | None, typer.Option("--soak", help="Seconds under live traffic before a device is proven. \\[default: 60]")
]
Pause = Annotated[float | None, typer.Option("--wave-pause", help="Seconds between two waves. \\[default: 0]")]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--failure-threshold", help="Share of a wave that may fail, 0 to 1; above it all go back. \\[default: 0]"
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--device-timeout",
        help="Seconds that an online device has to prove it, soak not counted. \\[default: 3600, an hour]",
    ),
]
Away = Annotated[
    float | None,
    typer.Option("--offline-timeout", help="Seconds to wait for a device that is away. \\[default: 86400, a day]"),
]
OnFailure = Annotated[
    str | None,
    typer.Option("--on-failure", help="rollback, or stop: proven devices keep the version. \\[default: rollback]"),
]
Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Watch it to its end; the exit code says how it went.")]


def make_plan(
    waves: str,
    soak: float | None,
    pause: float | None = None,
    threshold: float | None = None,
    *,
    timeout: float | None = None,
    away: float | None = None,
    on_failure: str | None = None,
) -> Plan:
    """The options as a plan; what was not said is left to the hub."""
    return Plan(
        waves=tuple(part for part in waves.split(",") if part.strip()),
        soak_s=soak,
        wave_pause_s=pause,
        failure_threshold=threshold,
        device_timeout_s=timeout,
        offline_timeout_s=away,
        on_failure=on_failure,
    )


@app.command()
def start(
    context: typer.Context,
    version: Version,
    to: Target,
    waves: Waves = "",
    soak: Soak = None,
    wave_pause: Pause = None,
    failure_threshold: Threshold = None,
    device_timeout: Timeout = None,
    offline_timeout: Away = None,
    on_failure: OnFailure = None,
    reason: Reason = "",
    watch_it: Watch = True,
    json: Json = False,
) -> None:
    """Start a rollout and watch it."""
    plan = make_plan(
        waves, soak, wave_pause, failure_threshold, timeout=device_timeout, away=offline_timeout, on_failure=on_failure
    )
    with hub(context) as client:
        name, number = resolve_version(client, version)
        started = client.start_rollout(name, number, to, plan, reason=reason)
        if watch_it:
            started = follow(client, started, json=json)
    if json:
        output.emit(started)
    elif not watch_it:
        output.say(f"rollout {started.id} of {name}:{number} runs: `skerry rollouts watch {started.id}`")
    if watch_it:
        _exit_by(started)


@app.command()
def preview(
    context: typer.Context,
    version: Version,
    to: Target,
    waves: Waves = "",
    json: Json = False,
) -> None:
    """What starting it would do: which device comes in which wave, and which cannot run it, and why."""
    with hub(context) as client:
        name, number = resolve_version(client, version)
        found = client.preview_rollout(name, number, to, make_plan(waves, None))
    if json:
        output.emit(found)
        return
    output.facts([("version", f"{name}:{number}"), ("to", to), ("devices in waves", ", ".join(map(str, found.waves)))])
    rows = [
        (
            one.device,
            "online" if one.online else "offline",
            one.wave + 1 if one.wave >= 0 else output.state("unschedulable"),
            one.previous or "–",
            "; ".join(f"{each['code']}: {each['message']}" for each in one.obstacles),
        )
        for one in found.candidates
    ]
    output.table(("device", "link", "wave", "has now", "why not"), rows, empty="No device has these tags.")


@app.command("list")
def list_rollouts(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
    json: Json = False,
) -> None:
    """Rollouts, newest first."""
    with hub(context) as client:
        found = client.rollouts(limit=limit)
    if json:
        output.emit(found)
        return
    rows = [
        (
            one.id,
            f"{one.module}:{one.version}",
            output.state(one.state),
            one.target,
            _counts(one.counts),
            output.when(one.created_at),
            one.created_by,
            one.reason,
        )
        for one in found
    ]
    output.table(
        ("rollout", "version", "state", "to", "devices", "started", "by", "reason"), rows, empty="No rollouts yet."
    )


@app.command()
def show(context: typer.Context, rollout: Id, json: Json = False) -> None:
    """One rollout, device by device."""
    with hub(context) as client:
        found = client.rollout(rollout)
    if json:
        output.emit(found)
    else:
        output.picture(picture(found))


@app.command()
def watch(context: typer.Context, rollout: Id, json: Json = False) -> None:
    """Watch it live to its end. Exit code 0 if it succeeded, 1 if it ended otherwise."""
    with hub(context) as client:
        ended = follow(client, client.rollout(rollout), json=json)
    if json:
        output.emit(ended)
    _exit_by(ended)


@app.command()
def pause(context: typer.Context, rollout: Id, reason: Reason = "", json: Json = False) -> None:
    """Start nothing new; what is under way on a device goes on."""
    with hub(context) as client:
        _told(client.pause_rollout(rollout, reason=reason), json=json)


@app.command()
def resume(context: typer.Context, rollout: Id, reason: Reason = "", json: Json = False) -> None:
    """Go on with a paused rollout."""
    with hub(context) as client:
        _told(client.resume_rollout(rollout, reason=reason), json=json)


@app.command()
def abort(
    context: typer.Context,
    rollout: Id,
    reason: Reason = "",
    keep: Annotated[bool, typer.Option("--keep", help="Let devices that have proven the version keep it.")] = False,
    json: Json = False,
) -> None:
    """Stop for good; devices go back to the version they had."""
    with hub(context) as client:
        _told(client.abort_rollout(rollout, reason=reason, rollback=not keep), json=json)


def follow(client: Client, rollout: RolloutDetail, *, json: bool) -> RolloutDetail:
    """Show a rollout as it changes until it has ended: a live picture, lines where output is no terminal."""
    newest = rollout
    with shown(rollout, json=json) as show_now:
        for newest in client.watch_rollout(rollout.id):
            show_now(newest)
    return newest


class Shown:
    """Draws each state of a rollout; on a terminal in place, else one line per change of a device."""

    def __init__(self, live: Live | None, *, quiet: bool) -> None:
        self._live, self._quiet = live, quiet
        self._steps: dict[str, str] = {}

    def __call__(self, rollout: RolloutDetail) -> None:
        if self._quiet:
            return
        if self._live:
            self._live.update(picture(rollout), refresh=True)
            return
        for one in rollout.devices:
            if self._steps.get(one.device) != one.step:
                self._steps[one.device] = one.step
                why = f" ({one.reason}: {one.message})" if one.reason else ""
                output.say(f"rollout {rollout.id}, wave {one.wave + 1}: {one.device} {one.step}{why}")
        if self._steps.get("") != rollout.state:
            self._steps[""] = rollout.state
            output.say(f"rollout {rollout.id}: {rollout.state}{f': {rollout.message}' if rollout.message else ''}")


@contextmanager
def shown(rollout: RolloutDetail | None, *, json: bool) -> Iterator[Shown]:
    """A drawer of rollouts; silent with ``json``, whose stdout is for the result."""
    if json or not output.is_interactive():
        yield Shown(None, quiet=json)
        return
    with Live(picture(rollout) if rollout else Text(""), console=output.out, auto_refresh=False) as live:
        yield Shown(live, quiet=False)


def picture(rollout: RolloutDetail) -> Group:
    """A rollout as people look at it: its state, a bar of proven devices, every device with its reason."""
    total = len(rollout.devices)
    done = sum(one.step == "succeeded" for one in rollout.devices)
    head = Text.assemble(
        (f"rollout {rollout.id}  ", "bold"),
        f"{rollout.module}:{rollout.version} to {rollout.target}  ",
        output.state(rollout.state),
        f"  wave {rollout.wave + 1} of {rollout.waves}",
    )
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=max(total, 1), completed=done, width=40), f"{done} of {total} devices proven")
    devices = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("wave", "device", "step", "from", "reason", "message"):
        devices.add_column(column, overflow="fold")
    for one in rollout.devices:
        before = str(one.previous) if one.previous else "–"
        devices.add_row(str(one.wave + 1), one.device, output.state(one.step), before, one.reason, Text(one.message))
    parts: list[RenderableType] = [head, bar, devices]
    if rollout.message:
        parts.append(Text(rollout.message, style="yellow"))
    return Group(*parts)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {step}" for step, number in sorted(counts.items()))


def _told(rollout: RolloutDetail, *, json: bool) -> None:
    if json:
        output.emit(rollout)
    else:
        output.say(f"rollout {rollout.id} is {rollout.state}")


def _exit_by(rollout: RolloutDetail) -> None:
    if rollout.state != "succeeded":
        raise typer.Exit(output.EXIT_BAD)
