"""Read ``.npy`` and ``.npz`` files into tensors, within limits and without numpy.

The agent process replays data sets and numpy would cost it 20 MB; a worker uses the same reader for golden tests, so
that there is one place where a hostile file is met. Object arrays (pickles) are never read: the header is parsed as
a literal and only the plain datatypes of the protocol are taken. A zip bomb stops at the limit that its members
declare, before anything is inflated, and again at the limit while inflating, should it lie.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_modules.errors import InputError
from skerry_modules.messages import Tensor
from skerry_modules.tensors import DATATYPES, ITEM_BYTES

_MAGIC: Final = b"\x93NUMPY"
_NAMES: Final = {code: name for name, code in DATATYPES.items() if name != "BYTES"}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a file may hold."""

    max_bytes: int = 256 * 1024 * 1024  # of all arrays, inflated
    max_arrays: int = 256
    max_header_bytes: int = 64 * 1024


LIMITS: Final = Limits()


def read(path: Path, limits: Limits = LIMITS) -> dict[str, Tensor]:
    """All arrays of an ``.npz`` by name; an ``.npy`` gives one array named after the file.

    Raises:
        InputError: ``request.invalid`` if it is not such a file, ``request.too_large`` over a limit.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(_MAGIC)) == _MAGIC:
                size = path.stat().st_size
                if size > limits.max_bytes:
                    raise _too_large(path.name, size, limits)
                return {path.stem: parse(path.read_bytes(), path.name, limits)}
        with zipfile.ZipFile(path) as archive:
            return _members(archive, path.name, limits)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            "request.invalid", f"cannot read {path.name} as .npz or .npy: {error}; write it anew"
        ) from error


def _members(archive: zipfile.ZipFile, source: str, limits: Limits) -> dict[str, Tensor]:
    members = archive.infolist()
    if len(members) > limits.max_arrays:
        raise InputError(
            "request.too_large", f"cannot read {source}: {len(members)} arrays, the limit is {limits.max_arrays}"
        )
    declared = sum(member.file_size for member in members)
    if declared > limits.max_bytes:
        raise _too_large(source, declared, limits)
    found: dict[str, Tensor] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        with archive.open(member) as stream:  # a member that lies about its size ends here: read() is bounded
            data = stream.read(member.file_size + 1)
        if len(data) > member.file_size:
            raise _too_large(source, len(data), limits)
        found[name] = parse(data, f"{source}:{name}", limits)
    return found


def parse(data: bytes, source: str = "array", limits: Limits = LIMITS) -> Tensor:
    """One ``.npy`` file's bytes.

    Raises:
        InputError: ``request.invalid``.
    """
    header, start = _header(data, source, limits)
    code, shape, fortran = header.get("descr"), header.get("shape"), header.get("fortran_order")
    datatype = _NAMES.get(code) if isinstance(code, str) else None
    if datatype is None:
        raise _invalid(source, f"its datatype {code!r} is not one of {', '.join(_NAMES.values())}, little-endian")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise _invalid(source, "its shape is not a tuple of whole numbers")
    if fortran and len(shape) > 1:
        raise _invalid(source, "it is in column-major order; save numpy.ascontiguousarray(array)")
    size = math.prod(shape) * ITEM_BYTES[datatype]
    if len(data) - start != size:
        raise _invalid(source, f"its shape needs {size} bytes but it holds {len(data) - start}")
    return Tensor(datatype=datatype, shape=shape, data=data[start:])


def _header(data: bytes, source: str, limits: Limits) -> tuple[dict[str, Any], int]:
    if data[:6] != _MAGIC or len(data) < 12:
        raise _invalid(source, "it is no .npy file")
    wide = data[6] >= 2
    length = struct.unpack_from("<I" if wide else "<H", data, 8)[0]
    start = (12 if wide else 10) + length
    if length > limits.max_header_bytes or start > len(data):
        raise _invalid(source, "its header is longer than the file or the limit")
    try:
        header = ast.literal_eval(data[12 if wide else 10 : start].decode("latin-1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise _invalid(source, "its header is not a literal") from error
    if not isinstance(header, dict):
        raise _invalid(source, "its header is not a dictionary")
    return header, start


def rows(tensor: Tensor) -> int:
    """The length of the leading dimension; 1 for a scalar."""
    return tensor.shape[0] if tensor.shape else 1


def take(tensor: Tensor, start: int, count: int) -> Tensor:
    """Rows ``start`` to ``start + count`` of a tensor of a fixed-size datatype."""
    if not tensor.shape:
        return tensor
    stride = math.prod(tensor.shape[1:]) * ITEM_BYTES[tensor.datatype]
    end = min(start + count, tensor.shape[0])
    return Tensor(
        datatype=tensor.datatype,
        shape=(end - start, *tensor.shape[1:]),
        data=bytes(tensor.data[start * stride : end * stride]),
    )


def _invalid(source: str, problem: str) -> InputError:
    return InputError("request.invalid", f"cannot read the array {source}: {problem}")


def _too_large(source: str, size: int, limits: Limits) -> InputError:
    return InputError(
        "request.too_large", f"cannot read {source}: its arrays take {size} bytes, the limit is {limits.max_bytes}"
    )
