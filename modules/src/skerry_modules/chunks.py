"""How an object is cut into chunks, and the bitmap that says which of them a device lacks.

An object is cut into :data:`CHUNK_BYTES` pieces (the last one may be shorter). A bitmap has one bit per chunk,
chunk 0 in the lowest bit of byte 0; a set bit means "wanted".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from skerry_modules.errors import PeerError

CHUNK_BYTES: Final = 64 * 1024
"""Bytes per chunk: measured best for stock paho; 0.5 s of head-of-line blocking at 1 Mbit/s."""

_HEADER_BYTES: Final = 5  # format version, CRC-32 of the data


def count(size: int) -> int:
    """Chunks of an object of ``size`` bytes; an empty object still has one, empty, chunk."""
    return max(1, -(-size // CHUNK_BYTES))


def encode_bitmap(wanted: Iterable[int], total: int) -> bytes:
    """Pack chunk numbers into ``ceil(total / 8)`` bytes."""
    bits = bytearray(-(-total // 8))
    for part in wanted:
        bits[part >> 3] |= 1 << (part & 7)
    return bytes(bits)


def decode_bitmap(bitmap: bytes, total: int) -> Iterator[int]:
    """Chunk numbers whose bit is set, ascending; bits past ``total`` are ignored."""
    for part in range(min(total, len(bitmap) * 8)):
        if bitmap[part >> 3] >> (part & 7) & 1:
            yield part


class Lacking:
    """Which chunks of one object are still missing, kept as the bitmap that says so.

    Args:
        total: chunks of the object.
        held: those that are not missing; numbers outside the object are ignored.
    """

    def __init__(self, total: int, held: Iterable[int] = ()) -> None:
        self.total = total
        self.count = total
        self._bits = bytearray(((1 << total) - 1).to_bytes(-(-total // 8), "little"))
        for part in held:
            self.discard(part)

    def __contains__(self, part: int) -> bool:
        return 0 <= part < self.total and bool(self._bits[part >> 3] >> (part & 7) & 1)

    def discard(self, part: int) -> None:
        """It is here now."""
        if part in self:
            self._bits[part >> 3] ^= 1 << (part & 7)
            self.count -= 1

    def encode(self) -> bytes:
        """As :func:`encode_bitmap` would."""
        return bytes(self._bits)


def frame(data: bytes | memoryview) -> bytes:
    """A chunk's payload: version byte 1, CRC-32 (big endian), the bytes themselves."""
    return b"\x01" + zlib.crc32(data).to_bytes(4, "big") + bytes(data)


def unframe(payload: bytes) -> memoryview:
    """The inverse of :func:`frame`.

    Raises:
        PeerError: ``message.malformed`` for a short or damaged chunk, ``message.unsupported_version``.
    """
    if len(payload) < _HEADER_BYTES:
        raise PeerError("message.malformed", "cannot read a chunk: it is shorter than its header")
    if payload[0] != 1:
        raise PeerError("message.unsupported_version", f"cannot read a chunk of format {payload[0]}: update this side")
    data = memoryview(payload)[_HEADER_BYTES:]
    if zlib.crc32(data) != int.from_bytes(payload[1:5], "big"):
        raise PeerError("message.malformed", "cannot use a chunk: its checksum differs; it will be asked for again")
    return data
