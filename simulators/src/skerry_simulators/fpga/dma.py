"""The registers of an AXI DMA engine in direct (simple) mode, without scatter-gather and without realignment.

Source: AMD PG021, "AXI DMA LogiCORE IP Product Guide", register space of direct register mode. Modelled: run/stop,
soft reset, halted and idle, internal, slave and decode errors, address and length registers with their width, the
start of a transfer by the write of its length, an end of frame before the buffer is full, stalls of the stream. Not
modelled: timing, interrupts.
"""

from __future__ import annotations

from typing import Final

from skerry_simulators.fpga.accelerator import Accelerator
from skerry_simulators.fpga.faults import Fault
from skerry_simulators.fpga.memory import BoardMemory

WORD: Final = 4  # bytes of the memory-map data width (c_m_axi_*_data_width = 32)
RECEIVE: Final = 0x30  # offset of the S2MM channel's registers; MM2S stands at 0

CR, SR, ADDRESS, ADDRESS_HIGH, LENGTH = 0x00, 0x04, 0x18, 0x1C, 0x28
RUN, RESET = 0x1, 0x4
HALTED, IDLE = 0x1, 0x2
INTERNAL_ERROR, SLAVE_ERROR, DECODE_ERROR = 0x10, 0x20, 0x40


class Channel:
    """One direction. ``left`` is what is still to move; ``moved`` what was."""

    def __init__(self, length_bits: int) -> None:
        self._mask = (1 << length_bits) - 1
        self.reset()

    def reset(self) -> None:
        self.running = False
        self.idle = False
        self.error = 0
        self.address = 0
        self.left = 0
        self.moved = 0

    @property
    def active(self) -> bool:
        return self.running and self.left > 0

    @property
    def status(self) -> int:
        return (0 if self.running else HALTED) | (IDLE if self.idle and self.running else 0) | self.error

    def read(self, register: int) -> int:
        values = {
            CR: RUN if self.running else 0,
            SR: self.status,
            ADDRESS: self.address & 0xFFFFFFFF,
            LENGTH: self.moved,
        }
        return values.get(register, 0)

    def write(self, register: int, value: int) -> None:
        if register == CR:
            self.running = bool(value & RUN) and not self.error
        elif register == ADDRESS:
            self.address = value
        elif register == LENGTH and self.running:
            self._start(value & self._mask)

    def _start(self, nbytes: int) -> None:
        if nbytes == 0:
            self.fail(INTERNAL_ERROR)
            return
        self.address &= ~(WORD - 1)  # without realignment the low address bits are not wired
        self.left, self.moved, self.idle = nbytes, 0, False

    def advance(self, nbytes: int) -> None:
        self.address += nbytes
        self.left -= nbytes
        self.moved += nbytes
        if not self.left:
            self.idle = True

    def end(self) -> None:
        """The frame ended before the buffer was full."""
        self.left = 0
        self.idle = True

    def fail(self, error: int) -> None:
        """PG021: an error halts the channel."""
        self.error, self.left, self.running = error, 0, False


class DmaEngine:
    """Both channels between memory and core. ``pump`` moves whatever can move after each access to a register."""

    def __init__(self, memory: BoardMemory, core: Accelerator, faults: set[Fault], length_bits: int = 26) -> None:
        self.send, self.receive = Channel(length_bits), Channel(length_bits)
        self._memory, self._core, self._faults = memory, core, faults

    def read(self, offset: int) -> int:
        self.pump()
        channel, register = self._at(offset)
        return channel.read(register)

    def write(self, offset: int, value: int) -> None:
        channel, register = self._at(offset)
        if register == CR and value & RESET:  # PG021: the reset of either channel resets the whole core
            self.send.reset()
            self.receive.reset()
            return
        channel.write(register, value)
        self.pump()

    def _at(self, offset: int) -> tuple[Channel, int]:
        return (self.receive, offset - RECEIVE) if offset >= RECEIVE else (self.send, offset)

    def pump(self) -> None:
        if Fault.HANG in self._faults:
            return
        for channel in (self.send, self.receive):
            if channel.active and Fault.DMA_ERROR in self._faults:
                channel.fail(SLAVE_ERROR)
            elif channel.active and not self._memory.holds(channel.address, channel.left):
                channel.fail(DECODE_ERROR)
        while self._move_in() or self._move_out():
            pass

    def _move_in(self) -> bool:
        if not self.send.active:
            return False
        count = min(self.send.left, self._core.room(drained=self.receive.active))
        if count <= 0:
            return False
        data = self._memory.read(self.send.address, count)
        self._core.feed(self._ordered(data))
        self.send.advance(count)
        return True

    def _move_out(self) -> bool:
        if not self.receive.active:
            return False
        data = self._core.drain(self.receive.left)
        if not data:
            return False
        self._memory.write(self.receive.address, data)
        self.receive.advance(len(data))
        if self._core.finished:
            self.receive.end()
        elif not self.receive.left:
            self.receive.fail(INTERNAL_ERROR)  # PG021: the frame is longer than the buffer
        return True

    def _ordered(self, data: bytes) -> bytes:
        if Fault.WRONG_ORDER not in self._faults:
            return data
        whole = len(data) - len(data) % WORD
        swapped = b"".join(data[at : at + WORD][::-1] for at in range(0, whole, WORD))
        return swapped + data[whole:]
