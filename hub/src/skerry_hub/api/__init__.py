"""The hub's JSON API under ``/api/v1``: routes, one error shape, OpenAPI."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from skerry_hub.api import problems
from skerry_hub.api.limits import BodyLimit
from skerry_hub.auth import Guard
from skerry_hub.compression import Compressed
from skerry_hub.settings import Settings
from skerry_modules.errors import SkerryError

PREFIX: Final = "/api/v1"
PARTS: Final = (
    "models",
    "environments",
    "profiling",
    "devices",
    "rollouts",
    "endpoints",
    "batches",
    "samples",
    "events",
    "system",
    "reference",
)

DESCRIPTION: Final = """
Register models, roll them out to devices, and watch them.

* **Lists** take `limit` and `cursor` and answer `{"items": […], "next": cursor or null}`.
* **Errors** are RFC 9457 problem details (`application/problem+json`) with a stable `code`; see `/api/v1/errors`.
* **Times** are milliseconds since 1970, UTC. **Sizes** are bytes.
* **Tags** are searched by `TagName=TagValue`, comma-separated or repeated; all must match; `*` is everything.
* **Who asks**: the token's name, or, on a hub without tokens, the header `X-Skerry-Actor`.
"""


def create(settings: Settings, lifespan: Any) -> FastAPI:
    """An application with all routes, behind the guard."""
    app = FastAPI(
        title="Skerry hub",
        version=version("skerry"),
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    problems.install(app)
    for part in PARTS:
        app.include_router(importlib.import_module(f"skerry_hub.api.{part}").router, prefix=PREFIX)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.add_middleware(Compressed)
    app.add_middleware(BodyLimit, limit=settings.body_max_bytes)
    app.add_middleware(_Guarded, settings=settings)
    return app


class _Guarded(Guard):
    """The guard with the API's error shape."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        super().__init__(app, settings, _refusal)


def _refusal(scope: Scope, error: SkerryError) -> Response:
    return problems.response(error, scope["path"])


def _operation_id(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with our one error shape in place of its own."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    from skerry_hub.api.common import Problem

    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = Problem.model_json_schema()
    problem = {
        "description": "An error",
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = problem
    app.openapi_schema = document
    return document
