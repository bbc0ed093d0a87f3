"""What the agent says to the hub and hears from it: topics and payloads on one side, brain and spool on the other.

Everything here runs on the event loop. A payload that is no message, is too large, or came under another device's
topic is an event with its code, and nothing else happens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from skerry_agent.commands import Commands
from skerry_agent.events import Events
from skerry_agent.mqtt import REFUSED, LinkDown, LinkEvent, LinkUp, Message
from skerry_agent.outbox import Outbox
from skerry_agent.rules import effects as fx
from skerry_agent.spool import wall_ms
from skerry_modules import messages, topics
from skerry_modules.compatibility import DeviceFacts
from skerry_modules.errors import PeerError
from skerry_modules.messages import Hello, Presence, Severity, Want

log = logging.getLogger(__name__)


class Link(Protocol):
    """The port: :class:`skerry_agent.mqtt.MqttLink`, or :class:`NoLink`."""

    connected: bool

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None: ...

    def subscribe(self, topic_filter: str, qos: int = 1) -> None: ...

    def unsubscribe(self, topic_filter: str) -> None: ...

    def spread(self, seconds: float) -> None: ...


class Taker(NamedTuple):
    """Who fetches an object that is no module's: takes its chunks (part, payload), and hears that the hub lost it."""

    chunk: Callable[[int, bytes], None]
    gone: Callable[[], None]


class NoLink:
    """An agent without a hub."""

    connected = False

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None: ...

    def subscribe(self, topic_filter: str, qos: int = 1) -> None: ...

    def unsubscribe(self, topic_filter: str) -> None: ...

    def spread(self, seconds: float) -> None: ...


class HubLink:
    """See the module's text. Implements :class:`skerry_agent.driver.Outside`.

    Args:
        device, profile, boot, agent: what hello says.
        link: the connection.
        facts: describes the device; quick.
        revision: the desired revision in force.
        post: gives an event to the brain.
    """

    def __init__(
        self,
        *,
        device: str,
        profile: str,
        boot: str,
        agent: str,
        link: Link,
        facts: Callable[[], DeviceFacts],
        revision: Callable[[], int],
        post: Callable[[fx.Event], None],
    ) -> None:
        self._device = device
        self._profile = profile
        self._boot = boot
        self._agent = agent
        self._link = link
        self._facts = facts
        self._revision = revision
        self._post = post
        self.outbox: Outbox
        self.events: Events
        self.commands: Commands
        self.reason = ""
        self.since = time.monotonic()
        self._down = False
        self.others: dict[str, Callable[[str, bytes], None]] = {}
        """Filters of sources that listen on the hub's broker, and who takes their messages."""
        self.takers: dict[str, Taker] = {}
        """Who fetches an object that is no module's."""
        self.watchers: list[Callable[[bool], None]] = []
        """Told when the link came up or went down."""
        self.on_taken: Callable[[messages.Taken], None] = lambda said: None

    def start(self) -> None:
        self._link.subscribe(topics.all_down(self._device))

    # -- what the driver asks for ------------------------------------------------------------------------------------

    def subscribe_chunks(self, digest: str) -> None:
        self._link.subscribe(topics.chunks_of(digest))

    def unsubscribe_chunks(self, digest: str) -> None:
        self._link.unsubscribe(topics.chunks_of(digest))

    def send_want(self, want: Want) -> None:
        self._link.publish(topics.up(self._device, "want"), messages.encode(want))

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish what no spool keeps: it is sent again by whoever sends it."""
        self._link.publish(topic, payload)

    @property
    def connected(self) -> bool:
        return self._link.connected and not self._down

    def report(self, state: bytes) -> None:
        self.outbox.put("state", state, coalesce=True)

    def emit(self, event: messages.Event) -> None:
        self.events.emit(event)

    def send(self, kind: str, payload: bytes) -> None:
        """Publish one spooled record."""
        self._link.publish(topics.up(self._device, kind), payload)

    def presence(self, *, online: bool) -> tuple[str, bytes]:
        """Topic and payload of the retained presence."""
        return topics.presence(self._device), messages.encode(Presence(online=online, boot=self._boot, at=wall_ms()))

    # -- what the link delivers --------------------------------------------------------------------------------------

    def on_link(self, event: LinkEvent) -> None:
        match event:
            case LinkUp(refused):
                self._on_up(refused)
            case LinkDown(reason):
                self._on_down(reason)
            case Message(topic, payload):
                self._on_message(topic, payload)

    def _on_up(self, refused: tuple[str, ...]) -> None:
        log.info("connected to the hub's broker")
        self.reason, self.since, self._down = "", time.monotonic(), False
        if refused:
            self.events.tell(
                Severity.WARNING,
                "resource.broker_unreachable",
                f"cannot listen to {', '.join(refused)}: the broker refused; check the device's rights there",
            )
        self._greet()

    def _greet(self) -> None:
        """Say who we are, and send again all that the hub has not acknowledged and all that we wait for."""
        hello = Hello(
            device=self._device,
            boot=self._boot,
            epoch=self.outbox.epoch,
            agent=self._agent,
            profile=self._profile,
            revision=self._revision(),
            facts=self._facts(),
        )
        topic, payload = self.presence(online=True)
        self._link.publish(topic, payload, retain=True)
        self._link.publish(topics.up(self._device, "hello"), messages.encode(hello))
        self.outbox.linked(True)
        self._post(fx.Connected())
        for watcher in self.watchers:
            watcher(True)

    def _on_down(self, reason: str) -> None:
        self.reason = reason
        if self._down and not reason.startswith(REFUSED):
            log.info("still not connected: %s", reason)  # one outage is one event, however it shows
            return
        self._down = True
        self.since = time.monotonic()
        self.outbox.linked(False)
        self._post(fx.Disconnected())
        for watcher in self.watchers:
            watcher(False)
        self.events.tell(
            Severity.WARNING,
            "resource.broker_unreachable",
            f"cannot talk to the hub: {reason}; scoring goes on, and what is to be sent waits in the spool",
        )

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            parsed = topics.parse(topic)
        except PeerError as error:
            if not self._to_source(topic, payload):
                self.events.error(error)
            return
        try:
            if parsed.direction == "chunk":
                self._on_chunk(parsed.digest, parsed.part, payload)
            elif parsed.direction == "down":
                self._on_down_message(parsed, payload)
            elif not self._to_source(topic, payload):
                text = f"cannot use the topic {topic!r}: a device does not hear it"
                self.events.tell(Severity.WARNING, "message.unknown_topic", text)
        except PeerError as error:
            self.events.error(error)

    def _on_chunk(self, digest: str, part: int, framed: bytes) -> None:
        if taker := self.takers.get(digest):
            taker.chunk(part, framed)
        else:
            self._post(fx.ChunkArrived(digest, part, framed))

    def _to_source(self, topic: str, payload: bytes) -> bool:
        if not self.others:
            return False
        from paho.mqtt.client import topic_matches_sub

        takers = [take for name, take in self.others.items() if topic_matches_sub(name, topic)]
        for take in takers:
            take(topic, payload)
        return bool(takers)

    def _on_down_message(self, topic: topics.Topic, payload: bytes) -> None:
        if topic.device != self._device:
            raise PeerError(
                "message.wrong_device",
                f"cannot use a message for {topic.device}: this device is {self._device}; check the broker's rights",
            )
        if topic.kind == "desired":
            limit = messages.MAX_BYTES["desired"]
            if len(payload) > limit:
                raise PeerError(
                    "message.oversized", f"cannot take a desired document of {len(payload)} bytes: the limit is {limit}"
                )
            if payload:  # an empty retained message means: there is none
                self._post(fx.DesiredArrived(payload))
            return
        message: Any = messages.decode(topic.kind, payload)
        if topic.kind == "ack":
            self._on_ack(message)
        elif topic.kind == "taken":
            self.on_taken(message)
        elif topic.kind == "gap":
            self._on_chunk(message.digest, message.part, message.data)
        else:
            self.commands.take(message)

    def _on_ack(self, ack: messages.Ack) -> None:
        self.outbox.acked(ack)
        for digest in ack.gone:
            if taker := self.takers.get(digest):
                taker.gone()
            self._post(fx.ObjectGone(digest))
        if ack.spread_s:
            self._link.spread(float(ack.spread_s))
        if ack.again and self.connected:
            log.info("the hub came back: sending again what it has not acknowledged")
            self._greet()
