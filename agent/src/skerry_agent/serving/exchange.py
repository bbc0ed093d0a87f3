"""One request as a connection has read it, and its one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skerry_agent.serving.http import HttpConnection


class Exchange:
    """One request and its one answer. What most requests lack is told here, and costs them nothing."""

    shadow = False
    json = -1
    timeout_s = 0.0  # 0: the module's own
    began = 0.0
    keep = True
    keep_header = b""
    allow = b""  # the header that a 405 has
    endpoint = b""
    extra = b""  # further headers of the answer
    key = b""  # requests of one key go to one version of a split
    after: Any = None  # see ``version.Item``
    low = False  # the client asked for low priority
    kills = 0  # workers that died of it before
    refusal: tuple[int, str, bytes] | None = None  # decided while reading: nobody need be asked
    cancel: Any = None  # set by the front: called if the client leaves

    def __init__(self, connection: HttpConnection, method: bytes, path: bytes, body: bytes) -> None:
        self._connection: HttpConnection | None = connection
        self.method = method
        self.path = path
        self.body = body

    def reply(self, status: int, code: str, json: int, body: bytes) -> None:
        """Answer; nothing happens if the client has left."""
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        self.cancel = None  # it holds this: left alone, the two would wait for the collector
        connection.answer(self, status, code, json, body)

    def abandon(self) -> None:
        """The client has left."""
        self._connection = None
        if self.cancel is not None:
            self.cancel()
            self.cancel = None
