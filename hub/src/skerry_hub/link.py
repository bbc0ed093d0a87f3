"""The hub's one connection to the broker: paho in a thread of its own.

Rules:

* MQTT 3.1.1, clean session: what was under way when a connection ends is gone, and whoever published it makes up for it
  (acknowledgements and chunks are asked for again, desired documents are published again on connect).
* Callbacks only hand over, and nothing that they raise leaves the thread: paho's own loop would die of it while the
  client still looks connected.
* The loop is ours: ``poll`` instead of paho's ``select`` (which never connects past 1,024 descriptors), reconnects with
  jitter, a time limit on the handshake, and a heartbeat that :meth:`Link.healthy` watches.
* Reading pauses while the receiver has no room (``may_read``): the broker's queue and TCP hold the fleet back.

paho reads three times and writes once per message; a buffer between it and the socket makes that one read and one
write for many messages. It sits where paho itself puts its WebSocket wrapper.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from skerry_hub.broker import parse_url
from skerry_hub.broker.rights import DROPPED_TOPIC, OVERSIZED_TOPIC
from skerry_modules import topics

log = logging.getLogger(__name__)

_READ_BYTES: Final = 256 * 1024
_UNSENT_BYTES: Final = 1024 * 1024
_PACKETS_PER_TURN: Final = 512


class LinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the connection."""

    keepalive_s: int = 30
    connect_s: float = 10.0
    reconnect_first_s: float = 0.2
    reconnect_max_s: float = 10.0  # the hub is one client: it need not spread itself as a fleet must
    window: int = 100  # QoS 1 messages in flight
    pending_messages: int = 2000  # published and not yet acknowledged by the broker
    pending_bytes: int = 8 * 1024 * 1024
    stuck_s: float = 30.0  # a loop that has not turned for so long is not healthy


OnMessage = Callable[[str, bytes, bool], None]
"""(topic, payload, retained)."""


class _Buffered:
    """A socket as paho wants one, reading ahead and writing in bulk. Used by the link's thread only."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._ahead = b""
        self._at = 0
        self._unsent = bytearray()

    def recv(self, count: int) -> bytes:
        if self._at >= len(self._ahead):
            self._ahead, self._at = self._sock.recv(max(count, _READ_BYTES)), 0
        taken = self._ahead[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def send(self, data: bytes | bytearray) -> int:
        if len(self._unsent) >= _UNSENT_BYTES:
            self.flush()
            if len(self._unsent) >= _UNSENT_BYTES:
                raise BlockingIOError
        self._unsent += data
        return len(data)

    def flush(self) -> None:
        """Write what the socket takes now."""
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            del self._unsent[:sent]

    @property
    def readable(self) -> bool:
        """Whether bytes are at hand that ``poll`` does not know of."""
        return self._at < len(self._ahead) or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.flush()
        self._sock.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Client(mqtt.Client):
    """paho with the buffered socket."""

    def _create_socket(self) -> Any:
        sock: Any = super()._create_socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Buffered(sock)

    def holds(self, sock: Any) -> bool:
        """Whether the connection over ``sock`` still stands."""
        return self.socket() is sock


class Link:
    """The connection. ``on_message`` and ``on_connected`` run in its thread and must only hand over.

    Args:
        url: ``mqtt://host:port`` or ``mqtts://…``; a callable is asked before each connect.
        credentials: user name and password; empty for none.
        on_message: takes every message of the hub's subscriptions.
        on_connected: called each time the subscriptions are in force.
        may_read: whether the receiver has room.
    """

    def __init__(
        self,
        url: str | Callable[[], str],
        credentials: tuple[str, str],
        on_message: OnMessage,
        *,
        on_connected: Callable[[], None] = lambda: None,
        may_read: Callable[[], bool] = lambda: True,
        settings: LinkSettings | None = None,
    ) -> None:
        self.settings = settings or LinkSettings()
        self.broker_dropped = 0
        """Messages that the broker says it dropped (Mosquitto only)."""
        self.connects = 0
        self.received = 0
        self.refused = 0
        """Messages that the receiver's code failed on: bugs, each logged."""
        self._url = url if callable(url) else lambda: url
        self._credentials = credentials
        self._on_message, self._on_connected, self._may_read = on_message, on_connected, may_read
        self._client: _Client | None = None
        self._connected = threading.Event()
        self._stopping = threading.Event()
        self._space = threading.Condition()
        self._sizes: collections.deque[int] = collections.deque()  # of what is pending, in order
        self._bytes = 0
        self._random = random.Random()  # its own: the module's belongs to whoever seeds it
        self._beat = time.monotonic()
        self._lost = ""
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._thread: threading.Thread | None = None

    # -- for everyone -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin connecting, and keep at it; returns at once."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye and end the thread."""
        self._stopping.set()
        self.wake()
        with self._space:
            self._space.notify_all()
        if self._thread is not None:
            self._thread.join(self.settings.connect_s + 5)
            self._thread = None
            os.close(self._wake_in)
            os.close(self._wake_out)

    @property
    def connected(self) -> bool:
        """Whether the subscriptions are in force."""
        return self._connected.is_set()

    def wait_connected(self, timeout_s: float) -> bool:
        return self._connected.wait(timeout_s)

    @property
    def healthy(self) -> bool:
        """Whether the loop turns; a link that is healthy and not connected is trying."""
        return self._thread is not None and time.monotonic() - self._beat < self.settings.stuck_s

    @property
    def pending(self) -> int:
        """Messages published and not yet taken by the broker."""
        return len(self._sizes)

    @property
    def _full(self) -> bool:
        return len(self._sizes) >= self.settings.pending_messages or self._bytes >= self.settings.pending_bytes

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False, *, wait_s: float = 0.0) -> bool:
        """Publish from any thread. False: not connected, or no room within ``wait_s``; nothing was sent then."""
        with self._space:
            if self._full and wait_s > 0:
                self._space.wait_for(lambda: not self._full or not self.connected, wait_s)
            client = self._client
            if client is None or not self.connected or self._full:
                return False
            if qos:
                self._sizes.append(len(payload))
                self._bytes += len(payload)
        try:
            client.publish(topic, payload, qos, retain)
        except ValueError:  # paho: too large for the protocol, or a topic with a wildcard
            log.exception("cannot publish %d bytes to %s", len(payload), topic)
            if qos:
                self._done()
            return False
        return True

    def wake(self) -> None:
        """Let the loop look again: something is to be written, or there is room to read."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_out, b"\0")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = self.settings.reconnect_first_s
        while not self._stopping.is_set():
            self._beat = time.monotonic()
            began = self.connects
            try:
                self._connection()
            except (OSError, ValueError) as error:
                self._lost = str(error)
            except Exception:
                log.exception("the link failed; it connects again")
            finally:
                self._closed()
            if self._stopping.is_set():
                return
            if self.connects > began:
                backoff = self.settings.reconnect_first_s
                log.warning("the connection to the broker ended (%s); connecting again", self._lost or "closed")
            self._stopping.wait(self._random.uniform(0, backoff))
            backoff = min(self.settings.reconnect_max_s, backoff * 2)

    def _connection(self) -> None:
        """One connection, from its socket to its end."""
        host, port, tls = parse_url(self._url())
        client = self._new_client(tls)
        client.connect(host, port, keepalive=self.settings.keepalive_s)
        self._client = client
        sock: Any = client.socket()
        poller = select.poll()
        poller.register(self._wake_in, select.POLLIN)
        poller.register(sock.fileno(), select.POLLIN)
        handshake_ends = time.monotonic() + self.settings.connect_s
        while client.holds(sock):
            if self._stopping.is_set():
                client.disconnect()
                client.loop_write()
                return
            if not self.connected and time.monotonic() > handshake_ends:
                raise TimeoutError("the broker did not answer in time")
            self._turn(client, sock, poller)

    def _turn(self, client: _Client, sock: Any, poller: select.poll) -> None:
        reading = self._may_read()
        events = select.POLLIN if reading else 0
        if sock.unsent:
            events |= select.POLLOUT
        poller.modify(sock.fileno(), events)
        # A receiver without room may get some without telling: look again soon.
        timeout_ms = 0 if reading and sock.readable else 500 if reading else 20
        ready = dict(poller.poll(timeout_ms))
        self._beat = time.monotonic()
        if self._wake_in in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_in, 65536)
        if reading and (sock.readable or ready.get(sock.fileno(), 0) & ~select.POLLOUT):
            for _ in range(_PACKETS_PER_TURN):
                client.loop_read()
                if not client.holds(sock) or not sock.readable or not self._may_read():
                    break
        if client.holds(sock) and client.want_write():
            client.loop_write()
        if client.holds(sock):
            sock.flush()
            client.loop_misc()

    def _new_client(self, tls: bool) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._credentials[0],
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self.settings.connect_s
        client.max_inflight_messages_set(self.settings.window)
        client.suppress_exceptions = True
        if self._credentials[0]:
            client.username_pw_set(*self._credentials)
        if tls:
            client.tls_set()
        client.on_connect = self._connack
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        client.on_publish = self._published
        # With this callback set paho leaves all writing to us, from whichever thread something is published.
        client.on_socket_register_write = self._wants_write
        return client

    def _connack(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._lost = f"the broker refused the hub: {reason}"
            log.error("%s; check the broker's user and password", self._lost)
            return
        self.connects += 1
        filters = [(topics.ALL_UP, 1), (topics.ALL_PRESENCE, 1), (DROPPED_TOPIC, 0), (OVERSIZED_TOPIC, 0)]
        client.subscribe(filters)

    def _subscribed(self, _client: mqtt.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if reasons and reasons[0].is_failure:
            self._lost = "the broker does not let the hub subscribe"
            log.error("%s to %s; check its rights", self._lost, topics.ALL_UP)
            return
        self._connected.set()
        try:
            self._on_connected()
        except Exception:
            log.exception("what follows a connect failed")

    def _disconnected(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._lost = self._lost or str(reason)

    def _message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.received += 1
        try:
            topic = message.topic
            if topic == DROPPED_TOPIC:
                self.broker_dropped = int(message.payload)
                return
            self._on_message(topic, bytes(message.payload), message.retain)
        except Exception:
            self.refused += 1
            log.exception("cannot take a message")

    def _published(self, _client: mqtt.Client, _data: Any, _mid: int, _reason: Any, _properties: Any) -> None:
        self._done()

    def _done(self) -> None:
        # Brokers acknowledge in order; should one not, the sum is right again when all is acknowledged.
        with self._space:
            if self._sizes:
                self._bytes -= self._sizes.popleft()
            self._space.notify_all()

    def _wants_write(self, *_: Any) -> None:
        if threading.current_thread() is not self._thread:
            self.wake()

    def _closed(self) -> None:
        client, self._client = self._client, None
        with self._space:
            self._connected.clear()
            self._sizes.clear()
            self._bytes = 0
            self._space.notify_all()
        sock: Any = client.socket() if client else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()
