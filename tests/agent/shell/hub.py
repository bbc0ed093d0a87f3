"""A hub for the daemon's tests, over a real broker: signs desired documents, serves chunks, keeps and acknowledges.

It keeps the protocol's semantics as ``skerry_modules.messages`` states them, in memory, and can be told to be silent,
to cheat with chunks, or to lose connections. The real hub has its own tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from skerry_modules import chunks, messages, topics, trust
from skerry_modules.messages import Ack, Desired, DesiredModule, Settings, Signed, Up
from skerry_modules.package import build_index, digest_of, index_bytes, read_folder, sign_index
from support.processes import wait_until


class Published:
    """A module version that the hub can deliver."""

    def __init__(self, name: str, digest: str, index: bytes, signature: trust.Signature) -> None:
        self.name = name
        self.digest = digest
        self.index = index
        self.signature = signature

    def wanted(self, version: int, **more: Any) -> DesiredModule:
        fields: dict[str, Any] = {"signatures": (self.signature,), "soak_s": 0.0, **more}
        return DesiredModule(name=self.name, version=version, digest=self.digest, index_size=len(self.index), **fields)


class FakeHub:
    """One device's hub. All attributes may be read at any time; ``wait`` polls."""

    def __init__(self, port: int, device: str) -> None:
        self.device = device
        self.key = trust.SigningKey.generate("hub")
        self.publisher = trust.SigningKey.generate("publisher")
        self.objects: dict[str, bytes] = {}
        self.revision = 0
        self.acking = True
        self.delivering = True
        self.alone = False  # chunks for this device alone, on its own topic
        self.tamper: Callable[[str, int, bytes], bytes] = lambda _digest, _part, data: data
        self.after_chunk: Callable[[int], None] = lambda _count: None
        self.records: list[tuple[str, Up[Any]]] = []
        self.hellos: list[messages.Hello] = []
        self.presence: messages.Presence | None = None
        self.sent: dict[tuple[str, int], int] = {}
        self.duplicates = 0
        self.gaps = 0
        self._marks: dict[tuple[bytes, int], int] = {}
        self._lock = threading.RLock()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, f"hub-{time.monotonic_ns()}")
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe([(topics.ALL_UP, 1), (topics.ALL_PRESENCE, 1)])
        self._client.max_inflight_messages_set(1000)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # -- what it publishes

    def pack(self, folder: Path, key: trust.SigningKey | None = None) -> Published:
        """Index, sign and hold a module's folder."""
        index, sources = build_index(folder, read_folder(folder))
        data = index_bytes(index)
        self.objects.update({sha256: path.read_bytes() for sha256, path in sources.items()})
        self.objects[digest_of(data)] = data
        return Published(index.manifest.name, digest_of(data), data, sign_index(data, key or self.publisher))

    def desire(self, *modules: DesiredModule, settings: Settings | None = None, device: str = "") -> int:
        """Publish the next revision."""
        self.revision += 1
        payload = messages.encode(
            Desired(
                device=device or self.device,
                revision=self.revision,
                issued_at=0,
                modules=modules,
                settings=settings or Settings(),
            )
        )
        signed = Signed(1, payload, (self.key.sign(trust.DESIRED_TYPE, payload),))
        self.send("desired", messages.encode(signed), retain=True)
        return self.revision

    def send(self, kind: str, payload: bytes, *, retain: bool = False, device: str = "") -> None:
        self._client.publish(topics.down(device or self.device, kind), payload, qos=1, retain=retain)

    def raw(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)

    # -- what it hears

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        topic = topics.parse(message.topic)
        with self._lock:
            if topic.direction == "presence":
                self.presence = messages.decode("presence", message.payload)
                return
            body = messages.decode(topic.kind, message.payload)
            if topic.kind == "hello":
                self.hellos.append(body)
            elif topic.kind == "want":
                self._deliver(body)
            elif topic.kind in messages.BODIES:
                self._take(topic.kind, body)

    def _deliver(self, want: messages.Want) -> None:
        data = self.objects.get(want.digest)
        if data is None and want.bitmap:
            self.send("ack", messages.encode(Ack(1, b"", {}, gone=(want.digest,))))
        if data is None or not self.delivering or not want.bitmap:
            return
        for part in chunks.decode_bitmap(want.bitmap, chunks.count(len(data))):
            if not self.delivering:
                return
            piece = data[part * chunks.CHUNK_BYTES : (part + 1) * chunks.CHUNK_BYTES]
            payload = self.tamper(want.digest, part, chunks.frame(piece))
            if self.alone and want.alone:
                self.send("gap", messages.encode(messages.Gap(1, want.digest, part, payload)))
            else:
                self._client.publish(topics.chunk(want.digest, part), payload, qos=1)
            self.sent[want.digest, part] = self.sent.get((want.digest, part), 0) + 1
            self.after_chunk(sum(self.sent.values()))

    def _take(self, kind: str, up: Up[Any]) -> None:
        key = (up.epoch, up.stream)
        mark = self._marks.get(key, 0)
        if up.seq == max(mark + 1, up.base):
            self.gaps += up.seq - mark - 1
            self._marks[key] = up.seq
            self.records.append((kind, up))
        elif up.seq <= mark:
            self.duplicates += 1
        if self.acking:
            marks = {stream: mark for (epoch, stream), mark in self._marks.items() if epoch == up.epoch}
            self.send("ack", messages.encode(Ack(1, up.epoch, marks)))

    # -- what tests ask

    def bodies(self, kind: str) -> list[Any]:
        with self._lock:
            return [up.body for name, up in self.records if name == kind]

    def events(self, code: str) -> list[messages.Event]:
        return [event for event in self.bodies("event") if event.code == code]

    def module(self, version: int) -> messages.ModuleState | None:
        """The newest reported state of a version."""
        states = self.bodies("state")
        found = [one for one in states[-1].modules if one.version == version] if states else []
        return found[0] if found else None

    def wait(self, check: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        wait_until(check, seconds=seconds, what=what)

    def wait_phase(self, version: int, phase: str, seconds: float = 60.0) -> messages.ModuleState:
        def reached() -> bool:
            state = self.module(version)
            return state is not None and state.phase == phase

        try:
            self.wait(reached, f"version {version} to be {phase}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; last: {self.module(version)}; events: {self.bodies('event')}") from None
        state = self.module(version)
        assert state is not None
        return state
