"""One light device: a connection, a spool, timers, and what the hub wants of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from skerry_agent.rules.reconnect import Reconnect
from skerry_modules import chunks, messages, topics, trust
from skerry_modules.errors import PeerError
from skerry_modules.histogram import Histogram, latency_quantiles
from skerry_simulators.fleet import packets
from skerry_simulators.fleet.rollout import STEP_S, Module
from skerry_simulators.fleet.spool import LightSpool

if TYPE_CHECKING:
    from skerry_simulators.fleet.fleet import Fleet
    from skerry_simulators.fleet.network import Connection

KEEPALIVE_S: Final = 60
REPORT_CHUNKS: Final = 32
REPORT_S: Final = 0.5
QUIET_S: Final = 3.0
RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
JITTER_S: Final = 0.2
PRETENDED: Final = ("verify", "load", "golden", "warm")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class LightDevice:
    """Callbacks of its connection and its timers, all in the fleet's one thread."""

    def __init__(self, fleet: Fleet, number: int, name: str, password: str) -> None:
        self.name, self.number = name, number
        self.online = False
        self.revision = 0
        self.modules: dict[str, Module] = {}
        self.spool = LightSpool(f"{fleet.seed:08x}{number:08x}".encode())
        self._fleet, self._password = fleet, password
        self._dice = random.Random(f"{fleet.seed}/{name}")
        self._boot = f"boot-{self._dice.getrandbits(32):08x}"
        self._connection: Connection | None = None
        self._reader = packets.Reader()
        self._packet_id = 0
        self._reconnect = Reconnect(RETRY_FIRST_S, RETRY_MAX_S, self._dice)
        self._online_at = 0.0
        self._held: set[str] = set()  # objects that are complete and verified
        self._parts: dict[str, int] = {}  # bit sets of what has come of objects under way
        self._fetching: tuple[str, int] | None = None
        self._since_want = 0
        self._wanted_at = self._heard_at = 0.0
        self._started = time.monotonic()

    # -- the connection -----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        if self._fleet.stopping:
            return
        try:
            self._reader = packets.Reader()
            self._connection = self._fleet.network.connect(self.number, self)
        except OSError:
            self.closed()

    def opened(self) -> None:
        will = (topics.presence(self.name), messages.encode(messages.Presence(online=False, boot=self._boot)))
        self._send(packets.connect(self.name, self.name, self._password, KEEPALIVE_S, will))

    def closed(self) -> None:
        """Come back, as the agent does."""
        stood = 0.0
        if self.online:
            self._fleet.stats.disconnects += 1
            stood = time.monotonic() - self._online_at
        self.online, self._connection = False, None
        self._fleet.after(self._reconnect.pause(stood_s=stood), self.connect)

    def cut(self) -> None:
        """Pull the cable: no goodbye."""
        if self._connection is not None:
            self._fleet.network.close(self._connection)

    def received(self, data: bytes) -> None:
        for packet in self._reader.feed(data):
            if packet.kind == packets.PUBLISH:
                message = packets.read_publish(packet)
                if message.qos:
                    self._send(packets.puback(message.packet_id))
                self._message(message)
            elif packet.kind == packets.CONNACK:
                self._connack(packet.body)
            elif packet.kind == packets.SUBACK and not self.online:
                self._subscribed()

    def _connack(self, body: bytes) -> None:
        if len(body) < 2 or body[1]:
            self._fleet.stats.refused += 1
            raise ValueError("the broker refused the connection")
        self._send(packets.subscribe(self._next_id(), [topics.all_down(self.name)]))

    def _subscribed(self) -> None:
        """The session stands: say who we are, then send again what was not acknowledged."""
        self.online, self._online_at = True, time.monotonic()
        self._fleet.stats.connects += 1
        online = messages.encode(messages.Presence(online=True, boot=self._boot, at=now_ms()))
        self._send(packets.publish(topics.presence(self.name), online, packet_id=self._next_id(), retain=True))
        self._greet()

    def _greet(self) -> None:
        hello = messages.Hello(
            device=self.name,
            boot=self._boot,
            epoch=self.spool.epoch,
            agent="skerry-sim",
            profile=self._fleet.profile,
            revision=self.revision,
        )
        self._publish("hello", messages.encode(hello))
        self.spool.restart()
        self.flush()
        if self._fetching is not None:
            self._begin_fetch(self._fetching)

    def ping(self) -> None:
        if self.online:
            self._send(packets.PINGREQ)

    def _send(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.send(data)

    def _publish(self, kind: str, payload: bytes) -> None:
        self._send(packets.publish(topics.up(self.name, kind), payload, packet_id=self._next_id()))

    def _next_id(self) -> int:
        self._packet_id = self._packet_id % 65535 + 1
        return self._packet_id

    # -- what it sends ------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Publish what is due of the spool."""
        if self.online:
            for kind, payload in self.spool.due(time.monotonic()):
                self._publish(kind, payload)

    def put(self, kind: str, body: object) -> None:
        self.spool.put(kind, body, now_ms())
        self._fleet.stats.produced += 1
        self.flush()

    def telemetry(self) -> None:
        """One window of each module that serves."""
        if self._fleet.quiet:
            return
        end = now_ms()
        for name, module in self.modules.items():
            if module.current is None:
                continue
            latency = Histogram()
            requests = self._dice.randint(5, 20)
            slow = 4.0 if self._fleet.drifts(self.number) else 1.0
            for _ in range(requests):
                latency.add(self._dice.lognormvariate(5.0, 0.3) * slow)
            wire = latency.to_wire()
            p50, p99 = latency_quantiles(wire)
            window = messages.Telemetry(
                module=name,
                version=module.current.version,
                digest=module.current.digest,
                endpoint=name,
                start=end - int(self._fleet.settings.telemetry_s * 1000),
                end=end,
                requests=requests,
                p50_us=p50,
                p99_us=p99,
                latency_us=wire,
            )
            self._fleet.stats.telemetry += 1
            self.put("telemetry", window)

    def health(self) -> None:
        if self._fleet.quiet:
            return
        used = self._dice.randint(200_000_000, 900_000_000)
        self.put(
            "health",
            messages.Health(
                boot=self._boot,
                uptime_s=time.monotonic() - self._started,
                cpu_percent=self._dice.uniform(2, 60),
                memory_used=used,
                memory_total=2_000_000_000,
                disk_used=used * 8,
                disk_total=32_000_000_000,
                temperature_c=self._dice.uniform(35, 70),
                spool_records=len(self.spool),
            ),
        )

    def report(self) -> None:
        """The state of all modules, as a snapshot."""
        states = tuple(state for module in self.modules.values() for state in module.states())
        self.put("state", messages.State(device=self.name, boot=self._boot, revision=self.revision, modules=states))

    # -- what it is told ----------------------------------------------------------------------------------------------

    def _message(self, message: packets.Publish) -> None:
        topic = topics.parse(message.topic)
        if topic.direction == "chunk":
            self._chunk(topic.digest, topic.part, message.payload)
        elif topic.kind == "ack":
            self._acked(messages.decode("ack", message.payload))
        elif topic.kind == "desired" and message.payload:
            self._desired(messages.decode("desired", message.payload))
        elif topic.kind == "command":
            command: messages.Command = messages.decode("command", message.payload)
            self.put("result", messages.Result(command=command.id, ok=True))

    def _acked(self, ack: messages.Ack) -> None:
        self.spool.acked(ack)
        self._reconnect.spread_s = float(ack.spread_s) or self._reconnect.spread_s
        if ack.again:
            self._fleet.stats.hailed += 1
            self._greet()
        self.flush()

    def _desired(self, signed: messages.Signed) -> None:
        if self._fleet.trusted:
            try:
                trust.verify(trust.DESIRED_TYPE, signed.payload, signed.signatures, self._fleet.trusted)
            except PeerError:
                self._fleet.stats.unverified += 1
                return
        desired = messages.decode_desired(signed.payload)
        if desired.device != self.name or desired.revision <= self.revision:
            return
        self.revision = desired.revision
        wanted = {module.name: module for module in desired.modules}
        for name in self.modules.keys() - wanted.keys():
            del self.modules[name]
        for name, module in wanted.items():
            self.modules.setdefault(name, Module()).wants(module, desired.revision, now_ms())
        self.report()
        self._go_on()

    # -- download -----------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Module]:
        return [module for module in self.modules.values() if module.candidate is not None]

    def _go_on(self) -> None:
        """Fetch the next object that some candidate lacks; a candidate that lacks none goes on to its next step."""
        for module in self._candidates():
            candidate = module.candidate
            assert candidate is not None
            candidate.missing = [one for one in candidate.missing if one[0] not in self._held]
            if not candidate.missing and not candidate.indexed:
                index = self._fleet.store.index(candidate.wanted.digest)
                candidate.indexed = True
                candidate.missing = [one for one in index.objects().items() if one[0] not in self._held]
            if candidate.missing:
                if self._fetching is None or self._fetching[0] in self._held:
                    self._begin_fetch(candidate.missing[0])
            elif candidate.step == "download":
                self._step(module, 0)

    def _begin_fetch(self, wanted: tuple[str, int]) -> None:
        self._fetching = wanted
        self._parts.setdefault(wanted[0], 0)
        self._send(packets.subscribe(self._next_id(), [topics.chunks_of(wanted[0])]))
        self._wanted_at = self._heard_at = time.monotonic()
        self._fleet.after(self._dice.uniform(0, JITTER_S), lambda: self._want(wanted))

    def _want(self, wanted: tuple[str, int]) -> None:
        if self._fetching != wanted or not self.online:
            return
        digest, size = wanted
        total = chunks.count(size)
        lacking = ((1 << total) - 1) & ~self._parts.get(digest, 0)
        bitmap = lacking.to_bytes(-(-total // 8), "little")
        self._publish("want", messages.encode(messages.Want(digest=digest, size=size, bitmap=bitmap)))
        self._since_want, self._wanted_at = 0, time.monotonic()
        self._fleet.after(QUIET_S, lambda: self._nudge(wanted))

    def _nudge(self, wanted: tuple[str, int]) -> None:
        now = time.monotonic()
        if now - max(self._wanted_at, self._heard_at) >= QUIET_S * 0.99:
            self._want(wanted)
        elif self._fetching == wanted and now - self._wanted_at >= QUIET_S * 0.99:
            self._fleet.after(QUIET_S, lambda: self._nudge(wanted))

    def _chunk(self, digest: str, part: int, payload: bytes) -> None:
        stats = self._fleet.stats
        stats.chunk_bytes += len(payload)
        if self._fetching is None or digest != self._fetching[0]:
            stats.chunks_unwanted += 1
            return
        have = self._parts[digest]
        if have >> part & 1:
            stats.chunks_twice += 1
            return
        shared = self._fleet.store.object(*self._fetching)
        try:
            good = shared.take(part, chunks.unframe(payload))
        except PeerError:
            good = False
        if not good:
            stats.chunks_bad += 1
            return
        stats.chunks += 1
        have |= 1 << part
        self._parts[digest] = have
        self._since_want += 1
        now = self._heard_at = time.monotonic()
        if have == (1 << shared.total) - 1:
            if shared.verified():
                self._complete(digest)
        elif self._since_want >= REPORT_CHUNKS or now - self._wanted_at >= REPORT_S:
            self._want(self._fetching)

    def _complete(self, digest: str) -> None:
        assert self._fetching is not None
        self._fleet.stats.objects += 1
        self._held.add(digest)
        del self._parts[digest]
        self._send(packets.unsubscribe(self._next_id(), [topics.chunks_of(digest)]))
        self._publish("want", messages.encode(messages.Want(digest=digest, size=self._fetching[1])))
        self._fetching = None
        self._go_on()

    # -- the other steps, by the clock -------------------------------------------------------------------------------

    def _step(self, module: Module, place: int) -> None:
        candidate = module.candidate
        assert candidate is not None
        candidate.step = PRETENDED[place] if place < len(PRETENDED) else "soak"
        if candidate.step == "soak":
            self.report()
            self._later(module, candidate.wanted.soak_s, lambda: self._promote(module))
            return
        if candidate.step == "golden" and (reason := self._fleet.golden_fails(self.number, candidate.wanted)):
            module.fail("install.golden_failed", reason, now_ms())
            self._fleet.stats.failed += 1
            self.report()
            self._go_on()
            return
        self._later(module, STEP_S, lambda: self._step(module, place + 1))

    def _later(self, module: Module, seconds: float, action: Callable[[], None]) -> None:
        """Do it unless another wish has come in between."""
        candidate = module.candidate
        self._fleet.after(seconds, lambda: action() if module.candidate is candidate else None)

    def _promote(self, module: Module) -> None:
        module.promote(now_ms())
        self._fleet.stats.promoted += 1
        self.report()
        self._go_on()
