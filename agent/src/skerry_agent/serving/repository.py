"""The model repository extension: what this device holds, and versions that clients have loaded beside the routed ones.

Source: https://github.com/triton-inference-server/server (docs/protocol/extension_model_repository.md).

A request brings no model: it names a version that the device holds already, and that version's signature, files and
golden test are checked again before it may score. What a client loaded answers under its version's own address and
changes no route: which version an endpoint goes to is for the hub to say, so what the hub wants loaded is not unloaded
here either.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from skerry_agent import engines
from skerry_agent.ports import GoldenReport
from skerry_agent.serving.version import Version
from skerry_modules.errors import InputError, PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.profiles import Limits

log = logging.getLogger(__name__)

_HINT = "register it with the hub, which delivers it to this device"


class Held(NamedTuple):
    """A version that is laid out on this device's disk."""

    digest: str
    module: str
    version: int


class Opened(NamedTuple):
    """A held version that was verified just now."""

    folder: Path
    manifest: Manifest
    limits: Limits
    environment: str = ""


class Shelf(Protocol):
    """The device's store of modules, as a data plane may look at it."""

    def held(self) -> list[Held]: ...

    async def open(self, held: Held) -> Opened:
        """Verify signature and files anew. Raises SkerryError ``trust.*``, ``package.*``, ``install.verify_failed``."""
        ...


class Loader(Protocol):
    """What the repository asks of the plane."""

    @property
    def versions(self) -> dict[str, Version]: ...

    def is_routed(self, version: Version) -> bool: ...

    async def load(
        self,
        digest: str,
        folder: Path,
        manifest: Manifest,
        version: int,
        limits: Limits,
        *,
        environment: str = "",
    ) -> dict[str, Any]: ...

    async def golden(self, digest: str, folder: Path, manifest: Manifest) -> GoldenReport: ...

    async def unload(self, digest: str) -> None: ...


class _Wish(msgspec.Struct):
    parameters: dict[str, Any] = {}


class _Filter(msgspec.Struct):
    ready: bool = False


class Repository:
    """Index, load and unload. ``shelf`` is None where the plane runs without a store: then nothing can be loaded."""

    def __init__(self, loader: Loader, *, control: bool) -> None:
        self.shelf: Shelf | None = None
        self._loader = loader
        self._control = control
        self._lent: set[str] = set()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- looking

    def index(self, body: bytes) -> list[dict[str, str]]:
        """All versions that are loaded or held; only those that score where the request says ``{"ready": true}``.

        Raises:
            InputError: ``scoring.invalid_json``.
        """
        ready = _decode(body, _Filter).ready
        listed = {digest: _entry(version) for digest, version in self._loader.versions.items()}
        for held in self._held():
            listed.setdefault(held.digest, _line(held.module, held.version, "UNAVAILABLE", "it is not loaded"))
        return [entry for entry in listed.values() if not ready or entry["state"] == "READY"]

    def _held(self) -> list[Held]:
        return self.shelf.held() if self.shelf is not None else []

    # -- loading

    async def load(self, model: str, version: str, body: bytes) -> None:
        """Have a version that the device holds score under its own address. Safe to repeat.

        Args:
            version: its number; empty: as ``parameters.version`` says, else the highest.

        Raises:
            SkerryError: ``module.unknown``, ``request.invalid``, ``trust.*`` and ``package.*`` where it does not
                verify, ``unschedulable.memory``, ``install.*``.
        """
        self._check_control()
        version = _version_of(_decode(body, _Wish), version)
        async with self._turn:
            held = self._find(model, version)
            if held.digest in self._loader.versions:
                loaded = self._loader.versions[held.digest]
                if loaded.ready and loaded.admitted:
                    return
                raise ResourceError("scoring.not_ready", f"cannot load {model} {held.version} now: it is being proven")
            assert self.shelf is not None
            opened = await self.shelf.open(held)
            self._check_room(held, opened)
            await self._loader.load(
                held.digest,
                opened.folder,
                opened.manifest,
                held.version,
                opened.limits,
                environment=opened.environment,
            )
            self._lent.add(held.digest)
            try:
                await self._prove(held, opened)
            except BaseException:
                await self._give_back(held.digest)
                raise
            self._loader.versions[held.digest].admitted = True

    def _check_control(self) -> None:
        if not self._control:
            raise InputError(
                "request.invalid", "cannot load or unload by request: the agent's serving.repository_control forbids it"
            )

    def _find(self, model: str, version: str) -> Held:
        named = [held for held in self._held() if held.module == model]
        found = [held for held in named if not version or str(held.version) == version]
        if not found:
            what = f"version {version} of {model}" if version else model
            here = ", ".join(str(held.version) for held in named)
            has = f"it holds {here}" if here else "it holds no version of it"
            raise InputError("module.unknown", f"cannot load {what}: {has}; {_HINT}")
        return max(found, key=lambda held: held.version)

    def _check_room(self, held: Held, opened: Opened) -> None:
        if engines.get(opened.manifest.engine).exclusive:
            raise ResourceError(
                "board.busy",
                f"cannot load {held.module} {held.version}: the engine {opened.manifest.engine} holds one version at a "
                "time here; route to it on the hub",
            )
        used = sum(version.manifest.resources.memory_mb for version in self._loader.versions.values())
        needs = opened.manifest.resources.memory_mb
        if used + needs > opened.limits.memory_mb:
            raise ResourceError(
                "unschedulable.memory",
                f"cannot load {held.module} {held.version}: it needs {needs} MB and the profile leaves "
                f"{max(opened.limits.memory_mb - used, 0)} MB; unload another version first",
            )

    async def _prove(self, held: Held, opened: Opened) -> None:
        report = await self._loader.golden(held.digest, opened.folder, opened.manifest)
        if not report.passed:
            raise PeerError(
                "install.golden_failed", f"cannot use {held.module} {held.version} here: {report.message}; see its log"
            )

    # -- unloading

    async def unload(self, model: str, version: str, body: bytes) -> None:
        """Give back what :meth:`load` took; of all versions of ``model`` where none is named.

        Raises:
            InputError: ``module.unknown``: no such version is loaded; ``request.invalid``: the hub wants it loaded.
        """
        self._check_control()
        version = _version_of(_decode(body, _Wish), version)
        async with self._turn:
            loaded = [
                digest
                for digest, one in self._loader.versions.items()
                if one.manifest.name == model and version in ("", str(one.number))
            ]
            mine = [digest for digest in loaded if self._is_lent(digest)]
            if not loaded:
                raise InputError("module.unknown", f"cannot unload {model}: no such version is loaded")
            if not mine:
                raise InputError(
                    "request.invalid", f"cannot unload {model}: the hub wants it on this device; take it off there"
                )
            for digest in mine:
                await self._give_back(digest)

    def _is_lent(self, digest: str) -> bool:
        version = self._loader.versions.get(digest)
        return digest in self._lent and version is not None and not self._loader.is_routed(version)

    async def _give_back(self, digest: str) -> None:
        self._lent.discard(digest)
        await self._loader.unload(digest)

    # -- what the hub decides goes before what clients wish

    def claimed(self, digest: str) -> None:
        """The hub wants this version loaded: it is no client's any more."""
        self._lent.discard(digest)

    def follow(self) -> None:
        """Unload what clients loaded and the device does not hold any more."""
        if self._lent:
            held = {one.digest for one in self._held()}
            for digest in self._lent - held:
                task = asyncio.get_running_loop().create_task(self._leave(digest))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _leave(self, digest: str) -> None:
        try:
            await self._give_back(digest)
        except SkerryError as error:
            log.warning("cannot unload %s: %s", digest[:12], error.message)


def _entry(version: Version) -> dict[str, str]:
    if version.ready and version.admitted:
        state, reason = "READY", ""
    elif version.ready:
        state, reason = "LOADING", "it is being proven"
    else:
        state, reason = "UNAVAILABLE", "its worker is starting"
    return _line(version.manifest.name, version.number, state, reason)


def _line(name: str, version: int, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": str(version), "state": state, "reason": reason}


def _decode(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind) if body.strip() else kind()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("scoring.invalid_json", f"cannot read the request: {error}; send a JSON object") from error


def _version_of(wish: _Wish, version: str) -> str:
    """Files and configurations in the request are refused: they are signed by nobody."""
    for name in wish.parameters:
        if name not in ("version", "unload_dependents"):
            raise InputError(
                "trust.unsigned",
                f"cannot take {name[:80]!r} from a request: this device runs only what a publisher it trusts has "
                f"signed; {_HINT}",
            )
    return version or str(wish.parameters.get("version", ""))
