"""Which version answers which endpoint: a pure function of the slots, what is loaded, and the desired endpoints.

A module's own name is an endpoint to its active version. A desired endpoint splits its requests over versions; where
the version that it names is not active, the module's active version stands in, so that a rollout never leaves an
endpoint without an answer. Shares are made to sum to 100 again where a module has no version to offer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from skerry_agent.rules.effects import SetRoutes
from skerry_agent.rules.lifecycle import Step
from skerry_agent.rules.records import Record, Slot
from skerry_modules.messages import Endpoint, Route


def active(slot: Slot, loaded: Collection[str]) -> Record | None:
    """The version that has the module's traffic: the candidate in its soak, else the current one, else the one that
    is being rolled back for as long as nothing can take over."""
    candidate = slot.record(slot.candidate)
    if candidate is not None and candidate.step is Step.SOAK and candidate.digest in loaded:
        return candidate
    current = slot.record(slot.current)
    if current is not None and current.step is Step.SERVE and current.digest in loaded:
        return current
    rolling = slot.record(slot.rolling)
    return rolling if rolling is not None and rolling.digest in loaded else None


def compute(
    slots: Mapping[str, Slot], loaded: Collection[str], endpoints: tuple[Endpoint, ...]
) -> dict[str, SetRoutes]:
    """Every endpoint with its routes; empty routes where nothing can answer."""
    serving = {name: active(slot, loaded) for name, slot in slots.items()}
    table = {name: _set(name, [(record, 100.0)] if record else []) for name, record in serving.items()}
    for endpoint in endpoints:
        parts: dict[str, tuple[Record, float]] = {}
        for route in endpoint.routes:
            record = serving.get(route.module)
            if record is not None and route.percent > 0:
                share = parts.get(record.digest, (record, 0.0))[1]
                parts[record.digest] = (record, share + route.percent)
        total = sum(share for _, share in parts.values())
        table[endpoint.name] = _set(endpoint.name, [(record, 100 * s / total) for record, s in parts.values()])
    return table


def _set(endpoint: str, parts: list[tuple[Record, float]]) -> SetRoutes:
    routes = tuple(Route(module=record.name, version=record.version, percent=share) for record, share in parts)
    return SetRoutes(endpoint, routes, tuple(record.digest for record, _ in parts))
