"""The accelerator computes what the network means, to the bit, from the packed bytes alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_simulators.fpga import accelerator as hardware
from skerry_simulators.fpga.accelerator import Accelerator
from skerry_simulators.fpga.network import Layer, Network, identity, pack, reference


@st.composite
def networks(draw: st.DrawFn) -> Network:
    sizes = [draw(st.integers(1, 4)) * 4 for _ in range(draw(st.integers(2, 4)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers.append(
            Layer(
                weights=rng.integers(-128, 128, (outputs, inputs)).astype(np.int8),
                bias=rng.integers(-(2**20), 2**20, outputs).astype(np.int32),
                multiplier=draw(st.integers(1, 2**16)),
                shift=draw(st.integers(0, 24)),
                relu=draw(st.booleans()),
                pe=draw(st.sampled_from([1, 2, 4])),
                simd=draw(st.sampled_from([1, 2, 4])),
            )
        )
    return Network(tuple(layers))


def run(network: Network, rows: Any) -> Any:
    """Through the core's stream and registers, as a DMA engine would."""
    core = Accelerator(pack(network))
    core.write(hardware.ROWS, len(rows))
    core.write(hardware.CTRL, hardware.AP_START)
    stream = np.zeros((len(rows), network.row_bytes_in), np.int8)
    stream[:, : network.inputs] = rows
    core.feed(stream.tobytes())
    assert core.finished is False
    given = core.drain(1 << 20)
    assert core.finished
    assert core.read(hardware.FRAMES) == len(rows)
    return np.frombuffer(given, "<i4").reshape(len(rows), network.outputs)


@settings(max_examples=60, deadline=None)
@given(network=networks(), seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5))
def test_the_folded_engine_equals_the_reference(network: Network, seed: int, count: int) -> None:
    rows = np.random.default_rng(seed).integers(-128, 128, (count, network.inputs)).astype(np.int8)
    assert np.array_equal(run(network, rows), reference(network, rows))


@settings(max_examples=20, deadline=None)
@given(network=networks(), seed=st.integers(0, 2**32 - 1))
def test_the_reference_equals_plain_integers(network: Network, seed: int) -> None:
    """Python's own unbounded integers, loop by loop: no numpy rule can hide in both."""
    row = np.random.default_rng(seed).integers(-128, 128, network.inputs)
    values = [int(value) for value in row]
    for layer in network.layers:
        sums = [
            int(bias) + sum(int(w) * x for w, x in zip(weights, values, strict=True))
            for weights, bias in zip(layer.weights, layer.bias, strict=True)
        ]
        half = (1 << layer.shift) // 2
        low = 0 if layer.relu else -128
        values = [min(127, max(low, (s * layer.multiplier + half) >> layer.shift)) for s in sums]
    assert reference(network, row.astype(np.int8)[None])[0].tolist() == sums


def test_accumulators_wrap_at_32_bits_as_hardware_does() -> None:
    bias = np.array([2**31 - 1, -(2**31)], np.int32)
    layer = Layer(weights=np.array([[1, 0, 0, 0], [-1, 0, 0, 0]], np.int8), bias=bias, pe=1, simd=2)
    rows = np.array([[1, 0, 0, 0]], np.int8)
    assert run(Network((layer,)), rows).tolist() == [[-(2**31), 2**31 - 1]]


def test_a_byte_of_weights_changes_the_identity() -> None:
    layer = Layer(weights=np.ones((4, 4), np.int8), bias=np.zeros(4, np.int32))
    other = Layer(weights=np.eye(4, dtype=np.int8), bias=np.zeros(4, np.int32))
    assert identity(pack(Network((layer,)))) == identity(pack(Network((layer,))))
    assert identity(pack(Network((layer,)))) != identity(pack(Network((other,))))


def test_folds_must_divide_the_layer() -> None:
    layer = Layer(weights=np.ones((3, 4), np.int8), bias=np.zeros(3, np.int32), pe=2)
    with pytest.raises(ValueError, match="pe 2 and simd 4 must divide 3 and 4"):
        pack(Network((layer,)))


def test_a_core_that_was_not_started_takes_nothing() -> None:
    core = Accelerator(pack(Network((Layer(weights=np.ones((4, 4), np.int8), bias=np.zeros(4, np.int32)),))))
    assert core.room(drained=True) == 0
    core.write(hardware.ROWS, 2)
    core.write(hardware.CTRL, hardware.AP_START)
    assert core.room(drained=True) == 8


def test_done_is_cleared_by_reading_it() -> None:
    core = Accelerator(pack(Network((Layer(weights=np.ones((4, 4), np.int8), bias=np.zeros(4, np.int32)),))))
    core.write(hardware.ROWS, 1)
    core.write(hardware.CTRL, hardware.AP_START)
    core.feed(bytes(4))
    assert core.read(hardware.CTRL) == hardware.AP_DONE | hardware.AP_IDLE
    assert core.read(hardware.CTRL) == hardware.AP_IDLE


def test_a_payload_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="no network"):
        Accelerator(b"\xff" * 64)
