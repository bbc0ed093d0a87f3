"""Endpoints as their pages show them: the versions behind each, and what they did of late."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session

from skerry_hub import endpoints, monitoring
from skerry_hub.monitoring import Behind
from skerry_hub.tables import Endpoint, EndpointDevice
from skerry_modules.messages import Agreement, Route

WINDOW_S = 300
"""What is shown of traffic: the last five minutes."""


@dataclass(frozen=True)
class Part:
    """One version behind an endpoint."""

    route: Route
    role: str  # live, shadow, or before: the way back
    ready: int  # devices that have it loaded and well
    traffic: Behind | None

    @property
    def agreement(self) -> Agreement:
        return self.traffic.agreement if self.traffic else Agreement()


@dataclass(frozen=True)
class Line:
    """One endpoint."""

    row: Endpoint
    parts: list[Part]
    devices: int
    excluded: list[EndpointDevice]

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
        for one in monitoring.behind(session, row.name, since=now - WINDOW_S * 1000, now=now)
    }
    ready = monitoring.ready(session, row.name)
    parts = [
        Part(route, role, ready.get((route.module, route.version), 0), traffic.get((route.module, route.version, role)))
        for role, text in (("live", row.split), ("shadow", row.shadow), ("before", row.before))
        for route in endpoints.routes_of(text)
    ]
    members = endpoints.devices_of(session, [row.name])[row.name]
    excluded = [one for one in members if one.reason]
    return Line(row, parts, len(members) - len(excluded), excluded)
