"""What this process itself holds of memory, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def private_bytes() -> int:
    """Memory that only this process has."""
    total = 0
    with Path("/proc/self/smaps_rollup").open() as lines:
        for line in lines:
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total


def status_bytes(field: str) -> int:
    """One line of ``/proc/self/status``, such as ``VmHWM:``; 0 where the kernel does not have it."""
    with Path("/proc/self/status").open() as lines:
        for line in lines:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0
