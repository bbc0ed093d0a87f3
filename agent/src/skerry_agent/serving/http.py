"""HTTP/1.1 for the data plane: one protocol object per connection, over TCP or a Unix socket.

Bodies are taken whole and never parsed here. Requests that a client pipelines are answered one after the other, in
order. A client that sends slowly, sends too much, or takes no answer meets a limit of ``ServingSettings``; one sweep a
second checks all connections, so that the limits cost a request nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from skerry_agent.rules.split import MAX_KEY_BYTES
from skerry_agent.serving import http_parsers, oip
from skerry_agent.serving.exchange import Exchange
from skerry_agent.serving.heads import END, HEAD_BYTES, Form, Head, Heads, answer_head
from skerry_agent.serving.http_parsers import ParseError
from skerry_agent.serving.settings import ServingSettings

if TYPE_CHECKING:
    import socket

    from skerry_agent.serving.lending import Lender

_LINGER_S: Final = 2.0
"""After an early refusal the rest of a body is read and thrown away for so long: closing at once would reset the
connection before the client has read why."""

_ERROR: Final = (
    b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nX-Skerry-Code: %b\r\nContent-Length: %d\r\n%b%b\r\n"
)
_EXTRA: Final[dict[int, bytes]] = {429: b"Retry-After: 1\r\n", 503: b"Retry-After: 1\r\n"}
_LONG_KEY: Final = f"cannot take an X-Skerry-Key over {MAX_KEY_BYTES} bytes; send a shorter one, or a hash of it"
_CLOSE: Final = b"Connection: close\r\n"
_KEEP: Final = b"Connection: keep-alive\r\n"
_JOIN_BYTES: Final = 64 * 1024


_NOTED: Final = frozenset(
    (
        b"content-length",
        b"inference-header-content-length",
        b"expect",
        b"content-encoding",
        b"transfer-encoding",
        b"upgrade",
        b"x-skerry-timeout-ms",
        b"x-skerry-key",
        b"x-skerry-priority",
    )
)


class Front(Protocol):
    """Who answers requests, and what the connections share."""

    settings: ServingSettings
    connections: set[HttpConnection]
    heads: Heads
    buffered: int  # bytes of bodies that have not come whole yet

    def handle(self, exchange: Exchange) -> None: ...

    def offer(self, connection: HttpConnection, form: Form) -> None:
        """It asked for the same some times in a row and is at rest."""
        ...


class HttpConnection(asyncio.Protocol):
    """One client. States: reading a head, reading a body, refusing (throws input away), closed."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._settings = front.settings
        self._transport: asyncio.Transport | None = None
        self.max_header_bytes = front.settings.max_header_bytes
        self._parser = http_parsers.make_parser(self)
        self._fd = -1
        self._queue: deque[Exchange] = deque()
        self._busy = False
        self._refusing = False
        self._paused = False
        self._stalled_at = 0.0  # since when the client takes no bytes; 0: it does
        self._since = time.monotonic()  # of the phase below
        self._phase = "idle"  # idle, head, body, linger
        self._head_bytes = 0
        self._taken = 0  # messages that the parser has completed
        self._plain: Head | None = None  # the last of these, if its head may be remembered
        self._raw = b""  # the head of the request that is coming
        self._fed = 0  # bytes of it so far
        self._form: Form | None = None  # of the last request
        self._alike = 0  # requests of this form in a row
        self._offer_after = (front.settings.lend_after + 1) // 2 or 1 << 62
        self._seen: tuple[object, int] = (None, 0)
        self._lender: Lender | None = None  # who has lent this connection to a worker
        self._closing = False
        self._began, self._kills = 0.0, 0  # of a request that a worker began
        self._reset()

    def _reset(self) -> None:
        self._path = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._json = -1
        self._timeout_s = 0.0
        self._low = False
        self._key = b""
        self._complaint: tuple[int, str, str] | None = None
        self._expects = False
        self._head_size = 0
        self.length = 0  # as the head declares it
        self._chunked = False
        self.offers = False  # another protocol, which is not taken

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        self._fd = sock.fileno() if sock is not None else -1
        full = len(self._front.connections) >= self._settings.max_connections
        self._front.connections.add(self)
        if full:
            self._refuse(503, "scoring.overloaded", "cannot take another connection; close some, or try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        self._front.connections.discard(self)
        self._front.buffered -= self._size
        self._size = 0
        self._transport = None
        self._fd = -1
        self._refusing = True
        if self._lender is not None:
            self._lender.recall()
        for exchange in self._queue:
            exchange.abandon()
        self._queue.clear()

    def data_received(self, data: bytes) -> None:
        if self._refusing:
            return
        between = self._phase == "idle" and not self._parser.partial
        if between:
            end = data.find(END) + len(END)
            head = self._front.heads.get(data[:end])
            if head is not None and len(data) - end == head.length:
                self._count(head)
                self._take(head, data[end:])
                return
            self._fed, self._raw = 0, data[:end] if len(END) <= end <= HEAD_BYTES else b""
        taken = self._taken
        self._fed += len(data)
        self._parse(data)
        if self._taken == taken + 1 and self._plain is not None and self._phase == "idle":
            self._learn(self._plain)

    def _learn(self, head: Head) -> None:
        """All that came since the connection was last between two requests is one of them."""
        if self._raw and self._fed == len(self._raw) + head.length:
            kept = self._front.heads.learn(self._raw, head)
            if kept is not None:
                self._count(kept)
        self._raw = b""

    def _count(self, head: Head) -> None:
        if head.form is self._form:
            self._alike += 1
        else:
            self._form, self._alike = head.form, 1

    def _take(self, head: Head, body: bytes) -> None:
        """A whole request whose head is known."""
        exchange = Exchange(self, head.method, head.path, body)
        exchange.json = head.json
        if head.timeout_s:
            exchange.timeout_s = head.timeout_s
        if head.low:
            exchange.low = True
        self._enqueue(exchange)

    def _parse(self, data: bytes) -> None:
        if self._phase == "idle":
            self._phase, self._since, self._head_bytes = "head", time.monotonic(), 0
        if self._phase == "head":
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except ParseError as error:
            self._refuse(400, "request.invalid", f"cannot read the request as HTTP: {error}")
        if self._phase == "head" and self._head_bytes > self._settings.max_header_bytes:
            self._refuse(*self._long_head())

    def eof_received(self) -> bool:
        return False  # the client has left: what it asked and is not being scored yet need not be

    def pause_writing(self) -> None:
        self._stalled_at = time.monotonic()

    def resume_writing(self) -> None:
        self._stalled_at = 0.0
        self._next()

    # -- the parser's side

    def on_message_begin(self) -> None:
        self._reset()
        self._phase, self._since = "head", time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._head_size += len(url)

    def _long_head(self) -> tuple[int, str, str]:
        limit = self._settings.max_header_bytes
        return 431, "request.invalid", f"cannot take a request head over {limit} bytes; send fewer headers"

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        name = name.lower()
        if name in _NOTED:  # most headers mean nothing here, and each costs every request
            self._note(name, value)

    def _note(self, name: bytes, value: bytes) -> None:
        match name:
            case b"inference-header-content-length":
                if value.isdigit() and len(value) < 10:
                    self._json = int(value)
                else:
                    self._complaint = (400, "request.invalid", "cannot read Inference-Header-Content-Length: no number")
            case b"expect":
                self._expects = value.lower() == b"100-continue"
            case b"content-encoding":
                if value.lower() not in (b"", b"identity"):
                    self._complaint = (400, "request.invalid", "cannot take a compressed body; send it as it is")
            case b"content-length":
                self.length = int(value[:20]) if value.isdigit() else 0
                if self.length > self._settings.max_body_bytes:
                    self._complaint = self._too_large()
            case b"transfer-encoding":
                self._chunked = True
            case b"upgrade":
                self.offers = True
            case b"x-skerry-timeout-ms":
                if value.isdigit() and int(value[:9]) > 0:
                    self._timeout_s = int(value[:9]) / 1000
                else:
                    self._complaint = (400, "request.invalid", "cannot read X-Skerry-Timeout-Ms: no number above 0")
            case b"x-skerry-key":
                self._key = value
                if len(value) > MAX_KEY_BYTES:
                    self._complaint = (400, "request.invalid", _LONG_KEY)
            case b"x-skerry-priority":
                self._low = value.lower() == b"low"
            case _:
                pass

    def on_headers_complete(self) -> None:
        self._phase, self._since = "body", time.monotonic()
        if self._head_size > self._settings.max_header_bytes:
            self._complaint = self._long_head()
        if self._complaint is not None:
            self._refuse(*self._complaint)
        elif self.offers and self._chunked:  # httptools would take the chunks for the next request
            self._refuse(400, "request.invalid", "cannot take chunks with an offer to upgrade; send a Content-Length")
        elif self._expects and self._transport is not None and not self._queue:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._refusing:
            return
        self._parts.append(body)
        self._size += len(body)
        self._front.buffered += len(body)
        if self._size > self._settings.max_body_bytes:
            self._refuse(*self._too_large())
        elif self._front.buffered > self._settings.max_buffered_bytes:
            self._refuse(429, "scoring.overloaded", "cannot take more request bodies at once; try again after a second")

    def on_message_complete(self) -> None:
        if self._refusing or (self.offers and self._size < self.length):
            return  # in the second case the parser has stopped before the body
        self._front.buffered -= self._size
        self._size = 0
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        exchange = Exchange(self, self._parser.get_method(), self._path, body)
        exchange.keep = self._parser.should_keep_alive()
        exchange.json = self._json
        exchange.timeout_s = self._timeout_s
        exchange.low = self._low
        exchange.key = self._key
        if self._parser.get_http_version() == "1.0":
            exchange.keep_header = _KEEP
        self._taken += 1
        self._plain = self._remembered(exchange)
        self._parts = []
        self._phase, self._head_bytes, self._since = "idle", 0, time.monotonic()
        self._enqueue(exchange)

    def _remembered(self, exchange: Exchange) -> Head | None:
        """What to remember of its head; None: it is not of the plain kind."""
        unusual = self._expects or self._chunked or self.offers or exchange.key or exchange.keep_header
        if unusual or not exchange.keep or len(exchange.body) != self.length:
            return None
        return Head(exchange.method, exchange.path, self.length, exchange.json, exchange.timeout_s, exchange.low)

    def _enqueue(self, exchange: Exchange) -> None:
        self._queue.append(exchange)
        if not self._busy:
            self._next()
        elif len(self._queue) > self._settings.max_pipelined and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _too_large(self) -> tuple[int, str, str]:
        limit = self._settings.max_body_bytes
        return 413, "request.too_large", f"cannot take a body over {limit} bytes; send fewer rows at once"

    # -- answers

    def _next(self) -> None:
        """Hand the next request on, unless one is out or the client takes no bytes."""
        while self._queue and not self._busy and not self._stalled_at and self._transport is not None:
            self._busy = True
            exchange = self._queue[0]
            if exchange.refusal is not None:
                status, code, body = exchange.refusal
                exchange.reply(status, code, -1, body)
                return
            exchange.began = self._began or time.monotonic()
            if self._kills:
                exchange.kills = self._kills
            self._front.handle(exchange)

    def answer(self, exchange: Exchange, status: int, code: str, json: int, body: bytes) -> None:
        """Write one answer (called by the exchange)."""
        transport = self._transport
        if transport is None:
            return
        connection = (exchange.keep_header if exchange.keep else _CLOSE) + exchange.extra
        if status == 200:
            head = answer_head(json, len(body), connection)
        else:
            reason = oip.REASONS.get(status, b"Error")
            extra = _EXTRA.get(status, exchange.allow)
            head = _ERROR % (status, reason, code.encode(), len(body), extra, connection)
        if exchange.method == b"HEAD":
            self._write(head)
        elif len(body) <= _JOIN_BYTES:
            self._write(head + body)
        else:
            transport.writelines((head, body))
        if self._queue and self._queue[0] is exchange:
            self._queue.popleft()
        self._busy = False
        self._since = time.monotonic()
        if not exchange.keep:
            self._linger()
            return
        if self._paused and len(self._queue) <= self._settings.max_pipelined // 2:
            self._paused = False
            transport.resume_reading()
        self._next()
        if self._alike >= self._offer_after and not self._queue:
            self._offer()

    def _write(self, data: bytes) -> None:
        """At once where nothing is ahead of it: uvloop would wait until it has called everybody of this turn."""
        transport = self._transport
        assert transport is not None
        if self._fd >= 0 and not transport.get_write_buffer_size() and not transport.is_closing():
            try:
                sent = os.write(self._fd, data)
            except OSError:
                sent = 0  # full, or broken: the transport finds out which
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

    def _refuse(self, status: int, code: str, text: str) -> None:
        """Answer what came before, then this, then close; further input is thrown away."""
        if self._refusing:
            return
        self._refusing = True
        self._front.buffered -= self._size
        self._size = 0
        self._parts = []
        exchange = Exchange(self, b"", b"", b"")
        exchange.keep = False
        exchange.refusal = (status, code, oip.error_body(text))
        self._queue.append(exchange)
        if not self._busy:
            self._next()

    def _linger(self) -> None:
        """Everything is said; close once the client has had time to read it."""
        self._refusing = True
        transport = self._transport
        if transport is None:
            return
        for exchange in self._queue:
            exchange.abandon()
        self._queue.clear()
        if self._phase == "idle" or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self._phase, self._since = "linger", time.monotonic()

    # -- lent to a worker (``serving.lending.Lendable``)

    def _offer(self) -> None:
        """At rest after some requests alike."""
        self._alike = 0
        form, transport = self._form, self._transport
        rests = self._phase == "idle" and not self._parser.partial and not self._refusing and not self._stalled_at
        if form is not None and transport is not None and rests and not transport.get_write_buffer_size():
            self._front.offer(self, form)

    def is_alone_at(self, version: object, taken: int) -> bool:
        """Whether a version had no other requests since the last time; ``taken`` grows with each."""
        before, self._seen = self._seen, (version, taken)
        return before[0] is version and taken - before[1] == self._offer_after

    @property
    def sock(self) -> socket.socket:
        assert self._transport is not None
        found: socket.socket = self._transport.get_extra_info("socket")
        return found

    def lend(self, lender: Lender) -> None:
        assert self._transport is not None
        self._lender = lender
        self._transport.pause_reading()

    def resume(self, data: bytes, *, rest: bytes = b"", began: float = 0.0, kills: int = 0) -> None:
        self._lender = None
        self._since = time.monotonic()
        self._alike, self._form, self._seen = 0, None, (None, 0)
        transport = self._transport
        if transport is None:
            return
        if rest:
            self._write(rest)
        self._began, self._kills = began, kills
        if data:
            self.data_received(data)
        self._began, self._kills = 0.0, 0
        if self._closing:
            self._closing = False
            self.close_soon()
        if not self._paused:
            transport.resume_reading()

    def sweep(self, now: float) -> None:
        """Enforce the times; called about once a second."""
        settings, transport = self._settings, self._transport
        if transport is None or self._lender is not None:
            return
        if self._stalled_at and now - self._stalled_at > settings.write_timeout_s:
            transport.abort()
            return
        waited = now - self._since
        if self._phase == "linger":
            if waited > _LINGER_S:
                transport.abort()
        elif self._refusing:
            return
        elif self._phase == "head" and waited > settings.header_timeout_s:
            self._refuse(408, "request.invalid", "cannot wait longer for the request's head; send it at once")
        elif self._phase == "body" and waited > settings.body_timeout_s:
            self._refuse(408, "request.invalid", "cannot wait longer for the request's body; send it faster")
        elif self._phase == "idle" and not self._queue and waited > settings.idle_timeout_s:
            transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close_soon(self) -> None:
        """The server stops: close when idle, else after the answer."""
        if self._transport is None:
            return
        if self._lender is not None:
            self._closing = True
            self._lender.recall()
            return
        if not self._queue:
            self._transport.close()
        for exchange in self._queue:
            exchange.keep = False
