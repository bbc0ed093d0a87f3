"""``skerry samples``: what devices captured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skerry.cli import output
from skerry.cli.context import hub
from skerry.cli.output import Json
from skerry_modules.errors import PeerError
from skerry_modules.manifest import is_plain

app = typer.Typer(help="Captured inputs and scores, and their Parquet files.", no_args_is_help=True)

Module = Annotated[str, typer.Option("--module", help="Only of this module.")]


@app.command("list")
def list_samples(
    context: typer.Context,
    module: Module = "",
    version: Annotated[int | None, typer.Option("--version", min=1, help="Only of this version.")] = None,
    device: Annotated[str, typer.Option("--device", help="Only of this device.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 50,
    json: Json = False,
) -> None:
    """Samples, newest first."""
    with hub(context) as client:
        found = client.samples(module=module, version=version, device=device, limit=limit)
    if json:
        output.emit(found)
        return
    rows = [
        (
            one.id,
            one.device,
            f"{one.module}:{one.version}",
            output.when(one.at),
            one.reason,
            f"{one.probability:g}",
            one.file or "not written yet",
        )
        for one in found
    ]
    columns = ("sample", "device", "version", "at", "why kept", "probability", "file")
    output.table(columns, rows, empty="No samples.")


@app.command()
def export(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="Folder to write the Parquet files to.")],
    module: Module = "",
    json: Json = False,
) -> None:
    """Download the Parquet files. A file that is there already in its full size is not fetched again."""
    written: list[dict[str, object]] = []
    with hub(context) as client:
        files = client.sample_files(module=module)
        for file in files:
            if not is_plain(file.key):  # the names are the hub's: none may lead out of the folder
                raise PeerError("package.unsafe_path", f"cannot write {file.key!r}: the hub named no plain path")
            target = out / file.key.removeprefix("samples/")
            fresh = not (target.is_file() and target.stat().st_size == file.size)
            if fresh:
                target.parent.mkdir(parents=True, exist_ok=True)
                with output.progress_bar(file.key) as progress:
                    client.download_samples(file.key, target, progress=progress)
            written.append({"key": file.key, "path": str(target), "size": file.size, "fetched": fresh})
    if json:
        output.emit(written)
        return
    rows = [(one["path"], output.size(int(str(one["size"]))), "" if one["fetched"] else "was there") for one in written]
    output.table(("file", "size", ""), rows, empty="No Parquet files yet: the hub writes them as samples gather.")
