"""One line from a model file to devices: pack, sign, register, roll out, watch.

Each step is also there by itself; this only puts them in a row with their defaults. It may be run again: content
that is registered already is rolled out as the version that it has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from skerry import environments, git, keys, scaffold
from skerry.asking import Progress
from skerry.client import Client
from skerry.types import Plan, RolloutDetail, VersionDetail
from skerry_modules import manifest as manifests
from skerry_modules import package
from skerry_modules.errors import InputError, SkerryError

_MODELS: Final = (".onnx", ".xml")
Say = Callable[[str], None]


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What was deployed. ``rollout`` is as it was last seen: ended, if it was watched."""

    version: VersionDetail
    rollout: RolloutDetail
    existed: bool
    notes: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        return self.rollout.state == "succeeded"


def deploy(
    model: Path | str,
    to: str,
    *,
    client: Client | None = None,
    name: str = "",
    key: str = "",
    engine: str = "",
    golden: Path | None = None,
    tags: Mapping[str, str] | None = None,
    reason: str = "",
    plan: Plan | None = None,
    wait: bool = True,
    say: Say = lambda _: None,
    progress: Progress | None = None,
    on_change: Callable[[RolloutDetail], None] = lambda _: None,
) -> Deployment:
    """Pack, sign, register and roll out.

    Args:
        model: an ``.onnx`` or ``.xml`` file, a module's folder (with ``module.toml``), or a package (``.skerry``).
        to: which devices: ``TagName=TagValue,…``, or ``*``.
        client: the hub; by default ``SKERRY_URL``.
        name: the module's name where there is no manifest yet.
        key: the signing key's name or file; by default the default one, which is made if there is none.
        engine: where there is no manifest yet.
        golden: golden inputs where there is no manifest yet (``.npz``); by default they are generated.
        tags: on the new version.
        reason: why, for the record.
        plan: by default one canary, then the rest.
        wait: watch the rollout to its end.
        say: told each step in a sentence.
        progress: told bytes sent and in all.
        on_change: told the rollout whenever it changes.

    Raises:
        SkerryError: whatever step fails; what it had done by then stays done, and may be done again. A name or a target
            that cannot be is told before anything is done.
    """
    hub = client or Client()
    _check(hub, Path(model), name, to)
    with tempfile.TemporaryDirectory(prefix="skerry-deploy-") as temporary:
        packed, notes = _pack(
            Path(model), Path(temporary), hub, name=name, key=key, engine=engine, golden=golden, say=say
        )
        version, existed = _register(hub, packed, Path(model), tags=tags, reason=reason, say=say, progress=progress)
    rollout = hub.start_rollout(version.name, version.version, to, plan, reason=reason)
    say(f"rollout {rollout.id} of {version.name}:{version.version} to {to}")
    on_change(rollout)
    if wait:
        for newest in hub.watch_rollout(rollout.id):
            on_change(newest)
            rollout = newest
    return Deployment(version=version, rollout=rollout, existed=existed, notes=notes)


def ensure_trusted(hub: Client, key: str = "", *, say: Say = lambda _: None) -> bool:
    """On a hub that trusts no publisher yet, be the first: send the public key. Returns whether it was sent.

    Where others are trusted already this does nothing: adding a publisher is then a decision of its own.
    """
    if hub.keys():
        return False
    signing, fresh = keys.load_or_generate(key)
    hub.trust_key(signing.public.text())
    if fresh:
        say(f"made the signing key {signing.public.keyid} in {keys.folder()}")
    say(f"the hub trusts {signing.public.keyid} ({signing.public.name}) from now on: it is its first publisher")
    return True


def _check(hub: Client, model: Path, name: str, to: str) -> None:
    """A slip of the pen in the command must not leave a version registered."""
    if not model.exists():
        raise InputError("request.invalid", f"cannot deploy {model}: there is no such file or folder")
    if model.is_file() and model.suffix not in (*_MODELS, package.SUFFIX):
        raise InputError(
            "request.invalid",
            f"cannot deploy {model}: give a model ({', '.join(_MODELS)}), a module's folder or a package "
            f"({package.SUFFIX})",
        )
    if name and not manifests.is_name(name):
        raise InputError(
            "manifest.invalid",
            f"cannot name a module {name!r}: use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit",
        )
    if not hub.devices(tags=[to]):
        raise InputError(
            "rollout.empty_target", f"cannot deploy to {to!r}: no device has these tags; see `skerry devices list`"
        )


def _pack(
    model: Path,
    temporary: Path,
    hub: Client,
    *,
    name: str,
    key: str,
    engine: str,
    golden: Path | None,
    say: Say,
) -> tuple[package.Packed, tuple[str, ...]]:
    ensure_trusted(hub, key, say=say)
    signing, _ = keys.load_or_generate(key)
    notes: tuple[str, ...] = ()
    target = temporary / f"module{package.SUFFIX}"
    if model.suffix == package.SUFFIX and model.is_file():
        packed = package.add_signature(model, target, signing)
    else:
        folder = model
        if model.is_file():
            made = scaffold.create(
                model, temporary / "module", name=name, engine=engine, golden=golden, require_golden=True
            )
            folder, notes = made.folder, made.notes
            proof = "given" if golden else "generated"
            say(f"described {model.name} as the module {made.manifest.name}, with {proof} golden inputs")
        packed = environments.pack(folder, target, signing, hub=lambda: hub, say=say)
    say(f"packed {packed.index.manifest.name} ({packed.digest[:12]}…), signed by {signing.public.keyid}")
    return packed, notes


def _register(
    hub: Client,
    packed: package.Packed,
    model: Path,
    *,
    tags: Mapping[str, str] | None,
    reason: str,
    say: Say,
    progress: Progress | None,
) -> tuple[VersionDetail, bool]:
    source = git.capture(model if model.is_dir() else model.absolute().parent)
    try:
        version = hub.register(packed.path, reason=reason, git=source, tags=tags, progress=progress)
    except SkerryError as error:
        if error.code != "module.exists":
            raise
        version = hub.version(packed.index.manifest.name, int(error.data["version"]))
        say(f"this content is registered already: {version.name}:{version.version}")
        return version, True
    say(
        f"registered {version.name}:{version.version}" + (f" from commit {source.commit[:12]}" if source.commit else "")
    )
    return version, False
