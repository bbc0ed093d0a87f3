"""One error shape for every error of the hub's API: RFC 9457 problem details, made in one place.

``type`` is an address of this hub that explains the code, ``code`` is stable, ``detail`` says what happened and what
to do, ``data`` has small facts for machines. Source: https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from skerry_hub.console.errors import error_page, wants_html
from skerry_modules.errors import CODES, BugError, InputError, PeerError, ResourceError, SkerryError

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
DOCS: Final = "/api/v1/errors/"
METHODS: Final = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

_STATUS: Final[dict[str, HTTPStatus]] = {
    "module.unknown": HTTPStatus.NOT_FOUND,
    "device.unknown": HTTPStatus.NOT_FOUND,
    "rollout.unknown": HTTPStatus.NOT_FOUND,
    "environment.unknown": HTTPStatus.NOT_FOUND,
    "endpoint.unknown": HTTPStatus.NOT_FOUND,
    "batch.unknown": HTTPStatus.NOT_FOUND,
    "request.not_found": HTTPStatus.NOT_FOUND,
    "request.method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "request.too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "package.too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "module.in_use": HTTPStatus.CONFLICT,
    "module.exists": HTTPStatus.CONFLICT,
    "device.exists": HTTPStatus.CONFLICT,
    "device.in_use": HTTPStatus.CONFLICT,
    "endpoint.changed": HTTPStatus.CONFLICT,
    "rollout.conflict": HTTPStatus.CONFLICT,
    "rollout.wrong_state": HTTPStatus.CONFLICT,
    "batch.wrong_state": HTTPStatus.CONFLICT,
    "batch.not_held": HTTPStatus.CONFLICT,
    "command.busy": HTTPStatus.CONFLICT,
    "command.offline": HTTPStatus.CONFLICT,
    "auth.missing": HTTPStatus.UNAUTHORIZED,
    "auth.denied": HTTPStatus.UNAUTHORIZED,
    "auth.cross_site": HTTPStatus.FORBIDDEN,
    "trust.unsigned": HTTPStatus.FORBIDDEN,
    "trust.unknown_key": HTTPStatus.FORBIDDEN,
    "trust.bad_signature": HTTPStatus.FORBIDDEN,
    "resource.no_space": HTTPStatus.INSUFFICIENT_STORAGE,
}
_FAMILY: Final[dict[type[SkerryError], HTTPStatus]] = {
    InputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    PeerError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ResourceError: HTTPStatus.SERVICE_UNAVAILABLE,
    BugError: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def status_of(error: SkerryError) -> HTTPStatus:
    """The HTTP status that an error is answered with."""
    return _STATUS.get(error.code) or _FAMILY.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)


def response(error: SkerryError, instance: str = "") -> Response:
    """An error as its answer."""
    status = status_of(error)
    body: dict[str, Any] = {
        "type": DOCS + error.code,
        "title": CODES[error.code],
        "status": status.value,
        "detail": error.message,
        "code": error.code,
        "family": error.family,
        "data": msgspec.to_builtins(error.data, enc_hook=str),
    }
    if instance:
        body["instance"] = instance
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        # Basic first: browsers ask for the token by themselves, its user name is of no matter.
        headers["WWW-Authenticate"] = 'Basic realm="Skerry hub", charset="UTF-8", Bearer realm="Skerry hub"'
    if "allow" in error.data:
        headers["Allow"] = str(error.data["allow"])
    return JSONResponse(body, status_code=status.value, media_type=MEDIA_TYPE, headers=headers)


def translate(error: Exception) -> SkerryError:
    """Any exception that reaches the edge, as one of ours."""
    if isinstance(error, SkerryError):
        return error
    if isinstance(error.__cause__, SkerryError):  # the framework wraps what goes wrong while it reads a body
        return error.__cause__
    if isinstance(error, RequestValidationError):
        return _validation(error)
    if isinstance(error, HTTPException):
        return _http(error)
    return BugError(
        "internal.bug",
        "cannot answer this request: the hub made a mistake, which its log has in full; please report it",
    )


def install(app: FastAPI) -> None:
    """Make this the one handler for every error, those of routing and validation included."""

    async def handle(request: Request, error: Exception) -> Response:
        ours = translate(error)
        if ours.code == "request.method_not_allowed":
            ours = _method_not_allowed(request)
        if isinstance(ours, BugError):
            log.error("cannot answer %s %s", request.method, request.url.path, exc_info=error)
        if wants_html(request):
            status = status_of(ours)
            return error_page(request, status=status.value, code=ours.code, message=ours.message)
        return response(ours, request.url.path)

    for kind in (SkerryError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def _validation(error: RequestValidationError) -> InputError:
    """The first problem as a sentence, all of them as data."""
    problems = [
        {"in": str(part["loc"][0]), "field": ".".join(map(str, part["loc"][1:])), "problem": part["msg"]}
        for part in error.errors()
    ]
    first = problems[0]
    where = f"{first['in']} field {first['field']}" if first["field"] else f"request {first['in']}"
    return InputError(
        "request.invalid",
        f"cannot use this request: {where}: {first['problem']}; see /api/v1/docs",
        problems=problems[:20],
    )


def _http(error: HTTPException) -> SkerryError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return InputError("request.not_found", "cannot find anything at this address; see /api/v1/docs")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return InputError("request.method_not_allowed", "cannot do this here; see /api/v1/docs")
    if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return InputError("request.too_large", f"cannot take this request: {error.detail}")
    if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InputError("request.invalid", f"cannot use this request: {error.detail}; see /api/v1/docs")
    return BugError("internal.bug", f"cannot answer this request: {error.detail}")


def _method_not_allowed(request: Request) -> InputError:
    """Names every method of the address: the framework knows only those of the first route that it met."""
    allowed = []
    for method in METHODS:
        scope = {**request.scope, "method": method, "path_params": {}}
        if any(route.matches(scope)[0] == Match.FULL for route in request.app.routes):
            allowed.append(method)
    allow = ", ".join(allowed)
    return InputError(
        "request.method_not_allowed",
        f"cannot {request.method} here: the address takes {allow}; see /api/v1/docs",
        allow=allow,
    )
