"""What the kernel counts of a connection: bytes that were read from it and written to it, whoever did so."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final, NamedTuple

# struct tcp_info, linux/tcp.h: the same on all architectures, as far as it is read here (Linux 4.1).
_ACKED_AND_RECEIVED: Final = struct.Struct("=QQ")
_ACKED_AT: Final = 120
_INFO_BYTES: Final = _ACKED_AT + _ACKED_AND_RECEIVED.size
_INT: Final = struct.Struct("=i")
_TRIES: Final = 10


class Tally(NamedTuple):
    """Since the connection was opened, but for the opening itself: only differences mean anything."""

    taken: int
    written: int


def tally(sock: socket.socket) -> Tally | None:
    """Bytes read and written so far; None where the kernel does not count them (Unix sockets)."""
    if sock.family == socket.AF_UNIX:
        return None
    found = None
    for _ in range(_TRIES):  # bytes move from one count to the other: until two looks agree
        before, found = found, _look(sock)
        if found is None or found == before:
            break
    return found


def _look(sock: socket.socket) -> Tally | None:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _INFO_BYTES:
        return None
    acked, received = _ACKED_AND_RECEIVED.unpack_from(info, _ACKED_AT)
    return Tally(received - unread(sock), acked + unsent(sock))


def unread(sock: socket.socket) -> int:
    """Bytes that came and that nobody has read."""
    return _ask(sock, termios.FIONREAD)


def unsent(sock: socket.socket) -> int:
    """Not 0 while the other side has not taken (TCP: acknowledged) everything that was written."""
    return _ask(sock, termios.TIOCOUTQ)


def _ask(sock: socket.socket, request: int) -> int:
    answer: int = _INT.unpack(fcntl.ioctl(sock.fileno(), request, b"\0" * _INT.size))[0]
    return answer
