"""The environments on this device: built from bundled wheels, shared by modules with the same lock, collected.

::

    environments/<key>/         one environment, whole: see :mod:`skerry_agent.environment_build`
    environments/.new-<key>/    one being built; deleted at the next start

Who needs one is read from what is installed, not remembered: an environment is kept while the index of some installed
version names its key. So no count can drift from the truth, whatever was cut off where.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_modules import environments
from skerry_modules.compatibility import DeviceFacts
from skerry_modules.environments import Lock, Target, Wheel
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.index import Index

log = logging.getLogger(__name__)

FOLDER: Final = "environments"
LIST_NAME: Final = "skerry-environment.json"
_WORDS: Final = 2000


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the building process is told: the environment's folder, and where the wheels stand by SHA-256."""

    target: str
    objects: str
    wheels: tuple[Wheel, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What it tells. ``built``: it was not there. A code says what went wrong, as ``SkerryError`` has it."""

    built: bool = False
    bytes: int = 0
    code: str = ""
    message: str = ""
    objects: tuple[str, ...] = ()


def unneeded(present: Iterable[str], needed: Mapping[str, str | None]) -> set[str]:
    """Which environments may go: those that no installed version names.

    Args:
        present: keys of the environments on the disk.
        needed: by installed version, the key that it needs, empty for none; None where its index cannot be read now:
            then nothing goes, since it may need any.
    """
    keys = set(needed.values())
    return set() if None in keys else set(present) - keys


class Environments:
    """Under the state folder. ``build`` runs on the event loop; the rest blocks and is called in the disk's thread."""

    def __init__(self, folder: Path, objects: Path) -> None:
        self.folder = folder / FOLDER
        self._objects = objects
        self._building: dict[str, asyncio.Lock] = {}

    def path(self, lock: Lock) -> Path:
        return self.folder / environments.key_of(lock)

    def prepare(self) -> None:
        """Make the folder; clear what an interrupted build left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in (*self.folder.glob(".new-*"), *self.folder.glob(".old-*")):
            remove_tree(left)

    def present(self) -> set[str]:
        """Keys of those that were finished."""
        if not self.folder.is_dir():
            return set()
        found = (path for path in self.folder.iterdir() if not path.name.startswith("."))  # those are being built
        return {path.name for path in found if (path / LIST_NAME).is_file()}

    async def build(self, lock: Lock, target: Target) -> dict[str, Any]:
        """Build an environment unless it is there and whole; two that need the same wait for one build.

        Cancelling it ends the build, of which nothing stays.

        Returns:
            ``environment`` (the key), ``built`` (whether it was not there), ``environment_bytes``.

        Raises:
            SkerryError: as :func:`skerry_agent.environment_build.build`.
        """
        key = environments.key_of(lock)
        async with self._building.setdefault(key, asyncio.Lock()):
            self.folder.mkdir(parents=True, exist_ok=True)
            order = Order(target=str(self.folder / key), objects=str(self._objects), wheels=target.wheels)
            try:
                answer = await _run(order)
            except BaseException:  # given up, or its process died: what it had laid out is of no use to anyone
                await asyncio.shield(asyncio.to_thread(remove_tree, self.folder / f".new-{key}"))
                raise
        if answer.code:
            raise _error(answer)
        return {"environment": key, "built": answer.built, "environment_bytes": answer.bytes}

    def collect(self, needed: Callable[[], Mapping[str, str | None]]) -> set[str]:
        """Delete those that no installed version names; which went."""
        present = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        gone = unneeded(present, needed()) if present else set()
        for key in gone:
            old = self.folder / f".old-{key}"
            with contextlib.suppress(OSError):
                (self.folder / key).replace(old)  # a half-deleted one must never look whole
            remove_tree(old)
            log.info("deleted the environment %s: no module needs it any more", key[:12])
        return gone


def target_for(index: Index, facts: DeviceFacts) -> Target | None:
    """The wheels of a module's lock that are for this device.

    Raises:
        ResourceError: ``unschedulable.environment``: it has an environment, and none for this device.
    """
    lock = index.facts.environment
    if lock is None:
        return None
    target = environments.choose(lock, facts.architecture, facts.python, facts.glibc)
    if target is None:
        raise ResourceError(
            "unschedulable.environment",
            f"cannot build the environment of {index.manifest.name}: it was not locked for Python {facts.python} on "
            f"{facts.architecture}; pack the module for this device's profile too",
        )
    return target


def remove_tree(path: Path) -> None:
    """Delete a folder; what is not there is fine."""
    shutil.rmtree(path, ignore_errors=True)


async def _run(order: Order) -> Answer:
    command = (sys.executable, "-m", "skerry_agent.environment_build", str(os.getpid()))
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, words = await process.communicate(msgspec.json.encode(order))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    try:
        return msgspec.json.decode(out, type=Answer)
    except msgspec.DecodeError:
        text = words.decode(errors="replace")[-_WORDS:].strip()
        raise ResourceError(
            "install.environment_failed",
            f"cannot build the environment: its process ended with {process.returncode}; it is tried again. {text}",
        ) from None


def _error(answer: Answer) -> SkerryError:
    if answer.objects:
        return PeerError(answer.code, answer.message, objects=list(answer.objects))
    return ResourceError(answer.code, answer.message)
