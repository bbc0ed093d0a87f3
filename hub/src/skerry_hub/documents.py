"""The signed documents that devices follow, made for many devices at once.

What a document is made of is read in a few statements for all devices together, and written in two; only building and
signing is done device by device. A change of a fleet is one transaction, in which nobody else writes.

Not handled here: which revision a device gets and why (:mod:`skerry_hub.desired`), and how a document reaches it
(:mod:`skerry_hub.streaming`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import bindparam, delete, update
from sqlmodel import Session, SQLModel, col, select

from skerry_hub.db import chunked, upsert
from skerry_hub.devices import Place
from skerry_hub.profiling import Measured
from skerry_hub.tables import (
    Assignment,
    DesiredDocument,
    Device,
    DocumentDue,
    Endpoint,
    EndpointDevice,
    ModelVersion,
)
from skerry_modules import messages, trust
from skerry_modules.errors import BugError
from skerry_modules.messages import DesiredModule

SIGNER: Final = "hub_key"  # where a session's ``info`` holds the hub's key: see ``db.Database.info``

_routes = msgspec.json.Decoder(tuple[messages.Route, ...])
_Key = tuple[str, int]


class _Version(msgspec.Struct, frozen=True):
    digest: str
    index_size: int
    signatures: tuple[trust.Signature, ...]


class _Assigned(msgspec.Struct, frozen=True):
    """One row of ``assignment``."""

    module: str
    version: int
    soak_s: float
    attempt: int


class _Behind(msgspec.Struct, frozen=True):
    """The endpoints of one device, and the newest change of each version behind them."""

    endpoints: tuple[messages.Endpoint, ...] = ()
    attempts: dict[_Key, int] = {}


def issue(session: Session, places: Mapping[str, Place], revisions: Mapping[str, int], *, now: int) -> None:
    """Make, sign and keep a document for each device in ``revisions``, from the wishes that stand in the database.

    Args:
        session: writes; the devices' rows are locked.
        places: at least the devices of ``revisions``.
        revisions: the revision of each new document.
        now: milliseconds since 1970.
    """
    if not revisions:
        return
    key = session.info.get(SIGNER)
    if not isinstance(key, trust.SigningKey):
        raise BugError("internal.bug", "cannot sign a desired document: this database session carries no hub key")
    session.flush()
    sources = _Sources(session, revisions)
    rows = []
    for device, revision in revisions.items():
        payload = messages.encode(sources.document(places[device], revision, now))
        signed = messages.Signed(messages.FORMAT, payload, (key.sign(trust.DESIRED_TYPE, payload),))
        rows.append({"device": device, "revision": revision, "payload": messages.encode(signed), "at": now})
    upsert(session, DesiredDocument, rows)
    table = SQLModel.metadata.tables["device"]
    statement = update(table).where(table.c.id == bindparam("of")).values(desired_revision=bindparam("revision"))
    session.connection().execute(statement, [{"of": one, "revision": number} for one, number in revisions.items()])
    for part in chunked(list(revisions)):
        session.execute(delete(DocumentDue).where(col(DocumentDue.device).in_(part)))
    forget(session, (Device, DesiredDocument), revisions)


def forget(session: Session, tables: tuple[type[SQLModel], ...], devices: Mapping[str, object]) -> None:
    """Have rows of these devices that the session holds read again: they were changed past it."""
    for row in list(session.identity_map.values()):
        if isinstance(row, tables):
            device = row.id if isinstance(row, Device) else row.device  # type: ignore[attr-defined]
            if device in devices:
                session.expire(row)


class _Sources:
    """All that documents are made of, read for all devices together."""

    def __init__(self, session: Session, devices: Iterable[str]) -> None:
        asked = list(devices)
        self._assigned = _assigned(session, asked)
        self._endpoints = {row.name: row for row in session.exec(select(Endpoint).order_by(col(Endpoint.name)))}
        self._names = _endpoints_of(session, asked) if self._endpoints else {}
        self._behind: dict[tuple[str, ...], _Behind] = {(): _Behind()}
        keys = {(one.module, one.version) for found in self._assigned.values() for one in found}
        for names in set(self._names.values()):
            keys |= self._behind_of(names).attempts.keys()
        self._versions = _versions(session, keys)
        self._measured = Measured(session, keys)

    def document(self, place: Place, revision: int, now: int) -> messages.Desired:
        assigned = [one for one in self._assigned.get(place.id, ()) if (one.module, one.version) in self._versions]
        behind = self._behind_of(self._names.get(place.id, ()))
        own = {(one.module, one.version) for one in assigned}
        return messages.Desired(
            device=place.id,
            revision=revision,
            issued_at=now,
            modules=tuple(self._module(place, (one.module, one.version), one.attempt, one.soak_s) for one in assigned),
            endpoints=behind.endpoints,
            sides=tuple(self._module(place, key, behind.attempts[key]) for key in sorted(behind.attempts.keys() - own)),
        )

    def _module(self, place: Place, key: _Key, attempt: int, soak_s: float = 0.0) -> DesiredModule:
        version = self._versions[key]
        return DesiredModule(
            name=key[0],
            version=key[1],
            digest=version.digest,
            index_size=version.index_size,
            signatures=version.signatures,
            soak_s=soak_s,
            attempt=attempt,
            memory_mb=self._measured.memory_mb(*key, place),
        )

    def _behind_of(self, names: tuple[str, ...]) -> _Behind:
        """Devices mostly have the same endpoints: each set of them is put together once."""
        found = self._behind.get(names)
        if found is None:
            rows = [self._endpoints[name] for name in names]
            attempts: dict[_Key, int] = {}
            for row in rows:
                for text in (row.split, row.shadow, row.before):
                    for route in _routes.decode(text):
                        key = (route.module, route.version)
                        attempts[key] = max(attempts.get(key, 0), row.changed_at)
            found = self._behind[names] = _Behind(tuple(_endpoint(row) for row in rows), attempts)
        return found


def _assigned(session: Session, devices: Sequence[str]) -> dict[str, list[_Assigned]]:
    found: dict[str, list[_Assigned]] = {}
    columns = (getattr(Assignment, name) for name in ("device", "module", "version", "soak_s", "attempt"))
    statement = select(*columns).order_by(col(Assignment.module))
    for part in chunked(devices):
        for device, *rest in session.execute(statement.where(col(Assignment.device).in_(part))):
            found.setdefault(device, []).append(_Assigned(*rest))
    return found


def _endpoints_of(session: Session, devices: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The names of the endpoints that each device has, in their order."""
    found: dict[str, tuple[str, ...]] = {}
    columns = select(col(EndpointDevice.device), col(EndpointDevice.endpoint)).order_by(col(EndpointDevice.endpoint))
    for part in chunked(devices):
        mine = (col(EndpointDevice.device).in_(part), col(EndpointDevice.reason) == "")
        for device, name in session.execute(columns.where(*mine)):
            found[device] = (*found.get(device, ()), name)
    return found


def _versions(session: Session, keys: set[_Key]) -> dict[_Key, _Version]:
    names = ("name", "version", "digest", "index_size", "signatures")
    statement = select(*(getattr(ModelVersion, name) for name in names))
    found = {}
    for part in chunked(sorted({name for name, _ in keys})):
        for name, number, digest, size, signatures in session.execute(
            statement.where(col(ModelVersion.name).in_(part))
        ):
            if (name, number) in keys:
                decoded = msgspec.json.decode(signatures, type=tuple[trust.Signature, ...])
                found[name, number] = _Version(digest, size, decoded)
    return found


def _endpoint(row: Endpoint) -> messages.Endpoint:
    routes, shadow, before = (_routes.decode(text) for text in (row.split, row.shadow, row.before))
    return messages.Endpoint(name=row.name, routes=routes, shadow=shadow, before=before)
