"""numpy arrays as the protocol's tensors and back. Apart from ``tensors``, since numpy costs a process 20 MB."""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np

from skerry_modules.errors import InputError, PeerError
from skerry_modules.oip import Piece
from skerry_modules.tensors import DATATYPES, TensorSpec, datatype_of

Array = np.ndarray[Any, Any]

_DTYPES: Final = {name: np.dtype(code) for name, code in DATATYPES.items()}


def to_piece(array: Array) -> Piece:
    """An array by value; a contiguous one is not copied.

    Raises:
        InputError: ``scoring.wrong_datatype``: the protocol has no such type.
    """
    try:
        datatype = datatype_of(array.dtype)
    except KeyError as error:
        raise InputError(
            "scoring.wrong_datatype",
            f"cannot send an array of {array.dtype}: the protocol has {', '.join(DATATYPES)}; convert it",
        ) from error
    if datatype == "BYTES":
        return Piece(datatype, array.shape, _pack(array))
    flat = np.ascontiguousarray(array, _DTYPES[datatype])
    return Piece(datatype, array.shape, flat.reshape(-1).view(np.uint8).data)


def _pack(array: Array) -> bytes:
    parts = []
    for value in array.reshape(-1):
        data = value if isinstance(value, bytes) else str(value).encode()
        parts += [struct.pack("<I", len(data)), data]
    return b"".join(parts)


def from_piece(name: str, piece: Piece) -> Array:
    """A tensor as an array that may be written to; ``BYTES`` as objects of type bytes. Nothing is copied.

    Raises:
        PeerError: ``scoring.failed``: its bytes do not fit its shape.
    """
    try:
        if piece.datatype == "BYTES":
            return _unpack(piece)
        return np.frombuffer(piece.data, _DTYPES[piece.datatype]).reshape(piece.shape)
    except (KeyError, ValueError, struct.error) as error:
        raise PeerError("scoring.failed", f"cannot read output {name!r} of the answer: {error}") from error


def _unpack(piece: Piece) -> Array:
    data, found, offset = bytes(piece.data), [], 0
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset)
        found.append(data[offset + 4 : offset + 4 + length])
        offset += 4 + length
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array.reshape(piece.shape)


def as_declared(value: Any, spec: TensorSpec) -> Array:
    """Anything that numpy takes as the declared datatype: floats may get narrower and whole numbers become floats;
    a float never becomes a whole number unseen.

    Raises:
        InputError: ``scoring.wrong_datatype``, ``scoring.bad_data``.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError("scoring.bad_data", f"cannot use input {spec.name!r}: {error}") from error
    if spec.datatype == "BYTES":
        return array if array.dtype.kind in "OSU" else array.astype(object)
    wanted = _DTYPES[spec.datatype]
    if array.dtype == wanted:
        return array
    widened = array.dtype.kind in "iu" and wanted.kind in "iu" and array.size > 0
    if widened and np.iinfo(wanted).min <= array.min() and array.max() <= np.iinfo(wanted).max:
        return array.astype(wanted)
    if array.dtype.kind in "OSU" or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise InputError(
            "scoring.wrong_datatype",
            f"cannot use input {spec.name!r} of {array.dtype}: the model takes {spec.datatype}; convert it",
        )
    if widened:
        raise InputError("scoring.bad_data", f"cannot use input {spec.name!r}: a value is out of {spec.datatype}")
    return array.astype(wanted)
