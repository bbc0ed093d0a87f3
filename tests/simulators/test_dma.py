"""The DMA engine's registers behave as PG021 says, and memory shows a missing flush."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_simulators.fpga import accelerator as hardware
from skerry_simulators.fpga import dma
from skerry_simulators.fpga.accelerator import Accelerator
from skerry_simulators.fpga.dma import DmaEngine
from skerry_simulators.fpga.faults import Fault, from_environment
from skerry_simulators.fpga.memory import BASE, PAGE, BoardMemory
from skerry_simulators.fpga.network import Layer, Network, pack

SEND, RECEIVE = 0, dma.RECEIVE
IN, OUT = BASE, BASE + PAGE


class Bench:
    """An engine between memory and a core of 4 inputs and 8 outputs (32 bytes out per row)."""

    def __init__(self, *faults: Fault, length_bits: int = 26) -> None:
        layer = Layer(weights=np.ones((8, 4), np.int8), bias=np.zeros(8, np.int32))
        self.memory = BoardMemory(4 * PAGE)
        self.core = Accelerator(pack(Network((layer,))))
        self.engine = DmaEngine(self.memory, self.core, set(faults), length_bits)

    def start_core(self, rows: int) -> None:
        self.core.write(hardware.ROWS, rows)
        self.core.write(hardware.CTRL, hardware.AP_START)

    def run(self, offset: int, address: int, nbytes: int) -> None:
        self.engine.write(offset + dma.CR, dma.RUN)
        self.engine.write(offset + dma.ADDRESS, address)
        self.engine.write(offset + dma.LENGTH, nbytes)

    def status(self, offset: int) -> int:
        return self.engine.read(offset + dma.SR)


def test_a_channel_is_halted_until_it_is_started() -> None:
    bench = Bench()
    assert bench.status(SEND) == dma.HALTED
    bench.engine.write(SEND + dma.LENGTH, 4)  # ignored: it does not run
    bench.engine.write(SEND + dma.CR, dma.RUN)
    assert bench.status(SEND) == 0


def test_a_transfer_both_ways() -> None:
    bench = Bench()
    bench.start_core(2)
    bench.memory.write(IN, bytes([1, 2, 3, 4, 5, 5, 5, 5]))
    bench.run(RECEIVE, OUT, 64)
    bench.run(SEND, IN, 8)
    assert bench.status(SEND) == bench.status(RECEIVE) == dma.IDLE
    assert bench.engine.read(RECEIVE + dma.LENGTH) == 64
    assert np.frombuffer(bench.memory.read(OUT, 64), "<i4").tolist() == [10] * 8 + [20] * 8


def test_a_sender_without_a_receiver_stalls_when_the_queue_is_full() -> None:
    """Why the receiver is started first: the sender's wait would never end."""
    bench = Bench()
    bench.start_core(4)
    bench.run(SEND, IN, 16)
    assert not bench.status(SEND) & dma.IDLE
    bench.run(RECEIVE, OUT, 128)
    assert bench.status(SEND) & dma.IDLE
    assert bench.status(RECEIVE) & dma.IDLE


def test_a_frame_that_ends_early_ends_the_transfer() -> None:
    bench = Bench()
    bench.start_core(1)
    bench.run(RECEIVE, OUT, 256)
    bench.run(SEND, IN, 4)
    assert bench.status(RECEIVE) & dma.IDLE
    assert bench.engine.read(RECEIVE + dma.LENGTH) == 32, "how many bytes came"


@pytest.mark.parametrize(
    ("offset", "address", "nbytes", "error"),
    [
        (SEND, IN, 0, dma.INTERNAL_ERROR),
        (SEND, 0x5000_0000, 4, dma.DECODE_ERROR),
        (SEND, BASE + 4 * PAGE - 4, 8, dma.DECODE_ERROR),
        (RECEIVE, OUT, 0, dma.INTERNAL_ERROR),
        (RECEIVE, 0, 32, dma.DECODE_ERROR),
    ],
)
def test_what_cannot_be_moved_halts_the_channel_with_its_error(
    offset: int, address: int, nbytes: int, error: int
) -> None:
    bench = Bench()
    bench.start_core(1)
    bench.run(offset, address, nbytes)
    assert bench.status(offset) == dma.HALTED | error


def test_a_frame_longer_than_its_buffer_is_an_internal_error() -> None:
    bench = Bench()
    bench.start_core(2)
    bench.run(RECEIVE, OUT, 32)
    bench.run(SEND, IN, 8)
    assert bench.status(RECEIVE) == dma.HALTED | dma.INTERNAL_ERROR


def test_only_a_reset_clears_an_error() -> None:
    bench = Bench(Fault.DMA_ERROR)
    bench.start_core(1)
    bench.run(SEND, IN, 4)
    assert bench.status(SEND) == dma.HALTED | dma.SLAVE_ERROR
    bench.engine.write(SEND + dma.CR, dma.RUN)
    assert bench.status(SEND) == dma.HALTED | dma.SLAVE_ERROR
    bench.engine.write(SEND + dma.CR, dma.RESET)
    bench.engine.write(SEND + dma.CR, dma.RUN)
    assert bench.status(SEND) == 0


def test_a_length_beyond_its_register_is_cut() -> None:
    """What PYNQ's "exceeding this will hang the system" comes from: the register keeps the low bits only."""
    bench = Bench(length_bits=4)
    bench.start_core(5)
    bench.run(RECEIVE, OUT, 8)
    bench.run(SEND, IN, 20)  # 5 rows; the register holds 20 & 15 = 4 bytes
    assert bench.status(SEND) & dma.IDLE
    assert bench.core.registers[hardware.FRAMES] == 1


def test_a_hang_never_ends() -> None:
    bench = Bench(Fault.HANG)
    bench.start_core(1)
    bench.run(SEND, IN, 4)
    assert all(not bench.status(SEND) & dma.IDLE for _ in range(100))


def test_what_is_not_flushed_is_not_seen() -> None:
    memory = BoardMemory(2 * PAGE)
    memory.cpu[:4] = [1, 2, 3, 4]
    assert memory.read(BASE, 4) == bytes(4)
    memory.flush(0, 4)
    assert memory.read(BASE, 4) == bytes([1, 2, 3, 4])
    memory.write(BASE, b"\x09")
    assert memory.cpu[0] == 1
    memory.invalidate(0, 1)
    assert memory.cpu[0] == 9


@given(sizes=st.lists(st.integers(1, 3 * PAGE), max_size=12), seed=st.randoms())
def test_buffers_never_overlap_and_start_on_pages(sizes: list[int], seed: object) -> None:
    memory = BoardMemory(64 * PAGE)
    taken: dict[int, int] = {}
    for size in sizes:
        if taken and seed.random() < 0.3:  # type: ignore[attr-defined]
            gone = seed.choice(sorted(taken))  # type: ignore[attr-defined]
            memory.give_back(gone)
            del taken[gone]
        start = memory.take(size)
        assert start % PAGE == 0
        assert all(start + size <= other or other + length <= start for other, length in taken.items())
        taken[start] = size
    assert memory.buffers == len(taken)


def test_a_full_memory_says_so_and_recovers() -> None:
    memory = BoardMemory(2 * PAGE)
    first = memory.take(PAGE + 1)
    with pytest.raises(MemoryError, match="cannot allocate 4096 bytes"):
        memory.take(PAGE)
    memory.give_back(first)
    assert memory.take(2 * PAGE) == first


def test_faults_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_FPGA_FAULTS", "hang, no-flush,")
    assert from_environment() == {Fault.HANG, Fault.NO_FLUSH}
    monkeypatch.setenv("SKERRY_FPGA_FAULTS", "rain")
    with pytest.raises(ValueError, match="rain"):
        from_environment()
