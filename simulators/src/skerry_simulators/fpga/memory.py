"""The board's memory as two images: what the CPU sees through its cache, and what is in DRAM.

A write by the CPU reaches DRAM only by a flush, a write by a DMA engine reaches the CPU only by an invalidate. A real
cache writes lines back when it likes, so a missing flush fails there now and then; here it fails every time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

BASE: Final = 0x1000_0000
"""Physical address of the first byte."""

SIZE: Final = 8 << 20
"""Bytes of memory for buffers (a PYNQ-Z2's CMA area is 128 MiB; no module here needs it)."""

PAGE: Final = 4096
"""Buffers start on pages, as the kernel's CMA allocator gives them."""


class BoardMemory:
    """Two images and an allocator. Offsets count from :data:`BASE`."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.cpu: np.ndarray[Any, Any] = np.zeros(size, np.uint8)
        self.dram: np.ndarray[Any, Any] = np.zeros(size, np.uint8)
        self._taken: dict[int, int] = {}

    @property
    def buffers(self) -> int:
        """Buffers that are allocated now."""
        return len(self._taken)

    def take(self, nbytes: int) -> int:
        """Offset of a free page-aligned stretch.

        Raises:
            MemoryError: as XRT does when the CMA area is full.
        """
        wanted = max(PAGE, -(-nbytes // PAGE) * PAGE)
        start = 0
        for offset in sorted(self._taken):
            if offset - start >= wanted:
                break
            start = offset + self._taken[offset]
        if start + wanted > self.size:
            raise MemoryError(f"cannot allocate {nbytes} bytes of contiguous memory on the simulated board")
        self._taken[start] = wanted
        return start

    def give_back(self, offset: int) -> None:
        self._taken.pop(offset, None)

    def flush(self, offset: int, nbytes: int) -> None:
        """CPU → DRAM."""
        self.dram[offset : offset + nbytes] = self.cpu[offset : offset + nbytes]

    def invalidate(self, offset: int, nbytes: int) -> None:
        """DRAM → CPU."""
        self.cpu[offset : offset + nbytes] = self.dram[offset : offset + nbytes]

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether a physical range lies in this memory."""
        return address >= BASE and address + nbytes <= BASE + self.size

    def read(self, address: int, nbytes: int) -> bytes:
        """What a bus master reads: DRAM."""
        return self.dram[address - BASE : address - BASE + nbytes].tobytes()

    def write(self, address: int, data: bytes) -> None:
        """What a bus master writes: DRAM."""
        self.dram[address - BASE : address - BASE + len(data)] = np.frombuffer(data, np.uint8)
