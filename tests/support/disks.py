"""A disk of a few kilobytes, to be full for real."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """``folder`` is a file system of its own with this much room, over what it held."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "none", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"this user may mount no file system, so no disk can be full for real: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True, timeout=20)


def resize(folder: Path, size_kb: int) -> None:
    """Make room."""
    subprocess.run(["mount", "-o", f"remount,size={size_kb}k", str(folder)], check=True, timeout=20)
