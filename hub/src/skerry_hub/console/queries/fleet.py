"""The fleet as a whole: how many devices are in which state, and the table of devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, case, false, func, or_, select
from sqlmodel import Session, col

from skerry_hub.console.queries.paging import PAGE_ROWS, Page, clamp
from skerry_hub.queries import TagQuery, device_filter, parse
from skerry_hub.tables import Device, DeviceModule, DeviceTag

STATES: Final = ("Failed", "Unhealthy", "Unschedulable", "Transitioning", "Healthy", "Empty")
"""A device's state is the worst of its modules' phases, in this order; Empty: it runs none."""

_RANK: Final = {name: len(STATES) - place for place, name in enumerate(STATES)}


@dataclass(frozen=True)
class FleetCounts:
    total: int
    online: int
    states: dict[str, int]

    @property
    def offline(self) -> int:
        return self.total - self.online

    @property
    def segments(self) -> list[tuple[str, int]]:
        """Best first, as the bar shows them."""
        return [(name, self.states.get(name, 0)) for name in reversed(STATES[:-1])] + [
            ("Empty", self.states.get("Empty", 0))
        ]


EVERYTHING: Final = TagQuery()


@dataclass(frozen=True)
class DeviceFilter:
    """What the table of devices is narrowed to; ``text`` is part of the id."""

    tags: TagQuery = EVERYTHING
    text: str = ""
    state: str = ""
    presence: str = ""  # online or offline
    profile: str = ""


def search(text: str) -> tuple[TagQuery, str]:
    """What a person typed: parts with a ``=`` are a tag query, another is part of a device's id.

    Raises:
        InputError: ``query.invalid``.
    """
    parts = [part for part in (piece.strip() for piece in text.replace(" ", ",").split(",")) if part]
    tags = [part for part in parts if "=" in part]
    words = [part for part in parts if "=" not in part and part not in ("*", "all")]
    return parse(tags) if tags else TagQuery(), " ".join(words)


@dataclass(frozen=True)
class ModuleLine:
    module: str
    version: int
    phase: str
    step: str
    role: str
    reason: str
    progress: float


@dataclass(frozen=True)
class DeviceLine:
    """A row of the table of devices."""

    id: str
    profile: str
    online: bool
    seen_at: int
    state: str
    desired_revision: int
    reported_revision: int
    tags: list[tuple[str, str]] = field(default_factory=list)
    modules: list[ModuleLine] = field(default_factory=list)


def _ranked() -> Any:
    """(device, rank) of devices that report modules; what is only kept to go back to does not count."""
    rank = case(_RANK, value=col(DeviceModule.phase), else_=0)
    return (
        select(col(DeviceModule.device).label("device"), func.max(rank).label("rank"))
        .where(col(DeviceModule.role) != "last-good")
        .group_by(col(DeviceModule.device))
        .subquery()
    )


def _state_of(rank: int | None) -> str:
    return next((name for name, value in _RANK.items() if value == rank), "Empty")


def counts(session: Session) -> FleetCounts:
    """All devices by state and presence, in one pass."""
    ranked = _ranked()
    statement = (
        select(ranked.c.rank, col(Device.online), func.count())
        .select_from(Device)
        .outerjoin(ranked, ranked.c.device == col(Device.id))
        .group_by(ranked.c.rank, col(Device.online))
    )
    states: dict[str, int] = {}
    total = online = 0
    for rank, is_online, number in session.execute(statement):
        state = _state_of(rank)
        states[state] = states.get(state, 0) + number
        total += number
        online += number if is_online else 0
    return FleetCounts(total=total, online=online, states=states)


@dataclass(frozen=True)
class Trouble:
    """Devices on which a module version does not run, for the same reason."""

    module: str
    version: int
    phase: str
    reason: str
    devices: int
    since: int  # when the newest of them began


def troubles(session: Session, limit: int = 6) -> list[Trouble]:
    """What is wrong in the fleet, the most widespread first."""
    what = (col(DeviceModule.module), col(DeviceModule.version), col(DeviceModule.phase), col(DeviceModule.reason))
    statement = (
        select(*what, func.count(), func.max(col(DeviceModule.since)))
        .where(
            col(DeviceModule.phase).in_(("Failed", "Unhealthy", "Unschedulable")),
            col(DeviceModule.role) != "last-good",
        )
        .group_by(*what)
        .order_by(func.count().desc(), *what)
        .limit(limit)
    )
    return [Trouble(*row) for row in session.execute(statement)]


def profiles(session: Session) -> list[str]:
    return list(session.execute(select(col(Device.profile)).distinct().order_by(col(Device.profile))).scalars())


def devices(session: Session, chosen: DeviceFilter, number: int = 1, size: int = PAGE_ROWS) -> Page[DeviceLine]:
    """One page of devices: those in trouble first, then by id."""
    ranked = _ranked()
    conditions = _conditions(chosen, ranked)
    base: Select[Any] = select(Device, ranked.c.rank).outerjoin(ranked, ranked.c.device == col(Device.id))
    total = session.execute(
        select(func.count())
        .select_from(Device)
        .outerjoin(ranked, ranked.c.device == col(Device.id))
        .where(and_(True, *conditions))
    ).scalar_one()
    number = clamp(number, total, size)
    trouble = func.coalesce(ranked.c.rank, 0) > _RANK["Healthy"]
    statement = (
        base.where(and_(True, *conditions))
        .order_by(case((trouble, ranked.c.rank), else_=0).desc(), col(Device.id))
        .limit(size)
        .offset((number - 1) * size)
    )
    lines = [
        DeviceLine(
            id=device.id,
            profile=device.profile,
            online=device.online,
            seen_at=device.seen_at,
            state=_state_of(rank),
            desired_revision=device.desired_revision,
            reported_revision=device.reported_revision,
        )
        for device, rank in session.execute(statement)
    ]
    _complete(session, lines)
    return Page(rows=lines, number=number, total=total, size=size)


def _conditions(chosen: DeviceFilter, ranked: Any) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [device_filter(chosen.tags)] if chosen.tags.clauses else []
    if chosen.text:
        found.append(col(Device.id).contains(chosen.text, autoescape=True))
    if chosen.presence:
        found.append(col(Device.online).is_(chosen.presence == "online"))
    if chosen.profile:
        found.append(col(Device.profile) == chosen.profile)
    if chosen.state == "Empty":
        found.append(or_(ranked.c.rank.is_(None), ranked.c.rank == _RANK["Empty"]))
    elif chosen.state in _RANK:
        found.append(ranked.c.rank == _RANK[chosen.state])
    elif chosen.state:
        found.append(false())
    return found


def _complete(session: Session, lines: list[DeviceLine]) -> None:
    """Tags and modules of the devices on one page."""
    by_id = {line.id: line for line in lines}
    if not by_id:
        return
    for tag in session.execute(
        select(DeviceTag).where(col(DeviceTag.device).in_(by_id)).order_by(col(DeviceTag.key))
    ).scalars():
        by_id[tag.device].tags.append((tag.key, tag.value))
    statement = (
        select(DeviceModule)
        .where(col(DeviceModule.device).in_(by_id), col(DeviceModule.role) != "last-good")
        .order_by(col(DeviceModule.module), col(DeviceModule.version).desc())
    )
    for row in session.execute(statement).scalars():
        by_id[row.device].modules.append(
            ModuleLine(row.module, row.version, row.phase, row.step, row.role, row.reason, row.progress)
        )
