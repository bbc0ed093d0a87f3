"""``skerry``: from a model file to a fleet, and back to what the fleet saw.

Exit codes: 0 done; 1 done, but what was asked about did not come out well; 2 wrong input; 3 a wrong message or package;
4 something is missing now (hub, space, a package); 70 a bug.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from skerry import deploying, scaffold, wire
from skerry.cli import (
    batch,
    devices,
    endpoints,
    environments,
    export,
    keys_commands,
    models,
    modules,
    output,
    profiling,
    rollouts,
    samples,
)
from skerry.cli.context import hub
from skerry.cli.output import Json, KeyName, Reason, TagList
from skerry.types import MissingObject
from skerry_modules.errors import InputError, SkerryError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, part in {
    "modules": modules.app,
    "models": models.app,
    "environments": environments.app,
    "devices": devices.app,
    "rollouts": rollouts.app,
    "endpoints": endpoints.app,
    "batch": batch.app,
    "samples": samples.app,
    "keys": keys_commands.app,
}.items():
    app.add_typer(part, name=name)

modules.app.command("profile")(profiling.profile)
modules.app.command("profiles")(profiling.profiles)

wire_app = typer.Typer(help="Look at what goes over MQTT.", no_args_is_help=True)
app.add_typer(wire_app, name="wire")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"skerry {version('skerry')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str, typer.Option("--url", envvar="SKERRY_URL", help="The hub. \\[default: http://127.0.0.1:8420]")
    ] = "",
    token: Annotated[
        str, typer.Option("--token", envvar="SKERRY_TOKEN", help="The hub's token.", show_envvar=True)
    ] = "",
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """From a model file to a fleet of devices, and back to what the fleet saw.

    Exit codes: 0 done; 1 done, but what was asked about did not come out well (a rollout that failed);
    2 wrong input; 3 a wrong message or package; 4 something is missing now (hub, space, a package); 70 a bug.
    """
    context.obj = {"url": url, "token": token}


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR|MODEL]", help="The module's folder, made if need be; or the model itself.")
    ] = Path(),
    model: Annotated[
        Path | None, typer.Option("--from", help="Model: .onnx, or OpenVINO's .xml. \\[default: the one in DIR]")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The module's name. \\[default: the file's]")] = "",
    engine: Annotated[str, typer.Option("--engine", help="onnx or openvino. \\[default: by the file]")] = "",
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Inputs to prove devices with (.npz). \\[default: generated]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of generated inputs.")] = 0,
    json: Json = False,
) -> None:
    """Write a module's folder from a model: its manifest, and a golden test. Make a signing key if there is none."""
    from skerry import keys

    if model is None and folder.is_file():  # `skerry init model.onnx`: what people type first
        model, folder = folder, Path(name or scaffold.slug(folder.stem))
    made = scaffold.create(model or _only_model(folder), folder, name=name, engine=engine, golden=golden, seed=seed)
    key, fresh = keys.load_or_generate()
    if json:
        output.emit(
            {
                "folder": str(made.folder),
                "manifest": made.manifest,
                "golden": made.manifest.golden is not None,
                "notes": made.notes,
                "key": key.public.keyid,
            }
        )
        return
    output.say(f"wrote {folder / 'module.toml'} for the module {made.manifest.name}")
    for note in made.notes:
        output.say(note)
    if fresh:
        output.say(f"made the signing key {key.public.keyid} in {keys.folder()}")
    output.say(f"next: skerry modules pack {folder}, or skerry deploy {folder} --to TAG=VALUE")


@app.command()
def deploy(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="A model (.onnx, .xml), a module's folder, or a package (.skerry).")],
    to: rollouts.Target,
    name: Annotated[str, typer.Option("--name", help="The module's name. \\[default: the file's]")] = "",
    engine: Annotated[str, typer.Option("--engine", help="onnx or openvino. \\[default: by the file]")] = "",
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Inputs to prove devices with (.npz). \\[default: generated]")
    ] = None,
    waves: rollouts.Waves = "",
    soak: rollouts.Soak = None,
    reason: Reason = "",
    tag: TagList = [],
    key: KeyName = "",
    watch: rollouts.Watch = True,
    json: Json = False,
) -> None:
    """One line from a model to devices: pack, sign, register, roll out, watch."""
    say = (lambda _: None) if json else output.say
    with hub(context) as client, output.progress_bar("upload") as progress:
        done = deploying.deploy(
            model,
            to,
            client=client,
            name=name,
            engine=engine,
            golden=golden,
            key=key,
            tags=output.parse_tags(tag),
            reason=reason,
            plan=rollouts.make_plan(waves, soak),
            wait=False,
            say=say,
            progress=progress,
        )
    rollout = done.rollout
    if watch:
        with hub(context) as client:
            rollout = rollouts.follow(client, rollout, json=json)
    if json:
        output.emit({"version": done.version, "existed": done.existed, "rollout": rollout, "notes": done.notes})
    if watch and rollout.state != "succeeded":
        raise typer.Exit(output.EXIT_BAD)


def _lost(one: MissingObject) -> str:
    return f"{one.digest[:12]} ({', '.join(one.part_of)})" if one.part_of else one.digest[:12]


@app.command()
def status(context: typer.Context, json: Json = False) -> None:
    """How the hub is."""
    with hub(context) as client:
        found = client.status()
        url = client.url
    if json:
        output.emit({"url": url, **_plain(found)})
        return
    output.facts(
        [
            ("hub", f"{url} (version {found.version})"),
            ("devices", f"{found.devices_online} of {found.devices} online"),
            ("models", found.models),
            ("rollouts", f"{found.rollouts_active} active"),
            ("broker", f"{found.broker} ({'connected' if found.broker_connected else 'NOT connected'})"),
            ("database", found.database),
            ("hub key", found.hub_key),
            ("missing", ", ".join(found.missing)),
            ("objects lost", "; ".join(_lost(one) for one in found.objects_missing)),
        ]
    )


@app.command()
def events(
    context: typer.Context,
    device: Annotated[str, typer.Option("--device", help="Only of this device.")] = "",
    severity: Annotated[list[str], typer.Option("--severity", help="Only these; may be repeated.")] = [],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 50,
    json: Json = False,
) -> None:
    """What devices told, newest first."""
    with hub(context) as client:
        found = client.events(device=device, severities=severity, limit=limit)
    if json:
        output.emit(found)
        return
    rows = [
        (
            output.when(one.at),
            one.device,
            output.state(one.severity),
            one.code,
            output.version(one),
            one.message,
        )
        for one in found
    ]
    output.table(("at", "device", "severity", "code", "module", "message"), rows, empty="No events.")


@app.command()
def audit(
    context: typer.Context,
    subject: Annotated[str, typer.Option("--subject", help="Only about this, as digits:3 or gate-7.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 50,
    json: Json = False,
) -> None:
    """Who did what, when and why, newest first."""
    with hub(context) as client:
        found = client.audit(subject=subject, limit=limit)
    if json:
        output.emit(found)
        return
    rows = [(output.when(one.at), one.actor, one.action, one.subject, one.reason) for one in found]
    output.table(("at", "who", "did", "to", "why"), rows, empty="Nothing was done yet.")


@app.command()
def profiles(json: Json = False) -> None:
    """The firmware profiles that devices may have."""
    from skerry_modules import profiles as shipped

    found = list(shipped.shipped().values())
    if json:
        output.emit(found)
        return
    rows = [
        (one.name, one.title, one.architecture, one.memory_mb, ", ".join(engine.name for engine in one.engines))
        for one in found
    ]
    output.table(("profile", "title", "processor", "MB", "engines"), rows, empty="None is installed.")


@app.command("export")
def export_all(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="Only what concerns this model.")] = "",
    tag: TagList = [],
    json: Json = False,
) -> None:
    """Everything as JSON Lines (one record with its kind a line); with --json as one object."""
    with hub(context) as client:
        found = export.records(client, model=model, tags=tag)
        if json:
            output.emit(export.as_object(found))
            return
        for kind, record in found:
            output.emit_line({"kind": kind, **record})


@app.command("open")
def open_console(context: typer.Context, json: Json = False) -> None:
    """Open the console in a browser; where there is none, say its address."""
    with hub(context) as client:
        client.status()
        url = client.url
    opened = False
    if not json and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin"):
        opened = webbrowser.open(url)
    if json:
        output.emit({"url": url})
    elif not opened:
        typer.echo(url)


@wire_app.command("decode")
def decode(
    source: Annotated[
        list[str], typer.Argument(help="TOPIC and FILE, or with --kind only FILE; - is stdin.", metavar="[TOPIC] FILE")
    ],
    kind: Annotated[str, typer.Option("--kind", help="What it is, instead of a topic: state, telemetry, ack, …")] = "",
    json: Json = False,
) -> None:
    """Any payload as JSON (which is what this prints with or without --json). Bytes stand as base64."""
    if len(source) != (1 if kind else 2):
        raise InputError(
            "request.invalid",
            "cannot tell what to decode: give TOPIC and FILE, or --kind KIND and FILE; - reads the payload from stdin",
        )
    if kind:
        wire.check_kind(kind)
    file = source[-1]
    try:
        payload = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InputError("request.invalid", f"cannot read the payload {file}: {error.strerror}") from error
    output.emit(wire.decode(payload, topic="" if kind else source[0], kind=kind))


def main() -> None:
    """The entry point: every error of ours becomes a sentence with a code, and an exit code."""
    try:
        app(prog_name="skerry")
    except SkerryError as error:
        sys.exit(output.fail(error, as_json="--json" in sys.argv))
    except OSError as error:
        ours = InputError("request.invalid", f"cannot use {error.filename or 'a file'}: {error.strerror or error}")
        sys.exit(output.fail(ours, as_json="--json" in sys.argv))


def _only_model(folder: Path) -> Path:
    found = sorted(folder.glob("*.onnx")) or sorted(folder.glob("*.xml"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(
            "manifest.model_mismatch", f"cannot tell which model {folder} is for ({names} there): name it with --from"
        )
    return found[0]


def _plain(value: Any) -> dict[str, Any]:
    import msgspec

    made: dict[str, Any] = msgspec.to_builtins(value)
    return made


if __name__ == "__main__":
    main()
