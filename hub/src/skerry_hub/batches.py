"""Batch jobs as people see them: begin one, look at it, cancel it. What drives them is :mod:`skerry_hub.batch.engine`.

Everything that can be known at the start is refused at the start, before a row is written: an unknown version, a
target that is empty or does not serve the version, an upload that is not whole or lacks a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from skerry_hub import audit, devices, queries, registry
from skerry_hub.endpoints import routes_of
from skerry_hub.rules.batch import ACTIVE, OPEN, JobState, PartState
from skerry_hub.tables import BatchPart, BatchRow, Device, DeviceModule, Endpoint, ModelVersion
from skerry_modules.errors import InputError
from skerry_modules.messages import ModulePhase

HUB: Final = "hub"
"""The target, and the "device", of a job that the hub scores itself. No device can have this name as a target: a query
names devices by ``id=…``."""
SERVING_ROLES: Final = ("current", "side")
PATH_MAX: Final = 1000

_names = msgspec.json.Decoder(tuple[str, ...])


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A wish for a job. ``model``: ``NAME:VERSION``, an endpoint, or a module (its newest version).

    ``upload`` is the digest of a ``skerry_modules.batches.InputList`` that is in the store, ``path`` a file or folder
    on each device; exactly one is given. ``input``: the upload's name for people.
    """

    model: str
    target: str
    upload: str = ""
    path: str = ""
    input: str = ""
    columns: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    rows: int = 1024
    part_rows: int = 2000
    reason: str = ""


class Share(msgspec.Struct, kw_only=True):
    """One device's share of a job, for pages and lists. ``state``: of its newest part."""

    device: str
    online: bool = False
    serves: bool = False
    parts: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    scored: int = 0
    errors: int = 0
    progress: float = 0.0  # of the part that it has now
    code: str = ""
    message: str = ""
    at: int = 0  # when something last changed


# -- looking -----------------------------------------------------------------------------------------------------------


def get(session: Session, batch: int) -> BatchRow:
    """One job.

    Raises:
        InputError: ``batch.unknown``.
    """
    row = session.get(BatchRow, batch)
    if row is None:
        raise InputError("batch.unknown", f"cannot find the batch job {batch}: see `skerry batch list`")
    return row


def find(session: Session, *, state: str = "", module: str = "", before: int = 0, limit: int = 0) -> Sequence[BatchRow]:
    """Jobs, newest first; ``before`` is the last page's last id."""
    statement = select(BatchRow).order_by(col(BatchRow.id).desc())
    if state:
        statement = statement.where(col(BatchRow.state) == state)
    if module:
        statement = statement.where(col(BatchRow.module) == module)
    if before:
        statement = statement.where(col(BatchRow.id) < before)
    return session.exec(statement.limit(limit) if limit else statement).all()


def counts(session: Session, batches: Iterable[int]) -> dict[int, dict[str, int]]:
    """How many parts of each job are in each state; jobs without parts have an empty entry."""
    found: dict[int, dict[str, int]] = {batch: {} for batch in batches}
    statement = (
        select(BatchPart.batch, BatchPart.state, func.count())
        .where(col(BatchPart.batch).in_(found))
        .group_by(col(BatchPart.batch), col(BatchPart.state))
    )
    for batch, state, number in session.exec(statement) if found else ():
        found[batch][state] = number
    return found


def parts_of(session: Session, batch: int, *, after: int = -1, limit: int = 0) -> Sequence[BatchPart]:
    """A job's parts by number."""
    statement = select(BatchPart).where(col(BatchPart.batch) == batch, col(BatchPart.number) > after)
    statement = statement.order_by(col(BatchPart.number))
    return session.exec(statement.limit(limit) if limit else statement).all()


def shares_of(session: Session, row: BatchRow) -> list[Share]:
    """What each device of a job did and does, by name. The hub's own share is named ``hub``."""
    found = {name: Share(device=name) for name in names_of(row.devices)}
    if row.target == HUB:
        found[HUB] = Share(device=HUB, online=True, serves=True)
    known = {place.id: place for place in session.exec(select(Device).where(col(Device.id).in_(found)))}
    serving = serving_devices(session, row.module, row.version, found)
    for name, place in known.items():
        found[name].online, found[name].serves = place.online, name in serving
    newest: dict[str, int] = {}
    for part in parts_of(session, row.id or 0):
        share = found.setdefault(part.device or part.only, Share(device=part.device or part.only))
        if not share.device:
            continue
        share.parts += 1
        share.done += part.state == PartState.DONE
        share.failed += part.state == PartState.FAILED
        share.running += part.state == PartState.RUNNING
        share.scored += part.scored
        share.errors += part.errors
        if part.state == PartState.RUNNING:  # another may wait behind the one that is scored
            share.progress = max(share.progress, part.progress)
        at = max(part.given_at, part.ended_at)
        if part.code and at >= newest.get(share.device, 0):
            share.code, share.message, newest[share.device] = part.code, part.message, at
        share.at = max(share.at, at)
    found.pop("", None)
    return [found[name] for name in sorted(found)]


def serving_devices(session: Session, module: str, version: int, among: Iterable[str]) -> set[str]:
    """Those of ``among`` on which a version serves, as they reported."""
    statement = select(DeviceModule.device).where(
        col(DeviceModule.device).in_(list(among)),
        col(DeviceModule.module) == module,
        col(DeviceModule.version) == version,
        col(DeviceModule.role).in_(SERVING_ROLES),
        col(DeviceModule.phase) == ModulePhase.HEALTHY.value,
    )
    return set(session.exec(statement))


def being_cut(row: BatchRow) -> bool:
    """Whether more parts of a job may come."""
    return row.source == "upload" and row.target != HUB and bool(row.upload)


def names_of(text: str) -> tuple[str, ...]:
    """A list of names as a column holds it."""
    return _names.decode(text)


def text_of(names: Iterable[str]) -> str:
    return msgspec.json.encode(list(names)).decode()


# -- beginning ---------------------------------------------------------------------------------------------------------


def resolve(session: Session, model: str) -> tuple[ModelVersion, str]:
    """The version that ``NAME:VERSION``, an endpoint's or a module's name means; and the endpoint's name or "".

    Raises:
        InputError: ``module.unknown``, ``request.invalid``: an endpoint with a split names no one version.
    """
    name, colon, number = model.rpartition(":")
    if colon:
        if not (number.isdecimal() and number.isascii() and len(number) < 10):
            raise InputError("request.invalid", f"cannot read {model[:80]!r} as a version: write NAME:VERSION")
        return registry.get_version(session, name, int(number)), ""
    endpoint = session.get(Endpoint, model)
    if endpoint is None:
        newest = registry.latest_versions(session, [registry.get_model(session, model).name]).get(model)
        if newest is None:
            raise InputError("module.unknown", f"cannot use {model!r}: it has no version; see `skerry models register`")
        return newest, ""
    routes = routes_of(endpoint.split)
    if len(routes) != 1:
        behind = ", ".join(f"{one.module}:{one.version}" for one in routes)
        raise InputError(
            "request.invalid",
            f"cannot choose between the versions behind the endpoint {model}: {behind}; a job is scored by one of "
            "them, name it",
        )
    return registry.get_version(session, routes[0].module, routes[0].version), model


def target_of(session: Session, target: str, version: ModelVersion) -> tuple[str, ...]:
    """The devices that a tag query matches, if there are any and all serve the version.

    Raises:
        InputError: ``batch.empty_target``, ``batch.not_held``, ``query.invalid``.
    """
    query = queries.parse(target)
    found = tuple(row.id for row in devices.find(session, query))
    if not found:
        raise InputError(
            "batch.empty_target", f"cannot begin: no device matches {query}; see `skerry devices list`", target=target
        )
    serving = serving_devices(session, version.name, version.version, found)
    missing = [name for name in found if name not in serving]
    if missing:
        what = f"{version.name}:{version.version}"
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(
            "batch.not_held",
            f"cannot begin: {shown} does not serve {what}; roll it out there first "
            f"(skerry rollouts start {what} --to …), or name devices that serve it",
            devices=missing[:100],
        )
    return found


def create(session: Session, wish: NewBatch, row: BatchRow, *, actor: str, now: int) -> BatchRow:
    """Write a job that was checked; the driver makes its parts."""
    row.created_by, row.reason, row.created_at, row.updated_at = actor, wish.reason, now, now
    session.add(row)
    session.flush()
    audit.record(
        session,
        actor=actor,
        action="batch.start",
        subject=str(row.id),
        now=now,
        reason=wish.reason,
        module=f"{row.module}:{row.version}",
        target=row.target,
        input=row.input,
    )
    return row


def checked(session: Session, wish: NewBatch) -> BatchRow:
    """The job that a wish makes, not yet written; its upload is looked at by the caller.

    Raises:
        InputError: as :func:`resolve` and :func:`target_of`; ``request.invalid``.
    """
    if bool(wish.upload) == bool(wish.path):
        raise InputError("request.invalid", "cannot begin: give an upload, or a path on the devices, and not both")
    if wish.path and (wish.target == HUB or len(wish.path) > PATH_MAX or "\0" in wish.path):
        raise InputError("request.invalid", "cannot begin: a path on devices needs devices; upload what the hub scores")
    if not (1 <= wish.rows <= 1_000_000 and 1 <= wish.part_rows <= 10_000_000):
        raise InputError("request.invalid", "cannot begin: rows and part_rows must be 1 or more, within reason")
    version, endpoint = resolve(session, wish.model)
    chosen = () if wish.target == HUB else target_of(session, wish.target, version)
    return BatchRow(
        module=version.name,
        version=version.version,
        endpoint=endpoint,
        target=wish.target,
        source="device" if wish.path else "upload",
        input=wish.path or wish.input[:PATH_MAX],
        upload=wish.upload,
        columns=text_of(wish.columns),
        keep=text_of(wish.keep),
        devices=text_of(chosen),
        rows=wish.rows,
        part_rows=wish.part_rows,
        state=JobState.QUEUED,
        created_by="",
        created_at=0,
    )


# -- ending ------------------------------------------------------------------------------------------------------------


def cancel(session: Session, batch: int, *, actor: str, reason: str = "", now: int) -> BatchRow:
    """End a job before its time; what is scored already is not kept. Devices are told by the driver.

    Raises:
        InputError: ``batch.unknown``, ``batch.wrong_state``.
    """
    row = get(session, batch)
    if row.state not in ACTIVE:
        raise InputError("batch.wrong_state", f"cannot cancel the batch job {batch}: it is {row.state} already")
    text = f"cancelled by {actor}{f': {reason}' if reason else ''}"
    end(session, row, JobState.CANCELLED, "batch.cancelled", text, now=now)
    audit.record(session, actor=actor, action="batch.cancel", subject=str(batch), now=now, reason=reason)
    return row


def end(session: Session, row: BatchRow, state: JobState, code: str, message: str, *, now: int) -> None:
    """Write a job's end; parts that go on are no longer wanted."""
    row.state, row.code, row.message = state, code, message[:4096]
    row.updated_at = row.ended_at = now
    session.add(row)
    session.connection().execute(
        update(BatchPart)
        .where(col(BatchPart.batch) == row.id, col(BatchPart.state).in_(OPEN))
        .values(state=PartState.CANCELLED.value, ended_at=now)
    )


def remove(session: Session, batch: int) -> None:
    """Forget a job that has ended, parts and all; its files are the caller's."""
    session.exec(delete(BatchPart).where(col(BatchPart.batch) == batch))
    session.exec(delete(BatchRow).where(col(BatchRow.id) == batch))


def facts(row: BatchRow) -> dict[str, Any]:
    """A job's columns as JSON shows them."""
    plain = {name: getattr(row, name) for name in type(row).model_fields}
    return plain | {name: list(names_of(getattr(row, name))) for name in ("columns", "keep", "devices")}
