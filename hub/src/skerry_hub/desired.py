"""What each device should be: its assignments, and the signed document made of them.

A change of a device's assignments raises its revision by one and signs a new document, in one transaction under a
lock on the device's row, so revisions are consecutive and each names one content. After the commit the caller calls
``hub.publish_desired(device_ids)``; a publication that is lost is made up for when the device says hello.

``attempt`` of a module is the revision that assigned it last: it only ever grows, so to assign the same version again
asks a device that gave up on it to try once more, also after it was removed in between.

A device may know a later revision than the hub: it was removed and added again, or the database is an older copy. It
would refuse all that is not newer than what it has, so the next revision is always above what it reported.
"""

from __future__ import annotations

from typing import Final

import msgspec
from sqlmodel import Session, col, select

from skerry_hub import devices, registry
from skerry_hub.profiling import Measured
from skerry_hub.tables import (
    Assignment,
    DesiredDocument,
    Device,
    DeviceModule,
    Endpoint,
    EndpointDevice,
    ModelVersion,
)
from skerry_modules import messages, trust
from skerry_modules.errors import BugError, InputError
from skerry_modules.messages import DesiredModule

_routes = msgspec.json.Decoder(tuple[messages.Route, ...])
NEWEST_SEEN: Final = 2**30
"""The latest revision that a device is believed to have: columns hold 32 bits, and one that lies deceives itself."""

SIGNER: Final = "hub_key"  # where a session's ``info`` holds the hub's key: see ``db.Database.info``


def assign(
    session: Session,
    device: str,
    module: str,
    version: int | None,
    *,
    soak_s: float = 0.0,
    rollout: int | None = None,
    now: int,
) -> int:
    """Want ``version`` of ``module`` on ``device``; None removes it. Returns the revision that carries the wish.

    Within one rollout the call may be made twice: the second one changes nothing and returns the first one's revision.

    Raises:
        InputError: ``device.unknown``, ``module.unknown``.
    """
    if version is None:
        return unassign(session, device, module, now=now)
    row = devices.locked(session, device)
    if registry.held(session, module, version) is None:
        raise InputError(
            "module.unknown", f"cannot assign {module}:{version}: no such version; see `skerry models list`"
        )
    current = session.get(Assignment, (device, module))
    if current and rollout is not None and (current.rollout, current.version) == (rollout, version):
        return current.attempt
    revision = _next(row)
    wanted = current or Assignment(device=device, module=module, version=version, at=now)
    wanted.version, wanted.soak_s, wanted.rollout = version, soak_s, rollout
    wanted.attempt, wanted.at = revision, now
    session.add(wanted)
    _issue(session, row, revision, now)
    return revision


def unassign(session: Session, device: str, module: str, *, now: int) -> int:
    """Want no version of ``module`` on ``device`` any more. Returns the revision; nothing to do changes nothing."""
    row = devices.locked(session, device)
    current = session.get(Assignment, (device, module))
    if current is None:
        return row.desired_revision
    session.delete(current)
    _issue(session, row, _next(row), now)
    return row.desired_revision


def fallbacks(session: Session, module: str) -> dict[str, int]:
    """The version that each device goes back to if a newer one fails: the one it was assigned.

    Where the device gave that one up and serves another by itself, it is the one that it serves: to assign what failed
    there would ask the device to try it once more.
    """
    wanted = select(col(Assignment.device), col(Assignment.version)).where(col(Assignment.module) == module)
    found = {str(device): int(version) for device, version in session.execute(wanted)}
    names = ("device", "version", "phase", "role")  # columns, not rows: a fleet has tens of thousands of them
    columns = (getattr(DeviceModule, name) for name in names)
    reported = session.execute(select(*columns).where(col(DeviceModule.module) == module)).all()
    given_up = (messages.ModulePhase.FAILED, messages.ModulePhase.UNSCHEDULABLE)
    failed = {row.device for row in reported if row.phase in given_up and row.version == found.get(row.device)}
    found.update({row.device: row.version for row in reported if row.device in failed and row.role == "current"})
    return found


def reissue(session: Session, device: str, *, now: int) -> int:
    """Sign the same wishes again under a new revision (the hub's key or a setting changed)."""
    row = devices.locked(session, device)
    _issue(session, row, _next(row), now)
    return row.desired_revision


def overtake(session: Session, device: str, *, now: int) -> bool:
    """Wish the same again above the revision that the device reported, where that is later than the hub's.

    Attempts rise with it: what the device gave up under the hub's former documents it tries once more.
    """
    row = devices.locked(session, device)
    if not row.desired_revision < row.reported_revision <= NEWEST_SEEN:
        return False
    revision = _next(row)
    for wanted in session.exec(select(Assignment).where(col(Assignment.device) == device)):
        wanted.attempt = revision
        session.add(wanted)
    _issue(session, row, revision, now)
    return True


def _next(row: Device) -> int:
    return max(row.desired_revision, min(row.reported_revision, NEWEST_SEEN)) + 1


def document(session: Session, device: str) -> bytes | None:
    """The signed document's payload as devices get it, or None where nothing was ever wanted."""
    row = session.get(DesiredDocument, device)
    return row.payload if row else None


def _issue(session: Session, row: Device, revision: int, now: int) -> None:
    key = session.info.get(SIGNER)
    if not isinstance(key, trust.SigningKey):
        raise BugError("internal.bug", "cannot sign a desired document: this database session carries no hub key")
    session.flush()
    modules, behind = _modules(session, row.id), _endpoints(session, row.id)
    wanted = messages.Desired(
        device=row.id,
        revision=revision,
        issued_at=now,
        modules=tuple(modules),
        endpoints=tuple(_endpoint(one) for one in behind),
        sides=tuple(_sides(session, row.id, behind, {(one.name, one.version) for one in modules})),
    )
    payload = messages.encode(wanted)
    signed = messages.Signed(messages.FORMAT, payload, (key.sign(trust.DESIRED_TYPE, payload),))
    kept = session.get(DesiredDocument, row.id) or DesiredDocument(device=row.id, revision=0, payload=b"", at=now)
    kept.revision, kept.payload, kept.at = revision, messages.encode(signed), now
    row.desired_revision = revision
    session.add(row)
    session.add(kept)
    session.flush()


def _endpoints(session: Session, device: str) -> list[Endpoint]:
    """The endpoints that a device has."""
    statement = select(Endpoint).join(EndpointDevice, col(EndpointDevice.endpoint) == col(Endpoint.name))
    mine = (col(EndpointDevice.device) == device, col(EndpointDevice.reason) == "")
    return list(session.exec(statement.where(*mine).order_by(col(Endpoint.name))))


def _endpoint(row: Endpoint) -> messages.Endpoint:
    routes, shadow, before = (_routes.decode(text) for text in (row.split, row.shadow, row.before))
    return messages.Endpoint(name=row.name, routes=routes, shadow=shadow, before=before)


def _sides(session: Session, device: str, behind: list[Endpoint], own: set[tuple[str, int]]) -> list[DesiredModule]:
    """The versions behind endpoints that are not their module's own version on the device."""
    attempts: dict[tuple[str, int], int] = {}
    for row in behind:
        for text in (row.split, row.shadow, row.before):
            for route in _routes.decode(text):
                key = (route.module, route.version)
                attempts[key] = max(attempts.get(key, 0), row.changed_at)
    wanted = sorted(key for key in attempts if key not in own)
    measured = Measured(session, wanted)
    place = devices.get(session, device)
    found = []
    for name, number in wanted:
        version = registry.get_version(session, name, number)
        found.append(
            DesiredModule(
                name=name,
                version=number,
                digest=version.digest,
                index_size=version.index_size,
                signatures=msgspec.json.decode(version.signatures, type=tuple[trust.Signature, ...]),
                attempt=attempts[name, number],
                memory_mb=measured.memory_mb(name, number, place),
            )
        )
    return found


def _modules(session: Session, device: str) -> list[DesiredModule]:
    statement = (
        select(Assignment, ModelVersion)
        .where(col(Assignment.device) == device)
        .where(col(ModelVersion.name) == col(Assignment.module), col(ModelVersion.version) == col(Assignment.version))
        .order_by(col(Assignment.module))
    )
    rows = session.exec(statement).all()
    measured = Measured(session, {(wanted.module, wanted.version) for wanted, _ in rows})
    place = devices.get(session, device)
    return [
        DesiredModule(
            name=wanted.module,
            version=wanted.version,
            digest=version.digest,
            index_size=version.index_size,
            signatures=msgspec.json.decode(version.signatures, type=tuple[trust.Signature, ...]),
            soak_s=wanted.soak_s,
            attempt=wanted.attempt,
            memory_mb=measured.memory_mb(wanted.module, wanted.version, place),
        )
        for wanted, version in rows
    ]
