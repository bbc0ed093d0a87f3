"""The limit on request bodies, before anything reads them. Packages and batch inputs have limits of their own."""

from __future__ import annotations

import re
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skerry_hub.api import problems
from skerry_modules.errors import InputError

_UPLOADS: Final = {
    "POST": re.compile(r"/api/v1/models/[^/]+/versions/?"),
    "PUT": re.compile(r"/api/v1/batches/uploads/[^/]+/?"),
}

DRAIN_BYTES: Final = 64 * 1024 * 1024
"""How much of a body that is refused for its size is still read."""


class BodyLimit:
    """ASGI middleware: answers 413 instead of taking a body that is too large, declared or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upload = _UPLOADS.get(scope.get("method", ""))
        if scope["type"] != "http" or (upload is not None and upload.fullmatch(scope["path"])):
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await _drain(receive)
            await problems.response(self._error(), scope["path"])(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise self._error()
            return message

        await self._app(scope, counted, send)

    def _error(self) -> InputError:
        data: dict[str, Any] = {"limit": self._limit}
        return InputError(
            "request.too_large",
            f"cannot take a body of more than {self._limit} bytes here: send less, or raise SKERRY_HUB_BODY_MAX_BYTES",
            **data,
        )


async def _drain(receive: Receive) -> None:
    """Read a refused body away, as far as is bearable: an answer that comes before its end could be lost with it."""
    left = DRAIN_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return
