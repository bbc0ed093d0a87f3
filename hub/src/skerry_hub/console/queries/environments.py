"""Environments as their pages show them: versions, what each was locked for, who uses it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session, col

from skerry_hub import environments
from skerry_hub.tables import Environment, EnvironmentUse, EnvironmentVersion
from skerry_modules.environments import Lock, Target, Wheel


@dataclass(frozen=True)
class EnvironmentLine:
    """An environment in the list, with its newest version and how many module versions use any of its versions."""

    row: Environment
    newest: EnvironmentVersion
    lock: Lock
    versions: int
    used: int


@dataclass(frozen=True)
class VersionLine:
    """One version: its lock, and the module versions that use it as (name, version)."""

    row: EnvironmentVersion
    lock: Lock
    modules: list[tuple[str, int]]


def lines(session: Session) -> list[EnvironmentLine]:
    """All environments by name; only the newest locks are read."""
    newest = (
        select(
            col(EnvironmentVersion.name),
            func.max(col(EnvironmentVersion.version)).label("version"),
            func.count().label("versions"),
        )
        .group_by(col(EnvironmentVersion.name))
        .subquery()
    )
    used = (
        select(col(EnvironmentUse.environment), func.count().label("used"))
        .group_by(col(EnvironmentUse.environment))
        .subquery()
    )
    statement = (
        select(Environment, EnvironmentVersion, newest.c.versions, func.coalesce(used.c.used, 0))
        .join(newest, newest.c.name == col(Environment.name))
        .join(
            EnvironmentVersion,
            (col(EnvironmentVersion.name) == newest.c.name) & (col(EnvironmentVersion.version) == newest.c.version),
        )
        .outerjoin(used, used.c.environment == col(Environment.name))
        .order_by(col(Environment.name))
    )
    return [
        EnvironmentLine(row, version, environments.lock_of(version), count, uses)
        for row, version, count, uses in session.execute(statement)
    ]


def versions(session: Session, name: str) -> list[VersionLine]:
    """All versions of an environment, newest first."""
    uses = users(session, name)
    return [
        VersionLine(row, environments.lock_of(row), uses.get(row.version, []))
        for row in environments.versions_of(session, [name])[name]
    ]


def version(session: Session, name: str, number: int) -> VersionLine:
    """One version.

    Raises:
        InputError: ``environment.unknown``.
    """
    row = environments.get_version(session, name, number)
    return VersionLine(row, environments.lock_of(row), users(session, name).get(number, []))


def users(session: Session, name: str) -> dict[int, list[tuple[str, int]]]:
    """By version of an environment: the module versions that use it."""
    statement = (
        select(col(EnvironmentUse.environment_version), col(EnvironmentUse.module), col(EnvironmentUse.module_version))
        .where(col(EnvironmentUse.environment) == name)
        .order_by(col(EnvironmentUse.module), col(EnvironmentUse.module_version).desc())
    )
    found: dict[int, list[tuple[str, int]]] = {}
    for number, module, module_version in session.execute(statement):
        found.setdefault(number, []).append((module, module_version))
    return found


@dataclass(frozen=True)
class WheelLine:
    """One wheel of a lock, with the places of the kinds of devices that install it, from 1."""

    wheel: Wheel
    name: str
    version: str
    targets: list[int]


def wheels(targets: tuple[Target, ...]) -> list[WheelLine]:
    """Every wheel of a lock once, by name. Pure."""
    found: dict[str, WheelLine] = {}
    for place, target in enumerate(targets, start=1):
        for wheel in target.wheels:
            name, _, rest = wheel.file.partition("-")
            line = found.setdefault(wheel.file, WheelLine(wheel, name, rest.partition("-")[0], []))
            line.targets.append(place)
    return [found[file] for file in sorted(found)]
