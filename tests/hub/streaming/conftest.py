"""A hub's streaming over real brokers and databases, and devices that speak paho's MQTT."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import text

from skerry_hub import desired, devices
from skerry_hub.broker import Broker, find_mosquitto, parse_url
from skerry_hub.broker.embedded import EmbeddedBroker
from skerry_hub.broker.mosquitto import MosquittoBroker
from skerry_hub.bus import Bus
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.ingest import IngestSettings
from skerry_hub.objects import FolderStore
from skerry_hub.streaming import Streaming, StreamingSettings
from skerry_hub.tables import Device, Model, ModelVersion, VersionFile
from skerry_modules import messages, topics, trust
from support.processes import wait_until

PROFILE = "generic-x86_64"


@pytest.fixture
def mosquitto_broker(tmp_path: Path, mosquitto_program: str) -> Iterator[MosquittoBroker]:
    """A managed Mosquitto with nobody's credentials but the hub's."""
    with started("mosquitto", tmp_path / "broker") as made:
        assert isinstance(made, MosquittoBroker)
        yield made


@contextlib.contextmanager
def started(kind: str, folder: Path) -> Iterator[MosquittoBroker | EmbeddedBroker]:
    made: MosquittoBroker | EmbeddedBroker
    if kind == "mosquitto":
        program = find_mosquitto()
        assert program is not None
        made = MosquittoBroker(program=program, folder=folder)
    else:
        made = EmbeddedBroker(folder=folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@dataclass
class PahoDevice:
    """A device as a stranger would write it: paho's own loop, nothing of ours but the payloads."""

    name: str
    client: mqtt.Client
    got: list[tuple[str, bytes]] = field(default_factory=list)
    refused: str = ""
    up: threading.Event = field(default_factory=threading.Event)
    down: threading.Event = field(default_factory=threading.Event)
    epoch: bytes = b"epoch-01"
    numbers: dict[int, int] = field(default_factory=dict)

    def payloads(self, kind: str) -> list[Any]:
        return [
            messages.decode(kind, payload) for topic, payload in self.got if topic.endswith(f"/down/{kind}") and payload
        ]

    def marks(self) -> dict[int, int]:
        """The marks of the newest acknowledgement."""
        acks = self.payloads("ack")
        return acks[-1].marks if acks else {}

    def envelope(
        self, kind: str, body: Any, *, seq: int | None = None, base: int = 1, stream: int | None = None
    ) -> bytes:
        lane = int(messages.STREAM_OF[kind]) if stream is None else stream
        if seq is None:
            seq = self.numbers[lane] = self.numbers.get(lane, 0) + 1
        return messages.encode(messages.Up(messages.FORMAT, self.epoch, lane, seq, base, now_ms(), body))

    def send(self, kind: str, body: Any, **numbers: int) -> None:
        self.client.publish(topics.up(self.name, kind), self.envelope(kind, body, **numbers), 1)

    def hello(self, revision: int = 0, boot: str = "boot-1") -> None:
        said = messages.Hello(
            device=self.name, boot=boot, epoch=self.epoch, agent="test", profile=PROFILE, revision=revision
        )
        self.client.publish(topics.up(self.name, "hello"), messages.encode(said), 1)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def connect(
    url: str, user: str, password: str, *, client_id: str = "", will: tuple[str, bytes] | None = None
) -> PahoDevice:
    """Connect and subscribe to all that is the device's; wait for the broker's verdict."""
    host, port, _ = parse_url(url)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id or user, protocol=mqtt.MQTTv311)
    client.username_pw_set(user, password)
    device = PahoDevice(user, client)
    answered = threading.Event()

    def on_connect(_c: Any, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
        if reason.is_failure:
            device.refused = str(reason)
            answered.set()
        else:
            client.subscribe([(topics.all_down(user), 1)])

    def on_subscribe(*_: Any) -> None:
        device.up.set()
        answered.set()

    def on_disconnect(*_: Any) -> None:
        device.down.set()
        answered.set()

    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_disconnect = on_disconnect
    client.on_message = lambda _c, _u, message: device.got.append((message.topic, bytes(message.payload)))
    if will:
        client.will_set(*will, qos=1, retain=True)
    client.connect(host, port)
    client.loop_start()
    assert answered.wait(10), "the broker did not answer"
    if device.refused:
        device.close()
    return device


class World:
    """A database with a store, a broker, and the streaming between them; devices by name."""

    def __init__(self, url: str, broker: Broker, folder: Path) -> None:
        self.db = Database(url)
        self.db.migrate()
        self.key = trust.SigningKey.generate("hub")
        self.db.info[desired.SIGNER] = self.key
        self.bus = Bus()
        self.objects = FolderStore(folder / "store")
        self.broker = broker
        self.passwords: dict[str, str] = {}
        self.devices: list[PahoDevice] = []
        self.streaming: Streaming

    def start(self, settings: StreamingSettings | None = None, ingest: IngestSettings | None = None) -> None:
        self.streaming = Streaming(self.db, self.objects, self.bus, self.broker, settings=settings, ingest=ingest)
        self.streaming.start()
        assert self.streaming.link.wait_connected(20)

    def register(self, *names: str) -> None:
        with self.db.session() as session:
            for name in names:
                self.passwords[name] = devices.register(
                    session, name, profile=PROFILE, tags={}, actor="t", now=now_ms()
                )
            known = devices.credentials(session)
        self.broker.set_credentials(known)
        if hasattr(self, "streaming"):
            self.streaming.ingest.forget_devices()

    def device(self, name: str, **options: Any) -> PahoDevice:
        """Connect as a device, registering it if need be; the broker may take a moment to hear of it."""
        if name not in self.passwords:
            self.register(name)
        made: PahoDevice | None = None
        end = time.monotonic() + 10
        while made is None or (made.refused and time.monotonic() < end):
            if made is not None:
                time.sleep(0.1)
            made = connect(self.broker.hub_url, name, self.passwords[name], **options)
        assert not made.refused, made.refused
        self.devices.append(made)
        return made

    def rows(self, statement: str, **values: Any) -> list[Any]:
        with self.db.read() as session:
            return list(session.connection().execute(text(statement), values).all())

    def count(self, table: str) -> int:
        return int(self.rows(f"SELECT COUNT(*) FROM {table}")[0][0])

    def model(self, name: str, *blobs: bytes) -> tuple[str, list[str]]:
        """Register a version by hand: an index object and its files; returns their digests."""
        index = self.objects.put_bytes(b"index of " + name.encode())
        digests = [self.objects.put_bytes(blob) for blob in blobs]
        with self.db.session() as session:
            session.add(Model(name=name, last_version=1, created_at=now_ms()))
            session.flush()
            session.add(
                ModelVersion(
                    name=name,
                    version=1,
                    digest=index,
                    index_size=self.objects.size(index),
                    size=sum(map(len, blobs)),
                    engine="onnx",
                    manifest="{}",
                    facts="{}",
                    signatures="[]",
                    created_by="t",
                    created_at=now_ms(),
                )
            )
            for number, (digest, blob) in enumerate(zip(digests, blobs, strict=True)):
                session.add(VersionFile(name=name, version=1, path=f"f{number}", sha256=digest, size=len(blob)))
        return index, digests

    def assign(self, device: str, module: str) -> int:
        with self.db.session() as session:
            return desired.assign(session, device, module, 1, now=now_ms())

    def row(self, device: str) -> Device:
        with self.db.read() as session:
            found = session.get(Device, device)
            assert found is not None
            return found

    def stop(self) -> None:
        for device in self.devices:
            device.close()
        if hasattr(self, "streaming"):
            self.streaming.stop()
        self.db.close()


_MOSQUITTO = pytest.mark.mosquitto
_PAIRS = {
    "mosquitto-sqlite": pytest.param(("mosquitto", "sqlite"), marks=_MOSQUITTO, id="mosquitto-sqlite"),
    "mosquitto-postgres": pytest.param(
        ("mosquitto", "postgres"), marks=[_MOSQUITTO, pytest.mark.postgres], id="mosquitto-postgres"
    ),
    "embedded-sqlite": pytest.param(("embedded", "sqlite"), id="embedded-sqlite"),
}


def _running(request: pytest.FixtureRequest, folder: Path) -> Iterator[World]:
    broker, database = request.param
    url = f"sqlite:///{folder / 'hub.db'}" if database == "sqlite" else request.getfixturevalue("postgres_url")
    with started(broker, folder / "broker") as running:
        made = World(url, running, folder)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture(params=list(_PAIRS.values()))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Both brokers and both databases."""
    yield from _running(request, tmp_path)


@pytest.fixture(params=[_PAIRS["mosquitto-sqlite"], _PAIRS["embedded-sqlite"]])
def broker_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Both brokers: for what a broker must refuse."""
    yield from _running(request, tmp_path)


@pytest.fixture(params=[_PAIRS["mosquitto-sqlite"], _PAIRS["mosquitto-postgres"]])
def database_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Both databases: for what a database must keep."""
    yield from _running(request, tmp_path)


@pytest.fixture
def small_world(tmp_path: Path, mosquitto_broker: Broker) -> Iterator[World]:
    """Mosquitto and SQLite; the test starts the streaming."""
    made = World(f"sqlite:///{tmp_path / 'hub.db'}", mosquitto_broker, tmp_path)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def eventually() -> Callable[..., None]:
    return wait_until


def kill_broker(broker: Any) -> None:
    """SIGKILL the broker's process; the hub starts it again."""
    import signal

    os.kill(broker.pid, signal.SIGKILL)
