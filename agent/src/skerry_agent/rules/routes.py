"""Which version answers which endpoint: a pure function of the slots, what is loaded, and the desired endpoints.

A module's own name is an endpoint to its active version. A desired endpoint splits its requests over versions:

* A split takes effect when each of its versions is ready here or has failed here. Until then the split before it goes
  on, so that a version meant for a tenth of the requests never gets all of them because it was the first one ready.
* The share of a version that failed goes to the others, in proportion.
* Where none of them can answer, the split before does; where that cannot either, the active versions of the modules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from skerry_agent.rules.effects import SetRoutes
from skerry_agent.rules.lifecycle import TERMINAL, Step
from skerry_agent.rules.records import Record, Slot
from skerry_modules.messages import Endpoint, Route

_Part = tuple[Record, float]


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
    serving = {name: active(slot, loaded) for name, slot in slots.items() if not slot.side}
    table = {name: _set(name, [(record, 100.0)] if record else []) for name, record in serving.items()}
    for endpoint in endpoints:
        table[endpoint.name] = _endpoint(endpoint, slots, loaded, serving)
    return table


def _endpoint(
    endpoint: Endpoint, slots: Mapping[str, Slot], loaded: Collection[str], serving: Mapping[str, Record | None]
) -> SetRoutes:
    wanted = _resolve(endpoint.routes, slots, loaded)
    before = _resolve(endpoint.before, slots, loaded)
    coming = any(is_coming(route, slots) for route in endpoint.routes if route.percent > 0)
    live = (before or wanted) if coming and before else (wanted or before)
    live = live or _stand_in(endpoint.routes, serving)
    if not live:
        return _set(endpoint.name, [])  # nothing to compare a shadow with
    answering = {record.digest for record, _ in live}
    shadow = [part for part in _resolve(endpoint.shadow, slots, loaded) if part[0].digest not in answering]
    return _set(endpoint.name, _to_hundred(live), shadow)


def is_coming(route: Route, slots: Mapping[str, Slot]) -> bool:
    """Whether a version is on its way: here, and neither ready nor ended."""
    for slot in slots.values():
        for record in slot.records.values():
            if (record.name, record.version) == (route.module, route.version):
                return bool(slot.role(record.digest)) and record.step not in TERMINAL and not _is_ready(slot, record)
    return False


def _is_ready(slot: Slot, record: Record) -> bool:
    if record.digest == slot.current:
        return record.step is Step.SERVE
    return record.digest == slot.candidate and record.step is Step.SOAK


def _resolve(routes: tuple[Route, ...], slots: Mapping[str, Slot], loaded: Collection[str]) -> list[_Part]:
    """The versions among these that can answer here, each once, with what they were given."""
    parts: dict[str, _Part] = {}
    for route in routes:
        for slot in slots.values():
            for record in slot.records.values():
                named = (record.name, record.version) == (route.module, route.version) and route.percent > 0
                if named and record.digest in loaded and _is_ready(slot, record):
                    share = parts.get(record.digest, (record, 0.0))[1]
                    parts[record.digest] = (record, share + route.percent)
    return list(parts.values())


def _stand_in(routes: tuple[Route, ...], serving: Mapping[str, Record | None]) -> list[_Part]:
    """The active versions of the modules that a split names."""
    parts: dict[str, _Part] = {}
    for route in routes:
        record = serving.get(route.module)
        if record is not None and route.percent > 0:
            parts[record.digest] = (record, parts.get(record.digest, (record, 0.0))[1] + route.percent)
    return list(parts.values())


def _to_hundred(parts: list[_Part]) -> list[_Part]:
    total = sum(share for _, share in parts)
    return [(record, 100 * share / total) for record, share in parts]


def _set(endpoint: str, parts: list[_Part], shadow: list[_Part] | None = None) -> SetRoutes:
    return SetRoutes(
        endpoint,
        _routes(parts),
        tuple(record.digest for record, _ in parts),
        _routes(shadow or []),
        tuple(record.digest for record, _ in shadow or []),
    )


def _routes(parts: list[_Part]) -> tuple[Route, ...]:
    return tuple(Route(module=record.name, version=record.version, percent=share) for record, share in parts)
