"""What each device should be: its assignments, and the revisions of the documents made of them.

A change of a device's assignments raises its revision by one and signs a new document (:mod:`skerry_hub.documents`), in
one transaction under a lock on the device's row, so revisions are consecutive and each names one content. A change of
many devices is made in as many statements as one of a single device; of very many, their documents follow in slices
(:func:`reissue_soon`). After the commit the caller calls ``hub.publish_desired(device_ids)``; a publication that is
lost is made up for when the device says hello.

``attempt`` of a module is the revision that assigned it last: it only ever grows, so to assign the same version again
asks a device that gave up on it to try once more, also after it was removed in between.

A device may know a later revision than the hub: it was removed and added again, or the database is an older copy. It
would refuse all that is not newer than what it has, so the next revision is always above what it reported.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import delete
from sqlmodel import Session, col, select

from skerry_hub import devices, documents, registry
from skerry_hub.clock import now_ms
from skerry_hub.db import Database, add_all_missing, chunked, upsert
from skerry_hub.devices import Place
from skerry_hub.tables import Assignment, DesiredDocument, DeviceModule, DocumentDue
from skerry_modules import messages
from skerry_modules.errors import InputError

SIGNER: Final = documents.SIGNER
NEWEST_SEEN: Final = 2**30
"""The latest revision that a device is believed to have: columns hold 32 bits, and one that lies deceives itself."""


SLICE: Final = 500
"""Documents written in one transaction where those of more devices are due."""


class Wish(msgspec.Struct, frozen=True):
    """What a device is to run of a module; None: nothing of it any more."""

    version: int | None
    soak_s: float = 0.0


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
    return assign_all(session, module, {device: Wish(version, soak_s)}, rollout=rollout, now=now)[device]


def assign_all(
    session: Session, module: str, wishes: Mapping[str, Wish], *, rollout: int | None = None, now: int
) -> dict[str, int]:
    """:func:`assign` for many devices; returns the revision of each.

    Raises:
        InputError: ``device.unknown``, ``module.unknown``: nothing is changed then.
    """
    places = devices.locked_all(session, wishes)
    for version in sorted({wish.version for wish in wishes.values() if wish.version is not None}):
        if registry.held(session, module, version) is None:
            raise InputError(
                "module.unknown", f"cannot assign {module}:{version}: no such version; see `skerry models list`"
            )
    current = _current(session, module, list(wishes))
    carried: dict[str, int] = {}
    raised: dict[str, int] = {}
    for device, wish in wishes.items():
        have = current.get(device)
        if wish.version is None and have is None:
            carried[device] = places[device].desired_revision
        elif have is not None and rollout is not None and (have.rollout, have.version) == (rollout, wish.version):
            carried[device] = have.attempt
        else:
            carried[device] = raised[device] = _next(places[device])
    _write(session, module, {device: wishes[device] for device in raised}, raised, rollout=rollout, now=now)
    documents.issue(session, places, raised, now=now)
    return carried


def unassign(session: Session, device: str, module: str, *, now: int) -> int:
    """Want no version of ``module`` on ``device`` any more. Returns the revision; nothing to do changes nothing."""
    return assign(session, device, module, None, now=now)


class _Current(msgspec.Struct, frozen=True):
    version: int
    attempt: int
    rollout: int | None


def _current(session: Session, module: str, asked: Sequence[str]) -> dict[str, _Current]:
    columns = (getattr(Assignment, name) for name in ("device", "version", "attempt", "rollout"))
    statement = select(*columns).where(col(Assignment.module) == module)
    found: dict[str, _Current] = {}
    for part in chunked(asked):
        for device, *rest in session.execute(statement.where(col(Assignment.device).in_(part))):
            found[device] = _Current(*rest)
    return found


def _write(
    session: Session,
    module: str,
    wishes: Mapping[str, Wish],
    attempts: Mapping[str, int],
    *,
    rollout: int | None,
    now: int,
) -> None:
    gone = [device for device, wish in wishes.items() if wish.version is None]
    for part in chunked(gone):
        session.execute(delete(Assignment).where(col(Assignment.module) == module, col(Assignment.device).in_(part)))
    kept = [
        {
            "device": device,
            "module": module,
            "version": wish.version,
            "soak_s": wish.soak_s,
            "attempt": attempts[device],
            "rollout": rollout,
            "at": now,
        }
        for device, wish in wishes.items()
        if wish.version is not None
    ]
    upsert(session, Assignment, kept)
    documents.forget(session, (Assignment,), wishes)


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
    return reissue_all(session, [device], now=now)[device]


def reissue_all(session: Session, asked: Collection[str], *, now: int) -> dict[str, int]:
    """:func:`reissue` for many devices; returns the new revision of each.

    Raises:
        InputError: ``device.unknown``.
    """
    places = devices.locked_all(session, asked)
    raised = {device: _next(places[device]) for device in asked}
    documents.issue(session, places, raised, now=now)
    return raised


def reissue_soon(session: Session, asked: Collection[str], *, now: int) -> None:
    """:func:`reissue_all`; for more than :data:`SLICE` devices it is only noted, and :func:`issue_due` is to be called
    after the commit: signing for ten thousand takes most of a second, in which nobody else could write.

    The note stands in the database with the wishes that it follows from: a hub that dies goes on at its next start.
    """
    if len(asked) <= SLICE:
        reissue_all(session, asked, now=now)
        return
    for part in chunked(sorted(asked)):
        add_all_missing(session, DocumentDue, [{"device": device} for device in part])


def issue_due(database: Database) -> Iterator[list[str]]:
    """Write the documents that are due, a slice per transaction, with as long a pause after each for others to write.

    A document is made of the wishes as they are then; one that is issued meanwhile for another reason is due no more.
    May be called at any time and by several at once.

    Yields:
        After each commit the devices whose documents are new.
    """
    due = select(col(DocumentDue.device)).order_by(col(DocumentDue.device)).limit(SLICE)
    while True:
        with database.read() as session:
            if session.exec(due).first() is None:
                return
        began = time.monotonic()
        with database.session() as session:
            found = list(session.exec(due.with_for_update(skip_locked=True)))
            reissue_all(session, found, now=now_ms())
        if not found:
            return  # another has the rest in hand
        yield found
        time.sleep(time.monotonic() - began)


def overtake(session: Session, device: str, *, now: int) -> bool:
    """Wish the same again above the revision that the device reported, where that is later than the hub's.

    Attempts rise with it: what the device gave up under the hub's former documents it tries once more.
    """
    places = devices.locked_all(session, [device])
    place = places[device]
    if not place.desired_revision < place.reported_revision <= NEWEST_SEEN:
        return False
    revision = _next(place)
    for wanted in session.exec(select(Assignment).where(col(Assignment.device) == device)):
        wanted.attempt = revision
        session.add(wanted)
    documents.issue(session, places, {device: revision}, now=now)
    return True


def _next(place: Place) -> int:
    return max(place.desired_revision, min(place.reported_revision, NEWEST_SEEN)) + 1


def document(session: Session, device: str) -> bytes | None:
    """The signed document's payload as devices get it, or None where nothing was ever wanted."""
    row = session.get(DesiredDocument, device)
    return row.payload if row else None
