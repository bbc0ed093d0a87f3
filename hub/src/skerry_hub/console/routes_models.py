"""Models, their versions, and all about one version."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from skerry_hub import registry
from skerry_hub.console.queries import measured, steps
from skerry_hub.console.queries import models as model_queries
from skerry_hub.console.routes import hub, number_of, pages
from skerry_hub.console.templating import now_ms, page

router = APIRouter(include_in_schema=False)


@router.get("/models")
def models(request: Request) -> Response:
    with hub(request).db.read() as session:
        found = model_queries.models(session)
    return page(request, "models.html", title="Models", section="models", topics=("models", "fleet"), models=found)


@router.get("/models/{name}")
def model(name: str, request: Request) -> Response:
    with hub(request).db.read() as session:
        row = registry.get_model(session, name)
        versions = model_queries.versions(session, name)
    return page(
        request,
        "model.html",
        title=name,
        section="models",
        topics=("models", "fleet"),
        model=row,
        versions=versions,
    )


@router.get("/models/{name}/versions/{version:int}")
def version(name: str, version: int, request: Request) -> Response:
    with hub(request).db.read() as session:
        registry.get_version(session, name, version)
        found = model_queries.version(session, name, version, number_of(request))
        times = steps.medians(session, name, version) if found and found.manifest.get("steps") else {}
        profiles = measured.of_version(session, name, version, now_ms())
    assert found is not None  # the service has just found it, in the same transaction
    return page(
        request,
        "version.html",
        title=f"{name}:{version}",
        section="models",
        topics=("models", "fleet"),
        version=found,
        measured=profiles,
        step_times=times,
        page_address=pages(request),
    )
