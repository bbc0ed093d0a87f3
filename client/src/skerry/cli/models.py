"""``skerry models``: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skerry import deploying, environments, git, keys
from skerry.cli import output
from skerry.cli.context import hub, parse_version, resolve_version
from skerry.cli.output import Json, KeyName, Reason, TagList
from skerry.types import Version, VersionDetail
from skerry_modules import package

app = typer.Typer(help="Register, find, tag, download and delete model versions.", no_args_is_help=True)

VersionName = Annotated[str, typer.Argument(help="NAME:VERSION, as digits:3.", metavar="NAME:VERSION")]


@app.command("list")
def list_models(context: typer.Context, json: Json = False) -> None:
    """All models with their newest version."""
    with hub(context) as client:
        models = client.models()
    if json:
        output.emit(models)
        return
    rows = [
        (
            model.name,
            model.latest.version if model.latest else "–",
            model.latest.engine if model.latest else "",
            output.size(model.latest.size) if model.latest else "",
            output.when(model.latest.created_at if model.latest else model.created_at),
            output.tags_text(model.latest.tags) if model.latest else "",
        )
        for model in models
    ]
    output.table(
        ("model", "newest", "engine", "size", "registered", "tags"), rows, empty="No models: `skerry models register`."
    )


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="NAME, or NAME:VERSION.")],
    json: Json = False,
) -> None:
    """A model's versions, or one version whole."""
    with hub(context) as client:
        if ":" in name or "@" in name:
            detail = client.version(*parse_version(name))
            if json:
                output.emit(detail)
            else:
                _show_version(detail)
            return
        model, versions = client.model(name), client.versions(model=name)
    if json:
        output.emit({"model": model, "versions": versions})
        return
    output.facts([("model", model.name), ("description", model.description), ("highest", model.last_version)])
    _list_versions(versions)


@app.command()
def register(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A package (.skerry), or a module's folder, which is packed first.")],
    reason: Reason = "",
    tag: TagList = [],
    key: KeyName = "",
    json: Json = False,
) -> None:
    """Register a package as the next version of its model, with the git commit that it comes from."""
    tags = output.parse_tags(tag)
    folder = path if path.is_dir() else path.absolute().parent
    with hub(context) as client:
        packed = path
        if path.is_dir():
            import tempfile

            deploying.ensure_trusted(client, key, say=output.say)
            signing, _ = keys.load_or_generate(key)
            with tempfile.TemporaryDirectory(prefix="skerry-pack-") as temporary:
                target = Path(temporary) / f"module{package.SUFFIX}"
                packed = environments.pack(path, target, signing, hub=lambda: client, say=output.say).path
                with output.progress_bar("upload") as progress:
                    made = client.register(packed, reason=reason, git=git.capture(folder), tags=tags, progress=progress)
        else:
            with output.progress_bar("upload") as progress:
                made = client.register(packed, reason=reason, git=git.capture(folder), tags=tags, progress=progress)
    if json:
        output.emit(made)
    else:
        _show_version(made)


@app.command()
def tag(
    context: typer.Context,
    version: VersionName,
    tags: Annotated[list[str], typer.Argument(help="TagName=TagValue to set; TagName- to remove.", metavar="TAG…")],
    json: Json = False,
) -> None:
    """Set or remove tags of a version; the others stay."""
    name, number = parse_version(version)
    with hub(context) as client:
        now = change_tags(client.version(name, number).tags, tags)
        changed = client.tag(name, number, now)
    if json:
        output.emit(changed)
    else:
        output.say(f"{name}:{number} has the tags {output.tags_text(changed.tags) or 'none'}")


@app.command()
def search(
    context: typer.Context,
    tags: Annotated[list[str], typer.Argument(help="TagName=TagValue; all must match.", metavar="TAG…")],
    model: Annotated[str, typer.Option("--model", help="Only versions of this model.")] = "",
    json: Json = False,
) -> None:
    """Versions by tag, across models."""
    with hub(context) as client:
        found = client.versions(model=model, tags=tags)
    if json:
        output.emit(found)
    else:
        _list_versions(found)


@app.command()
def download(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="NAME:VERSION; NAME alone is the newest.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File, or with --unpack folder, to write.")] = None,
    unpack: Annotated[bool, typer.Option("--unpack", help="Write the files instead of the package.")] = False,
    json: Json = False,
) -> None:
    """Get back the package byte for byte, or (--unpack) every file in it. What arrives is checked."""
    with hub(context) as client:
        name, number = resolve_version(client, version)
        target = out or Path(f"{name}-{number}" + ("" if unpack else package.SUFFIX))
        file = target.with_name(f"{target.name}{package.SUFFIX}") if unpack else target
        with output.progress_bar("download") as progress:
            client.download(name, number, file, progress=progress)
    with package.read_package(file) as opened:
        opened.verify()
    if unpack:
        package.unpack(file, target)
        file.unlink()
    if json:
        output.emit({"name": name, "version": number, "path": str(target), "digest": opened.digest})
    else:
        output.say(f"{name}:{number} is in {target}")


@app.command()
def delete(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="NAME:VERSION, or NAME for all of its versions.")],
    reason: Reason = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Forget a version (or a whole model); refused while a device holds it."""
    output.confirm(f"Delete {name}? It cannot be undone.", yes=yes)
    with hub(context) as client:
        if ":" in name or "@" in name:
            client.delete_version(*parse_version(name), reason=reason)
        else:
            client.delete_model(name, reason=reason)
    if json:
        output.emit({"deleted": name})
    else:
        output.say(f"{name} is deleted")


def change_tags(tags: dict[str, str], changes: list[str]) -> dict[str, str]:
    """``a=1`` sets, ``a-`` removes."""
    removed = {change[:-1] for change in changes if change.endswith("-") and "=" not in change}
    added = output.parse_tags([change for change in changes if not (change.endswith("-") and "=" not in change)])
    return {key: value for key, value in {**tags, **added}.items() if key not in removed}


def _list_versions(versions: list[Version]) -> None:
    rows = [
        (
            f"{one.name}:{one.version}",
            one.engine,
            output.size(one.size),
            output.when(one.created_at),
            one.created_by,
            (one.git_commit[:10] + ("+" if one.git_dirty else "")) or "–",
            one.reason,
            output.tags_text(one.tags),
        )
        for one in versions
    ]
    columns = ("version", "engine", "size", "registered", "by", "commit", "reason", "tags")
    output.table(columns, rows, empty="No version matches.")


def _show_version(one: VersionDetail) -> None:
    commit = f"{one.git_commit} ({one.git_branch or 'no branch'}{', with changes' if one.git_dirty else ''})"
    output.facts(
        [
            ("version", f"{one.name}:{one.version}"),
            ("digest", one.digest),
            ("engine", one.engine),
            ("environment", one.environment),
            ("size", output.size(one.size)),
            ("registered", f"{output.when(one.created_at)} by {one.created_by}"),
            ("reason", one.reason),
            ("signed by", one.signer),
            ("commit", commit if one.git_commit else ""),
            ("remote", one.git_remote),
            ("tags", output.tags_text(one.tags)),
            *((f"held ({why})", ", ".join(names)) for why, names in one.holders.items()),
        ]
    )
    rows = [(file.path, output.size(file.size), file.sha256[:16]) for file in one.files]
    output.table(("file", "size", "sha256"), rows, empty="")
