"""A brain on a bench: every effect is performed at once on a virtual disk, unless a fault was asked for.

The bench is no simulator (that is ``skerry_simulators.world``): it shows one device's chain of steps under one fault.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from skerry_agent.rules import effects as fx
from skerry_agent.rules.brain import Brain
from skerry_agent.rules.settings import BrainSettings
from skerry_modules import chunks, messages, trust
from skerry_modules.compatibility import DeviceFacts
from skerry_modules.messages import Desired, DesiredModule, Endpoint, Signed
from skerry_modules.trust import SigningKey
from skerry_simulators.world import modules
from skerry_simulators.world.modules import Module

SLOW = ("ReadIndex", "Install", "Load", "Golden", "Warm")


def signed(desired: Desired, key: SigningKey = modules.HUB) -> bytes:
    payload = messages.encode(desired)
    return messages.encode(Signed(1, payload, (key.sign(trust.DESIRED_TYPE, payload),)))


def document(revision: int, *wanted: DesiredModule, device: str = "d1", endpoints: tuple[Endpoint, ...] = ()) -> bytes:
    return signed(Desired(device=device, revision=revision, issued_at=0, modules=tuple(wanted), endpoints=endpoints))


@dataclass
class Bench:
    """``faults``: (effect name, digest) → what to answer, used up one by one: a code, "hang", or "power"."""

    settings: BrainSettings = field(default_factory=BrainSettings)
    library: dict[str, bytes] = field(default_factory=dict)
    faults: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    now: float = 1000.0
    online: bool = True

    def __post_init__(self) -> None:
        self.saved: bytes | None = None
        self.complete: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.installed: set[str] = set()
        self.loaded: set[str] = set()
        self.routes: dict[str, tuple[str, ...]] = {}
        self.chain: list[str] = []
        self.performed: list[str] = []
        self.events: list[messages.Event] = []
        self.state: messages.State | None = None
        self.asked_bytes: list[str] = []
        self.queue: deque[fx.Event] = deque()
        self.free_disk_mb = 10_000
        self.facts = DeviceFacts()
        self.boots = 0
        self.full = False
        self.hub_answers = False  # that it does not have an object any more; an older hub says nothing
        self.hub_keys = {modules.HUB.public.keyid: modules.HUB.public}
        self.brain: Brain
        self.boot()

    # -- driving

    def add(self, *made: Module) -> None:
        for module in made:
            self.library.update(module.objects)

    def boot(self) -> None:
        """Power on: memory is gone, the disk is as it was."""
        self.boots += 1
        self.queue.clear()
        self.loaded.clear()
        self.routes.clear()
        self.brain = Brain(
            "d1",
            modules.PROFILE,
            {modules.PUBLISHER.public.keyid: modules.PUBLISHER.public},
            self.hub_keys,
            self.settings,
            rng=random.Random(7),
        )
        self.brain.machine.on_step = lambda record, step: self.chain.append(f"{record.name}@{record.version}:{step}")
        booted = fx.Booted(
            f"b{self.boots}", self.saved, frozenset(self.complete), 0, frozenset(self.parts), frozenset(self.installed)
        )
        self.feed(booted)
        if self.online:
            self.feed(fx.Connected())

    def feed(self, event: fx.Event) -> None:
        self.queue.append(event)
        while self.queue:
            effects = self.brain.handle(self.queue.popleft(), self.now)
            if not self._perform_all(effects):
                self.boot()
                return

    def desire(self, revision: int, *wanted: DesiredModule, endpoints: tuple[Endpoint, ...] = ()) -> None:
        self.feed(fx.DesiredArrived(document(revision, *wanted, endpoints=endpoints)))

    def run(self, seconds: float) -> None:
        """Let time pass, by the brain's own deadlines."""
        end = self.now + seconds
        for _ in range(20_000):
            due = self.brain.next_deadline
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.feed(fx.Tick())
        else:
            raise AssertionError("the brain asks for time without end")
        self.now = end
        self.feed(fx.Tick())

    def steps(self, version: int) -> list[str]:
        """The chain of one version, repeats left out."""
        chain: list[str] = []
        for entry in self.chain:
            name, _, step = entry.partition(":")
            if name.endswith(f"@{version}") and (not chain or chain[-1] != step):
                chain.append(step)
        return chain

    def reported(self, version: int) -> messages.ModuleState:
        assert self.state is not None
        return next(module for module in self.state.modules if module.version == version)

    # -- performing

    def _perform_all(self, effects: list[fx.Effect]) -> bool:
        for effect in effects:
            name, digest = type(effect).__name__, getattr(effect, "digest", "")
            self.performed.append(name)
            fault = self._fault(name, digest)
            if fault == "power":
                return False
            if fault == "hang":
                continue
            if fault:
                self.queue.append(fx.Failed(name, digest, fault, f"fault {fault}"))
                if name == "Save":
                    return True
                continue
            outcome = self._perform(effect)
            if outcome is not None:
                self.queue.append(outcome)
                if isinstance(effect, fx.Save):
                    return True
            if self._fault(f"after {name}", digest) == "power":
                return False
        return True

    def _fault(self, name: str, digest: str) -> str:
        for key in ((name, digest), (name, "*")):
            if self.faults.get(key):
                return self.faults[key].pop(0)
        return ""

    def _perform(self, effect: fx.Effect) -> fx.Event | None:
        match effect:
            case fx.Save(state):
                if self.full:
                    return fx.Failed("Save", "", "resource.no_space", "full")
                self.saved = state
            case fx.ListParts(digest):
                return fx.Done("ListParts", digest, {"parts": sorted(self.parts.get(digest, {}))})
            case fx.SendWant(digest, size, bitmap):
                self._want(digest, size, bitmap)
            case fx.StoreChunk(digest, part, _, data):
                if self.full:
                    return fx.Failed("StoreChunk", digest, "resource.no_space", "full")
                self.parts.setdefault(digest, {})[part] = bytes(data)
            case fx.CompleteObject(digest):
                return self._complete(digest)
            case fx.SetRoutes(endpoint, _, digests):
                assert set(digests) <= self.loaded, "traffic to a version that is not loaded"
                self.routes[endpoint] = digests
                if effect.gone:
                    del self.routes[endpoint]
            case fx.Unload(digest):
                self.loaded.discard(digest)
            case fx.Remove(digest, objects):
                self.installed.discard(digest)
                for sha256 in objects:
                    self.complete.pop(sha256, None)
                    self.parts.pop(sha256, None)
            case fx.Report(state):
                self.state = messages._encoder and _state(state)
            case fx.Emit(event):
                self.events.append(event)
            case fx.Subscribe() | fx.Unsubscribe():
                pass
            case _:
                return self._slow(effect)
        return None

    def _want(self, digest: str, size: int, bitmap: bytes) -> None:
        data = self.library.get(digest)
        if self.online and data is None and self.hub_answers:
            self.queue.append(fx.ObjectGone(digest))
        if not self.online or data is None:
            return
        for part in chunks.decode_bitmap(bitmap, chunks.count(size)):
            self.asked_bytes.append(f"{digest}/{part}")
            piece = data[part * chunks.CHUNK_BYTES : (part + 1) * chunks.CHUNK_BYTES]
            self.queue.append(fx.ChunkArrived(digest, part, chunks.frame(piece)))

    def _complete(self, digest: str) -> fx.Event:
        if digest not in self.parts:
            return fx.Failed("CompleteObject", digest, "resource.no_space", "chunks are missing")
        data = b"".join(data for _, data in sorted(self.parts.pop(digest).items()))
        if messages and digest != _sha256(data):
            return fx.Failed("CompleteObject", digest, "package.digest_mismatch", "damaged")
        self.complete[digest] = data
        return fx.Done("CompleteObject", digest)

    def _slow(self, effect: Any) -> fx.Event:
        name, digest = type(effect).__name__, effect.digest
        data: dict[str, Any] = {}
        match effect:
            case fx.ReadIndex():
                if digest not in self.complete:
                    return fx.Failed(name, digest, "package.digest_mismatch", "gone", {"objects": [digest]})
                data = {"index": self.complete[digest], "free_disk_mb": self.free_disk_mb, "facts": self.facts}
            case fx.Install():
                index = self.brain.index(digest)
                assert index is not None
                bad = [sha for sha in index.objects() if _sha256(self.complete.get(sha, b"")) != sha]
                if bad:
                    for sha in bad:
                        self.complete.pop(sha, None)
                    return fx.Failed(name, digest, "package.digest_mismatch", "damaged", {"objects": bad})
                self.installed.add(digest)
            case fx.Load():
                assert digest in self.installed, "loading what is not installed"
                self.loaded.add(digest)
            case _:
                assert digest in self.loaded, f"{name} of what is not loaded"
        return fx.Done(name, digest, data)


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _state(state: bytes) -> messages.State:
    import msgspec

    return msgspec.msgpack.decode(state, type=messages.State)
