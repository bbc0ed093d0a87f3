"""The values of JSON tensors: flat or nested lists into arrays and back, and where they stand in a request."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from skerry_modules.errors import InputError
from skerry_modules.tensors import DATATYPES

Array = np.ndarray[Any, Any]

PLAN_BYTES: Final = 4096
"""Longer headers are parsed each time."""


class Input(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] = {}


def bad(name: str, problem: str) -> InputError:
    return InputError("scoring.bad_data", f"cannot read input {name!r}: {problem}")


_FLAT: Final[dict[str, Callable[[Any], Any]]] = {
    "b": msgspec.json.Decoder(list[bool]).decode,
    "i": msgspec.json.Decoder(list[int]).decode,
    "u": msgspec.json.Decoder(list[int]).decode,
    "f": msgspec.json.Decoder(list[float]).decode,
    "O": msgspec.json.Decoder(list[str]).decode,
}
DATA: Final = b'"data"'
_SPACE: Final = b" \t\r\n"


def from_json(given: Input) -> Array:
    """An input's ``data``, flat or nested, checked against its shape."""
    raw = bytes(given.data)
    if raw[1:].lstrip(_SPACE)[:1] != b"[":
        return flat(given, raw)
    try:
        return flat(given, _flatten(given, msgspec.json.decode(raw)))
    except msgspec.DecodeError as error:
        raise bad(given.name, f"its data are not {given.datatype}: {error}") from error


def around_values(body: bytes) -> tuple[tuple[bytes, bytes], bytes] | None:
    """What stands before and after the first list that ``data`` could be, and the list."""
    at = body.find(DATA)
    start = body.find(b"[", at)
    end = body.find(b"]", start) + 1
    if at < 0 or start < 0 or end <= start or len(body) - (end - start) > PLAN_BYTES:
        return None
    return (body[:start], body[end:]), body[start:end]


def flat(given: Input, raw: bytes) -> Array:
    """A flat JSON list as the tensor that an input declares; read-only, as binary ones are: what is kept as a sample
    stays what was sent."""
    dtype = np.dtype(DATATYPES[given.datatype])
    try:
        values = _FLAT[dtype.kind](raw)
    except msgspec.DecodeError as error:
        raise bad(given.name, f"its data are not {given.datatype}: {error}") from error
    expected = math.prod(given.shape)
    if len(values) != expected:
        raise bad(given.name, f"its shape {list(given.shape)} needs {expected} values but it has {len(values)}")
    array = _array(given, values, dtype).reshape(given.shape)
    array.flags.writeable = False
    return array


def flats(given: Input, lists: Sequence[bytes]) -> Array | None:
    """As :func:`flat` for several inputs declared alike, none of them ``BYTES``: one tensor, one after the other.

    None: at least one of them is not as it should be.
    """
    commas = math.prod(given.shape) - 1  # between so many values; neither numbers nor booleans hold any
    if any(one.count(b",") != commas for one in lists):
        return None
    shape = (len(lists) * given.shape[0], *given.shape[1:])
    try:
        return flat(msgspec.structs.replace(given, shape=shape), b"[%b]" % b",".join([one[1:-1] for one in lists]))
    except InputError:
        return None


def quick_reader(given: Input) -> Callable[[bytes], Array | None] | None:
    """A :func:`flat` for many requests of one shape, for the datatypes that most have; it gives None for what
    :func:`flat` refuses. None: there is none for this datatype."""
    dtype = np.dtype(DATATYPES[given.datatype])
    if dtype.char not in "fd":
        return None
    shape, count, decode = given.shape, math.prod(given.shape), _FLAT["f"]
    pack = struct.Struct(f"{count}{dtype.char}").pack

    def read(raw: bytes) -> Array | None:
        try:
            values = decode(raw)
        except msgspec.DecodeError:
            return None
        if len(values) != count:
            return None
        array: Array = np.ndarray(shape, dtype, pack(*values))
        return array if _is_finite(array) else None

    return read


def _flatten(given: Input, data: Any) -> bytes:
    """Nested lists must have the declared shape."""
    level = data
    for depth, size in enumerate(given.shape):
        if any(not isinstance(part, list) or len(part) != size for part in ([level] if depth == 0 else level)):
            raise bad(given.name, f"its nested data do not have the shape {list(given.shape)}")
        level = level if depth == 0 else [one for part in level for one in part]
    return msgspec.json.encode(level)


def _array(given: Input, values: Any, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "O":
        array = np.empty(len(values), dtype=object)
        array[:] = [value.encode() for value in values]
        return array
    if dtype.kind in "iu" and values:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise bad(given.name, f"a value is out of the range of {given.datatype}")
    if dtype.char in "fd":  # a quarter of what numpy takes to read a list
        try:
            array = np.frombuffer(struct.pack(f"{len(values)}{dtype.char}", *values), dtype)
        except OverflowError:
            array = np.full(1, np.inf)
    else:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
    if dtype.kind == "f" and not _is_finite(array):  # JSON has no infinity: a number overflowed
        raise bad(given.name, f"a value is out of the range of {given.datatype}")
    return array


def _is_finite(array: Array) -> bool:
    """A product that is finite has no infinity in it, and costs a quarter of a look at each."""
    values = array.reshape(-1)
    quick = array.dtype.char in "fd" and math.isfinite(values.dot(values))
    return quick or bool(np.isfinite(array).all())


def to_json(name: str, array: Array) -> list[Any]:
    """Flat values, row-major. NaN and infinities become null: JSON has none."""
    if array.dtype.kind in "OSU":
        try:
            return [_text(value) for value in array.reshape(-1)]
        except UnicodeDecodeError as error:
            raise InputError(
                "scoring.bad_data", f"cannot put output {name!r} into JSON: it is no UTF-8; ask for binary_data"
            ) from error
    values: list[Any] = array.reshape(-1).tolist()
    return values


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# -- binary data -------------------------------------------------------------------------------------------------------
