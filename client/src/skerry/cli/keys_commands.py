"""``skerry keys``: the publisher's signing keys, and whose packages the hub accepts."""

from __future__ import annotations

from typing import Annotated

import typer

from skerry import keys
from skerry.cli import output
from skerry.cli.context import hub
from skerry.cli.output import Json

app = typer.Typer(help="Make signing keys, and tell the hub whose packages to accept.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The key's name.")]


@app.command()
def generate(name: Name = keys.DEFAULT_NAME, json: Json = False) -> None:
    """Make a key pair. The private half stays on this machine."""
    made = keys.generate(name)
    if json:
        output.emit(made)
        return
    output.facts([("key", made.keyid), ("public", made.text), ("private", made.path)])


@app.command("list")
def list_keys(
    context: typer.Context,
    on_hub: Annotated[bool, typer.Option("--hub", help="Those that the hub trusts, instead of those here.")] = False,
    json: Json = False,
) -> None:
    """Keys on this machine, or (--hub) those that the hub trusts."""
    if on_hub:
        with hub(context) as client:
            trusted = client.keys()
        if json:
            output.emit(trusted)
            return
        rows = [(key.keyid, key.text, key.added_by, output.when(key.added_at)) for key in trusted]
        output.table(("id", "key", "added by", "at"), rows, empty="The hub trusts no publisher: `skerry keys trust`.")
        return
    here = keys.stored()
    if json:
        output.emit(here)
        return
    rows = [(key.name, key.keyid, key.text, key.path) for key in here]
    output.table(("name", "id", "public", "file"), rows, empty="No keys here: `skerry keys generate` makes one.")


@app.command()
def show(name: Annotated[str, typer.Argument(help="The key's name.")] = "", json: Json = False) -> None:
    """Print a public key, as hubs and devices take it."""
    key = keys.public(name)
    if json:
        output.emit({"keyid": key.keyid, "text": key.text()})
    else:
        typer.echo(key.text())


@app.command()
def trust(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="ed25519:… text, .pub file, or the name of a key here.")] = "",
    json: Json = False,
) -> None:
    """Let the hub accept packages signed by this key. Devices added from then on trust it too."""
    public = keys.public(key)
    with hub(context) as client:
        added = client.trust_key(public.text())
    if json:
        output.emit(added)
    else:
        output.say(f"the hub trusts {added.keyid} ({public.name or 'unnamed'}) from now on")


@app.command()
def distrust(
    context: typer.Context, keyid: Annotated[str, typer.Argument(help="The key's id.")], json: Json = False
) -> None:
    """Let the hub accept no more packages by this key. What is registered stays."""
    with hub(context) as client:
        client.distrust_key(keyid)
    if json:
        output.emit({"keyid": keyid, "trusted": False})
    else:
        output.say(f"the hub no longer trusts {keyid}")
