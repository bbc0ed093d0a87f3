"""The link to a broker: paho-mqtt 2 in one thread of our own, made for years without a hand.

Rules kept here, each for a fault seen in the field (see the protocol's "traps"):

* Only the link's thread touches paho. Others queue commands; paho's callbacks queue events. Nothing blocks a caller.
* One paho client per connection: no message of an older connection is sent again by the library. What must not be
  lost waits in the spool.
* We poll by epoll: paho's own loop uses ``select``, which never connects once 1,024 descriptors are open.
* Our own reconnect, with full jitter (:mod:`skerry_agent.rules.reconnect`): a fleet must not come back in step.
* ``stalled`` tells a watchdog when the thread has stopped; ``restart`` replaces it, whatever it hangs in.
* A change of fortune is told once, with its reason; attempts that fail alike are silent.

MQTT 3.1.1 semantics, clean sessions; MQTT 5 by setting. It does not know what topics mean.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from skerry_agent.rules.reconnect import Reconnect
from skerry_agent.settings import parse_broker

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

REFUSED: Final = "the broker refused the connection"
_POLL_S: Final = 1.0
_READS: Final = 64


class LinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect. ``will`` is a retained last will: (topic, payload)."""

    broker: str
    client_id: str
    username: str = ""
    password: str = ""
    protocol: str = "3.1.1"
    ca: str = ""
    certificate: str = ""
    certificate_key: str = ""
    keepalive_s: int = 30
    connect_timeout_s: float = 10.0
    retry_min_s: float = 1.0
    retry_max_s: float = 60.0
    stall_s: float = 45.0
    will: tuple[str, bytes] | None = None


class LinkUp(msgspec.Struct, frozen=True):
    """Connected, and the broker has answered the subscriptions; ``refused`` are filters it would not give."""

    refused: tuple[str, ...] = ()


class LinkDown(msgspec.Struct, frozen=True):
    """Not connected, and why. Told once for each new reason."""

    reason: str


class Message(msgspec.Struct, frozen=True):
    topic: str
    payload: bytes


LinkEvent = LinkUp | LinkDown | Message


class _Gone(Exception):  # noqa: N818 - a reason, seen only in this file
    """The connection ended or could not be made."""


class MqttLink:
    """One connection that comes back for ever.

    Args:
        settings: where to.
        deliver: called in the link's thread with each event; must only queue.
    """

    def __init__(self, settings: LinkSettings, deliver: Callable[[LinkEvent], None]) -> None:
        self._settings = settings
        self._deliver = deliver
        self._host, self._port, self._tls = parse_broker(settings.broker)
        self._filters: dict[str, int] = {}
        self._commands: deque[tuple[str, Any]] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._session: _Session | None = None
        self._thread: threading.Thread | None = None
        self._number = 0
        self._accepted_at = 0.0
        self._beat = time.monotonic()
        self._told = ""
        self._reconnect = Reconnect(settings.retry_min_s, settings.retry_max_s, random.Random())
        self.connected = False
        self.since = time.monotonic()

    # -- for any thread ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._beat = time.monotonic()
        self._number += 1
        self._thread = threading.Thread(target=self._run, args=(self._number,), name="mqtt", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Send if connected; otherwise forget it: what matters is in the spool, or asked for again."""
        if self.connected:
            self._command("publish", (topic, payload, qos, retain))

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """From now on, and again after each reconnect."""
        with self._lock:
            self._filters[topic_filter] = qos
        self._command("subscribe", (topic_filter, qos))

    def unsubscribe(self, topic_filter: str) -> None:
        with self._lock:
            self._filters.pop(topic_filter, None)
        self._command("unsubscribe", topic_filter)

    def spread(self, seconds: float) -> None:
        """Over how long the whole fleet has to spread its reconnects, as the hub says."""
        self._reconnect.spread_s = seconds

    def stalled(self, now: float) -> bool:
        """Whether the thread has shown no life for ``stall_s``; such a one must be replaced by :meth:`restart`."""
        dead = self._thread is not None and not self._thread.is_alive() and not self._stop.is_set()
        return dead or now - self._beat > self._settings.stall_s + self._settings.connect_timeout_s

    def restart(self) -> None:
        """Abandon the thread and begin anew. Whatever the old one hangs in, its events count no more."""
        session, self._session = self._session, None
        if session:
            session.cut()
        self.connected = False
        self._commands.clear()
        self.start()

    def stop(self, farewell: tuple[str, bytes] | None = None, timeout: float = 2.0) -> None:
        """Publish ``farewell`` (retained) if connected, disconnect, and end the thread. Blocks up to ``timeout``."""
        if farewell and self.connected:
            self._command("publish", (*farewell, 1, True))
        self._stop.set()
        self._wake()
        if self._thread:
            self._thread.join(timeout)
        if session := self._session:
            session.cut()

    def _command(self, name: str, argument: Any) -> None:
        if self.connected:
            self._commands.append((name, argument))
            self._wake()

    def _wake(self) -> None:
        if session := self._session:
            session.wake()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self, number: int) -> None:
        while not self._stop.is_set() and number == self._number:
            began = time.monotonic()
            self._accepted_at = 0.0
            reason = self._once(number)
            if number != self._number:
                return
            self.connected = False
            self._tell_down(reason)
            now = time.monotonic()
            if self._accepted_at:
                pause = self._reconnect.pause(stood_s=now - self._accepted_at)
            else:
                pause = self._reconnect.pause(tried_s=now - began)
            end = now + pause
            while not self._stop.is_set() and number == self._number and time.monotonic() < end:
                self._beat = time.monotonic()
                self._stop.wait(min(1.0, end - time.monotonic()) if end > time.monotonic() else 0)

    def _once(self, number: int) -> str:
        """One connection, from first to last. Never raises: an unexpected error must not end the thread."""
        session = _Session(self, self._settings, (self._host, self._port, self._tls))
        self._session = session
        try:
            session.run(lambda: number == self._number and not self._stop.is_set())
        except _Gone as gone:
            return str(gone)
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        except Exception:
            log.exception("the link's thread met an unexpected error; it connects again")
            return "unexpected error, see the log"
        finally:
            session.close()
        return "stopped"

    def _tell_down(self, reason: str) -> None:
        if reason != self._told and not self._stop.is_set():
            self._told = reason
            self.since = time.monotonic()
            self._deliver(LinkDown(reason))

    # -- called by the session, in the thread ------------------------------------------------------------------------

    def alive(self) -> None:
        self._beat = time.monotonic()

    def filters(self) -> list[tuple[str, int]]:
        with self._lock:
            return list(self._filters.items())

    def accepted(self, session: _Session) -> None:
        """The broker has let us in: from now on commands are taken."""
        if session is self._session:
            self._commands.clear()
            self._accepted_at = time.monotonic()
            self.connected = True

    def up(self, session: _Session, refused: tuple[str, ...]) -> None:
        if session is self._session:
            self._told = ""
            self.since = time.monotonic()
            self._deliver(LinkUp(refused))

    def message(self, session: _Session, topic: str, payload: bytes) -> None:
        if session is self._session:
            self._deliver(Message(topic, payload))

    def next_command(self) -> tuple[str, Any] | None:
        with contextlib.suppress(IndexError):
            return self._commands.popleft()
        return None


class _Session:
    """One connection: a paho client, its socket and the poll loop."""

    def __init__(self, link: MqttLink, settings: LinkSettings, address: tuple[str, int, bool]) -> None:
        self._link = link
        self._settings = settings
        self._host, self._port, self._tls = address
        self._reason = ""
        self._accepted = False
        self._first_subscription = 0
        self._asked: list[str] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = threading.Lock()
        self._closed = False
        self._client: Client | None = None

    def wake(self) -> None:
        with self._closing:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_write, b"\0")

    def cut(self) -> None:
        """End the connection from any thread: the session's own thread then wakes and closes what it holds."""
        sock: Any = self._client.socket() if self._client else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptors back; only in the session's own thread, so that no number is used after it is free."""
        with self._closing:
            self._closed = True
            os.close(self._wake_read)
            os.close(self._wake_write)
        sock = self._client.socket() if self._client else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def run(self, wanted: Callable[[], bool]) -> None:
        """Connect and serve until ``wanted`` is false. Raises ``_Gone`` or ``OSError`` with the reason."""
        client = self._make_client()
        self._client = client
        try:
            client.connect(self._host, self._port, self._settings.keepalive_s)
        except OSError as error:
            raise _Gone(f"cannot reach {self._host}:{self._port}: {error.strerror or error}") from error
        sock: Any = client.socket()
        if sock is None:
            raise _Gone(self._reason or "the broker closed the connection at once")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadline = time.monotonic() + self._settings.connect_timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            selector.register(sock, selectors.EVENT_READ)
            while wanted():
                self._turn(client, sock, selector)
                if not self._accepted and time.monotonic() > deadline:
                    raise _Gone(f"{self._host}:{self._port} did not answer the MQTT greeting in time")
        self._farewell(client)

    def _turn(self, client: Client, sock: Any, selector: selectors.BaseSelector) -> None:
        self._link.alive()
        self._perform(client)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.want_write() else 0)
        self._check(client, sock)
        selector.modify(sock, events)
        for key, mask in selector.select(_POLL_S):
            if key.fileobj is self._wake_read or key.fd == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
                continue
            if mask & selectors.EVENT_READ:
                self._read(client, sock)
            if mask & selectors.EVENT_WRITE:
                client.loop_write()
        client.loop_misc()
        self._check(client, sock)

    def _check(self, client: Client, sock: Any) -> None:
        if client.socket() is not sock:
            raise _Gone(self._reason or "the connection was lost")

    @staticmethod
    def _read(client: Client, sock: Any) -> None:
        """Whole packets while there are any: TLS may hold bytes that no poll announces."""
        pending = getattr(sock, "pending", None)
        for _ in range(_READS):
            if client.loop_read() or client.socket() is not sock or pending is None or not pending():
                return

    def _perform(self, client: Client) -> None:
        while self._accepted and (command := self._link.next_command()):
            name, argument = command
            if name == "publish":
                topic, payload, qos, retain = argument
                client.publish(topic, payload, qos, retain)
            elif name == "subscribe":
                client.subscribe([argument])
            else:
                client.unsubscribe(argument)

    def _farewell(self, client: Client) -> None:
        """A clean end: send what is queued, then DISCONNECT, so that the last will is not sent."""
        self._perform(client)
        end = time.monotonic() + 1.0
        while client.want_write() and client.socket() is not None and time.monotonic() < end:
            client.loop_write()
            time.sleep(0.005)
        client.disconnect()
        client.loop_write()

    # -- paho --------------------------------------------------------------------------------------------------------

    def _make_client(self) -> Client:
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        version = paho.MQTTv5 if self._settings.protocol == "5" else paho.MQTTv311
        clean = {} if version == paho.MQTTv5 else {"clean_session": True}
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            self._settings.client_id,
            protocol=version,
            reconnect_on_failure=False,
            **clean,  # type: ignore[arg-type]
        )
        client.connect_timeout = self._settings.connect_timeout_s
        client.max_inflight_messages_set(100)
        if self._settings.username:
            client.username_pw_set(self._settings.username, self._settings.password or None)
        if self._settings.will:
            topic, payload = self._settings.will
            client.will_set(topic, payload, qos=1, retain=True)
        if self._tls:
            client.tls_set(
                self._settings.ca or None,
                self._settings.certificate or None,
                self._settings.certificate_key or None,
            )
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        # An exception of a callback would end the loop; ours only queue, and this holds even if one should not.
        client.suppress_exceptions = True
        # With a registered write callback paho never writes in the middle of a publish: only our loop writes.
        client.on_socket_register_write = lambda *_: None
        return client

    def _on_connect(
        self, client: Client, _data: Any, _flags: ConnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if code.is_failure:
            hint = "check hub.username and hub.password" if "authori" in str(code).lower() else "see the broker's log"
            self._reason = f"{REFUSED}: {code}; {hint}"
            return
        self._accepted = True
        self._link.accepted(self)
        filters = self._link.filters()
        self._asked = [name for name, _ in filters]
        if filters:
            _, mid = client.subscribe(filters)
            self._first_subscription = mid or 0
        else:
            self._link.up(self, ())

    def _on_subscribe(
        self, _client: Client, _data: Any, mid: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        if mid == self._first_subscription:
            self._first_subscription = -1
            refused = (name for name, code in zip(self._asked, codes, strict=False) if code.is_failure)
            self._link.up(self, tuple(refused))

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        if not self._reason:
            self._reason = f"the connection was lost: {code}"

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._link.message(self, message.topic, bytes(message.payload))
