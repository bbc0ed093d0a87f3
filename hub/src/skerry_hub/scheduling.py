"""What can run where, for many devices at once: the manifest against each device's profile and what it said of itself.

The rule is :func:`skerry_modules.compatibility.obstacles`; this module only gathers its facts in few statements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from sqlmodel import Session, col, select

from skerry_hub import registry
from skerry_hub.profiling import Measured
from skerry_hub.tables import Assignment, Device, ModelVersion
from skerry_modules import compatibility, profiles
from skerry_modules.compatibility import DeviceFacts, ModelFacts, Obstacle, memory_mb, with_memory
from skerry_modules.manifest import Manifest


def obstacles_of(session: Session, devices: Sequence[Device], version: ModelVersion) -> dict[str, list[Obstacle]]:
    """For each device id, every reason why ``version`` cannot run there; an empty list where it can."""
    manifest = msgspec.json.decode(version.manifest, type=Manifest)
    model = msgspec.json.decode(version.facts, type=ModelFacts)
    wanted = _others(session, version.name)
    measured = Measured(session, {(version.name, version.version), *((name, number) for _, name, number in wanted)})
    in_use = _memory_in_use(session, wanted, measured, {device.id: device for device in devices})
    found = {}
    for device in devices:
        facts = msgspec.json.decode(device.facts, type=DeviceFacts)
        facts = msgspec.structs.replace(facts, memory_in_use_mb=in_use.get(device.id, 0))
        known = with_memory(manifest, measured.memory_mb(version.name, version.version, device))
        found[device.id] = compatibility.obstacles(known, model, profiles.get(device.profile), facts)
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
