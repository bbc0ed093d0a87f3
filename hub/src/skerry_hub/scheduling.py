"""What can run where, for many devices at once: the manifest against each device's profile and what it said of itself.

The rule is :func:`skerry_modules.compatibility.obstacles`; this module only gathers its facts in few statements.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlmodel import Session, col, select

from skerry_hub.tables import Assignment, Device, ModelVersion
from skerry_modules import compatibility, profiles
from skerry_modules.compatibility import DeviceFacts, ModelFacts, Obstacle
from skerry_modules.manifest import Manifest


def obstacles_of(session: Session, devices: Sequence[Device], version: ModelVersion) -> dict[str, list[Obstacle]]:
    """For each device id, every reason why ``version`` cannot run there; an empty list where it can."""
    manifest = msgspec.json.decode(version.manifest, type=Manifest)
    model = msgspec.json.decode(version.facts, type=ModelFacts)
    in_use = _memory_in_use(session, version.name)
    found = {}
    for device in devices:
        facts = msgspec.json.decode(device.facts, type=DeviceFacts)
        facts = msgspec.structs.replace(facts, memory_in_use_mb=in_use.get(device.id, 0))
        found[device.id] = compatibility.obstacles(manifest, model, profiles.get(device.profile), facts)
    return found


def _memory_in_use(session: Session, except_module: str) -> dict[str, int]:
    """Megabytes that other wanted modules declare, by device: they stay, so the new one must fit beside them."""
    statement = (
        select(Assignment.device, ModelVersion.name, ModelVersion.version)
        .join(
            ModelVersion,
            (col(ModelVersion.name) == col(Assignment.module)) & (col(ModelVersion.version) == col(Assignment.version)),
        )
        .where(col(Assignment.module) != except_module)
    )
    needs: dict[tuple[str, int], int] = {}
    used: dict[str, int] = {}
    for device, name, number in session.exec(statement):
        if (name, number) not in needs:
            row = session.get(ModelVersion, (name, number))
            needs[name, number] = msgspec.json.decode(row.manifest, type=Manifest).resources.memory_mb if row else 0
        used[device] = used.get(device, 0) + needs[name, number]
    return used
