"""The table of devices and the page of one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from skerry_hub import devices as device_service
from skerry_hub.console import charts
from skerry_hub.console.queries import device as device_queries
from skerry_hub.console.queries import fleet, log, rollouts
from skerry_hub.console.routes import hub, number_of, pages
from skerry_hub.console.templating import now_ms, page
from skerry_modules import profiles
from skerry_modules.errors import InputError

router = APIRouter(include_in_schema=False)


@router.get("/devices")
def devices(request: Request) -> Response:
    given = request.query_params
    typed, problem = given.get("query", ""), ""
    try:
        tags, text = fleet.search(typed)
    except InputError as error:
        tags, text = fleet.search("")
        problem = error.message
    chosen = fleet.DeviceFilter(
        tags=tags,
        text=text,
        state=given.get("state", ""),
        presence=given.get("presence", ""),
        profile=given.get("profile", ""),
    )
    with hub(request).db.read() as session:
        found = fleet.devices(session, chosen, number_of(request))
        values: dict[str, Any] = {"counts": fleet.counts(session), "profiles": fleet.profiles(session)}
    return page(
        request,
        "devices.html",
        title="Devices",
        section="devices",
        topics=("fleet",),
        devices=found,
        typed=typed,
        problem=problem,
        chosen=chosen,
        states=fleet.STATES,
        page_address=pages(request),
        **values,
    )


@router.get("/devices/{name}")
def device(name: str, request: Request) -> Response:
    now = now_ms()
    span = request.query_params.get("span", "1h")
    span = span if span in charts.SPANS else "1h"
    with hub(request).db.read() as session:
        device_service.get(session, name)
        found = device_queries.device(session, name)
        health = device_queries.health(session, name, now, charts.SPANS[span])
        telemetry = device_queries.telemetry(session, name, now, charts.SPANS[span])
        events = log.latest_events(session, 12, name)
        history = rollouts.of_device(session, name)
    words = charts.SPAN_NAMES[span]
    assert found is not None  # the service has just found it, in the same transaction
    return page(
        request,
        "device.html",
        title=name,
        section="devices",
        topics=(f"device:{name}", "fleet"),
        device=found,
        profile=profiles.shipped().get(found.row.profile),
        points=telemetry,
        health=health,
        events=events,
        history=history,
        span=span,
        spans=charts.SPANS,
        requests_chart=charts.requests(telemetry, words),
        latency_chart=charts.latency(telemetry, words),
        cpu_chart=charts.cpu(health, words),
        memory_chart=charts.memory(health, words),
        disk_chart=charts.disk(health, words),
        temperature_chart=charts.temperature(health, words),
    )
