"""What engines ask of the machine they run on: installed versions, the CPU's features, memory given back."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

_LENT: list[str] = []


def lent_from(paths: Sequence[str]) -> None:
    """In an environment: also look here for runtimes, which the agent lends (``serving/environment_boot``)."""
    _LENT[:] = paths


def installed(*distributions: str) -> str:
    """The version of the first of these distributions that is installed, or an empty string."""
    # Names of folders on the path: importlib.metadata would cost a device's memory 3 MB for the same answer.
    for name in distributions:
        wanted = name.replace("-", "_").lower()
        for entry in (*sys.path, *_LENT):
            for path in Path(entry or ".").glob(f"{wanted}-*.dist-info"):
                return path.name.removesuffix(".dist-info").rpartition("-")[2]
    return ""


@cache
def cpu_key() -> str:
    """A short hash of the processor's kind and features: what a compiled model depends on."""
    flags = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("flags", "Features", "model name", "CPU part")):
                flags += line.partition(":")[2]
                if line.startswith(("flags", "Features")):
                    break
    return hashlib.sha256(f"{platform.machine()}{flags}".encode()).hexdigest()[:12]


def trim() -> None:
    """Give freed memory back to the system: glibc keeps it otherwise (a dropped model frees nothing)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached(cache: Path, key: str, build: Callable[[Path], None]) -> Path:
    """The folder ``cache/key``; ``build(folder)`` fills it if it is not there.

    The folder appears whole or not at all: it is built beside and renamed, so that a power cut leaves no half of it.
    """
    folder = cache / key
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        building = cache / f".{key}.{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        try:
            build(building)
            with contextlib.suppress(FileExistsError):
                building.rename(folder)
        except OSError:
            if not folder.is_dir():  # another worker was faster otherwise
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    os.utime(folder)  # its age is that of its last use
    return folder


def prune(cache: Path, keep: int, keep_bytes: int) -> None:
    """Keep the compiled models used last: at most ``keep``, and only those that fit ``keep_bytes`` together.

    The one used last stays whatever its size: it is mapped now, and would only be compiled again.
    """
    total = 0
    for place, path in enumerate(sorted(_entries(cache), key=lambda path: -_used(path))):
        total += _size(path)
        if place and (place >= keep or total > keep_bytes):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


_RUNTIMES_OWN = ("openvino", "tensorrt")
"""Folders that a runtime fills by itself begin so."""


def _entries(cache: Path) -> list[Path]:
    """One per compiled model: a folder that we fill, or a file in a folder that a runtime fills itself."""
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for path in cache.iterdir():
            if path.name.startswith(_RUNTIMES_OWN):
                found += [inner for inner in path.rglob("*") if inner.is_file()]
            elif path.is_dir() and not path.name.startswith("."):
                found.append(path)
    return found


def _used(path: Path) -> float:
    with contextlib.suppress(OSError):
        status = path.stat()
        return max(status.st_atime, status.st_mtime) if path.is_file() else status.st_mtime
    return 0.0


def _size(path: Path) -> int:
    total = 0
    for inner in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += inner.stat().st_size
    return total
