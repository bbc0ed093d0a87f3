"""Endpoints as their pages show them: the versions behind each, and what they did of late."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session, col

from skerry_hub import devices, endpoints, monitoring, scheduling
from skerry_hub.console.forms_endpoints import EndpointForm
from skerry_hub.console.queries.paging import PAGE_ROWS, Page, clamp
from skerry_hub.monitoring import Behind
from skerry_hub.queries import device_filter, parse
from skerry_hub.tables import Device, DeviceModule, Endpoint, EndpointDevice, ModelVersion
from skerry_modules.errors import InputError
from skerry_modules.messages import Agreement, Route

WINDOW_S = 300
"""What is shown of traffic: the last five minutes."""
WINDOWS = 2_000
"""So many of the newest windows are read; a large fleet's stand for a shorter time."""
CHECKED = 20
"""So many of the matching devices are asked whether they can hold it while a form is filled in; setting it asks all."""


@dataclass(frozen=True)
class Part:
    """One version behind an endpoint."""

    route: Route
    role: str  # live, shadow, or before: the way back
    ready: int  # devices that have it loaded and well
    traffic: Behind | None

    @property
    def key(self) -> tuple[str, int]:
        return self.route.module, self.route.version

    @property
    def agreement(self) -> Agreement:
        return self.traffic.agreement if self.traffic else Agreement()


@dataclass(frozen=True)
class Line:
    """One endpoint."""

    row: Endpoint
    parts: list[Part]
    devices: int
    excluded: int  # that match and cannot have it

    @property
    def live(self) -> list[Part]:
        return [part for part in self.parts if part.role == "live"]

    @property
    def shadows(self) -> list[Part]:
        return [part for part in self.parts if part.role == "shadow"]

    @property
    def before(self) -> list[Part]:
        return [part for part in self.parts if part.role == "before"]

    @property
    def distinct(self) -> list[Part]:
        """Each version once: one on the way back may answer now, too."""
        found: dict[tuple[str, int], Part] = {}
        for part in self.parts:
            found.setdefault(part.key, part)
        return list(found.values())

    @property
    def rate(self) -> float:
        return sum(part.traffic.rate for part in self.live if part.traffic)

    @property
    def state(self) -> str:
        """Healthy where every version is ready on every device, by what they reported."""
        wanted = [part.ready for part in (*self.live, *self.shadows)]
        return "Healthy" if self.devices and min(wanted, default=0) >= self.devices else "Transitioning"


def lines(session: Session, now: int) -> list[Line]:
    """All endpoints by name."""
    return [line(session, row, now) for row in endpoints.find(session)]


def line(session: Session, row: Endpoint, now: int) -> Line:
    """One endpoint with the versions behind it."""
    traffic = {
        (one.module, one.version, one.role): one
        for one in monitoring.behind(session, row.name, since=now - WINDOW_S * 1000, now=now, limit=WINDOWS)
    }
    ready = monitoring.ready(session, row.name)
    parts = [
        Part(route, role, ready.get((route.module, route.version), 0), traffic.get((route.module, route.version, role)))
        for role, text in (("live", row.split), ("shadow", row.shadow), ("before", row.before))
        for route in endpoints.routes_of(text)
    ]
    found = endpoints.counts(session, [row.name])[row.name]
    return Line(row, parts, found.able, found.unable)


@dataclass(frozen=True)
class Member:
    """A device that an endpoint's query matches, with what it reports of each version behind the endpoint."""

    row: EndpointDevice
    online: bool
    seen_at: int
    versions: list[tuple[Part, DeviceModule | None]]


def members(session: Session, found: Line, number: int = 1) -> Page[Member]:
    """One page of the endpoint's devices: those that cannot have it first, then by id."""
    mine = col(EndpointDevice.endpoint) == found.row.name
    total = session.execute(select(func.count()).select_from(EndpointDevice).where(mine)).scalar_one()
    number = clamp(number, total)
    statement = (
        select(EndpointDevice, col(Device.online), col(Device.seen_at))
        .join(Device, col(Device.id) == col(EndpointDevice.device))
        .where(mine)
        .order_by((col(EndpointDevice.reason) != "").desc(), col(EndpointDevice.device))
        .limit(PAGE_ROWS)
        .offset((number - 1) * PAGE_ROWS)
    )
    rows = list(session.execute(statement))
    reported = select(DeviceModule).where(col(DeviceModule.device).in_([row.device for row, _, _ in rows]))
    states = {(one.device, one.module, one.version): one for one in session.execute(reported).scalars()}
    return Page(
        rows=[
            Member(
                row,
                online,
                seen,
                [(part, states.get((row.device, *part.key))) for part in found.distinct],
            )
            for row, online, seen in rows
        ],
        number=number,
        total=total,
    )


@dataclass(frozen=True)
class Foreseen:
    """What setting a form would come to, as far as it can be said before."""

    routes: tuple[Route, ...] = ()
    shadows: tuple[Route, ...] = ()
    problem: str = ""
    matched: int = 0
    checked: int = 0
    blocked: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # (code, sentence, devices), most frequent first

    @property
    def able(self) -> int:
        """Of those checked."""
        return self.checked - sum(len(names) for _, _, names in self.blocked)

    @property
    def total(self) -> float:
        return sum(route.percent for route in self.routes)


def foresee(session: Session, form: EndpointForm) -> Foreseen:
    """Judge a form by the rules that setting it goes by; at most :data:`CHECKED` devices are asked."""
    try:
        routes, shadows = form.routes(), form.shadows()
    except InputError as error:
        return Foreseen(problem=error.message)
    if not routes and not shadows:
        return Foreseen()  # nothing is chosen yet: no mistake to tell of
    try:
        endpoints.check(form.name or "new", routes, shadows)
        query = parse(form.target or "*")
    except InputError as error:
        message = error.message if form.name else error.message.replace(" 'new'", "", 1)  # no name is typed yet
        return Foreseen(routes, shadows, message)
    row = session.get(Endpoint, form.name)
    before = endpoints.way_back(row, routes) if row is not None and form.keep_before else ()
    named = {(one.module, one.version) for one in (*routes, *shadows, *before)}
    if any(session.get(ModelVersion, one) is None for one in named):
        return Foreseen(routes, shadows, "a version was deleted meanwhile: choose another")
    matched = session.execute(select(func.count()).select_from(Device).where(device_filter(query))).scalar_one()
    blocked: dict[tuple[str, str], list[str]] = {}
    asked = devices.places(session, query, limit=CHECKED)
    for device, obstacle in scheduling.together_all(session, asked, named).items():
        if obstacle is not None:
            blocked.setdefault((obstacle.code, obstacle.message), []).append(device)
    groups = sorted(((*why, tuple(names)) for why, names in blocked.items()), key=lambda group: -len(group[2]))
    return Foreseen(routes, shadows, "", matched, len(asked), tuple(groups))
