"""Any payload of the protocol as JSON, for a person who looks at the wire."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from skerry_modules import chunks, messages, topics
from skerry_modules.errors import PeerError


def decode(payload: bytes, *, topic: str = "", kind: str = "") -> dict[str, Any]:
    """One payload.

    Args:
        payload: as it was published.
        topic: where; its kind says what the payload is.
        kind: instead of a topic: ``state``, ``telemetry``, …, ``presence`` or ``chunk``.

    Returns:
        ``kind``, ``topic`` and ``device`` where a topic was given, ``bytes`` (the size) and the ``message``.

    Raises:
        PeerError: ``message.*``.
    """
    found: dict[str, Any] = {}
    if topic:
        parsed = topics.parse(topic)
        kind = parsed.kind or parsed.direction
        found = {"topic": topic, "device": parsed.device or None}
        if kind == "chunk":
            found |= {"digest": parsed.digest, "part": parsed.part}
    found |= {"kind": kind, "bytes": len(payload)}
    if kind == "chunk":
        return found | {"message": {"v": payload[0] if payload else 0, "data_bytes": len(chunks.unframe(payload))}}
    if not payload and kind in ("desired", "presence"):
        return found | {"message": None}  # an empty retained payload clears what the broker kept
    message = messages.decode(kind, payload)
    body = _plain(message)
    if isinstance(message, messages.Signed):
        body["payload"] = _plain(messages.decode_desired(message.payload))
    if isinstance(message, messages.Up):
        body["stream"] = _stream(message.stream)
    return found | {"message": body}


def _stream(number: int) -> str:
    try:
        return messages.Stream(number).name.lower()
    except ValueError:
        return str(number)


def _plain(message: Any) -> Any:
    """Structs as dicts with all their fields named, bytes as base64 text."""
    if isinstance(message, msgspec.Struct):
        return {name: _plain(getattr(message, name)) for name in message.__struct_fields__}
    if isinstance(message, dict):
        return {str(key): _plain(value) for key, value in message.items()}
    if isinstance(message, list | tuple):
        return [_plain(value) for value in message]
    if isinstance(message, bytes):
        return base64.b64encode(message).decode()
    return message


def check_kind(kind: str) -> None:
    """Raises PeerError ``message.unknown_topic`` for a kind that is not one."""
    known = (*messages.BODIES, *messages.PLAIN, "chunk")
    if kind not in known:
        raise PeerError(
            "message.unknown_topic", f"cannot decode the kind {kind!r}: it is one of {', '.join(sorted(known))}"
        )
