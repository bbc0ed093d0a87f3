"""Models and their versions, and where each of them runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import and_, func, select
from sqlmodel import Session, col

from skerry_hub import environments
from skerry_hub.console.queries.paging import Page, clamp
from skerry_hub.tables import Assignment, DeviceModule, Model, ModelVersion, Rollout, VersionFile, VersionTag


@dataclass(frozen=True)
class Presence:
    """Devices by what they do with a version."""

    wanted: int = 0  # desired by the hub
    current: int = 0  # serving it
    candidate: int = 0  # on its way
    failed: int = 0
    last_good: int = 0


@dataclass
class VersionLine:
    """A version in a list."""

    row: ModelVersion
    tags: list[tuple[str, str]] = field(default_factory=list)
    presence: Presence = Presence()


@dataclass
class ModelLine:
    """A model in the list, with its newest version."""

    row: Model
    versions: int = 0
    newest: ModelVersion | None = None
    serving: dict[int, int] = field(default_factory=dict)  # version → devices


def models(session: Session) -> list[ModelLine]:
    lines = {row.name: ModelLine(row) for row in session.execute(select(Model).order_by(col(Model.name))).scalars()}
    newest = (
        select(
            col(ModelVersion.name), func.max(col(ModelVersion.version)).label("version"), func.count().label("versions")
        )
        .group_by(col(ModelVersion.name))
        .subquery()
    )
    statement = select(ModelVersion, newest.c.versions).join(
        newest, (newest.c.name == col(ModelVersion.name)) & (newest.c.version == col(ModelVersion.version))
    )
    for version, number in session.execute(statement):
        lines[version.name].newest, lines[version.name].versions = version, number
    for module, number, count in session.execute(_serving()):
        if module in lines:
            lines[module].serving[number] = count
    return list(lines.values())


def _serving() -> Any:
    return (
        select(col(DeviceModule.module), col(DeviceModule.version), func.count())
        .where(col(DeviceModule.role) == "current")
        .group_by(col(DeviceModule.module), col(DeviceModule.version))
        .order_by(col(DeviceModule.version).desc())
    )


def versions(session: Session, name: str) -> list[VersionLine]:
    """All versions of a model, newest first."""
    statement = select(ModelVersion).where(col(ModelVersion.name) == name).order_by(col(ModelVersion.version).desc())
    lines = {row.version: VersionLine(row) for row in session.execute(statement).scalars()}
    tags = select(VersionTag).where(col(VersionTag.name) == name).order_by(col(VersionTag.key))
    for tag in session.execute(tags).scalars():
        if tag.version in lines:
            lines[tag.version].tags.append((tag.key, tag.value))
    for version, presence in presences(session, name).items():
        if version in lines:
            lines[version].presence = presence
    return list(lines.values())


def presences(session: Session, name: str) -> dict[int, Presence]:
    """By version: how many devices want it, serve it, are on their way to it, failed it or keep it to go back to."""
    numbers: dict[int, dict[str, int]] = {}
    wanted = (
        select(col(Assignment.version), func.count())
        .where(col(Assignment.module) == name)
        .group_by(col(Assignment.version))
    )
    for version, count in session.execute(wanted):
        numbers.setdefault(version, {})["wanted"] = count
    reported = (
        select(col(DeviceModule.version), col(DeviceModule.role), col(DeviceModule.phase), func.count())
        .where(col(DeviceModule.module) == name)
        .group_by(col(DeviceModule.version), col(DeviceModule.role), col(DeviceModule.phase))
    )
    for version, role, phase, count in session.execute(reported):
        mine = numbers.setdefault(version, {})
        key = {"current": "current", "side": "current", "last-good": "last_good"}.get(
            role, "failed" if phase == "Failed" else "candidate"
        )
        mine[key] = mine.get(key, 0) + count
    return {version: Presence(**mine) for version, mine in numbers.items()}


@dataclass(frozen=True)
class VersionPage:
    """Everything about one version. ``manifest`` and ``facts`` are the decoded JSON."""

    row: ModelVersion
    files: list[VersionFile]
    tags: list[tuple[str, str]]
    manifest: dict[str, Any]
    facts: dict[str, Any]
    presence: Presence
    devices: Page[DeviceModule]
    rollouts: list[Rollout]
    environment: str  # NAME:VERSION, empty for none


DEVICE_ROWS: Final = 25
"""Devices on one page of a version: the page shows much else."""


def version(session: Session, name: str, number: int, devices_page: int = 1) -> VersionPage | None:
    """One version with one page of the devices that have it, those that are not well first."""
    row = session.get(ModelVersion, (name, number))
    if row is None:
        return None

    def of(table: Any) -> Any:
        return select(table).where(table.name == name, table.version == number)

    rollouts = (
        select(Rollout)
        .where(col(Rollout.module) == name, col(Rollout.version) == number)
        .order_by(col(Rollout.id).desc())
        .limit(20)
    )
    return VersionPage(
        row=row,
        files=list(session.execute(of(VersionFile).order_by(col(VersionFile.path))).scalars()),
        tags=[(tag.key, tag.value) for tag in session.execute(of(VersionTag).order_by(col(VersionTag.key))).scalars()],
        manifest=msgspec.json.decode(row.manifest),
        facts=msgspec.json.decode(row.facts),
        presence=presences(session, name).get(number, Presence()),
        devices=_devices(session, name, number, devices_page),
        rollouts=list(session.execute(rollouts).scalars()),
        environment=environments.used_by(session, name, number),
    )


def _devices(session: Session, name: str, number: int, page: int) -> Page[DeviceModule]:
    here = and_(col(DeviceModule.module) == name, col(DeviceModule.version) == number)
    total = session.execute(select(func.count()).select_from(DeviceModule).where(here)).scalar_one()
    page = clamp(page, total, DEVICE_ROWS)
    statement = (
        select(DeviceModule)
        .where(here)
        .order_by((col(DeviceModule.phase) == "Healthy"), col(DeviceModule.role), col(DeviceModule.device))
        .limit(DEVICE_ROWS)
        .offset((page - 1) * DEVICE_ROWS)
    )
    return Page(rows=list(session.execute(statement).scalars()), number=page, total=total, size=DEVICE_ROWS)


def choices(session: Session, limit: int = 0) -> list[tuple[str, int]]:
    """(model, version) pairs for forms, newest first within a model; ``limit`` 0: all of them."""
    statement = select(col(ModelVersion.name), col(ModelVersion.version)).order_by(
        col(ModelVersion.name), col(ModelVersion.version).desc()
    )
    statement = statement.limit(limit) if limit else statement
    return [(name, number) for name, number in session.execute(statement)]
