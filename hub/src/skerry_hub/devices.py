"""Devices: registered with a profile, tags and a broker password of their own; found by tag query; removed.

The password is shown once, inside the device's configuration; the hub keeps its hash (:mod:`skerry_hub.passwords`).
Not handled here: what a device should run (:mod:`skerry_hub.desired`), what it reported (:mod:`skerry_hub.ingest`).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import delete
from sqlmodel import Session, col, select

from skerry_hub import audit, passwords, queries, scheduling
from skerry_hub.broker import parse_url
from skerry_hub.db import add_missing, chunked
from skerry_hub.queries import TagQuery
from skerry_hub.rules.rollout import ACTIVE, DeviceStep
from skerry_hub.settings import is_loopback
from skerry_hub.tables import (
    Assignment,
    DesiredDocument,
    Device,
    DeviceModule,
    DeviceTag,
    DocumentDue,
    EndpointDevice,
    ModelVersion,
    Rollout,
    RolloutDevice,
    StreamMark,
)
from skerry_modules import profiles, topics
from skerry_modules.compatibility import Obstacle
from skerry_modules.errors import InputError

PASSWORD_BYTES: Final = 24


def register(
    session: Session,
    device: str,
    *,
    profile: str,
    tags: Mapping[str, str],
    description: str = "",
    actor: str,
    now: int,
) -> str:
    """Add a device. Returns its broker password, which is kept nowhere.

    Raises:
        InputError: ``device.invalid_id``, ``profile.unknown``, ``device.exists``, ``query.invalid`` (a tag).
    """
    topics.check_device_id(device)
    profiles.get(profile)
    checked = queries.check_tags(tags, reserved=queries.BUILT_IN)
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    row = Device(id=device, profile=profile, secret=passwords.hashed(password), description=description, created_at=now)
    if not add_missing(session, Device, **row.model_dump()):
        raise InputError(
            "device.exists", f"cannot register the device {device!r}: it exists; choose another id, or remove it first"
        )
    session.add_all(DeviceTag(device=device, key=key, value=value) for key, value in checked.items())
    audit.record(session, actor=actor, action="device.register", subject=device, now=now, profile=profile, tags=checked)
    return password


def renew_password(session: Session, device: str, *, actor: str, now: int) -> str:
    """A new broker password; the old one ends. Returns it once.

    Raises:
        InputError: ``device.unknown``.
    """
    row = locked(session, device)
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    row.secret = passwords.hashed(password)
    session.add(row)
    audit.record(session, actor=actor, action="device.renew_password", subject=device, now=now)
    return password


def get(session: Session, device: str) -> Device:
    """One device.

    Raises:
        InputError: ``device.unknown``.
    """
    row = session.get(Device, device)
    if row is None:
        raise _unknown(device)
    return row


def locked(session: Session, device: str) -> Device:
    """One device, as it is now, with its row locked until the transaction ends: whoever changes it comes here first.

    Raises:
        InputError: ``device.unknown``.
    """
    # FOR UPDATE on PostgreSQL; SQLite leaves it out and holds its one write lock already.
    statement = select(Device).where(col(Device.id) == device).with_for_update()
    row = session.exec(statement.execution_options(populate_existing=True)).one_or_none()
    if row is None:  # not looked for once more: a device that was registered this moment would come back unlocked
        raise _unknown(device)
    return row


class Place(NamedTuple):
    """The columns of a device that decide what it is to have."""

    id: str
    profile: str
    facts: str
    online: bool
    desired_revision: int
    reported_revision: int


_PLACE: Final = tuple(getattr(Device, name) for name in Place._fields)


def locked_all(session: Session, devices: Collection[str]) -> dict[str, Place]:
    """As :func:`locked`, for many devices: in the order of their ids, so that two who do so wait, and do not deadlock.

    Raises:
        InputError: ``device.unknown`` names the first that there is not.
    """
    session.flush()
    found: dict[str, Place] = {}
    for part in chunked(sorted(devices)):
        statement = select(*_PLACE).where(col(Device.id).in_(part)).order_by(col(Device.id)).with_for_update()
        found.update((row[0], Place(*row)) for row in session.execute(statement))
    for device in devices:
        if device not in found:
            raise _unknown(device)
    return found


def places(session: Session, query: TagQuery | None = None, *, limit: int = 0) -> list[Place]:
    """As :func:`find`, without the rows: for rules that look at a whole fleet."""
    statement = select(*_PLACE).where(queries.device_filter(query or TagQuery())).order_by(col(Device.id))
    return [Place(*row) for row in session.execute(statement.limit(limit) if limit else statement)]


def find(session: Session, query: TagQuery | None = None, *, after: str = "", limit: int = 0) -> Sequence[Device]:
    """Devices that match, by id, after the id ``after``; ``limit`` 0: all of them."""
    statement = select(Device).where(queries.device_filter(query or TagQuery())).order_by(col(Device.id))
    if after:
        statement = statement.where(col(Device.id) > after)
    return session.exec(statement.limit(limit) if limit else statement).all()


def set_tags(session: Session, device: str, tags: Mapping[str, str], *, actor: str, now: int) -> dict[str, str]:
    """Replace all tags of a device.

    Raises:
        InputError: ``device.unknown``, ``query.invalid``.
    """
    locked(session, device)
    checked = queries.check_tags(tags, reserved=queries.BUILT_IN)
    session.exec(delete(DeviceTag).where(col(DeviceTag.device) == device))
    session.add_all(DeviceTag(device=device, key=key, value=value) for key, value in checked.items())
    audit.record(session, actor=actor, action="device.tags", subject=device, now=now, tags=checked)
    return checked


def tags_of(session: Session, devices: Sequence[str]) -> dict[str, dict[str, str]]:
    """Tags by device id; every id asked for has an entry."""
    found: dict[str, dict[str, str]] = {device: {} for device in devices}
    if devices:
        rows = session.exec(select(DeviceTag).where(col(DeviceTag.device).in_(devices)).order_by(col(DeviceTag.key)))
        for row in rows:
            found[row.device][row.key] = row.value
    return found


def modules_of(session: Session, devices: Sequence[str]) -> dict[str, list[DeviceModule]]:
    """What each device reported of its modules; every id asked for has an entry."""
    found: dict[str, list[DeviceModule]] = {device: [] for device in devices}
    if devices:
        order = (col(DeviceModule.device), col(DeviceModule.module), col(DeviceModule.version).desc())
        statement = select(DeviceModule).where(col(DeviceModule.device).in_(devices)).order_by(*order)
        for row in session.exec(statement):
            found[row.device].append(row)
    return found


def remove(session: Session, device: str, *, actor: str, now: int, reason: str = "") -> None:
    """Forget a device: it can no longer connect. Its telemetry, samples and events stay.

    Raises:
        InputError: ``device.unknown``; ``device.in_use`` while a rollout runs on it, which may have to turn it back.
    """
    row = locked(session, device)
    running = (
        select(Rollout.id)
        .join(RolloutDevice, col(RolloutDevice.rollout) == col(Rollout.id))
        .where(col(RolloutDevice.device) == device, col(Rollout.state).in_(ACTIVE))
        .where(col(RolloutDevice.step) != DeviceStep.UNSCHEDULABLE)
    )
    if rollouts := sorted(number for number in session.exec(running) if number is not None):
        raise InputError(
            "device.in_use",
            f"cannot remove the device {device}: rollout {rollouts[0]} runs on it; "
            f"wait for it, or `skerry rollouts abort {rollouts[0]}`",
            rollouts=rollouts,
        )
    for table in (Assignment, DesiredDocument, DocumentDue, DeviceTag, DeviceModule, EndpointDevice, StreamMark):
        session.exec(delete(table).where(col(table.device) == device))
    session.delete(row)
    audit.record(session, actor=actor, action="device.remove", subject=device, now=now, reason=reason)


def credentials(session: Session) -> dict[str, str]:
    """Password hashes by device id, for the broker."""
    return dict(session.exec(select(Device.id, Device.secret)).all())


def compatibility_of(session: Session, device: str, version: ModelVersion) -> list[Obstacle]:
    """Why a version cannot run on a device; empty if it can. From its profile, and what it said of itself in hello.

    Raises:
        InputError: ``device.unknown``.
    """
    return [*scheduling.obstacles_of(session, [get(session, device)], version)[device]]


def _unknown(device: str) -> InputError:
    return InputError("device.unknown", f"cannot find the device {device!r}: see `skerry devices list`")


def config_text(device: Device, password: str, *, broker: str, hub_key: str, publishers: Sequence[str]) -> str:
    """The agent's configuration, as TOML with a comment per choice."""
    keys = "".join(f"  {_quoted(key)},\n" for key in publishers)
    only_here = "# The hub's own machine alone reaches this address.\n" if is_loopback(parse_url(broker)[0]) else ""
    return f"""# Configuration of the device {device.id}.
# It holds the broker password: keep it readable by the agent only.
# Save it on the device as agent.toml and run: skerry-agent run --config agent.toml

[device]
id = {_quoted(device.id)}
profile = {_quoted(device.profile)}

[hub]
{only_here}broker = {_quoted(broker)}
username = {_quoted(device.id)}
password = {_quoted(password)}
# Desired documents are accepted only from this hub …
key = {_quoted(hub_key)}
# … and modules only from these publishers.
publishers = [
{keys}]

[state]
folder = "state"

[serving]
http = "127.0.0.1:8090"
socket = ""
"""


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return msgspec.json.encode(text).decode()
