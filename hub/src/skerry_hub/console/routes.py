"""The overview, the logs, the assets and the live connection; the other areas stand in ``routes_*.py``."""

from __future__ import annotations

import mimetypes
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, RedirectResponse, Response

from skerry_hub.console import charts, errors, live
from skerry_hub.console.pulse import SPAN_MS, Pulse
from skerry_hub.console.queries import fleet, log, rollouts
from skerry_hub.console.templating import STATIC, asset_digest, is_partial, now_ms, page

router = APIRouter(include_in_schema=False)

SEVERITIES = ("critical", "error", "warning", "info", "debug")
PULSE_NAME = f"{SPAN_MS // 60_000} minutes"


def hub(request: Request) -> Any:
    """The running hub: see ``skerry_hub.app``."""
    return request.app.state.hub


def number_of(request: Request, name: str = "page") -> int:
    """A page number from the query; anything else is the first page."""
    text = request.query_params.get(name, "1")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1


def pages(request: Request, name: str = "page") -> Any:
    """page number → this address with that page."""

    def address(number: int) -> str:
        kept = [(key, value) for key, value in request.query_params.multi_items() if key != name and value]
        return f"{request.url.path}?{urlencode([*kept, (name, number)])}"

    return address


def to(request: Request, address: str) -> Response:
    """See other; for htmx as a header, so that the address bar follows."""
    if is_partial(request):
        return Response(status_code=200, headers={"HX-Redirect": address})
    return RedirectResponse(address, status_code=303)


@router.get("/")
def overview(request: Request) -> Response:
    now = now_ms()
    pulse: Pulse = request.app.state.console_pulse
    with hub(request).db.read() as session:
        counts = fleet.counts(session)
        points = pulse.points(session, now)
        values: dict[str, Any] = {
            "counts": counts,
            "points": points,
            "rollouts": rollouts.latest(session),
            "troubles": fleet.troubles(session),
            "events": log.latest_events(session, 6),
            "devices": fleet.devices(session, fleet.DeviceFilter(), 1, size=12),
        }
    return page(
        request,
        "overview.html",
        title="Overview",
        section="overview",
        topics=("fleet", "events", "rollout:*", "device:*"),
        requests_chart=charts.requests(points, PULSE_NAME),
        latency_chart=charts.latency(points, PULSE_NAME),
        **values,
    )


@router.get("/events")
def events(request: Request) -> Response:
    chosen = {name: request.query_params.get(name, "") for name in ("severity", "device", "code")}
    with hub(request).db.read() as session:
        found = log.events(session, **chosen, number=number_of(request))
    return page(
        request,
        "events.html",
        title="Events",
        section="events",
        topics=("events",),
        events=found,
        chosen=chosen,
        severities=SEVERITIES,
        page_address=pages(request),
    )


@router.get("/audit")
def audit(request: Request) -> Response:
    chosen = {name: request.query_params.get(name, "") for name in ("subject", "actor")}
    with hub(request).db.read() as session:
        found = log.audit(session, **chosen, number=number_of(request))
        actors = log.actors(session)
    return page(
        request,
        "audit.html",
        title="Audit log",
        section="audit",
        topics=("fleet", "models", "rollout:*"),
        rows=found,
        why=log.why,
        about=log.address,
        actors=actors,
        chosen=chosen,
        page_address=pages(request),
    )


@router.get("/samples")
def samples(request: Request) -> Response:
    chosen = {name: request.query_params.get(name, "") for name in ("module", "reason")}
    with hub(request).db.read() as session:
        found = log.samples(session, **chosen, number=number_of(request))
        groups = log.sample_groups(session)
        files = log.sample_files(session)
    return page(
        request,
        "samples.html",
        title="Samples",
        section="samples",
        topics=("samples",),
        rows=found,
        groups=groups,
        files=files,
        chosen=chosen,
        page_address=pages(request),
    )


@router.get("/assets/{digest}/{name:path}")
def asset_file(digest: str, name: str, request: Request) -> Response:
    """A static file. Its address holds its digest, so it may be kept for ever; an old address leads to the new one."""
    place = (STATIC / name).resolve()
    if not place.is_relative_to(STATIC) or not place.is_file():
        return errors.not_found(request)
    if digest != asset_digest(name):
        return RedirectResponse(f"/assets/{asset_digest(name)}/{name}", status_code=302)
    kind = mimetypes.guess_type(place.name)[0] or "application/octet-stream"
    return FileResponse(place, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})


@router.get("/favicon.ico")
def favicon() -> Response:
    return RedirectResponse(f"/assets/{asset_digest('favicon.svg')}/favicon.svg", status_code=302)


router.add_api_route("/live", live.stream, methods=["GET"], response_class=Response)
