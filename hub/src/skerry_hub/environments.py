"""Environments by name: each different lock that a module brings is the next version of its name.

A version is recorded when a module that brings its lock is registered, and stays: other modules may be packed with it
as ``NAME:VERSION`` later, so its wheels are kept in the store too.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import delete
from sqlmodel import Session, col, select

from skerry_hub.db import add_missing
from skerry_hub.tables import Environment, EnvironmentUse, EnvironmentVersion, ModelVersion
from skerry_modules import environments
from skerry_modules.environments import Lock
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest


def record(session: Session, version: ModelVersion, manifest: Manifest, lock: Lock | None) -> EnvironmentVersion | None:
    """Note which environment a module version has; a lock that its name does not know yet becomes its next version.

    Raises:
        InputError: ``environment.unknown``: the module says it uses a registered environment, and its lock is another.
    """
    if lock is None:
        return None
    key = environments.key_of(lock)
    if manifest.environment.use:
        row = get_version(session, *environments.parse_reference(manifest.environment.use))
        if row.digest != key:
            raise InputError(
                "environment.unknown",
                f"cannot register {manifest.name}: it says that it uses {manifest.environment.use}, but its lock is "
                "another; delete its environment.lock and pack it again",
                environment=manifest.environment.use,
            )
    else:
        row = _versioned(session, manifest.environment.name or manifest.name, key, version, lock)
    session.add(
        EnvironmentUse(
            module=version.name, module_version=version.version, environment=row.name, environment_version=row.version
        )
    )
    return row


def _versioned(session: Session, name: str, key: str, version: ModelVersion, lock: Lock) -> EnvironmentVersion:
    add_missing(session, Environment, name=name, last_version=0, created_at=version.created_at)
    statement = select(Environment).where(col(Environment.name) == name).with_for_update()
    environment = session.exec(statement.execution_options(populate_existing=True)).one()
    known = session.exec(
        select(EnvironmentVersion).where(col(EnvironmentVersion.name) == name, col(EnvironmentVersion.digest) == key)
    ).first()
    if known is not None:
        return known
    environment.last_version += 1
    row = EnvironmentVersion(
        name=name,
        version=environment.last_version,
        digest=key,
        lock=environments.lock_bytes(lock).decode(),
        size=sum(wheel.size for wheel in lock.wheels().values()),
        created_by=version.created_by,
        created_at=version.created_at,
    )
    session.add(environment)
    session.add(row)
    session.flush()
    return row


def find(session: Session, *, after: str = "", limit: int = 0) -> Sequence[Environment]:
    """Environments by name."""
    statement = select(Environment).where(col(Environment.name) > after).order_by(col(Environment.name))
    return session.exec(statement.limit(limit) if limit else statement).all()


def versions_of(session: Session, names: Sequence[str]) -> dict[str, list[EnvironmentVersion]]:
    """Every version of each environment named, newest first."""
    statement = select(EnvironmentVersion).where(col(EnvironmentVersion.name).in_(names))
    found: dict[str, list[EnvironmentVersion]] = {name: [] for name in names}
    for row in session.exec(statement.order_by(col(EnvironmentVersion.version).desc())):
        found[row.name].append(row)
    return found


def get(session: Session, name: str) -> Environment:
    """One environment.

    Raises:
        InputError: ``environment.unknown``.
    """
    row = session.get(Environment, name)
    if row is None:
        raise InputError(
            "environment.unknown", f"cannot find the environment {name[:80]!r}: see `skerry environments list`"
        )
    return row


def get_version(session: Session, name: str, version: int) -> EnvironmentVersion:
    """One version of an environment.

    Raises:
        InputError: ``environment.unknown``.
    """
    row = session.get(EnvironmentVersion, (name, version))
    if row is None:
        raise InputError(
            "environment.unknown",
            f"cannot find the environment {name[:80]}:{version}: see `skerry environments list`",
        )
    return row


def lock_of(row: EnvironmentVersion) -> Lock:
    return msgspec.json.decode(row.lock, type=Lock)


def modules_of(session: Session, name: str) -> dict[int, list[str]]:
    """Who uses each version of an environment, as ``NAME:VERSION``."""
    rows = session.exec(
        select(EnvironmentUse)
        .where(col(EnvironmentUse.environment) == name)
        .order_by(col(EnvironmentUse.module), col(EnvironmentUse.module_version))
    )
    found: dict[int, list[str]] = {}
    for row in rows:
        found.setdefault(row.environment_version, []).append(f"{row.module}:{row.module_version}")
    return found


def used_by(session: Session, module: str, version: int) -> str:
    """The environment of a module version, ``NAME:VERSION``; empty for none."""
    row = session.get(EnvironmentUse, (module, version))
    return f"{row.environment}:{row.environment_version}" if row else ""


def forget_use(session: Session, module: str, version: int) -> None:
    """A module version is being deleted."""
    session.exec(
        delete(EnvironmentUse).where(
            col(EnvironmentUse.module) == module, col(EnvironmentUse.module_version) == version
        )
    )


def wheels_needed(session: Session) -> set[str]:
    """SHA-256 of every wheel of every environment: what the store must keep."""
    locks = session.exec(select(EnvironmentVersion.lock))
    return {wheel.sha256 for text in locks for wheel in msgspec.json.decode(text, type=Lock).wheels().values()}
