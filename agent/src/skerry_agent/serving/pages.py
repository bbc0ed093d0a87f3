"""Gives back the pages of code and constants that were needed once: to import, to verify a signature, to load a model.

They hold nothing that was written and stay in the page cache, where they are found again by a minor fault (and sixteen
at a time) as soon as they are used, but from where the system may drop them when memory is short. What scoring needs is
back after the first request.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from skerry_agent.engines import _host

_MADV_DONTNEED: Final = 4
_PRESENT: Final = 63
_SWAPPED: Final = 62
_FILE: Final = 61
"""Bits of pagemap's entries, 8 bytes for each page. ``_FILE``: it is the file's own, not a copy made for a write."""
_ONE: Final = (1).to_bytes(8, "little")


class Mapping(NamedTuple):
    """A part of a file that is mapped into this process, which may not write there."""

    start: int
    end: int


def give_back() -> None:
    """Freed memory, and pages of files."""
    _host.trim()
    release_files()


def release_files() -> int:
    """Unmap the pages of files that are mapped read-only, but for what was written before it became so.

    Returns:
        Bytes of the mappings that were released; 0 where the system does not let one look (no ``/proc``).
    """
    released = 0
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL(None)
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            for mapping in mappings(Path("/proc/self/maps").read_text()):
                if clean(pagemap.fileno(), mapping):
                    size = mapping.end - mapping.start
                    libc.madvise(ctypes.c_void_p(mapping.start), ctypes.c_size_t(size), _MADV_DONTNEED)
                    released += size
    return released


def mappings(text: str) -> Iterator[Mapping]:
    """Of ``/proc/PID/maps``: those of files, private, and not writable."""
    for line in text.splitlines():
        span, rights, _, _, inode, *name = line.split(None, 5)
        if inode != "0" and rights[1] == "-" and rights[3] == "p" and name and name[0].startswith("/"):
            start, end = (int(part, 16) for part in span.split("-"))
            yield Mapping(start, end)


def clean(pagemap: int, mapping: Mapping) -> bool:
    """Whether no page of it is a copy that was written to: a loader relocates some before it protects them."""
    count = (mapping.end - mapping.start) // mmap.PAGESIZE
    data = os.pread(pagemap, count * 8, mapping.start // mmap.PAGESIZE * 8)
    entries = int.from_bytes(data, "little")  # all at once: one by one, 25,000 take 5 ms
    ones = int.from_bytes(_ONE * count, "little")
    held = (entries >> _PRESENT | entries >> _SWAPPED) & ones
    return len(data) == count * 8 and not held & ~(entries >> _FILE)
