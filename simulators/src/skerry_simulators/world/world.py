"""One world: a hub, a broker, a few devices, a story of rollouts, and what goes wrong; all from one seed.

First faults and work, mixed; then everything is mended, and the world must come to rest as :mod:`truth` says.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from typing import Any

import msgspec

from skerry_agent.rules.settings import BrainSettings
from skerry_hub.rules.rollout import Plan, Wave
from skerry_modules import messages, trust
from skerry_modules.messages import Desired, Route, Signed
from skerry_simulators.world import faults as faulting
from skerry_simulators.world import modules
from skerry_simulators.world.clock import Clock
from skerry_simulators.world.device import Device
from skerry_simulators.world.faults import Faults
from skerry_simulators.world.hub import Hub
from skerry_simulators.world.modules import BAD, Behaviour, Module
from skerry_simulators.world.network import Network
from skerry_simulators.world.truth import Truth, Violation

TROUBLE_S = 500.0
REST_LIMIT_S = 4 * 3600.0
EVENT_LIMIT = 60_000  # in one stretch: more is an endless loop
STEP_S = 5.0  # the hub looks at its rollouts so often


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run went. ``violation`` is empty where every rule held."""

    seed: int
    violation: str
    events: int
    virtual_s: float
    rollouts: int
    samples: int
    digest: str = ""  # SHA-256 of all that happened, when and to whom: equal for equal seeds, on every machine
    trace: tuple[str, ...] = ()


class World:
    """Everything of one run.

    Args:
        seed: decides all of it.
        device_class, hub_class: replaced to show that the rules above can fail.
        faults: drawn from the seed if not given.
        endpoints: whether some worlds have endpoints with side versions.
        environments: the share of worlds in which modules name environments.
    """

    def __init__(
        self,
        seed: int,
        *,
        device_class: type[Device] = Device,
        hub_class: type[Hub] = Hub,
        faults: Faults | None = None,
        endpoints: bool = True,
        environments: float = 0.4,
        trace: int = 400,
    ) -> None:
        self.seed = seed
        self.endpoints = endpoints
        self.rng = random.Random(seed)
        self._lots = random.Random(f"environments of {seed}")
        self._locks: tuple[str, ...] = ("", *modules.SHARED_LOCKS, modules.SHARED_LOCKS[0])
        if self._lots.random() >= environments:
            self._locks = ("",)
        self.clock = Clock()
        self.faults = faults or faulting.draw(self.rng, self._lots)
        self._trouble = self.faults
        self._trace: deque[str] = deque(maxlen=trace)
        self._digest = hashlib.sha256()
        self.modules: dict[tuple[str, int], Module] = {}
        self.library: dict[str, Module] = {}
        self.objects: dict[str, bytes] = {}
        self.lost: set[str] = set()  # those that the hub's store had once
        self.fit: set[str] = set()  # objects that these devices may need: wheels for others are none
        self.truth = Truth(self)
        self.network = Network(self)
        self.hub = hub_class(self)
        count = self.rng.choice((1, 2, 2, 3, 3, 4))
        self.devices = {f"d{n}": device_class(self, f"d{n}", BrainSettings()) for n in range(count)}
        self.mending = False
        self.events = 0

    def count(self, who: str, what: str) -> None:
        """Put something into the digest of the run."""
        self._digest.update(f"{self.clock.now!r} {who} {what}\n".encode())

    def note(self, who: str, what: str) -> None:
        self.count(who, what)
        self._trace.append(f"{self.clock.now:9.2f} {who:4} {what}")

    # -- the network's other ends

    def deliver_up(self, device: str, kind: str, payload: bytes) -> None:
        self.hub.receive(device, kind, payload)

    def deliver_down(self, device: str, kind: str, payload: bytes) -> None:
        self.devices[device].down(kind, payload)

    def deliver_chunk(self, device: str, digest: str, part: int, payload: bytes) -> None:
        from skerry_agent.rules.effects import ChunkArrived

        one = self.devices[device]
        if one.brain is not None:
            one.feed(ChunkArrived(digest, part, payload))

    # -- the story

    def _register(self, name: str, version: int, behaviour: Behaviour) -> Module:
        lock = self._lots.choice(self._locks)
        module = modules.make(name, version, behaviour, (1, 2, 3, 5)[version % 4], lock)
        self.modules[name, version] = module
        self.library[module.digest] = module
        self.objects.update(module.objects)
        self.fit |= module.here
        return module

    def _write_story(self) -> None:
        """Rollouts, one after another, of versions good and bad; an operator's and an attacker's doings."""
        rng = self.rng
        names = ("m", "n") if rng.random() < 0.3 else ("m",)
        for name in names:
            at, versions = 1.0, rng.choice((2, 3, 3, 4))
            for version in range(1, versions + 1):
                bad = version > 1 and rng.random() < 0.5
                behaviour = rng.choice(sorted(BAD)) if bad else Behaviour.GOOD
                self._plan_rollout(at, self._register(name, version, behaviour))
                at += rng.uniform(40, 200)
            if rng.random() < 0.15:
                self.clock.at(rng.uniform(200, TROUBLE_S), self.hub.unassign, rng.choice(sorted(self.devices)), name)
        if self.endpoints and rng.random() < 0.5:
            self._write_endpoints()
        for verb in ("pause", "resume", "abort"):
            if rng.random() < 0.2:
                self.clock.at(rng.uniform(20, TROUBLE_S), self.hub.operate, verb)
        for device in self.devices.values():
            self.clock.at(rng.uniform(0, 5), device.power_on)
            self._repeat(20.0, device.sample)

    def _write_endpoints(self) -> None:
        """An endpoint that changes now and then: splits and shadows of versions good and bad, rolled out or not."""
        rng = self.rng
        for version in range(11, 11 + rng.choice((1, 2, 3))):
            self._register("m", version, rng.choice(sorted(BAD)) if rng.random() < 0.5 else Behaviour.GOOD)
        known = sorted(key for key in self.modules if key[0] == "m")
        for name in ("e", "f")[: rng.choice((1, 1, 2))]:
            at = rng.uniform(5, 150)
            for _ in range(rng.choice((1, 2, 3, 4))):
                chosen = rng.sample(known, min(len(known), rng.choice((1, 2, 2, 3, 4))))
                shadow = [Route(module=m, version=v) for m, v in chosen[1:] if rng.random() < 0.4]
                shadowed = {(route.module, route.version) for route in shadow}
                live = [key for key in chosen if key not in shadowed]
                routes = tuple(Route(module=m, version=v, percent=100 / len(live)) for m, v in live)
                deleted = rng.random() < 0.1
                self.clock.at(at, self.hub.set_endpoint, name, () if deleted else routes, tuple(shadow))
                at += rng.uniform(1, 150)

    def _plan_rollout(self, at: float, module: Module) -> None:
        plan = Plan(
            waves=self.rng.choice(((Wave(count=1), Wave(percent=100)), (Wave(percent=50), Wave(percent=100)))),
            soak_s=self.rng.choice((10.0, 20.0)),
            device_timeout_s=1200.0,
            offline_timeout_s=1800.0,
            on_failure=self.rng.choice(("rollback", "rollback", "stop")),
        )
        self.clock.at(at, self.hub.create, module, sorted(self.devices), plan)

    def _repeat(self, mean_s: float, action: Any) -> None:
        """Every now and then, until things are mended."""

        def happen() -> None:
            if not self.mending:
                action()
                self.clock.after(self.rng.expovariate(1 / mean_s), happen)

        self.clock.after(self.rng.expovariate(1 / mean_s), happen)

    def _make_trouble(self) -> None:
        faults = self.faults
        doings: tuple[tuple[float, Any], ...] = (
            (faults.power_every_s, self._power),
            (faults.partition_every_s, self._partition),
            (faults.broker_loss_every_s, self._broker_loss),
            (faults.disk_full_every_s, self._disk_full),
            (faults.worker_crash_every_s, self._worker_crash),
            (faults.attack_every_s, self._attack),
            (faults.object_loss_every_s, self._lose_object),
        )
        for every_s, doing in doings:
            if every_s:
                self._repeat(every_s, doing)

    def _someone(self) -> Device:
        return self.devices[self.rng.choice(sorted(self.devices))]

    def _power(self) -> None:
        self._someone().power_off()

    def _worker_crash(self) -> None:
        self._someone().worker_crash()

    def _partition(self) -> None:
        device = self._someone()
        self.note(device.id, "is cut off")
        self.network.cut.add(device.id)
        self.clock.after(self.rng.uniform(1, 20), device.link_lost)
        self.clock.after(self.rng.uniform(5, 120), self.network.cut.discard, device.id)

    def _broker_loss(self) -> None:
        self.note("net", "the broker dies")
        for device in self.network.lose_everything():
            self.clock.after(self.rng.uniform(0, 5), self.devices[device].link_lost)
        self.clock.after(self.rng.uniform(1, 30), self._broker_up)

    def _broker_up(self) -> None:
        self.network.broker_up = True

    def _disk_full(self) -> None:
        device = self._someone()
        self.note(device.id, "has a full disk")
        device.full = True
        self.clock.after(self.rng.uniform(5, 120), self._disk_free, device)

    @staticmethod
    def _disk_free(device: Device) -> None:
        device.full = False

    def _lose_object(self) -> None:
        """Pruned by mistake, or a disk that died: whoever asks for it is told so."""
        if self.objects:
            digest = self._lots.choice(sorted(self.objects))
            self.note("hub", f"loses the object {digest[:12]}")
            del self.objects[digest]
            self.lost.add(digest)

    def _attack(self) -> None:
        """Documents that no device may follow: forged, meant for another, or older than the one in force."""
        device = self._someone()
        evil = self._register("m", 66, Behaviour.FORGED)
        kind = self.rng.choice(("forged", "misdirected", "stale", "garbage"))
        issued = self.hub.issued.get(device.id, set())
        if kind == "stale" and issued:
            payload = self.rng.choice(sorted(issued))
        elif kind == "garbage":
            payload = self.rng.randbytes(60)
        else:
            key = modules.STRANGER if kind == "forged" else modules.HUB
            name = device.id if kind == "forged" else "someone-else"
            wanted = Desired(device=name, revision=10_000, issued_at=0, modules=(evil.wanted(),))
            body = messages.encode(wanted)
            payload = messages.encode(Signed(1, body, (key.sign(trust.DESIRED_TYPE, body),)))
        self.network.down(device.id, "desired", payload)

    # -- running

    def _mend(self) -> None:
        """All faults end; whoever is off or cut comes back, and every link is made anew once."""
        self.note("", "everything is mended")
        self.mending = True
        self.faults = faulting.CALM
        self.network.cut.clear()
        self.network.broker_up = True
        self.hub.restart()
        self.hub.operate("resume")
        for device in self.devices.values():
            device.full = False
            device.link_lost()
            self.clock.after(31.0, device.power_on)

    def _hub_steps(self) -> None:
        self.hub.step()
        self.clock.after(STEP_S if not self.mending else 4 * STEP_S, self._hub_steps)

    def run(self) -> Outcome:
        """Live through it all.

        Returns:
            The outcome; with the trace where a rule was broken.
        """
        violation = ""
        try:
            self._write_story()
            self._make_trouble()
            self._hub_steps()
            self.events += self.clock.run_until(TROUBLE_S, EVENT_LIMIT)
            self._mend()
            self.events += self.clock.run_until(TROUBLE_S + 40, EVENT_LIMIT)
            while self.clock.now < TROUBLE_S + REST_LIMIT_S:
                if not self.truth.unsettled():
                    break
                self.events += self.clock.run_until(self.clock.now + 30, EVENT_LIMIT)
            self.truth.final()
        except Violation as broken:
            violation = str(broken)
        except Exception as error:  # a rule that raises is broken too
            violation = f"{type(error).__name__}: {error}"
            self.note("", violation)
            if not isinstance(error, Violation):
                import traceback

                self._trace.extend(traceback.format_exc().splitlines())
        return Outcome(
            seed=self.seed,
            violation=violation,
            events=self.events,
            virtual_s=self.clock.now,
            rollouts=len(self.hub.db.rollouts),
            samples=len(self.hub.db.samples),
            digest=self._digest.hexdigest(),
            trace=tuple(self._trace),
        )
