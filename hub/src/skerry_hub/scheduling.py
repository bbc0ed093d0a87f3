"""What can run where, for many devices at once: the manifest against each device's profile and what it said of itself.

The rule is :func:`skerry_modules.compatibility.obstacles`; this module only gathers its facts in few statements. A
fleet is many devices of few kinds: those that are equal in all that decides are judged once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
    wanted = _Wanted(session, [one.id for one in candidates], lambda key: key[0] != own[0], lambda key: key != own)
    measured = Measured(session, {own, *wanted.keys})
    manifests = {key: _manifest(session, *key) for key in wanted.keys}
    kinds = _Kinds()
    judged: dict[tuple[object, ...], Sequence[Obstacle]] = {}
    found = {}
    for one in candidates:
        in_use = sum(memory_mb(with_memory(manifests[key], measured.memory_mb(*key, one))) for key in wanted.by(one.id))
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
    everything = _Wanted(session, [one.id for one in candidates], besides=named)
    measured = Measured(session, everything.keys)
    loads = {key: _Load(_manifest(session, *key), _model(session, *key)) for key in everything.keys}
    kinds = _Kinds()
    judged: dict[tuple[object, ...], Obstacle | None] = {}
    found = {}
    for one in candidates:
        wanted = everything.by(one.id)
        needs = tuple(measured.memory_mb(*key, one) for key in wanted)
        kind = kinds.of(one)
        key = (one.profile, kind, wanted, needs)
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


class _Wanted:
    """What each device is to run: its modules, and the versions behind its endpoints.

    Args:
        names: the devices.
        modules, behind: which of each kind count; all by default.
        besides: versions that count on every device.
    """

    def __init__(
        self,
        session: Session,
        names: Sequence[str],
        modules: Callable[[_Key], bool] = lambda key: True,
        behind: Callable[[_Key], bool] = lambda key: True,
        besides: Collection[_Key] = (),
    ) -> None:
        self._besides = tuple(besides)
        self._modules, self._behind = _assigned(session, names, modules), _sides(session, names, behind)
        self._sorted: dict[tuple[tuple[_Key, ...], ...], tuple[_Key, ...]] = {}
        for name in names:
            self.by(name)
        self.keys = tuple(sorted({key for found in self._sorted.values() for key in found}))

    def by(self, device: str) -> tuple[_Key, ...]:
        """In order. Few combinations occur, and each is made once: a fleet's garbage would cost more than its rows."""
        both = (self._modules.get(device, ()), self._behind.get(device, ()))
        if both not in self._sorted:
            self._sorted[both] = tuple(sorted({*both[0], *both[1], *self._besides}))
        return self._sorted[both]


def _assigned(session: Session, names: Sequence[str], counts: Callable[[_Key], bool]) -> dict[str, tuple[_Key, ...]]:
    """The modules of each device."""
    found: dict[str, tuple[_Key, ...]] = {}
    known: dict[_Key, tuple[_Key, ...]] = {}
    statement = select(col(Assignment.device), col(Assignment.module), col(Assignment.version))
    for part in _parts(names):
        asked = statement if part is None else statement.where(col(Assignment.device).in_(part))
        for device, name, number in session.execute(asked.order_by(col(Assignment.device), col(Assignment.module))):
            key = (name, number)
            one = known.get(key)
            if one is None:
                one = known[key] = (key,) if counts(key) else ()
            had = found.get(device)
            found[device] = one if had is None else had + one
    return found


def _sides(session: Session, names: Sequence[str], counts: Callable[[_Key], bool]) -> dict[str, tuple[_Key, ...]]:
    """The versions behind the endpoints that each device has."""
    behind: dict[str, tuple[_Key, ...]] = {}
    for name, *texts in session.execute(
        select(col(Endpoint.name), col(Endpoint.split), col(Endpoint.shadow), col(Endpoint.before))
    ):
        routes = (msgspec.json.decode(text, type=tuple[Route, ...]) for text in texts)
        keys = {(one.module, one.version) for part in routes for one in part}
        behind[name] = tuple(sorted(key for key in keys if counts(key)))
    found: dict[str, tuple[_Key, ...]] = {}
    statement = select(col(EndpointDevice.device), col(EndpointDevice.endpoint)).where(col(EndpointDevice.reason) == "")
    for part in _parts(names) if behind else ():
        asked = statement if part is None else statement.where(col(EndpointDevice.device).in_(part))
        for device, name in session.execute(asked.order_by(col(EndpointDevice.device), col(EndpointDevice.endpoint))):
            had = found.get(device)
            found[device] = behind[name] if had is None else had + behind[name]
    return found
