"""``skerry devices``: the fleet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from skerry import deploying
from skerry.cli import output
from skerry.cli.context import hub, parse_version
from skerry.cli.models import VersionName, change_tags
from skerry.cli.output import Json, Reason, TagList
from skerry.types import Device
from skerry_modules.errors import InputError

app = typer.Typer(help="Add, show, tag and remove devices, and say what one of them is to run.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The device's id.", metavar="DEVICE")]


@app.command("list")
def list_devices(context: typer.Context, tag: TagList = [], json: Json = False) -> None:
    """Devices, those that bear all of the tags."""
    with hub(context) as client:
        found = client.devices(tags=tag)
    if json:
        output.emit(found)
        return
    rows = [
        (
            device.id,
            Text("online", style="green") if device.online else Text("offline", style="dim"),
            device.profile,
            serving(device),
            output.when(device.seen_at),
            output.tags_text(device.tags),
        )
        for device in found
    ]
    output.table(
        ("device", "link", "profile", "serves", "last heard", "tags"), rows, empty="No devices: `skerry devices add`."
    )


@app.command()
def add(
    context: typer.Context,
    device: Id,
    profile: Annotated[str, typer.Option("--profile", "-p", help="Firmware profile: `skerry profiles` lists them.")],
    tag: TagList = [],
    description: Annotated[str, typer.Option("--description")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Agent configuration to write. \\[default: DEVICE.toml]")
    ] = None,
    json: Json = False,
) -> None:
    """Register a device and write its agent's configuration file.

    The file holds the broker password, which the hub shows this once: it is readable by you alone.
    """
    target = out or Path(f"{device}.toml")
    if target.exists():
        raise InputError("device.exists", f"cannot write {target}: it exists; name another file with --out")
    with hub(context) as client:
        deploying.ensure_trusted(client, say=output.say)
        added = client.add_device(device, profile=profile, tags=output.parse_tags(tag), description=description)
    write_secret(target, added.config)
    if json:
        output.emit({"device": added.device, "config": str(target)})
        return
    output.say(f"{device} is registered; its agent's configuration is {target}")
    output.say(f"run it with: skerry-agent run --config {target}")


@app.command("renew-password")
def renew_password(
    context: typer.Context,
    device: Id,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Agent configuration to write. \\[default: DEVICE.toml]")
    ] = None,
    json: Json = False,
) -> None:
    """Write a new agent configuration with a new password; the old one ends."""
    target = out or Path(f"{device}.toml")
    with hub(context) as client:
        renewed = client.renew_password(device)
    target.unlink(missing_ok=True)
    write_secret(target, renewed.config)
    if json:
        output.emit({"device": renewed.device, "config": str(target)})
    else:
        output.say(f"the new configuration of {device} is {target}")


@app.command()
def show(context: typer.Context, device: Id, json: Json = False) -> None:
    """One device: its modules with their states and reasons, health, last events."""
    with hub(context) as client:
        one, modules = client.device(device), client.device_modules(device)
        health, events = client.health(device, limit=1), client.events(device=device, limit=10)
    if json:
        output.emit({"device": one, "wanted": modules.wanted, "health": health, "events": events})
        return
    newest = health[0].health if health else {}
    output.facts(
        [
            ("device", one.id),
            ("link", "online" if one.online else f"offline; last heard {output.when(one.seen_at)}"),
            ("profile", one.profile),
            ("description", one.description),
            ("tags", output.tags_text(one.tags)),
            ("agent", one.agent),
            ("revision", f"{one.reported_revision} of {one.desired_revision}"),
            ("CPU", f"{newest['cpu_percent']:.0f} %" if newest.get("cpu_percent", -1) >= 0 else ""),
            ("memory", _share(newest, "memory")),
            ("disk", _share(newest, "disk")),
        ]
    )
    rows = [
        (f"{each.module}:{each.version}", output.state(each.phase), each.role, each.step, each.reason, each.message)
        for each in modules.reported
    ]
    output.table(("module", "state", "role", "step", "reason", "message"), rows, empty="It has reported no module.")
    told = [
        (output.when(each.at), output.state(each.severity), each.code, output.version(each), each.message)
        for each in events
    ]
    output.table(("event", "severity", "code", "module", "message"), told, empty="It has told no event.")


@app.command()
def tag(
    context: typer.Context,
    device: Id,
    tags: Annotated[list[str], typer.Argument(help="TagName=TagValue to set; TagName- to remove.", metavar="TAG…")],
    json: Json = False,
) -> None:
    """Set or remove tags of a device; the others stay."""
    with hub(context) as client:
        changed = client.tag_device(device, change_tags(client.device(device).tags, tags))
    if json:
        output.emit(changed)
    else:
        output.say(f"{device} has the tags {output.tags_text(changed.tags) or 'none'}")


@app.command()
def assign(
    context: typer.Context,
    device: Id,
    version: VersionName,
    soak: Annotated[float, typer.Option("--soak", help="Seconds under live traffic before it is proven.")] = 0.0,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Want a version on one device, outside any rollout; one that gave it up tries again.

    For more than one device there are rollouts: they stop where it fails.
    """
    name, number = parse_version(version)
    with hub(context) as client:
        found = client.assign_module(device, name, number, soak_s=soak, reason=reason)
    if json:
        output.emit(found)
    else:
        output.say(f"{device} is to run {name}:{number}; how it fares: skerry devices show {device}")


@app.command()
def unassign(
    context: typer.Context,
    device: Id,
    module: Annotated[str, typer.Argument(help="The module's name.", metavar="NAME")],
    reason: Reason = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Take a module off one device. Versions that stand behind an endpoint there stay."""
    with hub(context) as client:
        wanted = {one.module: one.version for one in client.device_modules(device).wanted}
        if module not in wanted:
            here = ", ".join(f"{name}:{version}" for name, version in wanted.items()) or "none"
            raise InputError(
                "module.unknown", f"cannot take {module!r} off {device}: it is not wanted there; wanted are: {here}"
            )
        output.confirm(f"Take {module}:{wanted[module]} off {device}? It stops serving there.", yes=yes)
        found = client.unassign_module(device, module, reason=reason)
    if json:
        output.emit(found)
    else:
        output.say(f"{device} is to run no {module} any more")


@app.command()
def remove(
    context: typer.Context,
    device: Id,
    reason: Reason = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Forget a device: it can no longer connect. What it sent stays."""
    output.confirm(f"Remove {device}? Its password ends with it.", yes=yes)
    with hub(context) as client:
        client.remove_device(device, reason=reason)
    if json:
        output.emit({"removed": device})
    else:
        output.say(f"{device} is removed")


def serving(device: Device) -> str:
    """What a device serves now, in short."""
    return " ".join(f"{one.module}:{one.version}" for one in device.modules if one.role == "current") or "–"


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner reads, from the first moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _share(health: dict[str, float], what: str) -> str:
    used, total = health.get(f"{what}_used", -1), health.get(f"{what}_total", -1)
    return f"{output.size(used)} of {output.size(total)}" if used >= 0 and total > 0 else ""
