"""HTTP/1.1 parsers behind one face: httptools where it is installed, h11 elsewhere (armv7l has no httptools wheel).

Both call a connection back as httptools does: ``on_message_begin``, ``on_url``, ``on_header``, ``on_headers_complete``,
``on_body``, ``on_message_complete``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from skerry_agent.serving.http import HttpConnection


class ParseError(Exception):
    """The bytes are no HTTP request."""


class Parser(Protocol):
    partial: bool  # holds the beginning of a message that it has not told of

    def feed_data(self, data: bytes) -> None: ...
    def get_method(self) -> bytes: ...
    def should_keep_alive(self) -> bool: ...
    def get_http_version(self) -> str: ...


def make_parser(connection: HttpConnection) -> Parser:
    """The faster of the parsers that are installed."""
    try:
        return _Httptools(connection)
    except ImportError:
        return H11(connection)


class _Httptools:
    partial = False

    def __init__(self, connection: HttpConnection) -> None:
        import httptools

        self._connection = connection
        self._make = httptools.HttpRequestParser
        self._error = httptools.HttpParserError
        self._upgrade = httptools.HttpParserUpgrade
        self._renew()

    def _renew(self) -> None:
        self._body = 0  # bytes of a body that the parser left to us
        parser = self._make(self._connection)
        self._feed = parser.feed_data
        self.get_method = parser.get_method
        self.should_keep_alive = parser.should_keep_alive
        self.get_http_version = parser.get_http_version

    def feed_data(self, data: bytes) -> None:
        while data:
            try:
                data = self._take_body(data) if self._body else self._parse(data)
            except self._error as error:
                raise ParseError(str(error)) from error

    def _parse(self, data: bytes) -> bytes:
        """What is left: nothing, but where the parser stops at an offer of HTTP/2 or the like.

        Such an offer need not be taken (RFC 9110, 7.8), and the request is one of HTTP/1.1 all the same.
        """
        try:
            self._feed(data)
        except self._upgrade as upgrade:
            rest = data[upgrade.args[0] :]
            self._body = self._connection.length
            if not self._body:
                self._renew()
            return rest
        return b""

    def _take_body(self, data: bytes) -> bytes:
        part, rest = data[: self._body], data[self._body :]
        self._body -= len(part)
        self._connection.on_body(part)
        if not self._body:
            self._connection.on_message_complete()
            self._renew()
        return rest


class H11:
    """h11 with httptools' callbacks. h11 follows whole request/response cycles; each request gets a fresh one."""

    def __init__(self, connection: HttpConnection) -> None:
        import h11

        self._h11 = h11
        self._connection = connection
        self._limit = connection.max_header_bytes
        self._event: Any = None
        self.partial = False
        self._fresh(b"")

    def _fresh(self, rest: bytes) -> None:
        self._parser = self._h11.Connection(self._h11.SERVER, max_incomplete_event_size=self._limit)
        if rest:
            self._parser.receive_data(rest)

    def feed_data(self, data: bytes) -> None:
        h11 = self._h11
        try:
            self._parser.receive_data(data)
            while True:
                event = self._parser.next_event()
                if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                    self.partial = bool(self._parser.trailing_data[0])
                    return
                self._handle(event)
        except h11.RemoteProtocolError as error:
            raise ParseError(str(error)) from error

    def _handle(self, event: Any) -> None:
        connection = self._connection
        if isinstance(event, self._h11.Request):
            self._event = event
            connection.on_message_begin()
            connection.on_url(event.target)
            for name, value in event.headers:
                connection.on_header(name, value)
            connection.on_headers_complete()
        elif isinstance(event, self._h11.Data):
            connection.on_body(bytes(event.data))
        elif isinstance(event, self._h11.EndOfMessage):
            rest = self._parser.trailing_data[0]
            connection.on_message_complete()
            self._fresh(rest)

    def get_method(self) -> bytes:
        return bytes(self._event.method)

    def should_keep_alive(self) -> bool:
        tokens = b",".join(value.lower() for name, value in self._event.headers if name == b"connection")
        if b"close" in tokens:
            return False
        return self.get_http_version() != "1.0" or b"keep-alive" in tokens

    def get_http_version(self) -> str:
        return str(self._event.http_version.decode())
