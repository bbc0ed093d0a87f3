"""The embedded broker's process: ``python -m skerry_hub.broker.embedded_child HOST PORT CREDENTIALS``.

amqtt brings the protocol; who may come in, publish and read is ours, in one plugin. It also mends what amqtt 0.12
leaves open: a client whose id is taken over stays connected; a last will is published without asking the rights; a
client that was put out of the credentials stays in; retained messages reach whoever connects or is refused a
subscription; a packet may have any size.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

from skerry_hub import passwords
from skerry_hub.broker import rights
from skerry_modules import topics
from skerry_modules.messages import MAX_BYTES

PACKET_BYTES: Final = max(MAX_BYTES.values()) + 64 * 1024
"""The largest packet: the largest payload of the protocol, its topic and header."""

RELOAD_S: Final = 0.25
"""How often the credentials file is looked at."""


class Gate(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]
    """Authentication by user name and password, rights by topic."""

    @dataclass
    class Config:
        """``credentials``: a JSON file of password hashes by user."""

        credentials: str

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._path = Path(self.config.credentials)
        self._stamp = (0, 0)
        self.users: dict[str, str] = {}
        self._handlers: dict[str, tuple[Any, Any]] = {}
        self.reload()

    def reload(self) -> bool:
        """Read the credentials again if they changed; whether they did."""
        stat = self._path.stat()
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp == self._stamp:
            return False
        self.users = msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        self._stamp = stamp
        return True

    async def authenticate(self, *, session: Any) -> bool:
        """User and client id are one; the password holds; the last will is the device's own presence."""
        self.reload()
        user = session.username or ""
        hashed = self.users.get(user, "")
        allowed = bool(hashed) and session.client_id == user and passwords.is_right(session.password or "", hashed)
        if allowed and session.will_flag:
            allowed = user == rights.HUB_USER or session.will_topic == topics.presence(user)
        return allowed

    async def topic_filtering(
        self, *, session: Any = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Rights by topic. ``RECEIVE`` asks for a message on its way to a subscriber."""
        if session is None or not topic:
            return False
        user = session.username or ""
        if action == Action.PUBLISH:
            return rights.may_publish(user, topic)
        if action == Action.SUBSCRIBE:
            return rights.may_subscribe(user, topic)
        return rights.may_read(user, topic)

    async def on_broker_client_connected(self, *, client_id: str, client_session: Any) -> None:
        """A client id in use is taken over: the older connection ends, and its will with it."""
        sessions = self.context._broker_instance._sessions  # amqtt has no public way to a connection
        current = sessions.get(client_id)
        older = self._handlers.get(client_id)
        if current is not None:
            self._handlers[client_id] = current
            current[1].reader.client_id = client_id
        if older is not None and current is not None and older[1] is not current[1]:
            await self._put_out(older)

    async def on_broker_client_disconnected(self, *, client_id: str, client_session: Any) -> None:
        known = self._handlers.get(client_id)
        if known is not None and known[0] is client_session:
            del self._handlers[client_id]

    async def put_out_strangers(self, before: dict[str, str]) -> None:
        """End the connections of users that left, or whose password changed."""
        for client_id, known in list(self._handlers.items()):
            if self.users.get(client_id) != before.get(client_id):
                await self._put_out(known)

    @staticmethod
    async def _put_out(known: tuple[Any, Any]) -> None:
        session, handler = known
        session.will_flag = False
        with contextlib.suppress(Exception):
            await handler.handle_connection_closed()
        with contextlib.suppress(Exception):
            await handler.stop()


class OversizeError(Exception):
    """A packet is over the limit. amqtt's reader ends the connection at any error that is not its own."""


class _Bounded(StreamReaderAdapter):  # type: ignore[misc]
    """A connection's bytes. amqtt asks for a packet's payload at once: what is too large is not even read."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self.client_id = ""
        self.refused = 0

    async def read(self, n: int = -1) -> bytes:
        if n > PACKET_BYTES:
            self.refused = n
            raise OversizeError(f"{n} bytes, the limit is {PACKET_BYTES}")
        data: bytes = await super().read(n)
        return data


class _Broker(Broker):  # type: ignore[misc]
    """amqtt's broker, with packets of a bounded size, and retained messages only for who holds the subscription."""

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        bounded = _Bounded(reader)
        try:
            await self._client_connected(listener_name, bounded, StreamWriterAdapter(writer))
        finally:
            writer.close()  # amqtt leaves it open where the first packet was none of MQTT's
        if bounded.refused:
            told = {"device": bounded.client_id, "bytes": bounded.refused, "limit": PACKET_BYTES}
            await self.internal_message_broadcast(rights.OVERSIZED_TOPIC, msgspec.json.encode(told), 0)

    async def _publish_retained_messages_for_subscription(self, subscription: tuple[str, int], session: Any) -> None:
        """amqtt asks this after a refused subscription too, and at each connect for the subscriptions of everybody."""
        held = self._subscriptions.get(subscription[0], ())
        if any(holder.client_id == session.client_id for holder, _ in held):
            await super()._publish_retained_messages_for_subscription(subscription, session)


async def serve(host: str, port: int, credentials: str) -> None:
    """Run until SIGTERM or SIGINT."""
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
        "plugins": {f"{__name__ if __name__ != '__main__' else _OWN_NAME}.Gate": {"credentials": credentials}},
    }
    broker = _Broker(config)
    await broker.start()
    gate: Any = broker.plugins_manager.get_plugin("Gate")
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    while not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), RELOAD_S)
        before = gate.users
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if gate.reload():
                await gate.put_out_strangers(before)
    await broker.shutdown()


_OWN_NAME: Final = "skerry_hub.broker.embedded_child"


def main() -> None:
    """Entry point of the child process."""
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # What clients do wrong is theirs: amqtt logs each abrupt disconnect as an error with a traceback.
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    host, port, credentials = sys.argv[1:]
    asyncio.run(serve(host, int(port), credentials))


if __name__ == "__main__":
    main()
