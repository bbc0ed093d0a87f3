"""As much of MQTT 3.1.1 as a light device needs: bytes to packets and back, without I/O.

Source: https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
SUBACK: Final = 9
PINGREQ: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"


class Packet(NamedTuple):
    """One packet: its type and flags, and what follows the fixed header."""

    kind: int
    flags: int
    body: bytes


class Publish(NamedTuple):
    topic: str
    payload: bytes
    qos: int
    packet_id: int
    retain: bool


def _length(count: int) -> bytes:
    out = bytearray()
    while True:
        count, digit = divmod(count, 128)
        out.append(digit | (0x80 if count else 0))
        if not count:
            return bytes(out)


def _text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(2, "big") + raw


def connect(client_id: str, username: str, password: str, keepalive_s: int, will: tuple[str, bytes] | None) -> bytes:
    """CONNECT with a clean session; the last will is QoS 1 and retained."""
    flags = 0xC2 | (0x2C if will else 0)
    body = _text("MQTT") + bytes([4, flags]) + keepalive_s.to_bytes(2, "big") + _text(client_id)
    if will:
        body += _text(will[0]) + _text(will[1])
    body += _text(username) + _text(password)
    return b"\x10" + _length(len(body)) + body


def subscribe(packet_id: int, filters: list[str]) -> bytes:
    """SUBSCRIBE, all at QoS 1."""
    body = packet_id.to_bytes(2, "big") + b"".join(_text(one) + b"\x01" for one in filters)
    return b"\x82" + _length(len(body)) + body


def unsubscribe(packet_id: int, filters: list[str]) -> bytes:
    body = packet_id.to_bytes(2, "big") + b"".join(_text(one) for one in filters)
    return b"\xa2" + _length(len(body)) + body


def publish(topic: str, payload: bytes, *, packet_id: int = 0, retain: bool = False) -> bytes:
    """PUBLISH; at QoS 1 where it has a packet id, else at QoS 0."""
    head = 0x30 | (0x02 if packet_id else 0) | (0x01 if retain else 0)
    body = _text(topic) + (packet_id.to_bytes(2, "big") if packet_id else b"") + payload
    return bytes([head]) + _length(len(body)) + body


def puback(packet_id: int) -> bytes:
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def read_publish(packet: Packet) -> Publish:
    """What a PUBLISH packet carries."""
    body, qos = packet.body, (packet.flags >> 1) & 3
    end = 2 + int.from_bytes(body[:2], "big")
    topic = body[2:end].decode()
    packet_id = 0
    if qos:
        packet_id = int.from_bytes(body[end : end + 2], "big")
        end += 2
    return Publish(topic, body[end:], qos, packet_id, bool(packet.flags & 1))


class Reader:
    """Cuts a stream of bytes into packets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Whole packets, as far as they have come."""
        buffer = self._buffer
        buffer += data
        start = 0
        while True:
            found = self._next(start)
            if found is None:
                break
            packet, start = found
            yield packet
        if start:
            del buffer[:start]

    def _next(self, start: int) -> tuple[Packet, int] | None:
        buffer = self._buffer
        length = shift = 0
        place = start + 1
        while True:
            if place >= len(buffer):
                return None
            digit = buffer[place]
            place += 1
            length |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                break
            if shift > 21:
                raise ValueError("a packet's length has more than four digits")
        if len(buffer) - place < length:
            return None
        first = buffer[start]
        return Packet(first >> 4, first & 15, bytes(buffer[place : place + length])), place + length
