"""A PYNQ-Z2 that is not there: a ``pynq.Device`` on which the stock ``Overlay`` and DMA driver run.

Importing this module registers the board with ``pynq``; the first look at ``Device.devices`` finds it. One board per
process: a worker that forks after the import gets a board of its own.

Source: what ``pynq`` 4.0.0 asks of a device (``pynq/pl_server/device.py``, ``mmio.py``, ``ps.py``), Zynq-7000 TRM
(UG585, slcr registers).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device
from pynqmetadata.frontends import Metadata
from pynqmetadata.views.runtime import RuntimeMetadataParser

from skerry_agent.engines.bitfile import parse_bitfile
from skerry_simulators.fpga.accelerator import Accelerator
from skerry_simulators.fpga.dma import DmaEngine
from skerry_simulators.fpga.faults import Fault, from_environment
from skerry_simulators.fpga.memory import BASE, BoardMemory
from skerry_simulators.fpga.network import MAGIC
from skerry_simulators.fpga.overlay import CORE_NAME, DMA_NAME, PART

PL_CLOCK_MHZ: Final = 100.0
"""What a clock of the programmable logic runs at where the metadata does not say."""

SLCR: Final = 0xF800_0000
"""Base of the Zynq's system-level control registers, through which ``pynq`` sets the clocks."""

_SLCR_RESET: Final = {
    0x100: 0x0001_A008,  # ARM_PLL_CTRL, UG585 reset values
    0x104: 0x0001_A008,  # DDR_PLL_CTRL
    0x108: 0x0001_4008,  # IO_PLL_CTRL: ×20, so 1,000 MHz from 50 MHz, as PYNQ-Z2 boots
    0x120: 0x1F00_0400,  # ARM_CLK_CTRL
    0x170: 0x0010_1800,  # FPGA0_CLK_CTRL and the three after it
    0x180: 0x0010_1800,
    0x190: 0x0010_1800,
    0x1A0: 0x0010_1800,
}

_DMA_BASE: Final = 0x4040_0000
_CORE_BASE: Final = 0x43C0_0000
_SPAN: Final = 0x1_0000


class SimulatedBusError(OSError):
    """Nothing answers at the address. A real board raises SIGBUS here and the process dies."""


class _Memory:
    """``device.default_memory``: makes buffers over the CPU's image."""

    def __init__(self, device: SimulatedBoard) -> None:
        self._device = device

    def allocate(self, shape: Any, dtype: Any, **_: Any) -> PynqBuffer:
        memory = self._device.memory
        kind = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * kind.itemsize
        shift = 2 if Fault.MISALIGNED in self._device.faults else 0
        offset = memory.take(nbytes + shift)
        buffer = PynqBuffer(
            shape,
            kind,
            buffer=memory.cpu.data,
            offset=offset + shift,
            device=self._device,
            device_address=BASE + offset + shift,
            bo=offset,
            coherent=False,
        )
        buffer.memory = self
        buffer.pointer = offset + 1  # a pointer of 0 means "given back" to freebuffer(),
        buffer.freed = True  # which then unmaps the memory itself, unless it was told so
        buffer.return_to = self
        return buffer

    def return_pointer(self, pointer: int) -> None:
        self._device.memory.give_back(pointer - 1)


class SimulatedBoard(Device):  # type: ignore[misc]
    """The board. ``faults`` may be changed at any time; those that shape a configuration act at the next download."""

    _probe_priority_: ClassVar[int] = 50
    capabilities: ClassVar[dict[str, bool]] = {"REGISTER_RW": True}
    arch: ClassVar[str] = "armv7l"
    part: ClassVar[str] = PART

    @classmethod
    def _probe_(cls) -> list[SimulatedBoard]:
        return [cls()]

    def __init__(self) -> None:
        super().__init__("skerry-simulated-board")
        self.name = "Simulated PYNQ-Z2"
        self.faults: set[Fault] = from_environment()
        self.memory = BoardMemory()
        self.default_memory = _Memory(self)
        self.bitfile_name = ""
        self.timestamp = ""
        self.downloads = 0
        self._slcr = dict(_SLCR_RESET)
        self._core: Accelerator | None = None
        self._dma: DmaEngine | None = None

    # -- what pynq asks of a device ---------------------------------------------------------------------------------

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        parser = RuntimeMetadataParser(Metadata(input=Path(bitfile_name).with_suffix(".hwh")))
        for clock in parser.clock_dict.values():
            # The resizer's metadata has divisors and no frequency, and pynq then computes with None.
            clock["frequency"] = clock["frequency"] or PL_CLOCK_MHZ
        if Fault.WRONG_HWH in self.faults:
            parser.ip_dict[CORE_NAME]["phys_addr"] += _SPAN
        if Fault.OVERSIZE in self.faults:
            parser.ip_dict[DMA_NAME]["parameters"]["c_sg_length_width"] = "6"
        return parser

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Configure the logic.

        Raises:
            ValueError: the bitstream is for another part, or holds nothing that the simulated board can run.
        """
        found = parse_bitfile(Path(bitstream.bitfile_name).read_bytes())
        if found.part != self.part:
            raise ValueError(f"the bitstream is for {found.part}, the board is a {self.part}")
        payload = _other(found.data) if Fault.WRONG_BITSTREAM in self.faults else found.data
        self._core = Accelerator(payload)
        parameters = (parser or self.parser).ip_dict[DMA_NAME]["parameters"]
        self._dma = DmaEngine(self.memory, self._core, self.faults, int(parameters["c_sg_length_width"]))
        self.downloads += 1
        self.post_download(bitstream, parser, self.name)

    def flush(self, bo: int, offset: int, virtual_address: int, nbytes: int) -> None:
        if Fault.NO_FLUSH not in self.faults:
            self.memory.flush(self._place(virtual_address), nbytes)

    def invalidate(self, bo: int, offset: int, virtual_address: int, nbytes: int) -> None:
        if Fault.NO_INVALIDATE not in self.faults:
            self.memory.invalidate(self._place(virtual_address), nbytes)

    def _place(self, virtual_address: int) -> int:
        return int(virtual_address - self.memory.cpu.ctypes.data)

    def read_registers(self, address: int, length: int) -> bytes:
        return self._read(address).to_bytes(length, "little")

    def write_registers(self, address: int, data: bytes) -> None:
        for at in range(0, len(data), 4):
            self._write(address + at, int.from_bytes(data[at : at + 4], "little"))

    # -- the address map of the configured design ---------------------------------------------------------------------

    def _read(self, address: int) -> int:
        if SLCR <= address < SLCR + 0x1000:
            return self._slcr.get(address - SLCR, 0)
        if self._dma and _DMA_BASE <= address < _DMA_BASE + _SPAN:
            return self._dma.read(address - _DMA_BASE)
        if self._core and _CORE_BASE <= address < _CORE_BASE + _SPAN:
            return self._core.read(address - _CORE_BASE)
        raise SimulatedBusError(f"bus error: nothing answers at {address:#010x}")

    def _write(self, address: int, value: int) -> None:
        if SLCR <= address < SLCR + 0x1000:
            self._slcr[address - SLCR] = value
        elif self._dma and _DMA_BASE <= address < _DMA_BASE + _SPAN:
            self._dma.write(address - _DMA_BASE, value)
        elif self._core and _CORE_BASE <= address < _CORE_BASE + _SPAN:
            self._core.write(address - _CORE_BASE, value)
        else:
            raise SimulatedBusError(f"bus error: nothing answers at {address:#010x}")


def _other(payload: bytes) -> bytes:
    """Another network of the same shape: its first weight differs."""
    start = len(MAGIC) + 4 + int.from_bytes(payload[len(MAGIC) : len(MAGIC) + 4], "little")
    changed = bytearray(payload)
    changed[start] ^= 0x55
    return bytes(changed)


def board() -> SimulatedBoard:
    """This process's simulated board.

    Raises:
        TypeError: ``pynq`` found another board first.
    """
    device = Device.active_device
    if not isinstance(device, SimulatedBoard):
        raise TypeError(f"the active pynq device is a {type(device).__name__}, not the simulated board")
    return device
