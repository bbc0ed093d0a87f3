"""Environments: the list, the versions of one, and the lock of a version."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from skerry_hub import environments as service
from skerry_hub.console.queries import environments as queries
from skerry_hub.console.routes import hub
from skerry_hub.console.templating import page

router = APIRouter(include_in_schema=False)


@router.get("/environments")
def environments(request: Request) -> Response:
    with hub(request).db.read() as session:
        found = queries.lines(session)
    return page(
        request, "environments.html", title="Environments", section="environments", topics=("models",), lines=found
    )


@router.get("/environments/{name}")
def environment(name: str, request: Request) -> Response:
    with hub(request).db.read() as session:
        row = service.get(session, name)
        found = queries.versions(session, name)
    return page(
        request,
        "environment.html",
        title=name,
        section="environments",
        topics=("models",),
        environment=row,
        versions=found,
    )


@router.get("/environments/{name}/versions/{version:int}")
def version(name: str, version: int, request: Request) -> Response:
    with hub(request).db.read() as session:
        found = queries.version(session, name, version)
    return page(
        request,
        "environment_version.html",
        title=f"{name}:{version}",
        section="environments",
        topics=("models",),
        found=found,
        wheels=queries.wheels(found.lock.targets),
    )
