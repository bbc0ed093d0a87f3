"""A request of the agent's own: an ``Item`` that fills a future."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Call:
    """See the module's docstring."""

    __slots__ = ("after", "answered", "began", "body", "endpoint", "json")

    low = False
    shadow = False

    def __init__(self, endpoint: bytes, json: int, body: bytes) -> None:
        self.endpoint = endpoint
        self.after: Callable[[int, bytes], None] | None = None
        self.json = json
        self.body = body
        self.began = time.monotonic()
        self.answered: asyncio.Future[tuple[int, str, int, bytes]] = asyncio.get_running_loop().create_future()

    def reply(self, status: int, code: str, json: int, body: bytes) -> None:
        if not self.answered.done():
            self.answered.set_result((status, code, json, body))
