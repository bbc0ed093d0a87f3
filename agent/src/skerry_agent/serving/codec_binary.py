"""Tensors as the bytes that follow the JSON: little-endian, row-major; ``BYTES`` with a length before each element."""

from __future__ import annotations

import math
import struct
import sys
from typing import Any, Final

import numpy as np

from skerry_agent.serving.codec_json import bad

Array = np.ndarray[Any, Any]

_FEW: Final = 4096
_LITTLE: Final = sys.byteorder == "little"


def check_nan(name: str, array: Array) -> None:
    """Refuse NaN where the manifest forbids it."""
    if array.dtype.kind == "f" and holds_nan(array):
        raise bad(name, "it holds NaN, which the model does not take")


def holds_nan(array: Array) -> bool:
    """Whether any of an array's floats is NaN."""
    flat = array.reshape(-1)
    # A sum of squares is NaN if any element is, and so is a sum (or if infinities cancel): one pass without a temporary
    # in the common case. For few elements the first costs half; for many it would start threads.
    total = flat.dot(flat) if len(flat) <= _FEW else np.add.reduce(flat)
    return total != total and bool(np.isnan(array).any())  # noqa: PLR0124 - a test for NaN that costs no call


def as_it_is(dtype: np.dtype[Any]) -> bool:
    """Whether memory holds what goes over the wire."""
    return _LITTLE and dtype.isnative and dtype.kind not in "OSU"


def to_binary(array: Array) -> bytes:
    """Little-endian, row-major; ``BYTES`` with a 4-byte length before each element."""
    dtype = array.dtype
    if as_it_is(dtype):
        return array.tobytes()
    if dtype.kind not in "OSU":
        return array.astype(dtype.newbyteorder("<"), copy=False).tobytes()
    parts = []
    for value in array.reshape(-1):
        data = value if isinstance(value, bytes) else str(value).encode()
        parts += [struct.pack("<I", len(data)), data]
    return b"".join(parts)


def unpack_bytes(name: str, data: bytes, shape: tuple[int, ...]) -> Array:
    """The reverse of :func:`to_binary` for ``BYTES``."""
    found: list[bytes] = []
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < 4:
            raise bad(name, "an element's length is cut short")
        length = struct.unpack_from("<I", data, offset)[0]
        offset += 4 + length
        if offset > end:
            raise bad(name, "an element is cut short")
        found.append(data[offset - length : offset])
    if len(found) != math.prod(shape):
        raise bad(name, f"its shape {list(shape)} needs {math.prod(shape)} elements but it has {len(found)}")
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array.reshape(shape)
