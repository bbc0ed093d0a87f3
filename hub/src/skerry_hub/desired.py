"""What each device should be: its assignments, and the signed document made of them.

A change of a device's assignments raises its revision by one and signs a new document, in one transaction under a
lock on the device's row, so revisions are consecutive and each names one content. After the commit the caller calls
``hub.publish_desired(device_ids)``; a publication that is lost is made up for when the device says hello.

``attempt`` of a module is the revision that assigned it last: it only ever grows, so to assign the same version again
asks a device that gave up on it to try once more, also after it was removed in between.
"""

from __future__ import annotations

from typing import Final

import msgspec
from sqlmodel import Session, col, select

from skerry_hub import devices, registry
from skerry_hub.tables import Assignment, DesiredDocument, Device, DeviceModule, ModelVersion
from skerry_modules import messages, trust
from skerry_modules.errors import BugError, InputError
from skerry_modules.messages import DesiredModule

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
    revision = row.desired_revision + 1
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
    _issue(session, row, row.desired_revision + 1, now)
    return row.desired_revision


def fallbacks(session: Session, module: str) -> dict[str, int]:
    """The version that each device goes back to if a newer one fails: the one it was assigned.

    Where the device gave that one up and serves another by itself, it is the one that it serves: to assign what failed
    there would ask the device to try it once more.
    """
    found = {
        row.device: row.version
        for row in session.execute(select(Assignment).where(col(Assignment.module) == module)).scalars()
    }
    reported = session.execute(select(DeviceModule).where(col(DeviceModule.module) == module)).scalars().all()
    given_up = (messages.ModulePhase.FAILED, messages.ModulePhase.UNSCHEDULABLE)
    failed = {row.device for row in reported if row.phase in given_up and row.version == found.get(row.device)}
    found.update({row.device: row.version for row in reported if row.device in failed and row.role == "current"})
    return found


def reissue(session: Session, device: str, *, now: int) -> int:
    """Sign the same wishes again under a new revision (the hub's key or a setting changed)."""
    row = devices.locked(session, device)
    _issue(session, row, row.desired_revision + 1, now)
    return row.desired_revision


def document(session: Session, device: str) -> bytes | None:
    """The signed document's payload as devices get it, or None where nothing was ever wanted."""
    row = session.get(DesiredDocument, device)
    return row.payload if row else None


def _issue(session: Session, row: Device, revision: int, now: int) -> None:
    key = session.info.get(SIGNER)
    if not isinstance(key, trust.SigningKey):
        raise BugError("internal.bug", "cannot sign a desired document: this database session carries no hub key")
    session.flush()
    wanted = messages.Desired(device=row.id, revision=revision, issued_at=now, modules=tuple(_modules(session, row.id)))
    payload = messages.encode(wanted)
    signed = messages.Signed(messages.FORMAT, payload, (key.sign(trust.DESIRED_TYPE, payload),))
    kept = session.get(DesiredDocument, row.id) or DesiredDocument(device=row.id, revision=0, payload=b"", at=now)
    kept.revision, kept.payload, kept.at = revision, messages.encode(signed), now
    row.desired_revision = revision
    session.add(row)
    session.add(kept)
    session.flush()


def _modules(session: Session, device: str) -> list[DesiredModule]:
    statement = (
        select(Assignment, ModelVersion)
        .where(col(Assignment.device) == device)
        .where(col(ModelVersion.name) == col(Assignment.module), col(ModelVersion.version) == col(Assignment.version))
        .order_by(col(Assignment.module))
    )
    return [
        DesiredModule(
            name=wanted.module,
            version=wanted.version,
            digest=version.digest,
            index_size=version.index_size,
            signatures=msgspec.json.decode(version.signatures, type=tuple[trust.Signature, ...]),
            soak_s=wanted.soak_s,
            attempt=wanted.attempt,
        )
        for wanted, version in session.exec(statement)
    ]
