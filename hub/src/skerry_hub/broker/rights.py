"""Who may publish and read which topic, as one rule: Mosquitto's ACL file is generated from it, the embedded broker
asks it, and an operator of another broker can read it here.

A device's user name is its id and its MQTT client id. It publishes only under its own ``up`` and ``presence``, and
reads only its own ``down`` and chunks. The hub may all that is ours.
"""

from __future__ import annotations

from typing import Final

from skerry_modules import topics

HUB_USER: Final = "SKERRY-HUB"
"""The hub's user name. Upper case, so that it can never be a device's id."""

DROPPED_TOPIC: Final = "$SYS/broker/publish/messages/dropped"
"""Mosquitto's count of messages that it dropped since its start: not one of our protocol, but one to watch."""

OVERSIZED_TOPIC: Final = "$SYS/skerry/oversized"
"""Where the embedded broker tells the hub whom it put out for a packet over the limit (JSON: device, bytes, limit)."""

_PUBLISHES: Final = (topics.up("%u", "+"), topics.presence("%u"))
_READS: Final = (topics.all_down("%u"), topics.chunk("+", "+"))  # type: ignore[arg-type]


def acl_text() -> str:
    """Mosquitto's ``acl_file``."""
    lines = [f"user {HUB_USER}", f"topic readwrite {topics.ROOT}/#", "topic read $SYS/#", ""]
    lines += [f"pattern write {pattern}" for pattern in _PUBLISHES]
    lines += [f"pattern read {pattern}" for pattern in _READS]
    return "\n".join(lines) + "\n"


def may_publish(user: str, topic: str) -> bool:
    """Whether a client logged in as ``user`` may publish to ``topic``."""
    if user == HUB_USER:
        return matches(f"{topics.ROOT}/#", topic)
    return any(matches(pattern.replace("%u", user), topic) for pattern in _PUBLISHES)


def may_read(user: str, topic: str) -> bool:
    """Whether a client may be sent a message of ``topic``."""
    if user == HUB_USER:
        return True
    return any(matches(pattern.replace("%u", user), topic) for pattern in _READS)


def may_subscribe(user: str, topic_filter: str) -> bool:
    """Whether a filter stays within what the user may read."""
    if user == HUB_USER:
        return True
    return any(_within(topic_filter.split("/"), pattern.replace("%u", user).split("/")) for pattern in _READS)


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT's matching of a topic against a filter."""
    parts = topic.split("/")
    wanted = topic_filter.split("/")
    if parts[0].startswith("$") and wanted[0] in ("+", "#"):
        return False
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(parts) or level not in ("+", parts[index]):
            return False
    return len(wanted) == len(parts)


def _within(inner: list[str], outer: list[str]) -> bool:
    """Whether each topic that ``inner`` matches is matched by ``outer`` (which has no ``#``)."""
    return len(inner) == len(outer) and all(
        mine != "#" and theirs in ("+", mine) for mine, theirs in zip(inner, outer, strict=True)
    )
