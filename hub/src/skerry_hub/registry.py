"""The registry: models and their versions, found by tags, given back byte for byte, guarded while in use, collected.

How a version comes in is :mod:`skerry_hub.registration`; who runs what is :mod:`skerry_hub.desired` and the rollouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from skerry_hub import audit, environments, queries
from skerry_hub.batch import objects as batch_objects
from skerry_hub.db import Database, add_missing
from skerry_hub.objects import ObjectStore
from skerry_hub.queries import TagQuery
from skerry_hub.rules.rollout import ACTIVE, DeviceStep
from skerry_hub.tables import (
    Assignment,
    DeviceModule,
    Endpoint,
    Model,
    ModelVersion,
    ModuleProfileRow,
    Rollout,
    RolloutDevice,
    VersionFile,
    VersionTag,
)
from skerry_modules import package
from skerry_modules.errors import InputError
from skerry_modules.manifest import is_name
from skerry_modules.messages import Route
from skerry_modules.trust import Signature

HELD_ROLES: Final = ("current", "candidate", "last-good", "side")


def create_model(session: Session, name: str, *, description: str = "", actor: str, now: int) -> Model:
    """Add a model without versions, or change its description.

    Raises:
        InputError: ``request.invalid``: no module could bear the name.
    """
    if not is_name(name):
        raise InputError(
            "request.invalid",
            f"cannot create the model {name[:80]!r}: use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit",
        )
    ensure_model(session, name, now)
    row = get_model(session, name)
    if description:
        row.description = description
    session.add(row)
    audit.record(session, actor=actor, action="model.create", subject=name, now=now, description=description)
    return row


def get_model(session: Session, name: str) -> Model:
    """One model.

    Raises:
        InputError: ``module.unknown``.
    """
    row = session.get(Model, name)
    if row is None:
        raise InputError("module.unknown", f"cannot find the model {name[:80]!r}: see `skerry models list`")
    return row


def get_version(session: Session, name: str, version: int) -> ModelVersion:
    """One version of a model.

    Raises:
        InputError: ``module.unknown``.
    """
    row = session.get(ModelVersion, (name, version))
    if row is None:
        raise InputError(
            "module.unknown", f"cannot find {name[:80]}:{version}: no such version; see `skerry models show {name}`"
        )
    return row


def held(session: Session, name: str, version: int) -> ModelVersion | None:
    """A version that cannot be deleted before the transaction ends: for those who are about to refer to it."""
    # FOR SHARE on PostgreSQL; SQLite leaves it out and holds its one write lock already.
    statement = select(ModelVersion).where(col(ModelVersion.name) == name, col(ModelVersion.version) == version)
    return session.exec(statement.with_for_update(read=True)).one_or_none()


def find_models(session: Session, *, after: str = "", limit: int = 0) -> Sequence[Model]:
    """Models by name."""
    statement = select(Model).where(col(Model.name) > after).order_by(col(Model.name))
    return session.exec(statement.limit(limit) if limit else statement).all()


def find_versions(
    session: Session,
    query: TagQuery | None = None,
    *,
    model: str = "",
    after: tuple[str, int] | None = None,
    limit: int = 0,
) -> Sequence[ModelVersion]:
    """Versions whose tags match, by name, newest first; ``after`` is the last page's last (name, version)."""
    name, version = col(ModelVersion.name), col(ModelVersion.version)
    statement = select(ModelVersion).where(queries.version_filter(query or TagQuery()))
    if model:
        statement = statement.where(name == model)
    if after:
        statement = statement.where((name > after[0]) | ((name == after[0]) & (version < after[1])))
    statement = statement.order_by(name, version.desc())
    return session.exec(statement.limit(limit) if limit else statement).all()


def latest_versions(session: Session, models: Sequence[str]) -> dict[str, ModelVersion]:
    """The newest version of each model that has one."""
    newest = (
        select(ModelVersion.name, func.max(ModelVersion.version).label("version"))
        .where(col(ModelVersion.name).in_(models))
        .group_by(col(ModelVersion.name))
        .subquery()
    )
    statement = select(ModelVersion).join(
        newest, (col(ModelVersion.name) == newest.c.name) & (col(ModelVersion.version) == newest.c.version)
    )
    return {row.name: row for row in session.exec(statement)}


def files_of(session: Session, name: str, version: int) -> Sequence[VersionFile]:
    """A version's files by path."""
    statement = select(VersionFile).where(col(VersionFile.name) == name, col(VersionFile.version) == version)
    return session.exec(statement.order_by(col(VersionFile.path))).all()


def file_of(session: Session, name: str, version: int, path: str) -> VersionFile:
    """One file of a version.

    Raises:
        InputError: ``module.unknown``, ``request.not_found``.
    """
    get_version(session, name, version)
    row = session.get(VersionFile, (name, version, path))
    if row is None:
        raise InputError(
            "request.not_found", f"cannot find the file {path[:200]!r} in {name}:{version}: it has no such file"
        )
    return row


def tags_of(session: Session, versions: Sequence[ModelVersion]) -> dict[tuple[str, int], dict[str, str]]:
    """Tags by (name, version); every version asked for has an entry."""
    found: dict[tuple[str, int], dict[str, str]] = {(row.name, row.version): {} for row in versions}
    names = {row.name for row in versions}
    if names:
        rows = session.exec(select(VersionTag).where(col(VersionTag.name).in_(names)).order_by(col(VersionTag.key)))
        for row in rows:
            if (row.name, row.version) in found:
                found[row.name, row.version][row.key] = row.value
    return found


def set_tags(
    session: Session, name: str, version: int, tags: Mapping[str, str], *, actor: str, now: int
) -> dict[str, str]:
    """Replace all tags of a version.

    Raises:
        InputError: ``module.unknown``, ``query.invalid``.
    """
    lock_model(session, name)
    get_version(session, name, version)
    checked = queries.check_tags(tags)
    session.exec(delete(VersionTag).where(col(VersionTag.name) == name, col(VersionTag.version) == version))
    session.add_all(VersionTag(name=name, version=version, key=key, value=value) for key, value in checked.items())
    audit.record(session, actor=actor, action="version.tags", subject=f"{name}:{version}", now=now, tags=checked)
    return checked


def package_of(session: Session, objects: ObjectStore, name: str, version: int) -> tuple[int, Iterator[bytes]]:
    """The package, byte-identical to what was registered: its size and its bytes as they are read.

    Raises:
        InputError: ``module.unknown``.
    """
    row = get_version(session, name, version)
    with objects.open(row.digest) as file:
        index = file.read()
    signatures = msgspec.json.decode(row.signatures, type=tuple[Signature, ...])

    def blocks(sha256: str) -> Iterator[bytes]:
        with objects.open(sha256) as content:
            while block := content.read(package.BLOCK_BYTES):
                yield block

    return package.package_size(index, signatures), package.stream_package(index, signatures, blocks)


def holders(session: Session, name: str, version: int) -> dict[str, list[str]]:
    """Who needs a version: device ids by ``desired`` and role; numbers of rollouts and batch jobs; endpoints' names."""
    found: dict[str, list[str]] = {}
    wanted = select(Assignment.device).where(col(Assignment.module) == name, col(Assignment.version) == version)
    found["desired"] = sorted(session.exec(wanted))
    reported = select(DeviceModule.role, DeviceModule.device).where(
        col(DeviceModule.module) == name,
        col(DeviceModule.version) == version,
        col(DeviceModule.role).in_(HELD_ROLES),
    )
    for role, device in sorted(session.exec(reported)):
        found.setdefault(role, []).append(device)
    forward = select(Rollout.id).where(
        col(Rollout.module) == name, col(Rollout.version) == version, col(Rollout.state).in_(ACTIVE)
    )
    back = (
        select(Rollout.id)
        .join(RolloutDevice, col(RolloutDevice.rollout) == col(Rollout.id))
        .where(col(Rollout.module) == name, col(RolloutDevice.previous) == version, col(Rollout.state).in_(ACTIVE))
        .where(col(RolloutDevice.step) != DeviceStep.ROLLED_BACK)
    )
    found["rollout"] = [str(number) for number in sorted({*session.exec(forward), *session.exec(back)}, key=str)]
    found["endpoint"] = _endpoints_with(session, name, version)
    found["batch"] = batch_objects.jobs_with(session, name, version)
    return {role: names for role, names in found.items() if names}


def _endpoints_with(session: Session, name: str, version: int) -> list[str]:
    """The endpoints behind which a version stands, or stood before the last change."""
    return [
        row.name
        for row in session.exec(select(Endpoint).order_by(col(Endpoint.name)))
        if any(
            (route.module, route.version) == (name, version)
            for text in (row.split, row.shadow, row.before)
            for route in msgspec.json.decode(text, type=tuple[Route, ...])
        )
    ]


def delete_version(session: Session, name: str, version: int, *, actor: str, now: int, reason: str = "") -> None:
    """Forget a version; its number is never given again. Its objects go when they are collected.

    Raises:
        InputError: ``module.unknown``, ``module.in_use`` naming the devices.
    """
    lock_model(session, name)
    statement = select(ModelVersion).where(col(ModelVersion.name) == name, col(ModelVersion.version) == version)
    session.exec(statement.with_for_update()).one_or_none()  # waits for whoever is about to refer to it: see ``held``
    get_version(session, name, version)
    found = holders(session, name, version)
    if found:
        said = "; ".join(f"{role}: {', '.join(names[:5])}{_more(names)}" for role, names in found.items())
        raise InputError(
            "module.in_use",
            f"cannot delete {name}:{version}: it is in use ({said}); roll another version out there first",
            **{role.replace("-", "_"): names for role, names in found.items()},
        )
    key = {"name": name, "version": version}
    environments.forget_use(session, name, version)
    for table in (VersionFile, VersionTag, ModuleProfileRow, ModelVersion):
        session.exec(delete(table).where(*(col(getattr(table, field)) == value for field, value in key.items())))
    audit.record(session, actor=actor, action="version.delete", subject=f"{name}:{version}", now=now, reason=reason)


def delete_model(session: Session, name: str, *, actor: str, now: int, reason: str = "") -> None:
    """Forget a model and all its versions, if none of them is in use.

    Raises:
        InputError: ``module.unknown``, ``module.in_use``.
    """
    lock_model(session, name)
    for version in find_versions(session, model=name):
        delete_version(session, name, version.version, actor=actor, now=now, reason=reason)
    session.exec(delete(Model).where(col(Model.name) == name))
    audit.record(session, actor=actor, action="model.delete", subject=name, now=now, reason=reason)


def collect_garbage(database: Database, objects: ObjectStore, *, grace_s: float) -> list[str]:
    """Delete objects that no version refers to and that nothing touched for ``grace_s``. Returns their digests.

    The grace covers registrations under way, whose objects are stored before their rows are.
    """
    candidates = list(objects.digests(older_than_s=grace_s))
    with database.read() as session:
        needed = set(session.exec(select(VersionFile.sha256).distinct()))
        needed.update(session.exec(select(ModelVersion.digest)))
        needed |= environments.wheels_needed(session)
        needed |= batch_objects.objects_needed(session, objects)
    # The store looks at the age again as it deletes: a registration may have met the object since.
    return [digest for digest in candidates if digest not in needed and objects.delete(digest, older_than_s=grace_s)]


def ensure_model(session: Session, name: str, now: int) -> None:
    """Add a model unless it is there; two that register its first version at once both go on."""
    add_missing(session, Model, name=name, description="", last_version=0, created_at=now)


def lock_model(session: Session, name: str) -> Model:
    """One model, as it is now, with its row locked until the transaction ends: whoever changes it comes here first.

    Raises:
        InputError: ``module.unknown``.
    """
    # FOR UPDATE on PostgreSQL; SQLite leaves it out and holds its one write lock already.
    statement = select(Model).where(col(Model.name) == name).with_for_update()
    row = session.exec(statement.execution_options(populate_existing=True)).one_or_none()
    if row is None:
        raise InputError("module.unknown", f"cannot find the model {name[:80]!r}: see `skerry models list`")
    return row


def _more(names: list[str]) -> str:
    return f" and {len(names) - 5} more" if len(names) > 5 else ""
