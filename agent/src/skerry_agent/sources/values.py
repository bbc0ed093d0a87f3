"""JSON, CSV and raw bytes into tensors and back, without numpy: what sources and ``skerry-agent score`` share."""

from __future__ import annotations

import csv
import math
import struct
from collections.abc import Iterable
from typing import Any, Final

from skerry_modules.errors import InputError
from skerry_modules.messages import Tensor
from skerry_modules.tensors import ITEM_BYTES, TensorSpec

_CODES: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_MAX_RANK: Final = 32


def from_json(value: Any, spec: TensorSpec) -> Tensor:
    """A nested list (or one number) as the declared input; a missing leading batch dimension is added.

    Raises:
        InputError: ``scoring.wrong_shape`` for a ragged list or another shape, ``scoring.bad_data``.
    """
    shape = _shape(value, spec.name)
    flat = list(_flat(value))
    if len(shape) == len(spec.shape) - 1:
        shape = (1, *shape)
    if len(flat) != math.prod(shape):
        raise InputError("scoring.wrong_shape", f"cannot read input {spec.name!r}: its lists are of unequal length")
    if not spec.accepts(shape):
        raise InputError(
            "scoring.wrong_shape",
            f"cannot use input {spec.name!r} of shape {list(shape)}: the model takes {list(spec.shape)}",
        )
    return Tensor(datatype=spec.datatype, shape=shape, data=pack(flat, spec.datatype, spec.name))


def _shape(value: Any, name: str) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > _MAX_RANK:
            raise InputError("scoring.wrong_shape", f"cannot read input {name!r}: its lists are nested too deep")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _flat(value: Any) -> Iterable[Any]:
    """Leaves in order, without recursion: the depth comes from outside."""
    stack = [iter([value])]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            yield item
        else:
            stack.pop()


def pack(values: list[Any], datatype: str, name: str) -> bytes:
    """Values into little-endian bytes.

    Raises:
        InputError: ``scoring.bad_data``.
    """
    try:
        if datatype == "BYTES":
            parts = [one.encode() if isinstance(one, str) else bytes(one) for one in values]
            return b"".join(struct.pack("<I", len(part)) + part for part in parts)
        if datatype.startswith(("INT", "UINT")):
            values = [_whole(one) for one in values]
        return struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)
    except (struct.error, TypeError, ValueError, OverflowError) as error:
        raise InputError("scoring.bad_data", f"cannot convert input {name!r} to {datatype}: {error}") from error


def _whole(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value} is no whole number")
    return int(value)


def to_json(tensor: Tensor) -> Any:
    """A tensor as nested lists; numbers as Python's own, ``BYTES`` as text."""
    return _nested(flat_values(tensor), list(tensor.shape))


def flat_values(tensor: Tensor) -> list[Any]:
    """A tensor's values in row-major order."""
    if tensor.datatype == "BYTES":
        found, start = [], 0
        while start < len(tensor.data):
            (length,) = struct.unpack_from("<I", tensor.data, start)
            found.append(bytes(tensor.data[start + 4 : start + 4 + length]).decode("utf-8", "replace"))
            start += 4 + length
        return found
    count = len(tensor.data) // ITEM_BYTES[tensor.datatype]
    return list(struct.unpack(f"<{count}{_CODES[tensor.datatype]}", tensor.data))


def _nested(values: list[Any], shape: list[int]) -> Any:
    if not shape:
        return values[0] if values else None
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)] if size else []
    return values


def named(arrays: dict[str, Any], specs: tuple[TensorSpec, ...], source: str) -> dict[str, Any]:
    """Pick the declared inputs out of ``arrays``, by name or as ``input.<name>``; others (labels) are ignored.

    Raises:
        InputError: ``scoring.unknown_input``.
    """
    found = {}
    for spec in specs:
        key = spec.name if spec.name in arrays else f"input.{spec.name}"
        if key not in arrays:
            have = ", ".join(sorted(arrays)) or "nothing"
            raise InputError("scoring.unknown_input", f"cannot find input {spec.name!r} in {source}: it holds {have}")
        found[spec.name] = arrays[key]
    return found


def from_csv(text: str, specs: tuple[TensorSpec, ...], source: str) -> dict[str, Tensor]:
    """CSV rows as one batch: for one input of rank 2, the columns in order; for more inputs, columns by their names.

    A first line that is not all numbers is the header.

    Raises:
        InputError: ``scoring.bad_data``, ``scoring.wrong_shape``, ``scoring.unknown_input``.
    """
    lines = [line for line in csv.reader(text.splitlines()) if line]
    header = lines.pop(0) if lines and not _numbers(lines[0]) else []
    try:
        values = [[float(cell) for cell in line] for line in lines]
    except ValueError as error:
        raise InputError("scoring.bad_data", f"cannot read {source}: {error}; every cell must be a number") from error
    if len(specs) == 1:
        return {specs[0].name: from_json(values, specs[0])}
    columns = {name.strip(): [line[place] for line in values if place < len(line)] for place, name in enumerate(header)}
    chosen = named(columns, specs, source)
    return {spec.name: from_json([[one] for one in chosen[spec.name]], spec) for spec in specs}


def _numbers(cells: list[str]) -> bool:
    try:
        for cell in cells:
            float(cell)
    except ValueError:
        return False
    return True
