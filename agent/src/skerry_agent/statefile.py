"""The brain's saved state on disk, and the lock that keeps a second agent off the same folder.

A save writes a new file, flushes it, moves the file before aside, and renames the new one into place, so that at each
moment at least one whole generation is on disk. Each file carries its generation and a SHA-256: a torn or damaged
file is seen, and the newest whole one is taken instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
from pathlib import Path
from typing import Final

from skerry_modules.errors import ResourceError

_MAGIC: Final = b"SKRY1\n"
_HEAD: Final = struct.Struct(">6sQI32s")  # magic, generation, length, SHA-256 of generation and state

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_space(error: OSError, what: str) -> ResourceError:
    """Our error for a failed write: ``resource.no_space``, whatever the system calls it."""
    return ResourceError(
        "resource.no_space", f"cannot write {what}: {error.strerror or error}; free some disk space", errno=error.errno
    )


class StateFile:
    """One small blob, saved whole or not at all."""

    def __init__(self, folder: Path, name: str = "agent.state") -> None:
        self._folder = folder
        self._now = folder / name
        self._new = folder / f"{name}.new"
        self._before = folder / f"{name}.prev"
        self._generation = 0
        self.fell_back = False  # whether the last load had to skip a damaged file

    def load(self) -> bytes | None:
        """The newest whole generation, or None where nothing was ever saved."""
        found: list[tuple[int, bytes]] = []
        self.fell_back = False
        for path in (self._now, self._new, self._before):
            try:
                found.append(_unpack(path.read_bytes()))
            except FileNotFoundError:
                continue
            except ValueError:
                # A torn .new is what a power cut in the middle of a save leaves: nothing was promised yet.
                self.fell_back = self.fell_back or path == self._now
        if not found:
            return None
        self._generation, state = max(found)
        return state

    def save(self, state: bytes) -> None:
        """Durable when it returns.

        Raises:
            ResourceError: ``resource.no_space``; the generation before is untouched then.
        """
        try:
            with self._new.open("wb") as file:
                file.write(_pack(self._generation + 1, state))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                self._now.replace(self._before)
            self._new.replace(self._now)
            sync_folder(self._folder)
        except OSError as error:
            raise no_space(error, "the agent's state") from error
        self._generation += 1


def _pack(generation: int, state: bytes) -> bytes:
    digest = hashlib.sha256(generation.to_bytes(8, "big") + state).digest()
    return _HEAD.pack(_MAGIC, generation, len(state), digest) + state


def _unpack(data: bytes) -> tuple[int, bytes]:
    if len(data) < _HEAD.size:
        raise ValueError("short")
    magic, generation, length, digest = _HEAD.unpack_from(data)
    state = data[_HEAD.size :]
    if magic != _MAGIC or len(state) != length:
        raise ValueError("torn")
    if hashlib.sha256(generation.to_bytes(8, "big") + state).digest() != digest:
        raise ValueError("damaged")
    return generation, state


class FolderLock:
    """Held for the life of the process; the system frees it when the process dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor = -1

    def take(self) -> None:
        """Raises ``ResourceError`` (``resource.state_in_use``) with the other agent's process id."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            other = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise ResourceError(
                "resource.state_in_use",
                f"cannot use the state folder {self._path.parent}: the agent with process id {other} runs on it; "
                "stop it, or give this one another folder (state.folder)",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
