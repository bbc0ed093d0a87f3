"""Endpoints: names that clients call on devices, with the model versions behind them, split and in shadow.

An endpoint belongs to the devices that its query matches and that can hold all its versions at once; which they are is
decided when it is set, and again for a device that is registered or tagged anew, and is kept with the reasons of those
that cannot. The split before the last change stays in the document, so that its versions stay loaded for the way back.

A change is one transaction: the endpoint, who has it, and each device's document or, of very many devices, the note
that theirs are due (``desired.reissue_soon``). After its commit the caller hands the devices that came back to
``hub.spread_desired``. Not handled here: what devices report of it (:mod:`skerry_hub.monitoring`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from sqlalchemy import case, delete, func, insert
from sqlmodel import Session, col, select

from skerry_hub import audit, desired, devices, queries, registry, scheduling
from skerry_hub.db import add_missing, chunked
from skerry_hub.devices import Place
from skerry_hub.tables import Device, Endpoint, EndpointDevice
from skerry_modules.errors import InputError
from skerry_modules.messages import Route

MAX_VERSIONS: Final = 16
"""Versions behind one endpoint, shadows and the way back included: each is a process on each device."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_routes = msgspec.json.Decoder(tuple[Route, ...])


class Changed(msgspec.Struct, frozen=True):
    """What a change came to: the endpoint (None: it is gone), and the devices whose documents changed."""

    endpoint: Endpoint | None
    devices: tuple[str, ...]


def routes_of(text: str) -> tuple[Route, ...]:
    """The routes in a row."""
    return _routes.decode(text)


def get(session: Session, name: str) -> Endpoint:
    """One endpoint.

    Raises:
        InputError: ``endpoint.unknown``.
    """
    row = session.get(Endpoint, name)
    if row is None:
        raise InputError("endpoint.unknown", f"cannot find the endpoint {name[:80]!r}: see `skerry endpoints list`")
    return row


def find(session: Session, *, after: str = "", limit: int = 0) -> Sequence[Endpoint]:
    """Endpoints by name, after the name ``after``; ``limit`` 0: all of them."""
    statement = select(Endpoint).where(col(Endpoint.name) > after).order_by(col(Endpoint.name))
    return session.exec(statement.limit(limit) if limit else statement).all()


class Counts(msgspec.Struct, frozen=True):
    """How many devices have an endpoint, and how many match and cannot have it."""

    able: int = 0
    unable: int = 0


def counts(session: Session, names: Sequence[str]) -> dict[str, Counts]:
    """The devices of each endpoint; every name asked for has an entry."""
    found = dict.fromkeys(names, Counts())
    unable = func.sum(case((col(EndpointDevice.reason) == "", 0), else_=1))
    statement = select(col(EndpointDevice.endpoint), func.count(), unable)
    for part in chunked(list(names)):
        rows = session.exec(statement.where(col(EndpointDevice.endpoint).in_(part)).group_by(EndpointDevice.endpoint))
        found.update({name: Counts(total - int(cannot), int(cannot)) for name, total, cannot in rows})
    return found


def members(
    session: Session, name: str, *, after: str = "", limit: int = 0, unable: bool = False
) -> Sequence[EndpointDevice]:
    """The devices that an endpoint's query matches, by id, with why where one cannot have it.

    Args:
        after: those after this id.
        limit: so many at most; 0: all of them.
        unable: only those that cannot have it.
    """
    statement = select(EndpointDevice).where(col(EndpointDevice.endpoint) == name, col(EndpointDevice.device) > after)
    if unable:
        statement = statement.where(col(EndpointDevice.reason) != "")
    statement = statement.order_by(col(EndpointDevice.device))
    return session.exec(statement.limit(limit) if limit else statement).all()


def put(
    session: Session,
    name: str,
    *,
    routes: Sequence[Route],
    shadow: Sequence[Route] = (),
    target: str,
    keep_before: bool = True,
    actor: str,
    reason: str = "",
    now: int,
) -> Changed:
    """Make an endpoint, or change it on all its devices.

    Raises:
        InputError: ``endpoint.invalid``, also where the query matches no device; ``module.unknown``, ``query.invalid``;
            ``unschedulable.*`` where no device that it matches can hold all of it.
    """
    check(name, routes, shadow)
    row = _locked(session, name)
    before = way_back(row, routes) if row is not None and keep_before else ()
    named = {(one.module, one.version) for one in (*routes, *shadow, *before)}
    if len(named) > MAX_VERSIONS:
        raise _invalid(name, f"{len(named)} versions stand behind it; the limit is {MAX_VERSIONS}")
    for module, version in sorted(named):
        if registry.held(session, module, version) is None:
            raise InputError(
                "module.unknown",
                f"cannot route {name} to {module}:{version}: no such version; see `skerry models list`",
            )
    query = queries.parse(target)
    found = devices.places(session, query)
    if not found:
        raise _invalid(name, f"no device matches {query}; see `skerry devices list`")
    made = row or _fresh(session, name, now)
    made.target, made.split = str(query), _json(routes)
    made.shadow, made.before = _json(shadow), _json(before)
    made.revision += 1
    made.changed_by, made.reason = actor, reason
    made.changed_at = max(now, made.changed_at + 1)  # also the versions' attempt: it only ever grows
    session.add(made)
    session.flush()
    changed = _spread(session, made, found, now)
    audit.record(
        session,
        actor=actor,
        action="endpoint.set",
        subject=name,
        reason=reason,
        now=now,
        split=text_of(routes),
        shadow=text_of(shadow, shares=False),
        target=str(query),
    )
    return Changed(made, changed)


def go_back(session: Session, name: str, *, actor: str, reason: str = "", now: int) -> Changed:
    """The split before the last change again. Its versions are loaded: it is in force as soon as a device hears of it.

    Raises:
        InputError: ``endpoint.unknown``, ``endpoint.invalid`` where there was none before.
    """
    row = get(session, name)
    before = routes_of(row.before)
    if not before:
        raise _invalid(name, "there is no split before this one to go back to")
    named = {(route.module, route.version) for route in before}
    shadow = [route for route in routes_of(row.shadow) if (route.module, route.version) not in named]
    return put(
        session, name, routes=before, shadow=shadow, target=row.target, actor=actor, reason=reason or "back", now=now
    )


def remove(session: Session, name: str, *, actor: str, reason: str = "", now: int) -> Changed:
    """Take an endpoint off all devices; what only it wanted there is unloaded.

    Raises:
        InputError: ``endpoint.unknown``.
    """
    row = get(session, name)
    had = [one.device for one in members(session, name) if not one.reason]
    session.exec(delete(EndpointDevice).where(col(EndpointDevice.endpoint) == name))
    session.delete(row)
    session.flush()
    desired.reissue_soon(session, sorted(had), now=now)
    audit.record(session, actor=actor, action="endpoint.delete", subject=name, reason=reason, now=now)
    return Changed(None, tuple(had))


def settle(session: Session, device: str, *, now: int) -> bool:
    """Decide anew which endpoints a device has: it was registered or tagged. Whether its document changed."""
    row = devices.get(session, device)
    tags = {**devices.tags_of(session, [device])[device], "id": row.id, "profile": row.profile}
    changed = False
    for endpoint in find(session):
        had = session.get(EndpointDevice, (endpoint.name, device))
        matches = queries.parse(endpoint.target).matches(tags)
        if matches and had is None:
            changed |= bool(_join(session, endpoint, [row]))
        elif not matches and had is not None:
            changed |= not had.reason
            session.delete(had)
        session.flush()
    if changed:
        desired.reissue(session, device, now=now)
    return changed


def check(name: str, routes: Sequence[Route], shadow: Sequence[Route]) -> None:
    """Whether this can be an endpoint.

    Raises:
        InputError: ``endpoint.invalid``.
    """
    if not _NAME.fullmatch(name):
        raise _invalid(name, "a name is 1 to 63 of a-z, 0-9 and -", field="name")
    if not routes:
        raise _invalid(name, "no version answers; name at least one in the split")
    for what, found in (("the split", routes), ("the shadows", shadow)):
        keys = [(one.module, one.version) for one in found]
        if len(keys) != len(set(keys)):
            raise _invalid(name, f"{what} name a version twice")
        if any(not 0 < one.percent <= 100 for one in found):
            raise _invalid(name, f"a share in {what} is not above 0 and up to 100 percent")
    total = sum(one.percent for one in routes)
    if abs(total - 100) > 0.01:
        raise _invalid(name, f"the split's shares are {total:g} percent together; make them 100")
    both = {(one.module, one.version) for one in routes} & {(one.module, one.version) for one in shadow}
    if both:
        raise _invalid(name, f"{_names(both)} is in the split and in shadow; a version is compared with others")


def text_of(routes: Iterable[Route], *, shares: bool = True) -> str:
    """``digits:2=90,digits:3=10``."""
    return ",".join(f"{one.module}:{one.version}" + (f"={one.percent:g}" if shares else "") for one in routes)


def _locked(session: Session, name: str) -> Endpoint | None:
    statement = select(Endpoint).where(col(Endpoint.name) == name).with_for_update()
    return session.exec(statement.execution_options(populate_existing=True)).one_or_none()


def _fresh(session: Session, name: str, now: int) -> Endpoint:
    """A new row; two that make the same one at once both go on, one after the other."""
    values = {
        "target": "",
        "split": "[]",
        "shadow": "[]",
        "before": "[]",
        "changed_by": "",
        "reason": "",
        "revision": 0,
    }
    add_missing(session, Endpoint, name=name, created_at=now, changed_at=now, **values)
    row = _locked(session, name)
    assert row is not None  # it was added, here or by another
    return row


# -- devices -----------------------------------------------------------------------------------------------------------


def _spread(session: Session, endpoint: Endpoint, found: Sequence[Place], now: int) -> tuple[str, ...]:
    """Bring the endpoint to the devices, and away from others; the devices whose documents changed."""
    before = select(col(EndpointDevice.device)).where(
        col(EndpointDevice.endpoint) == endpoint.name, col(EndpointDevice.reason) == ""
    )
    had = set(session.exec(before))
    session.exec(delete(EndpointDevice).where(col(EndpointDevice.endpoint) == endpoint.name))
    session.flush()
    have = _join(session, endpoint, found)
    if not have:
        row = members(session, endpoint.name, limit=1)[0]
        raise InputError(
            row.reason,
            f"cannot set the endpoint {endpoint.name}: none of the {len(found)} devices that match can hold it; "
            f"{row.device}: {row.message}",
            devices=[device.id for device in found][:100],
        )
    changed = sorted(have | had)
    desired.reissue_soon(session, changed, now=now)
    return tuple(changed)


def _join(session: Session, endpoint: Endpoint, found: Sequence[Device | Place]) -> set[str]:
    """Note which of the devices have the endpoint, and why where one cannot; returns those that have it."""
    named = {
        (r.module, r.version) for text in (endpoint.split, endpoint.shadow, endpoint.before) for r in routes_of(text)
    }
    obstacles = scheduling.together_all(session, found, named)
    rows = [
        {
            "endpoint": endpoint.name,
            "device": device,
            "reason": obstacle.code if obstacle else "",
            "message": obstacle.message if obstacle else "",
        }
        for device, obstacle in obstacles.items()
    ]
    session.execute(insert(EndpointDevice), rows)
    return {device for device, obstacle in obstacles.items() if obstacle is None}


def way_back(row: Endpoint, routes: Sequence[Route]) -> tuple[Route, ...]:
    """The split to keep for going back: the one in force, or, where only shadows change, the one before it."""
    split = routes_of(row.split)
    return routes_of(row.before) if split == tuple(routes) else split


def _json(routes: Iterable[Route]) -> str:
    return msgspec.json.encode(list(routes)).decode()


def _names(keys: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{module}:{version}" for module, version in sorted(keys))


def _invalid(name: str, problem: str, **data: str) -> InputError:
    return InputError("endpoint.invalid", f"cannot set the endpoint {name[:80]!r}: {problem}", **data)
