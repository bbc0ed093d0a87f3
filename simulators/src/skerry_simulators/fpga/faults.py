"""What can be made to go wrong on the simulated board.

Each fault is what a driver, a design or a board does wrong in practice; the engine must name each by a code of its own
(``board.*`` in ``skerry_modules.errors``). A fault is set on the device (``device.faults.add(Fault.HANG)``) or, for
workers in other processes, by the environment: ``SKERRY_FPGA_FAULTS=hang,oversize``.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Final

ENVIRONMENT: Final = "SKERRY_FPGA_FAULTS"


class Fault(StrEnum):
    NO_FLUSH = "no-flush"  # what the CPU wrote never reaches the memory that the DMA engine reads
    NO_INVALIDATE = "no-invalidate"  # what the DMA engine wrote never reaches the CPU's cache
    WRONG_ORDER = "wrong-order"  # the stream's bytes come in the wrong order within each word
    MISALIGNED = "misaligned"  # buffers start off the bus's word boundary
    OVERSIZE = "oversize"  # the DMA engine's length register is narrower than the module's transfers
    DMA_ERROR = "dma-error"  # the bus answers the DMA engine with a slave error
    HANG = "hang"  # a transfer never ends
    WRONG_HWH = "wrong-hwh"  # the metadata belongs to another design
    WRONG_BITSTREAM = "wrong-bitstream"  # the board configures itself with another network


def from_environment() -> set[Fault]:
    """Faults named in ``SKERRY_FPGA_FAULTS``.

    Raises:
        ValueError: a name is not a fault's.
    """
    return {Fault(name.strip()) for name in os.environ.get(ENVIRONMENT, "").split(",") if name.strip()}
