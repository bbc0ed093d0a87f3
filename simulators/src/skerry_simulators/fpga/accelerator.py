"""The accelerator in the programmable logic: bytes in, bytes out, and its control registers.

It works from the packed payload alone (never from a :class:`~.network.Network`), in the folds that a dataflow engine
uses: ``pe`` accumulators at a time, ``simd`` products added per step, wrapping at 32 bits as hardware does.

Registers, at the offsets of an HLS core with an AXI-Lite slave (Xilinx UG902, "S_AXILITE control register map"):

=====  =========  =====================================================
0x00   CTRL       bit 0 ap_start, bit 1 ap_done, bit 2 ap_idle
0x10   rows       rows to process per start
0x18   row_bytes  read only: bytes of an input row
0x20   frames     read only: rows done since the last configuration
0x28   identity   read only: CRC-32 of the payload
=====  =========  =====================================================
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np

from skerry_simulators.fpga.network import LANE, MAGIC, identity

CTRL: Final = 0x00
ROWS: Final = 0x10
ROW_BYTES: Final = 0x18
FRAMES: Final = 0x20
IDENTITY: Final = 0x28

QUEUE_BYTES: Final = 64
"""Output bytes that fit between the core and the receiving DMA channel; then the stream stalls."""

AP_START: Final = 0x1
AP_DONE: Final = 0x2
AP_IDLE: Final = 0x4


class _Stage:
    """One layer as the logic holds it: weight memory by fold, bias, requantisation."""

    def __init__(self, described: dict[str, Any], data: memoryview) -> None:
        self.outputs, self.inputs = int(described["outputs"]), int(described["inputs"])
        self.pe, self.simd = int(described["pe"]), int(described["simd"])
        self.multiplier, self.shift = described["multiplier"], described["shift"]
        self.low = 0 if described["relu"] else -128
        count = self.outputs * self.inputs
        shape = (self.outputs // self.pe, self.inputs // self.simd, self.pe, self.simd)
        self.memory = np.frombuffer(data[:count], np.int8).reshape(shape)
        self.bias = np.frombuffer(data[count : self.size], "<i4").reshape(self.outputs // self.pe, self.pe)

    @property
    def size(self) -> int:
        return self.outputs * self.inputs + self.outputs * 4

    def accumulate(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """int32 accumulators (n, outputs) of int8 rows (n, inputs)."""
        steps = rows.reshape(len(rows), self.inputs // self.simd, self.simd).astype(np.int32)
        result: np.ndarray[Any, Any] = np.empty((len(rows), self.outputs // self.pe, self.pe), np.int32)
        for group in range(self.outputs // self.pe):
            accumulators = np.broadcast_to(self.bias[group], (len(rows), self.pe)).astype(np.int32)
            for step in range(self.inputs // self.simd):
                weights = self.memory[group, step].astype(np.int32)
                accumulators = accumulators + steps[:, step] @ weights.T
            result[:, group] = accumulators
        return result.reshape(len(rows), self.outputs)

    def activate(self, accumulators: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """int8 activations for the next layer."""
        product: np.ndarray[Any, Any] = accumulators.astype(np.int64) * self.multiplier
        if self.shift:
            product = (product + (1 << (self.shift - 1))) >> self.shift
        return np.clip(product, self.low, 127).astype(np.int8)


class Accelerator:
    """The configured core. ``feed`` takes stream bytes, ``drain`` gives them; it computes when a row is complete."""

    def __init__(self, payload: bytes) -> None:
        if not payload.startswith(MAGIC):
            raise ValueError("the bitstream holds no network that the simulated board can run")
        start = len(MAGIC) + 4
        length = int.from_bytes(payload[len(MAGIC) : start], "little")
        header = json.loads(payload[start : start + length])
        data = memoryview(payload)[start + length :]
        self._stages: list[_Stage] = []
        for described in header["layers"]:
            stage = _Stage(described, data)
            data = data[stage.size :]
            self._stages.append(stage)
        self.inputs = self._stages[0].inputs
        self.row_bytes_in = -(-self.inputs // LANE) * LANE
        self.row_bytes_out = self._stages[-1].outputs * 4
        self.registers: dict[int, int] = {
            CTRL: AP_IDLE,
            ROWS: 0,
            ROW_BYTES: self.row_bytes_in,
            FRAMES: 0,
            IDENTITY: identity(payload),
        }
        self._pending = bytearray()
        self._ready = bytearray()
        self._left = 0

    def read(self, offset: int) -> int:
        value = self.registers.get(offset, 0)
        if offset == CTRL and value & AP_DONE:
            self.registers[CTRL] &= ~AP_DONE  # clear on read, as HLS cores do
        return value

    def write(self, offset: int, value: int) -> None:
        if offset == ROWS:
            self.registers[ROWS] = value
        elif offset == CTRL and value & AP_START:
            self._left = self.registers[ROWS]
            self.registers[CTRL] = AP_START

    def room(self, *, drained: bool) -> int:
        """Stream bytes that the core takes now; 0 stalls the sender, as a core that was not started does.

        Where nobody takes the outputs (``drained`` false), only as many rows as the output queue still holds.
        """
        rows = self._left
        if not drained:
            rows = min(rows, max(0, QUEUE_BYTES - len(self._ready)) // self.row_bytes_out)
        return max(0, rows * self.row_bytes_in - len(self._pending))

    def feed(self, data: bytes) -> None:
        """Take at most :meth:`room` bytes."""
        self._pending += data
        rows = len(self._pending) // self.row_bytes_in
        if not rows:
            return
        taken = bytes(self._pending[: rows * self.row_bytes_in])
        del self._pending[: len(taken)]
        values = np.frombuffer(taken, np.int8).reshape(rows, self.row_bytes_in)[:, : self.inputs]
        for stage in self._stages[:-1]:
            values = stage.activate(stage.accumulate(values))
        self._ready += self._stages[-1].accumulate(values).astype("<i4").tobytes()
        self._left -= rows
        self.registers[FRAMES] += rows
        if not self._left:
            self.registers[CTRL] = AP_DONE | AP_IDLE

    def drain(self, most: int) -> bytes:
        """Up to ``most`` output bytes."""
        data = bytes(self._ready[:most])
        del self._ready[: len(data)]
        return data

    @property
    def finished(self) -> bool:
        """All rows of this start are computed and taken: the stream's TLAST."""
        return self._left == 0 and not self._ready
