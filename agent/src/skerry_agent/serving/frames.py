"""What crosses the socket between the agent and a worker: length-prefixed binary frames.

Every frame is a fixed 24-byte head, then ``name`` (UTF-8), then ``body``::

    length  u32   bytes after the head: len(name) + len(body)
    kind    u8    Kind
    flags   u8    1: score this request alone, not together with others
    status  u16   answers: the HTTP status
    number  u64   the request that is asked or answered
    json    i32   length of the JSON part of ``body`` where tensors follow it in binary; -1: all of it is JSON
    name    u16   length of ``name``: the endpoint asked, or the error code answered
    spare   u16   unused, 0

Both sides read many frames per receive, so that requests that wait together arrive together. Sockets are private
socket pairs between a process and its own child: a malformed frame is a bug of ours, not an attack.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from skerry_modules.errors import BugError

HEAD: Final = struct.Struct("<IBBHQiHH")
ALONE: Final = 1
_HEAD_BYTES: Final = HEAD.size
_unpack: Final = HEAD.unpack_from
_new: Final = tuple.__new__  # a named tuple's own constructor takes three times as long
MAX_BYTES: Final = 1 << 30
"""No frame is longer: what says so is torn."""


class Kind(IntEnum):
    """Asked by the agent (below 64) or told by the worker."""

    LOAD = 1
    INFER = 2
    GOLDEN = 3
    WARM = 4
    CAPTURE = 5  # parse a request and send it as a sample; run nothing
    CONFIGURE = 6
    FLUSH = 7  # hand over what was observed
    SHADOW = 8  # score a copy and compare it with the answer that was given
    LEND = 9  # serve a client's connection: orders.Lend; its descriptor comes by the side socket
    RECALL = 10  # give it back
    MEASURE = 32  # load a module only to measure it: see skerry_agent.profiling
    ANSWER = 64
    SAMPLE = 65
    OBSERVED = 66
    BACK = 67  # a lent connection, by its number; the body is what the client has still to be sent
    COPY = 68  # a lent client's request and its answer, for shadows to score: as a SHADOW's body


_ANSWER: Final = int(Kind.ANSWER)


class Frame(NamedTuple):
    kind: int
    status: int
    number: int
    json: int
    name: bytes
    body: bytes
    flags: int = 0


def pack(
    kind: int, number: int, *, status: int = 0, json: int = -1, name: bytes = b"", size: int = 0, flags: int = 0
) -> bytes:
    """The head and name of a frame whose body has ``size`` bytes."""
    return HEAD.pack(len(name) + size, kind, flags, status, number, json, len(name), 0) + name


def whole(kind: int, number: int, body: bytes, *, status: int = 0, json: int = -1, name: bytes = b"") -> bytes:
    """A frame in one piece."""
    return pack(kind, number, status=status, json=json, name=name, size=len(body)) + body


def answer(number: int, json: int, body: bytes) -> bytes:
    """What answers a request with 200."""
    return HEAD.pack(len(body), _ANSWER, 0, 200, number, json, 0, 0) + body


class Reader:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _HEAD_BYTES

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Body bytes are copied once.

        Raises:
            BugError: the stream is torn.
        """
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:  # a large frame comes in many pieces: join them once
                return []
            data = b"".join(self._parts)
            self._parts = []
        found: list[Frame] = []
        offset, end = 0, len(data)
        self._need = _HEAD_BYTES
        while end - offset >= _HEAD_BYTES:
            length, kind, flags, status, number, json, named, _ = _unpack(data, offset)
            if length > MAX_BYTES:
                raise BugError("internal.bug", f"cannot read a frame of {length} bytes: the stream is torn")
            start = offset + _HEAD_BYTES
            if end - start < length:
                self._need = _HEAD_BYTES + length
                break
            middle, offset = start + named, start + length
            found.append(_new(Frame, (kind, status, number, json, data[start:middle], data[middle:offset], flags)))
        if offset < end:
            self._parts = [data[offset:]]
        self._have = end - offset
        return found
