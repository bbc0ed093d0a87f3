"""Every MQTT topic of the protocol, spelled once: formatters and their one parser.

Rules: fixed depth, no wildcard character in any part, device ids as :func:`check_device_id` allows.
Nothing else in the code base spells a topic.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from skerry_modules.errors import InputError, PeerError

ROOT: Final = "skerry/1"

UP_KINDS: Final = ("hello", "state", "telemetry", "health", "sample", "event", "result", "want", "piece")
DOWN_KINDS: Final = ("desired", "ack", "command", "taken", "gap")

_DEVICE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"0|[1-9][0-9]{0,9}")  # one spelling per number, and no number long enough to make int() refuse


class Topic(msgspec.Struct, frozen=True):
    """A parsed topic. ``direction`` is ``up``, ``down``, ``presence`` or ``chunk``."""

    direction: str
    device: str = ""
    kind: str = ""
    digest: str = ""
    part: int = -1


def check_device_id(device: str) -> str:
    """Return the id if it is 1–64 of ``a-z 0-9 . _ -`` and starts with a letter or digit.

    Raises:
        InputError: ``device.invalid_id``.
    """
    if not _DEVICE_ID.fullmatch(device):
        raise InputError(
            "device.invalid_id",
            f"cannot use {device!r} as a device id: use 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or digit",
        )
    return device


def up(device: str, kind: str) -> str:
    """Device → hub."""
    return f"{ROOT}/d/{device}/up/{kind}"


def down(device: str, kind: str) -> str:
    """Hub → device; ``desired`` is retained."""
    return f"{ROOT}/d/{device}/down/{kind}"


def presence(device: str) -> str:
    """Retained; the last will sets it to offline."""
    return f"{ROOT}/d/{device}/presence"


def chunk(digest: str, part: int) -> str:
    """Hub → every device that subscribed: chunk ``part`` of the object ``digest``."""
    return f"{ROOT}/c/{digest}/{part}"


def chunks_of(digest: str) -> str:
    """The filter for all chunks of one object."""
    return f"{ROOT}/c/{digest}/+"


ALL_UP: Final = f"{ROOT}/d/+/up/+"
ALL_PRESENCE: Final = f"{ROOT}/d/+/presence"


def all_down(device: str) -> str:
    """The filter for all that is meant for one device."""
    return f"{ROOT}/d/{device}/down/+"


def parse(topic: str) -> Topic:
    """The inverse of the formatters.

    Raises:
        PeerError: ``message.unknown_topic``.
    """
    parts = topic.split("/")
    if parts[:2] == ["skerry", "1"]:
        match parts[2:]:
            case ["d", device, "up", kind] if kind in UP_KINDS and _DEVICE_ID.fullmatch(device):
                return Topic("up", device=device, kind=kind)
            case ["d", device, "down", kind] if kind in DOWN_KINDS and _DEVICE_ID.fullmatch(device):
                return Topic("down", device=device, kind=kind)
            case ["d", device, "presence"] if _DEVICE_ID.fullmatch(device):
                return Topic("presence", device=device)
            case ["c", digest, part] if _DIGEST.fullmatch(digest) and _PART.fullmatch(part):
                return Topic("chunk", digest=digest, part=int(part))
    raise PeerError("message.unknown_topic", f"cannot read the topic {topic[:200]!r}: it is not one of the protocol's")
