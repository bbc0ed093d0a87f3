"""Small int8 networks: what they compute, and how a bitstream holds them.

A network is a chain of dense layers on int8 values with int32 accumulators:

    acc = bias + weights · x                    (int32)
    y   = clip((acc · multiplier + 2^(shift−1)) >> shift, low, 127)     (int8; not in the last layer)

with ``low`` 0 after a rectifier and −128 otherwise. The last layer's accumulators are the outputs. This is the usual
fixed-point requantisation (gemmlowp's and TFLite's), with one multiplier for each layer.

:func:`reference` computes that directly. The accelerator (:mod:`.accelerator`) computes it from the packed form, in the
folds that a dataflow engine uses, so that the two agree only if packing and arithmetic are both right.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Final

import msgspec
import numpy as np

Array = np.ndarray[Any, Any]

MAGIC: Final = b"SKFPGA1\n"
LANE: Final = 4
"""Bytes of one stream beat: rows are padded to it (a 32-bit AXI stream)."""


class Layer(msgspec.Struct, frozen=True, eq=False):
    """One dense layer. ``weights`` int8 (outputs, inputs), ``bias`` int32 (outputs,).

    ``pe`` outputs are computed at a time from ``simd`` inputs at a time; each must divide its dimension.
    """

    weights: Array
    bias: Array
    multiplier: int = 1
    shift: int = 0
    relu: bool = True
    pe: int = 2
    simd: int = 4


class Network(msgspec.Struct, frozen=True, eq=False):
    """Layers in order; each takes what the one before gives."""

    layers: tuple[Layer, ...]

    @property
    def inputs(self) -> int:
        return int(self.layers[0].weights.shape[1])

    @property
    def outputs(self) -> int:
        return int(self.layers[-1].weights.shape[0])

    @property
    def row_bytes_in(self) -> int:
        """Bytes of one input row on the stream: int8, padded with zeros to whole beats."""
        return -(-self.inputs // LANE) * LANE

    @property
    def row_bytes_out(self) -> int:
        """Bytes of one output row on the stream: little-endian int32."""
        return self.outputs * 4


def reference(network: Network, rows: Array) -> Array:
    """What the network gives for int8 ``rows`` (n, inputs): int32 (n, outputs)."""
    values = rows.astype(np.int64)
    last = len(network.layers) - 1
    for index, layer in enumerate(network.layers):
        accumulators = values @ layer.weights.astype(np.int64).T + layer.bias
        if index == last:
            return accumulators.astype(np.int32)
        scaled = requantised(accumulators, layer.multiplier, layer.shift)
        values = np.clip(scaled, 0 if layer.relu else -128, 127)
    raise ValueError("a network has at least one layer")


def requantised(accumulators: Array, multiplier: int, shift: int) -> Array:
    """``accumulators · multiplier / 2^shift``, rounded half up, in int64."""
    rounding = 1 << (shift - 1) if shift else 0
    return (accumulators.astype(np.int64) * multiplier + rounding) >> shift


def pack(network: Network) -> bytes:
    """The bitstream's payload: magic, header length, JSON header, then each layer's weights in fold order and biases.

    Fold order: for each group of ``pe`` outputs, for each group of ``simd`` inputs, ``pe`` times ``simd`` weights: the
    order in which the engine reads its weight memory.
    """
    described, blobs = [], []
    for layer in network.layers:
        outputs, inputs = layer.weights.shape
        if outputs % layer.pe or inputs % layer.simd:
            raise ValueError(f"pe {layer.pe} and simd {layer.simd} must divide {outputs} and {inputs}")
        folds = layer.weights.reshape(outputs // layer.pe, layer.pe, inputs // layer.simd, layer.simd)
        blobs += [folds.transpose(0, 2, 1, 3).astype(np.int8).tobytes(), layer.bias.astype("<i4").tobytes()]
        described.append(
            {
                "outputs": outputs,
                "inputs": inputs,
                "pe": layer.pe,
                "simd": layer.simd,
                "multiplier": layer.multiplier,
                "shift": layer.shift,
                "relu": layer.relu,
            }
        )
    header = json.dumps({"layers": described}, sort_keys=True, separators=(",", ":")).encode()
    body = MAGIC + len(header).to_bytes(4, "little") + header + b"".join(blobs)
    return body + b"\0" * (-len(body) % LANE)


def identity(payload: bytes) -> int:
    """The number that the design's identity register holds: CRC-32 of the payload."""
    return zlib.crc32(payload)
