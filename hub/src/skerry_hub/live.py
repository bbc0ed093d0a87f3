"""How many live connections the hub keeps open: each holds a socket and is woken by every nudge of the fleet.

One bound for the console's pages and the API's event stream together. What comes beyond it is refused with 503 before
anything is sent, and asks for the state now and then instead: a nudge is never data, so it loses only time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from skerry_modules.errors import ResourceError

RETRY_S: Final = 30
"""When one that was refused may ask again: pages are closed in minutes, not in seconds."""


class Seats:
    """Counts live connections. All of them live in one event loop, so there is nothing to lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0


class LiveResponse(StreamingResponse):
    """Server-sent events that hold a seat for as long as the connection lasts, however it ends; 503 without a seat."""

    def __init__(self, events: AsyncIterator[str], seats: Seats) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._seats = seats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._seats.taken >= self._seats.limit:
            await _refuse(self._seats, scope, receive, send)
            return
        self._seats.taken += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._seats.taken -= 1


async def _refuse(seats: Seats, scope: Scope, receive: Receive, send: Send) -> None:
    from skerry_hub.api import problems  # the API brings its routes, which bring this module

    error = ResourceError(
        "resource.too_many_streams",
        f"cannot open one more live connection: {seats.taken} are open; ask again in {RETRY_S} s, close pages that "
        "nobody reads, or raise SKERRY_HUB_STREAMS_MAX",
        limit=seats.limit,
    )
    answer = problems.response(error, scope["path"])
    answer.headers["Retry-After"] = str(RETRY_S)
    await answer(scope, receive, send)
