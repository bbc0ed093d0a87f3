"""``skerry modules``: folders and package files on this machine. No hub is needed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from skerry import environments, keys
from skerry.cli import convert, output
from skerry.cli.context import hub
from skerry.cli.output import Json, KeyName
from skerry_modules import manifest as manifests
from skerry_modules import package, pipeline
from skerry_modules.tensors import TensorSpec
from skerry_modules.trust import PublicKey

app = typer.Typer(help="Pack, sign, verify and inspect module packages.", no_args_is_help=True)

app.command()(convert.convert)

Package = Annotated[Path, typer.Argument(help="A package file (.skerry).")]


@app.command()
def pack(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The module's folder, with its module.toml.")] = Path(),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Package file to write. \\[default: NAME.skerry]")
    ] = None,
    key: KeyName = "",
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Do not sign; no hub will take it.")] = False,
    relock: Annotated[
        bool, typer.Option("--relock", help="Resolve the environment again, even if its lock still answers.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a folder against its manifest and write it as one signed, reproducible file.

    Where the manifest names an environment, its wheels are resolved once, locked in environment.lock, and bundled.
    """
    signing = None
    if not unsigned:
        signing, fresh = keys.load_or_generate(key)
        if fresh:
            output.say(f"made the signing key {signing.public.keyid} in {keys.folder()}")
    target = out or Path(f"{package.read_folder(folder).name}{package.SUFFIX}")
    with contextlib.ExitStack() as stack:
        # A hub is asked only for an environment that is used by name.
        packed = environments.pack(
            folder, target, signing, hub=lambda: stack.enter_context(hub(context)), relock=relock, say=output.say
        )
    if json:
        output.emit(_facts(packed))
        return
    output.facts(
        [
            ("package", packed.path),
            ("module", packed.index.manifest.name),
            ("digest", packed.digest),
            ("signed by", ", ".join(signature.keyid for signature in packed.signatures) or "nobody"),
            ("files", len(packed.index.files)),
            ("size", output.size(packed.index.size)),
        ]
    )


@app.command()
def sign(
    path: Package,
    key: KeyName = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write. \\[default: the package itself]")
    ] = None,
    json: Json = False,
) -> None:
    """Add a signature; the content and its digest stay."""
    packed = package.add_signature(path, out or path, keys.load(key))
    if json:
        output.emit(_facts(packed))
    else:
        output.say(f"{packed.path}: signed by {', '.join(signature.keyid for signature in packed.signatures)}")


@app.command()
def verify(
    path: Package,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", help="Public key (text, .pub file or name) to trust. \\[default: the keys here]"),
    ] = None,
    json: Json = False,
) -> None:
    """Check every byte of a package, and that a trusted key signed it."""
    trusted = [keys.public(text) for text in trust or ()] or [_public(key) for key in keys.stored()]
    with package.read_package(path) as opened:
        opened.verify()
        by_id = {key.keyid: key for key in trusted}
        signer = package.verify_index(opened.index_bytes, opened.signatures, by_id)
    if json:
        output.emit({"ok": True, "digest": opened.digest, "signer": signer.keyid, "name": signer.name})
    else:
        output.out.print(f"good: {opened.digest}, signed by {signer.keyid} {signer.name}".rstrip(), style="green")


@app.command()
def inspect(path: Package, json: Json = False) -> None:
    """Show what a package holds. Its content is checked, its signatures are only listed."""
    with package.read_package(path) as opened:
        opened.verify()
    index = opened.index
    if json:
        output.emit(_facts(package.Packed(opened.digest, index, opened.signatures, path)))
        return
    manifest = index.manifest
    output.facts(
        [
            ("module", manifest.name),
            ("description", manifest.description),
            ("digest", opened.digest),
            ("engine", manifest.engine),
            *((("model", manifest.model),) if manifest.model else ()),
            *(("input", _tensor(spec)) for spec in manifest.inputs),
            *(("output", _tensor(spec)) for spec in manifest.outputs),
            *_environment(index),
            ("golden test", manifest.golden.file if manifest.golden else "none"),
            ("operators", ", ".join(index.facts.operators)),
            ("signatures", ", ".join(signature.keyid for signature in opened.signatures) or "none"),
        ]
    )
    if manifest.steps:
        steps = [_step(step) for step in pipeline.order(manifest.steps)]
        output.table(("step", "runs", "takes", "gives"), steps, empty="no steps")
    rows = [(entry.path, output.size(entry.size), entry.sha256[:16]) for entry in index.files]
    output.table(("file", "size", "sha256"), rows, empty="no files")


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype} {list(spec.shape)}" + (f" from {spec.source}" if spec.source else "")


def _step(step: pipeline.Step) -> tuple[str, str, str, str]:
    takes = ", ".join(f"{name} from {source}" for name, source in step.sources.items())
    gives = ", ".join(_tensor(spec) for spec in step.outputs)
    runs = f"{step.engine} {step.model}" if step.engine else f"combine {step.combine}"
    if step.weights:
        runs += f" ({', '.join(f'{name} {weight:g}' for name, weight in step.weights.items())})"
    return step.name, runs, takes, gives


def _environment(index: package.Index) -> list[tuple[str, str]]:
    lock = index.facts.environment
    if lock is None:
        return []
    asked = index.manifest.environment.use or ", ".join(lock.requirements)
    kinds = "; ".join(f"{target.label}: {len(target.wheels)} wheels" for target in lock.targets)
    return [("environment", asked), ("locked for", kinds)]


def _public(key: keys.StoredKey) -> PublicKey:
    return keys.public(key.text)


def _facts(packed: package.Packed) -> dict[str, object]:
    return {
        "path": str(packed.path),
        "digest": packed.digest,
        "name": packed.index.manifest.name,
        "manifest": manifests.to_builtins(packed.index.manifest),
        "facts": packed.index.facts,
        "files": packed.index.files,
        "size": packed.index.size,
        "signatures": [signature.keyid for signature in packed.signatures],
    }
