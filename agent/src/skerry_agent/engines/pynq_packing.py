"""What the ``pynq`` engine decides, without a board: options, packing, and what a wrong answer of the board means.

A module for a board has one input and one output tensor. Rows of the input are quantised to integers, padded to whole
words, and streamed to the design by DMA; the design streams back integers, which are scaled to the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np

from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest
from skerry_modules.options import PynqOptions as Options
from skerry_modules.tensors import DATATYPES, TensorSpec

Array = np.ndarray[Any, Any]

SENTINEL: Final = 0xA5
"""What the receiving buffer is filled with before a self-test: if it is still there, nothing was received."""


def options_of(manifest: Manifest) -> Options:
    """The manifest's options, checked.

    Raises:
        InputError: ``install.load_failed``, naming the option, or the number of tensors.
    """
    try:
        options = msgspec.convert(manifest.options, Options)
    except msgspec.ValidationError as error:
        raise _unusable(manifest, f"in [options], {error}") from error
    if len(manifest.inputs) != 1 or len(manifest.outputs) != 1:
        raise _unusable(manifest, "the engine pynq takes one input and one output tensor")
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.datatype == "BYTES" or len(spec.shape) < 2 or -1 in spec.shape[1:]:
            raise _unusable(manifest, f"{spec.name} must be numeric, of shape [rows, fixed sizes …]")
    if min(options.rows_per_transfer, options.row_alignment) < 1:
        raise _unusable(manifest, "in [options], rows_per_transfer and row_alignment must be at least 1")
    if min(options.input_scale, options.output_scale, options.transfer_timeout_s) <= 0:
        raise _unusable(manifest, "in [options], scales and timeouts must be above 0")
    return options


def _unusable(manifest: Manifest, problem: str) -> InputError:
    return InputError("install.load_failed", f"cannot load {manifest.name}: {problem}; mend module.toml")


class Packing:
    """Tensors to stream bytes and back, for one module."""

    def __init__(self, options: Options, source: TensorSpec, target: TensorSpec) -> None:
        self._options = options
        self._target = target
        self._in_type, self._out_type = np.dtype(options.input_type), np.dtype(options.output_type)
        self._in_values, self._out_values = math.prod(source.shape[1:]), math.prod(target.shape[1:])
        self.row_bytes_in = _padded(self._in_values * self._in_type.itemsize, options.row_alignment)
        self.row_bytes_out = _padded(self._out_values * self._out_type.itemsize, options.row_alignment)

    def encode(self, values: Array) -> Array:
        """Rows of the input tensor as stream bytes, uint8 (rows, row_bytes_in): rounded half to even, saturated."""
        limits = np.iinfo(self._in_type)
        scaled = (
            np.rint(values.reshape(len(values), self._in_values) / self._options.input_scale) + self._options.input_zero
        )
        integers = np.clip(np.nan_to_num(scaled, nan=0.0), limits.min, limits.max).astype(
            self._in_type.newbyteorder("<")
        )
        stream = np.zeros((len(values), self.row_bytes_in), np.uint8)
        used = self._in_values * self._in_type.itemsize
        stream[:, :used] = integers.view(np.uint8).reshape(len(values), used)
        return stream

    def integers(self, stream: Array) -> Array:
        """Stream bytes uint8 (rows, row_bytes_out) as the integers that the design computed, (rows, values)."""
        used = np.ascontiguousarray(stream[:, : self._out_values * self._out_type.itemsize])
        return used.view(self._out_type.newbyteorder("<"))

    def decode(self, stream: Array) -> Array:
        """Stream bytes as rows of the output tensor."""
        integers = self.integers(stream)
        shape = (len(stream), *self._target.shape[1:])
        kind = np.dtype(DATATYPES[self._target.datatype])
        if kind.kind in "iu" and not self._options.softmax:
            return integers.astype(kind).reshape(shape)
        real = (integers.astype(np.float64) - self._options.output_zero) * self._options.output_scale
        real = real.reshape(shape)
        if self._options.softmax:
            powers = np.exp(real - real.max(axis=-1, keepdims=True))
            real = powers / powers.sum(axis=-1, keepdims=True)
        return real.astype(kind)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


# -- what a wrong answer means ----------------------------------------------------------------------------------------

REORDERINGS: Final[dict[str, Callable[[Array], Array]]] = {
    "the bytes of each 4-byte word are reversed": lambda rows: _by_word(rows, 4),
    "the bytes of each 2-byte word are reversed": lambda rows: _by_word(rows, 2),
    "the bytes of each 8-byte word are reversed": lambda rows: _by_word(rows, 8),
    "each row is reversed": lambda rows: np.ascontiguousarray(rows[:, ::-1]),
}
"""Orders in which designs take bytes by mistake. Each undoes itself, so what undoes the mistake is the mistake."""


def _by_word(rows: Array, width: int) -> Array:
    if rows.shape[1] % width:
        return rows
    words = rows.reshape(len(rows), -1, width)
    return np.ascontiguousarray(words[:, :, ::-1]).reshape(rows.shape)


class Fault(msgspec.Struct, frozen=True):
    """A board's fault: a code under ``board.`` and what was seen."""

    code: str
    message: str


_UNFLUSHED: Final = Fault(
    "board.stale_memory",
    "the results do not follow the inputs: they never reached the board (no flush), or the design ignores them",
)


def diagnose(
    sent: Array, score: Callable[[Array], Array], passes: Callable[[Array], bool], distinct: bool
) -> Fault | None:
    """Look for a fault of the board behind a self-test, by sending rows and looking at what returns.

    Args:
        sent: stream bytes of the self-test's rows, (rows, bytes).
        score: sends stream bytes, returns stream bytes of the receiving buffer, which it filled with
            :data:`SENTINEL` before.
        passes: whether returned bytes are what the module expects.
        distinct: whether the expected outputs of the rows differ from one another.

    Returns:
        The fault, or None where the answer is right, or wrong in a way that is the module's own.
    """
    got = score(sent)
    if np.all(got == SENTINEL):
        return Fault("board.stale_memory", "the transfer ended, but its results never reached the CPU (no invalidate)")
    backwards = np.ascontiguousarray(sent[::-1])
    if passes(got):
        # The right answer may be that to an older input: memory that was not flushed can still hold the same rows
        # from the self-test of the version before.
        follows = not distinct or np.array_equal(score(backwards), got[::-1])
        return None if follows else _UNFLUSHED
    if distinct and np.array_equal(score(backwards), got) and not np.array_equal(sent, backwards):
        return _UNFLUSHED
    for meaning, reordered in REORDERINGS.items():
        changed = reordered(sent)
        if not np.array_equal(changed, sent) and passes(score(changed)):
            return Fault("board.wrong_order", f"the results are right if {meaning}")
    return None
