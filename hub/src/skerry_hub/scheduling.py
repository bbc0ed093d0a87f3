"""What can run where, for many devices at once: the manifest against each device's profile and what it said of itself.

The rule is :func:`skerry_modules.compatibility.obstacles`; this module only gathers its facts in few statements. A
fleet is many devices of few kinds: those that are equal in all that decides are judged once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec
from sqlmodel import Session, col, select

from skerry_hub import registry
from skerry_hub.db import chunked
from skerry_hub.profiling import Measured
from skerry_hub.tables import Assignment, Endpoint, EndpointDevice, ModelVersion
from skerry_modules import compatibility, profiles
from skerry_modules.compatibility import DeviceFacts, ModelFacts, Obstacle, memory_mb, with_memory
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Route

EXCLUSIVE: Final = frozenset(("pynq",))
"""Engines whose device holds one version at a time."""

_ASKED_BY_NAME: Final = 2000
"""Up to so many devices are named in statements; of more, the whole table is read, which is faster."""

_Key = tuple[str, int]


class Candidate(Protocol):
    """A device's columns that decide: ``tables.Device``, or ``devices.Place``."""

    @property
    def id(self) -> str: ...

    @property
    def profile(self) -> str: ...

    @property
    def facts(self) -> str: ...


def obstacles_of(
    session: Session, candidates: Sequence[Candidate], version: ModelVersion
) -> dict[str, Sequence[Obstacle]]:
    """For each device id, every reason why ``version`` cannot run there; nothing where it can."""
    manifest = msgspec.json.decode(version.manifest, type=Manifest)
    model = msgspec.json.decode(version.facts, type=ModelFacts)
    own = (version.name, version.version)
    names = [one.id for one in candidates]
    wanted = {device: {key for key in keys if key[0] != own[0]} for device, keys in _assigned(session, names).items()}
    for device, keys in _sides(session, names).items():
        wanted.setdefault(device, set()).update(keys - {own})
    others = {key for keys in wanted.values() for key in keys}
    measured = Measured(session, {own, *others})
    manifests = {key: _manifest(session, *key) for key in sorted(others)}
    kinds = _Kinds()
    judged: dict[tuple[object, ...], Sequence[Obstacle]] = {}
    found = {}
    for one in candidates:
        in_use = sum(
            memory_mb(with_memory(manifests[key], measured.memory_mb(*key, one))) for key in wanted.get(one.id, ())
        )
        needs = measured.memory_mb(*own, one)
        kind = kinds.of(one)
        key = (one.profile, kind, in_use, needs)
        if key not in judged:
            facts = msgspec.structs.replace(kinds.facts(kind), memory_in_use_mb=in_use)
            known = with_memory(manifest, needs)
            judged[key] = compatibility.obstacles(known, model, profiles.get(one.profile), facts)
        found[one.id] = judged[key]
    return found


def together(session: Session, device: Candidate, named: set[_Key]) -> Obstacle | None:
    """Why a device cannot keep these versions loaded, beside all else that it is to run; None if it can."""
    return together_all(session, [device], named)[device.id]


def together_all(session: Session, candidates: Sequence[Candidate], named: set[_Key]) -> dict[str, Obstacle | None]:
    """:func:`together` for many devices; every one has an entry."""
    names = [one.id for one in candidates]
    assigned, sides = _assigned(session, names), _sides(session, names)
    nothing: set[_Key] = set()
    everything = {name: named | assigned.get(name, nothing) | sides.get(name, nothing) for name in names}
    keys = {key for found in everything.values() for key in found}
    measured = Measured(session, keys)
    loads = {key: _Load(_manifest(session, *key), _model(session, *key)) for key in sorted(keys)}
    kinds = _Kinds()
    judged: dict[tuple[object, ...], Obstacle | None] = {}
    found = {}
    for one in candidates:
        wanted = sorted(everything[one.id])
        needs = tuple(measured.memory_mb(*key, one) for key in wanted)
        kind = kinds.of(one)
        key = (one.profile, kind, tuple(wanted), needs)
        if key not in judged:
            parts = [(name, with_memory(loads[name].manifest, mb)) for name, mb in zip(wanted, needs, strict=True)]
            judged[key] = _obstacle(parts, {name: loads[name].model for name in named}, one.profile, kinds.facts(kind))
        found[one.id] = judged[key]
    return found


class _Load(msgspec.Struct, frozen=True):
    manifest: Manifest
    model: ModelFacts


def _obstacle(
    parts: Sequence[tuple[_Key, Manifest]], named: Mapping[_Key, ModelFacts], profile_name: str, facts: DeviceFacts
) -> Obstacle | None:
    """The judgement of :func:`together`: each named version by itself, then all of them side by side."""
    profile = profiles.get(profile_name)
    total, boards = 0, []
    for key, known in parts:
        total += memory_mb(known)
        boards += [key] if {known.engine, *(step.engine for step in known.steps)} & EXCLUSIVE else []
        found = compatibility.obstacles(known, named[key], profile, facts) if key in named else []
        if found:
            return Obstacle(found[0].code, f"{key[0]}:{key[1]} {found[0].message}")
    if len(boards) > 1 and any(key in named for key in boards):
        spelled = " and ".join(f"{name}:{number}" for name, number in boards)
        return Obstacle("unschedulable.engine", f"its board holds one version at a time, not {spelled}")
    if total > profile.limits.memory_mb:
        text = f"{len(parts)} versions need {total} MB together, profile leaves {profile.limits.memory_mb} MB"
        return Obstacle("unschedulable.memory", text)
    return None


class _Kinds:
    """Devices by what they said of themselves, as far as it decides: each kind has one key."""

    def __init__(self) -> None:
        self._facts: dict[bytes, DeviceFacts] = {}

    def of(self, device: Candidate) -> bytes:
        facts = compatibility.deciding(msgspec.json.decode(device.facts, type=DeviceFacts))
        key = msgspec.msgpack.encode(facts)
        self._facts.setdefault(key, facts)
        return key

    def facts(self, key: bytes) -> DeviceFacts:
        return self._facts[key]


def _manifest(session: Session, name: str, number: int) -> Manifest:
    return msgspec.json.decode(registry.get_version(session, name, number).manifest, type=Manifest)


def _model(session: Session, name: str, number: int) -> ModelFacts:
    return msgspec.json.decode(registry.get_version(session, name, number).facts, type=ModelFacts)


def _parts(names: Sequence[str]) -> Sequence[Sequence[str] | None]:
    """Names to ask for in one statement each; None asks for all."""
    return list(chunked(names)) if len(names) <= _ASKED_BY_NAME else [None]


def _assigned(session: Session, names: Sequence[str]) -> dict[str, set[_Key]]:
    """What each device is to run."""
    found: dict[str, set[_Key]] = {}
    statement = select(col(Assignment.device), col(Assignment.module), col(Assignment.version))
    for part in _parts(names):
        asked = statement if part is None else statement.where(col(Assignment.device).in_(part))
        for device, name, number in session.execute(asked):
            found.setdefault(device, set()).add((name, number))
    return found


def _sides(session: Session, names: Sequence[str]) -> dict[str, set[_Key]]:
    """The versions behind the endpoints that each device has."""
    behind: dict[str, set[_Key]] = {}
    for name, *texts in session.execute(
        select(col(Endpoint.name), col(Endpoint.split), col(Endpoint.shadow), col(Endpoint.before))
    ):
        routes = (msgspec.json.decode(text, type=tuple[Route, ...]) for text in texts)
        behind[name] = {(one.module, one.version) for part in routes for one in part}
    found: dict[str, set[_Key]] = {}
    statement = select(col(EndpointDevice.device), col(EndpointDevice.endpoint)).where(col(EndpointDevice.reason) == "")
    for part in _parts(names) if behind else ():
        asked = statement if part is None else statement.where(col(EndpointDevice.device).in_(part))
        for device, name in session.execute(asked):
            found.setdefault(device, set()).update(behind[name])
    return found
