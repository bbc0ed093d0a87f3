"""``skerry export``: everything that the hub knows, as JSON or JSON Lines, for other tools and for keeping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from skerry.client import Client

MAX_ROWS: Final = 1_000_000
"""The most rows of one list (audit, events) that are exported."""

Record = tuple[str, dict[str, Any]]


def records(client: Client, *, model: str = "", tags: list[str] | None = None) -> Iterator[Record]:
    """Everything about one model, about the devices with some tags, or (without either) about all.

    Yields:
        (kind, record): ``hub``, ``model``, ``version``, ``device``, ``rollout``, ``event``, ``audit``.
    """
    yield "hub", _plain(client.status())
    devices = client.devices(tags=tags or [])
    names = [model] if model else [one.name for one in client.models()]
    if not tags or model:
        for name in names:
            yield "model", _plain(client.model(name))
            for version in client.versions(model=name):
                yield "version", _plain(client.version(name, version.version))
    if not model or tags:
        for device in devices:
            wanted = client.device_modules(device.id).wanted
            yield "device", {**_plain(device), "wanted": msgspec.to_builtins(wanted)}
    ids = {device.id for device in devices}
    for rollout in client.rollouts(limit=MAX_ROWS):
        detail = client.rollout(rollout.id)
        if (not model or detail.module == model) and (not tags or ids & {one.device for one in detail.devices}):
            yield "rollout", _plain(detail)
    for event in client.events(limit=MAX_ROWS):
        if (not model or event.module == model) and (not tags or event.device in ids):
            yield "event", _plain(event)
    for entry in client.audit(limit=MAX_ROWS):
        if (not model or _concerns(entry.subject, entry.data, model)) and (not tags or entry.subject in ids):
            yield "audit", _plain(entry)


def as_object(found: Iterator[Record]) -> dict[str, Any]:
    """All records under their kind's plural; ``hub`` is one."""
    result: dict[str, Any] = {
        "hub": {},
        "models": [],
        "versions": [],
        "devices": [],
        "rollouts": [],
        "events": [],
        "audit": [],
    }
    for kind, record in found:
        if kind == "hub":
            result["hub"] = record
        else:
            result["audit" if kind == "audit" else f"{kind}s"].append(record)
    return result


def _concerns(subject: str, data: dict[str, Any], model: str) -> bool:
    return subject == model or subject.startswith(f"{model}:") or data.get("module") == model


def _plain(value: Any) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(value)
    return made
