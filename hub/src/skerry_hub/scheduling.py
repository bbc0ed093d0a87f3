"""What can run where, for many devices at once: the manifest against each device's profile and what it said of itself.

The rule is :func:`skerry_modules.compatibility.obstacles`; this module only gathers its facts in few statements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec
from sqlmodel import Session, col, select

from skerry_hub import registry
from skerry_hub.profiling import Measured
from skerry_hub.tables import Assignment, Device, Endpoint, EndpointDevice, ModelVersion
from skerry_modules import compatibility, profiles
from skerry_modules.compatibility import DeviceFacts, ModelFacts, Obstacle, memory_mb, with_memory
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Route

EXCLUSIVE: Final = frozenset(("pynq",))
"""Engines whose device holds one version at a time."""


def obstacles_of(session: Session, devices: Sequence[Device], version: ModelVersion) -> dict[str, list[Obstacle]]:
    """For each device id, every reason why ``version`` cannot run there; an empty list where it can."""
    manifest = msgspec.json.decode(version.manifest, type=Manifest)
    model = msgspec.json.decode(version.facts, type=ModelFacts)
    wanted = _others(session, version.name)
    sides = _sides(session, {device.id for device in devices})
    new = {(device, *key) for device, keys in sides.items() for key in keys} - {*wanted}
    wanted += sorted(one for one in new if one[1:] != (version.name, version.version))
    measured = Measured(session, {(version.name, version.version), *((name, number) for _, name, number in wanted)})
    in_use = _memory_in_use(session, wanted, measured, {device.id: device for device in devices})
    found = {}
    for device in devices:
        facts = msgspec.json.decode(device.facts, type=DeviceFacts)
        facts = msgspec.structs.replace(facts, memory_in_use_mb=in_use.get(device.id, 0))
        known = with_memory(manifest, measured.memory_mb(version.name, version.version, device))
        found[device.id] = compatibility.obstacles(known, model, profiles.get(device.profile), facts)
    return found


def together(session: Session, device: Device, named: set[tuple[str, int]]) -> Obstacle | None:
    """Why a device cannot keep these versions loaded, beside all else that it is to run; None if it can."""
    profile = profiles.get(device.profile)
    facts = msgspec.json.decode(device.facts, type=DeviceFacts)
    statement = select(Assignment.module, Assignment.version).where(col(Assignment.device) == device.id)
    everything = named | {(name, number) for name, number in session.exec(statement)}
    everything |= _sides(session, {device.id}).get(device.id, set())
    measured = Measured(session, everything)
    total, boards = 0, []
    for name, number in sorted(everything):
        row = registry.get_version(session, name, number)
        known = with_memory(msgspec.json.decode(row.manifest, type=Manifest), measured.memory_mb(name, number, device))
        total += memory_mb(known)
        boards += [f"{name}:{number}"] if {known.engine, *(step.engine for step in known.steps)} & EXCLUSIVE else []
        model = msgspec.json.decode(row.facts, type=ModelFacts)
        found = compatibility.obstacles(known, model, profile, facts) if (name, number) in named else []
        if found:
            return Obstacle(found[0].code, f"{name}:{number} {found[0].message}")
    if len(boards) > 1 and any(f"{name}:{number}" in boards for name, number in named):
        return Obstacle("unschedulable.engine", f"its board holds one version at a time, not {' and '.join(boards)}")
    if total > profile.limits.memory_mb:
        text = f"{len(everything)} versions need {total} MB together, profile leaves {profile.limits.memory_mb} MB"
        return Obstacle("unschedulable.memory", text)
    return None


def _sides(session: Session, devices: Collection[str]) -> dict[str, set[tuple[str, int]]]:
    """The versions behind the endpoints that each device has."""
    found: dict[str, set[tuple[str, int]]] = {}
    statement = select(EndpointDevice.device, Endpoint).join(
        Endpoint, col(EndpointDevice.endpoint) == col(Endpoint.name)
    )
    for device, row in session.exec(statement.where(col(EndpointDevice.reason) == "")):
        if device in devices:
            routes = (msgspec.json.decode(text, type=tuple[Route, ...]) for text in (row.split, row.shadow, row.before))
            found.setdefault(device, set()).update((one.module, one.version) for part in routes for one in part)
    return found


def _others(session: Session, except_module: str) -> list[tuple[str, str, int]]:
    """(device, module, version) of what is wanted besides."""
    statement = (
        select(Assignment.device, ModelVersion.name, ModelVersion.version)
        .join(
            ModelVersion,
            (col(ModelVersion.name) == col(Assignment.module)) & (col(ModelVersion.version) == col(Assignment.version)),
        )
        .where(col(Assignment.module) != except_module)
    )
    return [(device, name, number) for device, name, number in session.exec(statement)]


def _memory_in_use(
    session: Session, wanted: Sequence[tuple[str, str, int]], measured: Measured, devices: Mapping[str, Device]
) -> dict[str, int]:
    """Megabytes of other wanted modules, measured or declared, by device: they stay, so the new one must fit beside."""
    manifests: dict[tuple[str, int], Manifest] = {}
    used: dict[str, int] = {}
    for device, name, number in wanted:
        if device not in devices:
            continue
        if (name, number) not in manifests:
            row = registry.get_version(session, name, number)
            manifests[name, number] = msgspec.json.decode(row.manifest, type=Manifest)
        known = with_memory(manifests[name, number], measured.memory_mb(name, number, devices[device]))
        used[device] = used.get(device, 0) + memory_mb(known)
    return used
