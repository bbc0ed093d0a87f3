"""Endpoints: names that clients call on devices, and the versions behind them, split and in shadow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from sqlmodel import Session

from skerry_hub import endpoints, monitoring
from skerry_hub.api.common import Actor, Body, HubOf, Page, Pages, after_text
from skerry_hub.clock import now_ms
from skerry_hub.tables import Endpoint, EndpointDevice
from skerry_modules.messages import Route

router = APIRouter(tags=["endpoints"])

SHOWN = 100

Name = Annotated[str, Path(description="The endpoint's name", examples=["digits"], max_length=100)]


class RouteBody(Body):
    module: str = Field(examples=["digits"], max_length=100)
    version: int = Field(ge=1, lt=1 << 31, examples=[3])
    percent: float = Field(100.0, gt=0, le=100, description="Share of the requests; of a shadow: how many are copied")


class EndpointBody(Body):
    """What an endpoint should be. The shares of ``split`` are 100 together."""

    split: list[RouteBody] = Field(description="The versions that answer", min_length=1)
    shadow: list[RouteBody] = Field([], description="Versions that score copies: compared, never answered")
    target: str = Field(description="A tag query for devices", examples=["site=lab"])
    keep_before: bool = Field(True, description="Keep the split before this one loaded, for an instant way back")
    reason: str = Field("", max_length=1000)


class Order(Body):
    reason: str = Field("", max_length=1000, description="For the audit log")


class RouteView(BaseModel):
    module: str
    version: int
    percent: float
    ready: int = Field(description="Devices that have it loaded and well")


class EndpointView(BaseModel):
    name: str
    target: str
    split: list[RouteView]
    shadow: list[RouteView]
    before: list[RouteView] = Field(description="The split before the last change: loaded, for the way back")
    devices: int = Field(description="Devices that have the endpoint")
    unschedulable: int = Field(description="Devices that match and cannot have it")
    revision: int
    changed_by: str
    reason: str
    created_at: int
    changed_at: int = Field(description="Milliseconds since 1970")


class MemberView(BaseModel):
    device: str
    reason: str = Field(description="Why it cannot have the endpoint: a stable code, or empty")
    message: str


class AgreementView(BaseModel):
    rows: int = Field(description="Rows that were compared with the live answer")
    agreed: int = Field(description="Of those, with the same largest score")
    within: int = Field(description="Of those, within the golden tolerance")
    worst: float = Field(description="The largest absolute difference")
    dropped: int = Field(description="Copies that were not scored, because the shadow was busy")
    failed: int = Field(description="Copies that it could not score")


class BehindView(BaseModel):
    module: str
    version: int
    role: str = Field(description="live or shadow")
    requests: int
    errors: int
    rejected: int
    rate: float = Field(description="Requests per second")
    p50_us: float
    p99_us: float
    agreement: AgreementView | None = Field(description="Of shadows")


class EndpointDetails(EndpointView):
    members: list[MemberView] = Field(
        description=f"The first {SHOWN} devices that match, those that cannot have it before the others; "
        "all of them: `/endpoints/{name}/devices`"
    )
    traffic: list[BehindView] = Field(description="What each version did in the last `window_s` seconds")


@router.get("/endpoints")
def list_endpoints(hub: HubOf, paging: Pages) -> Page[EndpointView]:
    """All endpoints by name."""
    with hub.db.read() as session:
        rows = endpoints.find(session, after=after_text(paging), limit=paging.limit + 1)
        return paging.page(rows, lambda shown: endpoint_views(session, shown), lambda row: [row.name])


@router.get("/endpoints/{name}")
def get_endpoint(
    hub: HubOf,
    name: Name,
    window_s: Annotated[int, Query(ge=1, le=30 * 86400, description="Seconds of traffic to sum up")] = 300,
) -> EndpointDetails:
    """One endpoint: its devices, and what the versions behind it did."""
    with hub.db.read() as session:
        return _details(session, endpoints.get(session, name), window_s)


@router.get("/endpoints/{name}/devices")
def list_endpoint_devices(
    hub: HubOf,
    paging: Pages,
    name: Name,
    unschedulable: Annotated[bool, Query(description="Only those that cannot have it")] = False,
) -> Page[MemberView]:
    """The devices that an endpoint's query matches, by id."""
    with hub.db.read() as session:
        endpoints.get(session, name)
        rows = endpoints.members(session, name, after=after_text(paging), limit=paging.limit + 1, unable=unschedulable)
        return paging.page(rows, lambda shown: [_member(one) for one in shown], lambda row: [row.device])


@router.put("/endpoints/{name}")
def put_endpoint(hub: HubOf, actor: Actor, name: Name, body: EndpointBody) -> EndpointDetails:
    """Make or change an endpoint on all devices that match.

    Each device takes the new split up, at once and dropping nothing, when all its versions are ready there or have
    failed there; the one before goes on until then.
    """
    with hub.db.session() as session:
        changed = endpoints.put(
            session,
            name,
            routes=_routes(body.split),
            shadow=_routes(body.shadow),
            target=body.target,
            keep_before=body.keep_before,
            actor=actor,
            reason=body.reason,
            now=now_ms(),
        )
    return _told(hub, name, changed)


@router.post("/endpoints/{name}/back")
def turn_endpoint_back(hub: HubOf, actor: Actor, name: Name, body: Order | None = None) -> EndpointDetails:
    """The split before the last change again: its versions are still loaded."""
    with hub.db.session() as session:
        changed = endpoints.go_back(session, name, actor=actor, reason=body.reason if body else "", now=now_ms())
    return _told(hub, name, changed)


@router.delete("/endpoints/{name}", status_code=204)
def delete_endpoint(hub: HubOf, actor: Actor, name: Name, reason: Annotated[str, Query(max_length=1000)] = "") -> None:
    """Take an endpoint off all devices; versions that nothing else wants there are unloaded."""
    with hub.db.session() as session:
        changed = endpoints.remove(session, name, actor=actor, reason=reason, now=now_ms())
    _tell(hub, changed)


def endpoint_views(session: Session, rows: Sequence[Endpoint]) -> list[EndpointView]:
    """Endpoints as the API shows them."""
    counts = endpoints.counts(session, [row.name for row in rows])
    plain = ("name", "target", "revision", "changed_by", "reason", "created_at", "changed_at")
    views = []
    for row in rows:
        ready = monitoring.ready(session, row.name)
        views.append(
            EndpointView(
                **{field: getattr(row, field) for field in plain},
                split=_views(row.split, ready),
                shadow=_views(row.shadow, ready),
                before=_views(row.before, ready),
                devices=counts[row.name].able,
                unschedulable=counts[row.name].unable,
            )
        )
    return views


def _details(session: Session, row: Endpoint, window_s: int) -> EndpointDetails:
    now = now_ms()
    found = monitoring.behind(session, row.name, since=now - window_s * 1000, now=now)
    shown = list(endpoints.members(session, row.name, limit=SHOWN, unable=True))
    others = endpoints.members(session, row.name, limit=SHOWN)
    shown += [one for one in others if not one.reason][: SHOWN - len(shown)]
    return EndpointDetails(
        **endpoint_views(session, [row])[0].model_dump(),
        members=[_member(one) for one in shown],
        traffic=[_behind(one) for one in found],
    )


def _behind(one: monitoring.Behind) -> BehindView:
    plain = set(BehindView.model_fields) - {"agreement"}
    compared = {field: getattr(one.agreement, field) for field in AgreementView.model_fields}
    return BehindView(
        **{field: getattr(one, field) for field in plain},
        agreement=AgreementView(**compared) if one.role == "shadow" else None,
    )


def _views(text: str, ready: dict[tuple[str, int], int]) -> list[RouteView]:
    return [
        RouteView(
            module=one.module, version=one.version, percent=one.percent, ready=ready.get((one.module, one.version), 0)
        )
        for one in endpoints.routes_of(text)
    ]


def _routes(bodies: Sequence[RouteBody]) -> list[Route]:
    return [Route(module=one.module, version=one.version, percent=one.percent) for one in bodies]


def _member(one: EndpointDevice) -> MemberView:
    return MemberView(device=one.device, reason=one.reason, message=one.message)


def _told(hub: HubOf, name: str, changed: endpoints.Changed) -> EndpointDetails:
    """The view is made after the commit: nobody waits for it who wants to write."""
    _tell(hub, changed)
    with hub.db.read() as session:
        return _details(session, endpoints.get(session, name), 300)


def _tell(hub: HubOf, changed: endpoints.Changed) -> None:
    hub.spread_desired(changed.devices)
    hub.bus.publish("fleet", *(f"device:{device}" for device in changed.devices))
