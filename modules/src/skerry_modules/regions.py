"""Shared memory of a client: one region for each call at a time, files in ``/dev/shm`` with names that nobody guesses.

A file is locked for as long as its process lives, and goes with it; what a killed process left is removed when the next
one makes its first region.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from skerry_modules.errors import InputError
from skerry_modules.oip import Buffer

FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is
PREFIX: Final = "skerry-"
KEPT: Final = 4
"""Idle regions that are kept."""


class Region:
    """One file, mapped. It grows and never shrinks."""

    def __init__(self) -> None:
        while True:
            self.name = PREFIX + secrets.token_hex(16)
            self._path = FOLDER / self.name
            self._descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if os.fstat(self._descriptor).st_nlink:
                break
            os.close(self._descriptor)  # swept by another process before it was locked
        self._map: mmap.mmap | None = None
        self._size = 0

    def write(self, parts: Sequence[Buffer]) -> list[int]:
        """Put tensors one after the other; returns where each starts."""
        needed = sum(len(part) for part in parts)
        if needed > self._size or self._map is None:
            if self._map is not None:
                self._map.close()
            os.posix_fallocate(self._descriptor, 0, max(needed, 1))  # now, rather than a SIGBUS when memory is full
            self._map, self._size = mmap.mmap(self._descriptor, max(needed, 1)), needed
        starts, start = [], 0
        for part in parts:
            self._map[start : start + len(part)] = part
            starts.append(start)
            start += len(part)
        return starts

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
        if self._map is not None:
            self._map.close()
        os.close(self._descriptor)


class Regions:
    """The regions of one client. Any number of threads may take one.

    Raises:
        InputError: ``settings.invalid``: the system has no ``/dev/shm``.
    """

    def __init__(self) -> None:
        if not FOLDER.is_dir():
            raise InputError("settings.invalid", f"cannot use shared memory: there is no {FOLDER}; leave it out")
        self._idle: list[Region] = []
        sweep()

    def take(self) -> Region:
        try:
            return self._idle.pop()
        except IndexError:
            return Region()

    def give(self, region: Region) -> None:
        if len(self._idle) < KEPT:
            self._idle.append(region)
        else:
            region.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        for region in self.__dict__.get("_idle", ()):
            region.close()


def sweep() -> None:
    """Remove what killed processes of this user left: nobody holds the lock of such a file."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
