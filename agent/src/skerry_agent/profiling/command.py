"""The command ``profile``: measure a version that is installed on this device, beside what serves.

The measured worker has the lowest priority and what memory the device's modules leave, and nothing else of the kind
goes on meanwhile. A board that holds one design at a time is taken from the module that serves on it: its requests
wait, so the measurement there is short.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_agent import engines
from skerry_agent.commands import Progress
from skerry_agent.disk import Disk
from skerry_agent.environments import Environments
from skerry_agent.profiling.session import Session, Subject, free_mb
from skerry_agent.rules import profile_plan
from skerry_agent.serving.plane import Plane
from skerry_modules.environments import key_of
from skerry_modules.errors import InputError, ResourceError, SkerryError
from skerry_modules.index import Index
from skerry_modules.measurement import to_builtins
from skerry_modules.messages import Command
from skerry_modules.profiles import Profile

RESERVE_MB: Final = 64
"""Memory of the device that a measurement leaves free."""
BOARD_S: Final = 3.0
"""Seconds of scoring for which a board may be taken from the module that serves on it."""
_ANSWER_S: Final = 2.0
"""Of the deadline, kept to answer in."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Profiler:
    """The handler.

    Args:
        device: its id.
        firmware: its profile.
        disk: where modules are laid out.
        plane: what serves, for what it declares and for the board.
        on_disk: runs a function in the disk's thread.
    """

    def __init__(
        self,
        device: str,
        firmware: Profile,
        disk: Disk,
        plane: Plane,
        on_disk: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._device = device
        self._firmware = firmware
        self._disk = disk
        self._plane = plane
        self._on_disk = on_disk
        self._scratch = disk.folder / "profiling"
        shutil.rmtree(self._scratch, ignore_errors=True)  # what a killed agent left

    async def __call__(self, command: Command, progress: Progress) -> dict[str, Any]:
        """Arguments: ``module``, ``version``, ``digest``, and those of :class:`profile_plan.Wanted`.

        Raises:
            SkerryError: ``request.invalid``, ``measure.*``, ``unschedulable.memory``, ``command.deadline``.
        """
        arguments = dict(command.arguments)
        module, version, digest = (arguments.pop(name, "") for name in ("module", "version", "digest"))
        if not isinstance(module, str) or not isinstance(version, int) or not isinstance(digest, str):
            raise InputError("request.invalid", "cannot profile: name the module, its version and its digest")
        wanted = profile_plan.parse(arguments)
        index, environment = await self._on_disk(lambda: self._installed(f"{module}:{version}", digest))
        manifest = index.manifest
        exclusive = engines.get(manifest.engine).exclusive
        if exclusive:
            batches = len(wanted.batches or profile_plan.BATCHES)
            wanted = msgspec.structs.replace(wanted, seconds=min(wanted.seconds, BOARD_S / batches))
        room = profile_plan.room_mb(self._firmware.limits.memory_mb, self._plane.declared_mb(), free_mb(), RESERVE_MB)
        cache = self._plane.settings.cache
        subject = Subject(
            folder=self._disk.folder_of(digest),
            manifest=manifest,
            module=manifest.name,
            version=version,
            digest=digest,
            device=self._device,
            profile=self._firmware.name,
            room_mb=room,
            cache=Path(cache) if cache else None,
            scratch=self._scratch,
            environment=environment,
            affinity=self._firmware.limits.cpu_affinity,
        )
        seconds = max(command.deadline_s - _ANSWER_S, command.deadline_s / 2)
        try:
            self._scratch.mkdir(exist_ok=True)
            async with self._plane.borrowed(manifest.engine) if exclusive else contextlib.nullcontext():
                return to_builtins(await Session(subject, wanted, seconds, progress).run())
        except OSError as error:
            raise ResourceError(
                "resource.no_space", f"cannot profile {manifest.name}: {error}; free space in {self._disk.folder}"
            ) from error
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _installed(self, name: str, digest: str) -> tuple[Index, str]:
        """The index of a version that is laid out here whole, and the folder of its environment.

        Raises:
            ResourceError: ``measure.not_installed``.
        """
        if _DIGEST.fullmatch(digest) and self._disk.folder_of(digest).is_dir():
            with contextlib.suppress(SkerryError):
                index = self._disk.index(digest)
                lock = index.facts.environment
                built = Environments(self._disk.folder, self._disk.objects)
                there = lock is None or key_of(lock) in built.present()
                if there and not self._disk.damaged(digest, index):
                    return index, str(built.path(lock)) if lock is not None else ""
        raise ResourceError(
            "measure.not_installed",
            f"cannot profile {name} on {self._device}: it is not installed there; roll it out to the device first, "
            "or measure it where it is built: skerry modules profile FOLDER --local",
        )
