"""Batch jobs between hub, devices and clients: the list of an uploaded input, one part of a job, and its result.

* An **upload** is cut into pieces, each an object of the hub's store by its SHA-256. The list of its files
  (:class:`InputList`, JSON) is an object too, and a job names that one.
* A **part** is what one device scores at once (:class:`PartOrder`, the arguments of the command ``batch``). A part of
  a table travels as :class:`PartTable`, zlib over msgpack, so that a device needs nothing to read Parquet; a part of
  a folder is a plain zip.
* A **result** is a sequence of frames, each the length (4 bytes, big endian) and zlib over msgpack of a
  :class:`ResultFrame`. Frames can be joined end to end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import msgspec

from skerry_modules.errors import InputError, PeerError
from skerry_modules.messages import Tensor

PIECE_BYTES: Final = 4 * 1024 * 1024
"""Of an upload: what a broken connection can cost."""
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""A frame, and what it holds: more is no frame of ours."""
MAX_LIST_BYTES: Final = 64 * 1024 * 1024
MAX_PART_BYTES: Final = 1024 * 1024 * 1024
TABLES: Final = (".csv", ".parquet", ".pq")
ARRAYS: Final = (".npz", ".npy", ".json")
COMMAND: Final = "batch"
STOP: Final = "batch-stop"


class InputFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an upload: ``path`` is relative with ``/``, ``pieces`` are SHA-256 in order."""

    path: str
    size: int
    pieces: tuple[str, ...]


class InputList(msgspec.Struct, frozen=True, kw_only=True):
    """An upload. ``kind``: ``table`` (one file) or ``files``."""

    format: int = 1
    kind: str
    files: tuple[InputFile, ...]


class PartOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One part, as a device is told it.

    ``kind``: ``table`` and ``files`` fetch the object ``input`` of ``size`` bytes; ``path`` reads the device's own.
    ``rows``: of one request at most; ``part_rows``: what a kill can cost.
    """

    job: int
    part: int
    module: str
    version: int
    kind: str
    input: str = ""
    size: int = 0
    path: str = ""
    columns: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    rows: int = 1024
    part_rows: int = 2000


class PartTable(msgspec.Struct, frozen=True, array_like=True):
    """Rows of a table as text; a list in one cell is JSON."""

    names: list[str]
    lines: list[list[str]]


class RowError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why one row has no score. ``row`` counts from 0 within its file; −1: the file itself could not be read."""

    row: int
    code: str
    reason: str
    file: str = ""


class ResultFrame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Rows that were scored together, and rows that could not be. Tensors have one entry per row in front."""

    file: str = ""
    rows: tuple[int, ...] = ()
    kept: dict[str, list[Any]] = {}
    outputs: dict[str, Tensor] = {}
    errors: tuple[RowError, ...] = ()


_frames = msgspec.msgpack.Decoder(ResultFrame)
_tables = msgspec.msgpack.Decoder(PartTable)


def encode_frame(frame: ResultFrame) -> bytes:
    """One frame with its length in front."""
    data = zlib.compress(msgspec.msgpack.encode(frame, enc_hook=str), 6)
    return len(data).to_bytes(4, "big") + data


def decode_frames(file: BinaryIO) -> Iterator[ResultFrame]:
    """The frames of a result, one after the other.

    Raises:
        PeerError: ``message.malformed``: it is no result, or not all of one.
    """
    while head := file.read(4):
        size = int.from_bytes(head, "big")
        data = file.read(size) if len(head) == 4 and size <= MAX_FRAME_BYTES else b""
        if len(head) < 4 or not size or len(data) < size:
            raise PeerError("message.malformed", "cannot read a batch result: a frame is cut short")
        yield _decoded(_frames, data, MAX_FRAME_BYTES)


def encode_table(table: PartTable) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(table), 6)


def decode_table(data: bytes) -> PartTable:
    """Raises PeerError ``message.malformed``."""
    table: PartTable = _decoded(_tables, data, MAX_PART_BYTES)
    return table


def _decoded(decoder: Any, data: bytes, limit: int) -> Any:
    try:
        inflater = zlib.decompressobj()
        plain = inflater.decompress(data, limit)
        if inflater.unconsumed_tail or not inflater.eof:
            raise PeerError("message.malformed", f"cannot read a part of a batch job: it holds more than {limit} bytes")
        return decoder.decode(plain)
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError("message.malformed", f"cannot read a part of a batch job: {error}") from error


def order_of(arguments: dict[str, Any]) -> PartOrder:
    """The part that a command's arguments name.

    Raises:
        InputError: ``request.invalid``.
    """
    try:
        return msgspec.convert(arguments, PartOrder)
    except msgspec.ValidationError as error:
        raise InputError("request.invalid", f"cannot read the part of a batch job: {error}") from error
