"""The list of endpoints and the page of one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from skerry_hub import endpoints as service
from skerry_hub.console.queries import endpoints as queries
from skerry_hub.console.routes import hub
from skerry_hub.console.templating import now_ms, page

router = APIRouter(include_in_schema=False)


@router.get("/endpoints")
def endpoints(request: Request) -> Response:
    with hub(request).db.read() as session:
        found = queries.lines(session, now_ms())
    return page(
        request, "endpoints.html", title="Endpoints", section="endpoints", topics=("fleet", "device:*"), lines=found
    )


@router.get("/endpoints/{name}")
def endpoint(name: str, request: Request) -> Response:
    with hub(request).db.read() as session:
        found = queries.line(session, service.get(session, name), now_ms())
    return page(
        request,
        "endpoint.html",
        title=name,
        section="endpoints",
        topics=("fleet", "device:*"),
        line=found,
        minutes=queries.WINDOW_S // 60,
    )
