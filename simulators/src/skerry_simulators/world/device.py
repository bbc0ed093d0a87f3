"""A device around the real brain and the real spool policy: virtual disk, workers, link and power.

Power goes at any effect, before or after it. Memory, workers and everything under way go with it; the disk stays,
except for what it may lose: chunks since the last flush, the last chunk written may be torn and the tear not be seen,
a file may rot, deletions of the spool that rode on no later commit come back.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from skerry_agent.rules import effects as fx
from skerry_agent.rules.brain import Brain
from skerry_agent.rules.settings import BrainSettings
from skerry_modules import chunks, messages
from skerry_modules.messages import Ack, Hello, Want
from skerry_simulators.world import modules
from skerry_simulators.world.environments import Environments
from skerry_simulators.world.modules import Behaviour
from skerry_simulators.world.teller import Teller

if TYPE_CHECKING:
    from skerry_simulators.world.world import World

PUBLISHERS = {modules.PUBLISHER.public.keyid: modules.PUBLISHER.public}
HUB_KEYS = {modules.HUB.public.keyid: modules.HUB.public}
SYNC_CHUNKS = 16
"""Chunks between two flushes, as the agent's ``state.sync_chunks``: a power cut loses no other."""

_state_decoder = msgspec.msgpack.Decoder(messages.State)


class PowerCut(Exception):  # noqa: N818 - no error: the virtual power went
    """The power went at this effect."""


class Device(Teller):
    """One device. ``brain`` is None while the power is off."""

    brain_class: type[Brain] = Brain  # replaced to show that the invariants can fail

    def __init__(self, world: World, device: str, settings: BrainSettings) -> None:
        super().__init__(world, device)
        self.settings = settings
        # the disk
        self.saved: bytes | None = None
        self.complete: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.installed: set[str] = set()
        self.environments = Environments(self)
        self._unflushed: list[tuple[str, int]] = []
        # memory
        self.loaded: set[str] = set()
        self.tested: set[str] = set()  # passed their golden test since they were loaded
        self.died: set[str] = set()  # by themselves: the brain may not know yet
        self.routes: dict[str, tuple[str, ...]] = {}
        self.splits: dict[str, fx.SetRoutes] = {}
        self.moments = 0  # before and after each effect
        self._queue: deque[fx.Event] = deque()
        self._handling = False
        self._running: dict[str, int] = {}  # digest → number of the slow effect under way
        self._number = 0
        self._tick_at: float | None = None

    # -- power

    def power_on(self) -> None:
        if self.brain is not None:
            return
        self.boots += 1
        self._booted_at = self.world.clock.now - self.rng.uniform(0, 50)
        self._reached = 0.0
        self.read_spool()
        self.brain = self.brain_class(
            self.id, modules.PROFILE, PUBLISHERS, HUB_KEYS, self.settings, rng=random.Random(self.rng.random())
        )
        self.brain.machine.on_step = lambda record, step: self.world.truth.stepped(self, record, step)
        self.world.note(self.id, f"boots ({self.boots})")
        partial = frozenset(self.parts)  # whatever of it is still good
        held = frozenset(self.complete)
        self.environments.prepare()
        self.feed(fx.Booted(f"b{self.boots}", self.saved, held, 0, partial, frozenset(self.installed)))
        self._check_document()
        self.world.clock.after(self.rng.uniform(0.1, 3), self.connect, self.boots)

    def power_off(self) -> None:
        if self.brain is None:
            return
        self.world.note(self.id, "loses power")
        self.brain = None
        self.world.network.disconnect(self.id)
        self.world.hub.presence(self.id, online=False)
        self.connected = False
        self.loaded.clear()
        self.tested.clear()
        self.routes.clear()
        self.splits.clear()
        self._queue.clear()
        self._running.clear()
        self.environments.power_off()
        self._tick_at = self._spool_at = None
        self._handling = False
        self._damage()
        self.world.clock.after(self.rng.uniform(1, 30), self.power_on)

    def _damage(self) -> None:
        """What the disk loses with the power."""
        for digest, part in self._unflushed[:-1]:
            if self.rng.random() < 0.3:  # written in any order
                self.parts.get(digest, {}).pop(part, None)
        for digest, part in self._unflushed[-1:]:
            data = self.parts.get(digest, {}).get(part)
            if data and self.rng.random() < 0.5:
                self.parts[digest][part] = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
        self._unflushed.clear()
        self.bring_back()
        if self.world.faults.rot and self.complete and self.rng.random() < self.world.faults.rot:
            folders = [self.complete, *(built for _, built in sorted(self.environments.built.items()))]
            held, sha256 = self.rng.choice([(folder, name) for folder in folders for name in sorted(folder)])
            damaged = bytearray(held[sha256])
            damaged[self.rng.randrange(len(damaged))] ^= 1
            held[sha256] = bytes(damaged)

    # -- link

    def connect(self, boot: int) -> None:
        if self.brain is None or self.connected or boot != self.boots:
            return
        if not self.world.network.connect(self.id):
            self.world.clock.after(self.rng.uniform(2, 15), self.connect, boot)
            return
        self.connected = True
        self._greet()
        self.world.network.subscribe_down(self.id)
        self._say_again()

    def _greet(self) -> None:
        assert self.brain is not None
        hello = Hello(
            device=self.id,
            boot=f"b{self.boots}",
            epoch=self.epoch,
            agent="0",
            profile="virtual",
            revision=self.brain.revision,
        )
        self.world.network.up(self.id, "hello", messages.encode(hello))

    def greet_again(self) -> None:
        self._greet()
        self._say_again()

    def _say_again(self) -> None:
        self.policy.connected(self.mono)
        self.feed(fx.Connected())
        self.pump()

    def link_lost(self) -> None:
        if self.brain is None or not self.connected:
            return
        self.connected = False
        self.world.network.disconnect(self.id)
        self.world.hub.presence(self.id, online=False)
        self.policy.disconnected()
        self.feed(fx.Disconnected())
        self.world.clock.after(self.rng.uniform(1, 10), self.connect, self.boots)

    def down(self, kind: str, payload: bytes) -> None:
        if self.brain is None:
            return
        if kind == "desired":
            self.feed(fx.DesiredArrived(payload))
            self._check_document()
        elif kind == "ack":
            ack: Ack = messages.decode("ack", payload)
            for digest in ack.gone:
                self.feed(fx.ObjectGone(digest))
            self.acked(ack)

    def _check_document(self) -> None:
        if self.brain is not None and not self.brain.waits_for_disk:
            self.world.truth.followed(self, self.brain.document, self.brain.revision)

    # -- the brain and its effects

    def feed(self, event: fx.Event) -> None:
        self._queue.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._queue and self.brain is not None:
                before = set(self.brain.slots)
                effects = self.brain.handle(self._queue.popleft(), self.mono)
                for name in before - set(self.brain.slots):
                    self.world.truth.proven.pop((self.id, name), None)
                self._perform_all(effects)
        except PowerCut:
            self.power_off()
        self._handling = False
        self._plan_tick()

    def _plan_tick(self) -> None:
        due = self.brain.next_deadline if self.brain else None
        if due is not None and (self._tick_at is None or due < self._tick_at):
            self._tick_at = due
            self.world.clock.at(due + self._booted_at, self._tick, self.boots, due)

    def _tick(self, boot: int, due: float) -> None:
        if self.brain is not None and boot == self.boots and self._tick_at == due:
            self._tick_at = None
            self._reached = max(self._reached, due)  # a sum of floats may fall short of the time that was asked for
            self.feed(fx.Tick())

    def _perform_all(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            self.may_lose_power()
            self.world.count(self.id, f"{type(effect).__name__} {getattr(effect, 'digest', '')}")
            failed = self._perform(effect)
            self.may_lose_power()
            if failed:
                return

    def risk(self, action: Any, *arguments: Any) -> None:
        """Do something that is no effect of its own, and before and within which the power may go."""
        try:
            self.may_lose_power()
            action(*arguments)
        except PowerCut:
            self.power_off()

    def may_lose_power(self) -> None:
        faults = self.world.faults
        self.moments += 1
        if self.moments == faults.crash_moment or (faults.crash_effect and self.rng.random() < faults.crash_effect):
            raise PowerCut

    def _perform(self, effect: fx.Effect) -> bool:
        """True where the rest of the list must not be performed."""
        match effect:
            case fx.Save(state):
                if self.full:
                    self._queue.appendleft(fx.Failed("Save", "", "resource.no_space", "the disk is full"))
                    return True
                self.saved = state
            case fx.SendWant(digest, size, bitmap):
                self.world.truth.wanted(self, digest, list(chunks.decode_bitmap(bitmap, chunks.count(size))))
                want = Want(digest=digest, size=size, bitmap=bitmap, alone=True)
                self.world.network.up(self.id, "want", messages.encode(want))
            case fx.StoreChunk(digest, part, _, data):
                self._store(digest, part, bytes(data))
            case fx.ListParts(digest):
                self._queue.append(fx.Done("ListParts", digest, {"parts": sorted(self.parts.get(digest, {}))}))
            case fx.CompleteObject(digest):
                self._complete_object(digest)
            case fx.Subscribe(digest):
                self.world.network.subscribe(self.id, digest)
            case fx.Unsubscribe(digest):
                self.world.network.unsubscribe(self.id, digest)
            case fx.SetRoutes(endpoint, _, digests):
                self.world.truth.routed(self, effect)
                self.routes[endpoint] = digests
                self.splits[endpoint] = effect
                self._live_faults((*digests, *effect.shadow_digests))
            case fx.Unload(digest):
                self._cancel(digest)
                self.loaded.discard(digest)
                self.tested.discard(digest)
            case fx.Remove(digest, objects):
                self.world.truth.removed(self, digest, objects)
                self._cancel(digest)
                self.installed.discard(digest)
                for sha256 in objects:
                    self.complete.pop(sha256, None)
                    self.parts.pop(sha256, None)
                if digest:
                    self.environments.collect()
            case fx.Report(state):
                self.keep("state", _state_decoder.decode(state), coalesce=True)
            case fx.Emit(event):
                self.keep("event", event)
            case _:
                self._begin(effect)
        return False

    def _store(self, digest: str, part: int, data: bytes) -> None:
        if self.full:
            self._queue.append(fx.Failed("StoreChunk", digest, "resource.no_space", "the disk is full"))
            return
        self.world.truth.stored(self, digest, part)
        self.parts.setdefault(digest, {})[part] = data
        self._unflushed.append((digest, part))
        if len(self._unflushed) >= SYNC_CHUNKS:
            self._unflushed.clear()

    def _complete_object(self, digest: str) -> None:
        data = b"".join(data for _, data in sorted(self.parts.pop(digest, {}).items()))
        if hashlib.sha256(data).hexdigest() != digest:
            self._queue.append(fx.Failed("CompleteObject", digest, "package.digest_mismatch", "damaged"))
            return
        self.complete[digest] = data
        self._unflushed = [chunk for chunk in self._unflushed if chunk[0] != digest]
        self._queue.append(fx.Done("CompleteObject", digest))

    # -- slow effects

    def _begin(self, effect: Any) -> None:
        self._number += 1
        self._running[effect.digest] = self._number
        self.world.clock.after(self.rng.uniform(0.05, 2), self._end, self.boots, self._number, effect)

    def _end(self, boot: int, number: int, effect: Any) -> None:
        if self.brain is None or boot != self.boots or self._running.get(effect.digest) != number:
            return
        outcome = self._outcome(effect)
        if outcome is not None:
            self.ended(number, outcome)

    def ended(self, number: int, outcome: Any) -> None:
        """A slow effect is over; what was given up meanwhile is not heard."""
        if self._running.get(outcome.digest) == number:
            del self._running[outcome.digest]
            self.feed(outcome)

    def _cancel(self, digest: str) -> None:
        if self._running.pop(digest, None):
            self.environments.cancel(digest)

    def _outcome(self, effect: Any) -> fx.Event | None:
        name, digest = type(effect).__name__, effect.digest
        behaviour = self.world.library[digest].behaviour if digest in self.world.library else Behaviour.GOOD
        match effect:
            case fx.ReadIndex():
                if digest not in self.complete:
                    return fx.Failed(name, digest, "package.digest_mismatch", "it is gone", {"objects": [digest]})
                found = {"index": self.complete[digest], "free_disk_mb": 0 if self.full else 900}
                return fx.Done(
                    name, digest, found | {"facts": modules.FACTS, "environments": sorted(self.environments.built)}
                )
            case fx.Install():
                return self._install(digest)
            case fx.Load():
                return self._load(digest, behaviour)
            case fx.Golden() if behaviour is Behaviour.GOLDEN_FAILS:
                return fx.Failed(name, digest, "install.golden_failed", "8 of 10 cases differ")
            case fx.Golden():
                self.tested.add(digest)
            case fx.Warm() if behaviour is Behaviour.WARM_FAILS:
                return fx.Failed(name, digest, "install.warm_failed", "the model failed")
        return fx.Done(name, digest)

    def _install(self, digest: str) -> fx.Event | None:
        """Lay out the files; None where its environment is still to be built."""
        if self.full:
            return fx.Failed("Install", digest, "resource.no_space", "the disk is full")
        module = self.world.library[digest]
        needed = sorted(module.files)
        damaged = [s for s in needed if hashlib.sha256(self.complete.get(s, b"")).hexdigest() != s]
        if damaged:
            for sha256 in damaged:
                self.complete.pop(sha256, None)
            return fx.Failed("Install", digest, "package.digest_mismatch", "damaged", {"objects": damaged})
        self.installed.add(digest)
        self.environments.collect()
        if not module.environment:
            return fx.Done("Install", digest)
        self.environments.build(module, self._running[digest])
        return None

    def _load(self, digest: str, behaviour: Behaviour) -> fx.Event | None:
        if behaviour in (Behaviour.LOAD_FAILS, Behaviour.LOAD_CRASHES):
            return fx.Failed("Load", digest, "install.load_failed", "the engine refuses the model")
        if behaviour is Behaviour.LOAD_HANGS:
            return None
        self.tested.discard(digest)
        self.world.truth.loaded(self, digest)
        self.loaded.add(digest)
        self.died.discard(digest)
        return fx.Done("Load", digest)

    def _live_faults(self, digests: tuple[str, ...]) -> None:
        for digest in digests:
            behaviour = self.world.library[digest].behaviour
            if behaviour in (Behaviour.SOAK_CRASHES, Behaviour.SOAK_ERRORS):
                self.world.clock.after(self.rng.uniform(0.5, 3), self._misbehave, self.boots, digest, behaviour)

    def _misbehave(self, boot: int, digest: str, behaviour: Behaviour) -> None:
        if self.brain is None or boot != self.boots or not self._has_traffic(digest):
            return
        if behaviour is Behaviour.SOAK_CRASHES:
            self.feed(fx.WorkerExited(digest, "signal 11", restarting=True))
        else:
            self.feed(fx.Traffic(digest, 30, 9))
        self.world.clock.after(self.rng.uniform(0.5, 3), self._misbehave, boot, digest, behaviour)

    def _has_traffic(self, digest: str) -> bool:
        return any(digest in split.digests or digest in split.shadow_digests for split in self.splits.values())

    def worker_crash(self) -> None:
        """A healthy version's worker dies once, by bad luck."""
        if self.brain is not None and self.loaded:
            digest = self.rng.choice(sorted(self.loaded))
            restarting = self.rng.random() < 0.8
            if not restarting:
                self.loaded.discard(digest)
                self.died.add(digest)
            self.feed(fx.WorkerExited(digest, self.rng.choice(("signal 9", "hang")), restarting=restarting))
