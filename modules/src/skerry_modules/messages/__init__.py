"""Every payload that crosses the broker, as typed structs, and the two functions that encode and decode them.

Rules:

* msgpack. What is an array on the wire starts with the format version; what is a map has it as ``v``.
* A reader ignores fields that it does not know, so that a newer side can add some. A version above
  :data:`FORMAT` is refused: it means that old readers would misread.
* Whatever fails to decode becomes a :class:`~skerry_modules.errors.PeerError`; nothing else leaves here.

Streams and sequence numbers (what makes delivery end to end):

* A device keeps what it sends in its spool. The spool has an ``epoch`` (random, made when the spool is made) and
  numbers the records of each *stream* 1, 2, 3, …; a stream is a priority. Within a stream order is kept.
* Each message carries ``base``: the lowest number still in the spool. The hub takes a message only if its number
  is ``max(mark + 1, base)``, and moves its ``mark``; lower ones are duplicates, higher ones came out of order and
  are dropped. After its own durable commit it acknowledges its marks, and the device forgets up to there. A device
  that hears nothing sends again from ``base``. What the spool had to drop shows as a jump of ``base`` and is counted.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from skerry_modules.errors import PeerError
from skerry_modules.messages.base import FORMAT, ModulePhase, Severity, Stream, Up
from skerry_modules.messages.from_device import (
    Agreement,
    Distribution,
    Event,
    Health,
    Hello,
    ModuleState,
    Piece,
    Presence,
    Result,
    Sample,
    State,
    Telemetry,
    Tensor,
    Want,
)
from skerry_modules.messages.from_hub import (
    Ack,
    Command,
    Desired,
    DesiredModule,
    Endpoint,
    Gap,
    Route,
    Settings,
    Signed,
    Taken,
)

__all__ = [
    "BODIES", "FORMAT", "MAX_BYTES", "PLAIN", "STREAM_OF", "Ack", "Agreement", "Command", "Desired",
    "DesiredModule", "Distribution", "Endpoint", "Event", "Gap", "Health", "Hello", "ModulePhase",
    "ModuleState", "Piece", "Presence", "Result", "Route", "Sample", "Settings", "Severity", "Signed", "State",
    "Stream", "Taken", "Telemetry", "Tensor", "Up", "Want", "decode", "decode_desired", "encode",
]  # fmt: skip

BODIES: Final[dict[str, type[Any]]] = {
    "state": State,
    "telemetry": Telemetry,
    "health": Health,
    "sample": Sample,
    "event": Event,
    "result": Result,
}
"""Spooled kinds: the body inside :class:`Up`."""

PLAIN: Final[dict[str, type[Any]]] = {
    "hello": Hello,
    "want": Want,
    "piece": Piece,
    "taken": Taken,
    "gap": Gap,
    "desired": Signed,
    "ack": Ack,
    "command": Command,
    "presence": Presence,
}
"""Kinds that are not in an envelope."""

STREAM_OF: Final[dict[str, Stream]] = {
    "state": Stream.STATE,
    "telemetry": Stream.METRIC,
    "health": Stream.METRIC,
    "sample": Stream.SAMPLE,
    "event": Stream.ALARM,
    "result": Stream.RESULT,
}

MAX_BYTES: Final[dict[str, int]] = {
    "hello": 64 * 1024,
    "state": 256 * 1024,
    "telemetry": 256 * 1024,
    "health": 16 * 1024,
    "sample": 8 * 1024 * 1024,
    "event": 64 * 1024,
    "result": 256 * 1024,
    "want": 1024 * 1024,
    "piece": 128 * 1024,
    "taken": 1024 * 1024,
    "gap": 128 * 1024,
    "desired": 1024 * 1024,
    "ack": 4 * 1024,
    "command": 64 * 1024,
    "presence": 1024,
}
"""The largest payload of each kind, in bytes; larger ones are refused before they are decoded."""

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    **{kind: msgspec.msgpack.Decoder(Up[body]) for kind, body in BODIES.items()},  # type: ignore[valid-type]
    **{kind: msgspec.msgpack.Decoder(struct) for kind, struct in PLAIN.items()},
}
_desired_decoder = msgspec.msgpack.Decoder(Desired)


def encode(message: Any) -> bytes:
    """msgpack of any struct above."""
    return _encoder.encode(message)


def decode(kind: str, payload: bytes | bytearray | memoryview) -> Any:
    """The message that a topic's ``kind`` names: ``Up[...]`` for spooled kinds, else the struct itself.

    Raises:
        PeerError: ``message.oversized``, ``message.malformed``, ``message.unsupported_version``,
            ``message.unknown_topic`` for a kind that is not one.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        raise PeerError("message.unknown_topic", f"cannot decode a message of kind {kind!r}: no such kind")
    limit = MAX_BYTES[kind]
    if len(payload) > limit:
        raise PeerError(
            "message.oversized", f"cannot take a {kind} message of {len(payload)} bytes: the limit is {limit}"
        )
    try:
        message = decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError("message.malformed", f"cannot decode a {kind} message: {error}") from error
    version = getattr(message, "v", FORMAT)
    if version != FORMAT:
        raise PeerError(
            "message.unsupported_version", f"cannot read a {kind} message of format {version}: update this side"
        )
    return message


def decode_desired(payload: bytes) -> Desired:
    """The document inside :class:`Signed`, after its signature was verified.

    Raises:
        PeerError: ``message.malformed``.
    """
    try:
        return _desired_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError("message.malformed", f"cannot decode a desired document: {error}") from error
