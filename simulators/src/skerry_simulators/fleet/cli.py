"""``skerry-sim fleet``: register devices at a hub, run them, watch them; on Ctrl-C or in time, say how it went.

Exit codes: 0 every device was online and all it sent was acknowledged; 1 not.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time
import tomllib
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
from rich.console import Console
from rich.live import Live
from rich.progress import Progress
from rich.table import Table

from skerry_modules import trust
from skerry_modules.errors import ResourceError, SkerryError
from skerry_simulators.fleet.fleet import Fleet, FleetSettings, Summary

QUIET_END_S = 20.0
"""How long the end waits for the last acknowledgements."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    hub = os.environ.get("SKERRY_URL", "http://127.0.0.1:8420")
    parser.add_argument("--devices", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--hub", default=hub, metavar="URL", help=f"the hub (default {hub})")
    parser.add_argument("--token", default=os.environ.get("SKERRY_TOKEN", ""), help="the hub's token")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long (default: Ctrl-C)")
    parser.add_argument("--prefix", default="", help="of device ids (default: sim- and a random part)")
    parser.add_argument("--profile", default="generic-x86_64", help="the devices' firmware profile")
    parser.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="of every device; repeatable")
    parser.add_argument("--telemetry", type=float, default=10.0, metavar="S", help="seconds between windows")
    parser.add_argument("--health", type=float, default=60.0, metavar="S", help="seconds between health messages")
    parser.add_argument("--fail", type=float, default=0.0, metavar="SHARE", help="of devices that fail a new version")
    parser.add_argument("--fail-version", action="append", default=[], metavar="NAME:N", help="fails everywhere")
    parser.add_argument("--cut", type=float, default=0.0, metavar="S", help="mean seconds between cut cables")
    parser.add_argument("--drift", type=float, default=0.0, metavar="SHARE", help="of devices that grow slow")
    parser.add_argument("--drift-after", type=float, default=60.0, metavar="S", help="when they do")
    parser.add_argument("--seed", type=int, default=1, help="makes the devices' behaviour repeatable")
    parser.add_argument("--keep", action="store_true", help="leave the devices registered at the end")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """The command. Returns the exit code."""
    console = Console(stderr=options.json, highlight=False)
    headers = {"Authorization": f"Bearer {options.token}"} if options.token else {}
    with httpx.Client(base_url=options.hub.rstrip("/") + "/api/v1", headers=headers, timeout=60) as api:
        try:
            passwords, broker, trusted = register(api, options, console)
        except SkerryError as error:
            console.print(f"[red]{error.message}[/red] [{error.code}]")
            return 1
        try:
            summary = _watch(options, console, passwords, broker, trusted)
        finally:
            if not options.keep:
                _remove(api, list(passwords), console)
    if options.json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    else:
        console.print(_table(summary))
    return 0 if summary.online == summary.devices and not summary.waiting else 1


def register(
    api: httpx.Client, options: argparse.Namespace, console: Console
) -> tuple[dict[str, str], tuple[str, int], dict[str, trust.PublicKey]]:
    """Register the devices; returns passwords by id, the broker's address and the hub's key.

    Raises:
        ResourceError: ``resource.hub_unreachable``.
        SkerryError: what the hub refuses.
    """
    prefix = options.prefix or f"sim-{secrets.token_hex(2)}-"
    tags = dict(pair.split("=", 1) for pair in options.tag)
    width = len(str(options.devices - 1))
    passwords: dict[str, str] = {}
    config: dict[str, Any] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("registering devices", total=options.devices)
        for number in range(options.devices):
            name = f"{prefix}{number:0{width}}"
            body = {"id": name, "profile": options.profile, "tags": tags}
            config = tomllib.loads(_post(api, "/devices", body)["config"])
            passwords[name] = config["hub"]["password"]
            progress.advance(task)
    parts = urlsplit(config["hub"]["broker"])
    key = trust.parse_public(config["hub"]["key"])
    return passwords, (parts.hostname or "127.0.0.1", parts.port or 1883), {key.keyid: key}


def _post(api: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = api.post(path, json=body)
    except httpx.HTTPError as error:
        raise ResourceError(
            "resource.hub_unreachable", f"cannot reach the hub at {api.base_url}: {error}; is it running?"
        ) from error
    if answer.is_error:
        problem = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        raise ResourceError(
            "resource.hub_unreachable", f"cannot register a device: {problem.get('detail', answer.text[:200])}"
        )
    found: dict[str, Any] = answer.json()
    return found


def _remove(api: httpx.Client, names: list[str], console: Console) -> None:
    with Progress(console=console, transient=True) as progress:
        for name in progress.track(names, description="removing devices"):
            try:
                api.delete(f"/devices/{name}")
            except httpx.HTTPError as error:
                console.print(f"cannot remove the devices: {error}")
                return


def _watch(
    options: argparse.Namespace,
    console: Console,
    passwords: dict[str, str],
    broker: tuple[str, int],
    trusted: dict[str, trust.PublicKey],
) -> Summary:
    settings = FleetSettings(
        telemetry_s=options.telemetry,
        health_s=options.health,
        fail_share=options.fail,
        fail_versions=tuple(options.fail_version),
        cut_s=options.cut,
        drift_share=options.drift,
        drift_after_s=options.drift_after,
    )
    fleet = Fleet(broker, passwords, settings=settings, trusted=trusted, profile=options.profile, seed=options.seed)
    asked: list[bool] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.append(True))
    ends = time.monotonic() + options.seconds if options.seconds else float("inf")
    with Live(_table(fleet.summary()), console=console, refresh_per_second=4, transient=True) as live:

        def done() -> bool:
            live.update(_table(fleet.summary()))
            return bool(asked) or time.monotonic() >= ends

        fleet.start()
        fleet.run(done)
        fleet.quiet = True
        last = time.monotonic() + QUIET_END_S
        fleet.run(lambda: done() and (not fleet.summary().waiting or time.monotonic() > last or len(asked) > 1))
    summary = fleet.summary()
    fleet.stop()
    return summary


def _table(summary: Summary) -> Table:
    table = Table(title="fleet", show_header=False, title_justify="left")
    stats = summary.stats
    table.add_row("online", f"{summary.online} of {summary.devices}")
    table.add_row("acknowledged", f"{summary.acknowledged}, {summary.waiting} waiting")
    table.add_row("telemetry windows", str(stats.telemetry))
    table.add_row("serving", ", ".join(f"{name} on {count}" for name, count in summary.serving.items()) or "nothing")
    table.add_row("on the way", str(summary.candidates))
    table.add_row("objects verified", f"{stats.objects} ({stats.chunks} chunks, {stats.chunks_twice} twice)")
    table.add_row("failed versions", str(stats.failed))
    table.add_row("disconnects", str(stats.disconnects))
    return table


def main(arguments: list[str] | None = None) -> int:
    """Also ``python -m skerry_simulators.fleet.cli``."""
    parser = argparse.ArgumentParser(prog="skerry-sim fleet", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
