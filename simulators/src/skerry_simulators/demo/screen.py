"""What the demo shows while it runs: steps as they happen, and below them the fleet and the rollouts, live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from skerry.types import Device, RolloutDetail
    from skerry_simulators.demo.outcome import Claim
    from skerry_simulators.demo.traffic import Tally

_STYLES = {"Healthy": "green", "Transitioning": "cyan", "Failed": "red", "Unhealthy": "yellow"}
_STEPS = {"succeeded": "green", "failed": "red", "rolled-back": "red", "assigned": "cyan", "rolling-back": "yellow"}


class Screen:
    """A terminal gets a live picture, anything else one line per step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._started = time.monotonic()
        self._told: dict[str, str] = {}

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw in place from here on, where output is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(Text(""), console=self._console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def act(self, title: str) -> None:
        """A new part of the story."""
        self._print(Text(f"\n{title}", style="bold cyan"))

    def step(self, text: str) -> None:
        """Something was done."""
        seconds = time.monotonic() - self._started
        self._print(Text.assemble((f"{seconds:6.1f} s  ", "dim"), text))

    def warn(self, text: str) -> None:
        self._print(Text(f"          ! {text}", style="yellow"))

    def draw(self, devices: Sequence[Device], rollouts: Sequence[RolloutDetail], tallies: Sequence[Tally]) -> None:
        """The fleet as it is now."""
        for rollout in rollouts:
            self._tell(rollout)
        if self._live:
            parts = [_fleet(devices, tallies)]
            if rollouts:
                parts.append(_rollouts(rollouts))
            self._live.update(Panel(Group(*parts), border_style="dim"), refresh=True)

    def claims(self, claims: Sequence[Claim]) -> None:
        """The outcome, claim by claim."""
        for claim in claims:
            mark = ("✓ ", "bold green") if claim.ok else ("✗ ", "bold red")
            self._print(Text.assemble("          ", mark, claim.name, (f": {claim.detail}", "dim")))

    def failure(self, text: str) -> None:
        self._print(Text(text, style="red"))

    def _tell(self, rollout: RolloutDetail) -> None:
        """Each change of a device's step as a line of its own: the story stays readable after the picture is gone."""
        name = f"{rollout.module}:{rollout.version}"
        for one in rollout.devices:
            key = f"{rollout.id}/{one.device}"
            if one.step != self._told.get(key, "pending"):
                why = f": {one.reason}, {one.message}" if one.reason else ""
                self.step(f"{name} on {one.device}: {one.step}{why}")
            self._told[key] = one.step
        if rollout.state != self._told.get(str(rollout.id), "running"):
            self.step(f"rollout of {name}: {rollout.state}{f' ({rollout.message})' if rollout.message else ''}")
        self._told[str(rollout.id)] = rollout.state

    def _print(self, what: Text) -> None:
        self._console.print(what, soft_wrap=True)


def _fleet(devices: Sequence[Device], tallies: Sequence[Tally]) -> Table:
    by_device = {tally.device: tally for tally in tallies}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("device", "link", "modules", "requests", "failed", "right"):
        table.add_column(column)
    for device in devices:
        tally = by_device.get(device.id)
        modules = Text(" · ").join(
            Text(f"{one.module}:{one.version} {one.role or one.step} {one.phase}", style=_STYLES.get(one.phase, ""))
            for one in device.modules
        )
        right = [f"v{version} {tally.accuracy(version):.1%}" for version in sorted(tally.answered)] if tally else []
        table.add_row(
            device.id,
            Text("online", style="green") if device.online else Text("offline", style="dim"),
            modules,
            str(tally.requests) if tally else "",
            Text(str(tally.failed), style="red" if tally.failed else "green") if tally else "",
            "  ".join(right),
        )
    return table


def _rollouts(rollouts: Sequence[RolloutDetail]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("rollout", "state", "wave", "devices"):
        table.add_column(column)
    for one in rollouts:
        devices = Text("  ").join(
            Text(f"{device.device} {device.step}", style=_STEPS.get(device.step, "dim")) for device in one.devices
        )
        wave = f"{one.wave + 1} of {one.waves}"
        table.add_row(f"{one.module}:{one.version}", one.state, wave, devices)
    return table
