"""The page's live connection: a server-sent ``live`` event whenever one of the page's topics was nudged.

The event carries no data. The page answers it by asking for its own ``main`` again, so what is shown is always one
consistent reading of the database, and a missed nudge costs nothing. ``tick`` events keep the connection honest: a
browser that hears neither for a while says that the connection is lost. A page that gets no seat
(:mod:`skerry_hub.live`) asks for itself now and then instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request

from skerry_hub.bus import Bus
from skerry_hub.live import LiveResponse

MIN_GAP_S: Final = 1.0
"""Nudges closer than this become one: a busy fleet nudges a thousand times a second."""
TICK_S: Final = 10.0
"""How often a silent connection says that it lives; the page waits three times as long."""
MAX_TOPICS: Final = 16


def wanted(topics: str, nudged: frozenset[str]) -> bool:
    """Whether one of the comma-separated ``topics`` was nudged; ``rollout:*`` stands for every rollout. Pure."""
    for topic in topics.split(",")[:MAX_TOPICS]:
        if topic in nudged:
            return True
        if topic.endswith(":*") and any(name.startswith(topic[:-1]) for name in nudged):
            return True
    return False


async def events(bus: Bus, topics: str) -> AsyncIterator[str]:
    """The stream's text, for as long as the bus is open."""
    yield "retry: 1000\nevent: tick\ndata:\n\n"
    last = 0.0
    quiet_since = time.monotonic()
    async for nudged in bus.listen(quiet_s=TICK_S):
        if wanted(topics, nudged):
            wait = last + MIN_GAP_S - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            last = quiet_since = time.monotonic()
            yield "event: live\ndata:\n\n"
        elif time.monotonic() - quiet_since >= TICK_S:
            quiet_since = time.monotonic()
            yield "event: tick\ndata:\n\n"


async def stream(request: Request) -> LiveResponse:
    topics = request.query_params.get("topics", "fleet")
    hub = request.app.state.hub
    return LiveResponse(events(hub.bus, topics), hub.seats)
