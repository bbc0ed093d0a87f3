"""``skerry environments``: the packages of python modules, by name and version."""

from __future__ import annotations

from typing import Annotated

import typer

from skerry.cli import output
from skerry.cli.context import hub
from skerry.cli.output import Json
from skerry_modules import environments

app = typer.Typer(help="Environments of python modules: what the hub knows of them.", no_args_is_help=True)


@app.command("list")
def list_environments(context: typer.Context, json: Json = False) -> None:
    """All environments with their versions."""
    with hub(context) as client:
        found = client.environments()
    if json:
        output.emit(found)
        return
    rows = [
        (
            f"{one.name}:{one.version}",
            one.digest[:12],
            ", ".join(one.requirements),
            output.size(one.size),
            ", ".join(one.modules) or "–",
            output.when(one.created_at),
        )
        for environment in found
        for one in environment.versions
    ]
    output.table(
        ("environment", "lock", "requirements", "wheels", "used by", "registered"),
        rows,
        empty="No environments: a module that names one is registered with it.",
    )


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="NAME, or NAME:VERSION.")],
    json: Json = False,
) -> None:
    """An environment's newest version, or one version, with its wheels for each kind of device."""
    with hub(context) as client:
        if ":" in name:
            title, version = environments.parse_reference(name)
        else:
            title, version = name, client.environment(name).last_version
        detail = client.environment_version(title, version)
    if json:
        output.emit(detail)
        return
    output.facts(
        [
            ("environment", f"{detail.name}:{detail.version}"),
            ("lock", detail.digest),
            *(("requirement", requirement) for requirement in detail.requirements),
            ("used by", ", ".join(detail.modules) or "no module"),
            ("registered", f"{output.when(detail.created_at)} by {detail.created_by}"),
        ]
    )
    rows = [
        (target.label, wheel.file, output.size(wheel.size), wheel.sha256[:16])
        for target in detail.lock.targets
        for wheel in target.wheels
    ]
    output.table(("for", "wheel", "size", "sha256"), rows, empty="no wheels")
