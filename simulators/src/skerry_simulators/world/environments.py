"""The environments on a virtual device's disk: built step by step, shared by their lock, collected.

Which of them go is the agent's own rule. What is virtual is the disk: a build leaves nothing that counts until its last
step, a power cut may come before and after each step, and what is finished may rot.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from skerry_agent import environments as rules
from skerry_agent.rules import effects as fx
from skerry_simulators.world.modules import Behaviour, Module

if TYPE_CHECKING:
    from skerry_simulators.world.device import Device


class Waiting(NamedTuple):
    """A version whose installation waits for an environment; ``number`` is that of its effect."""

    digest: str
    number: int


class Environments:
    """Of one device. ``built``: key → wheel → the bytes that it was laid out from; ``begun``: what has no name yet."""

    def __init__(self, device: Device) -> None:
        self.built: dict[str, dict[str, bytes]] = {}
        self.begun: set[str] = set()
        self._device = device
        self._line: dict[str, list[Waiting]] = {}  # by key: the first builds, the others wait for it

    # -- power

    def power_off(self) -> None:
        self._line.clear()

    def prepare(self) -> None:
        """At a start: what a build left behind goes, and what nobody needs."""
        self.begun.clear()
        self.collect()

    # -- building

    def is_whole(self, module: Module) -> bool:
        """Whether a module's environment is there, and each file in it as it was laid out."""
        held = self.built.get(module.environment)
        return held is not None and all(held.get(wheel) == module.objects[wheel] for wheel in module.wheels)

    def build(self, module: Module, number: int) -> None:
        """Have a version's environment built unless it is there and whole; the end of it is an event of ``Install``."""
        line = self._line.setdefault(module.environment, [])
        line.append(Waiting(module.digest, number))
        if len(line) == 1:
            self._begin(module.environment)

    def cancel(self, digest: str) -> None:
        """A version is given up; whoever waits behind it begins."""
        for key, line in list(self._line.items()):
            was_first = line[0].digest == digest
            line[:] = [one for one in line if one.digest != digest]
            if was_first:
                self.begun.discard(key)
                self._begin(key)

    def _begin(self, key: str) -> None:
        """The first in line."""
        if not self._line[key]:
            del self._line[key]
            return
        first = self._line[key][0]
        if self.is_whole(self._device.world.library[first.digest]):
            self._ended(key, fx.Done("Install", first.digest, {"environment": key, "built": False}))
            return
        self.begun.add(key)
        self._later((1.0, 15.0), self._laid_out, key, first)

    def _laid_out(self, key: str, first: Waiting) -> None:
        """The wheels were read and checked, one after another; the folder has no name yet."""
        module = self._device.world.library[first.digest]
        problem = self._problem(module)
        if problem is not None:
            self.begun.discard(key)
            self._ended(key, problem)
        else:
            self._later((0.1, 2.0), self._named, key, first)

    def _named(self, key: str, first: Waiting) -> None:
        """Flushed and renamed: from here on it counts."""
        device = self._device
        module = device.world.library[first.digest]
        device.world.truth.built(device, module)
        self.begun.discard(key)
        self.built[key] = {wheel: device.complete.get(wheel, b"") for wheel in module.wheels}
        device.world.note(device.id, f"built the environment {key[:12]}")
        device.may_lose_power()
        self._ended(key, fx.Done("Install", first.digest, {"environment": key, "built": True}))

    def _problem(self, module: Module) -> fx.Failed | None:
        device, digest = self._device, module.digest
        if device.full:
            return fx.Failed("Install", digest, "resource.no_space", "the disk is full")
        if module.behaviour is Behaviour.BAD_WHEEL:
            return fx.Failed("Install", digest, "install.environment_failed", "a wheel is no good")
        for wheel in module.wheels:
            if hashlib.sha256(device.complete.get(wheel, b"")).hexdigest() != wheel:
                device.complete.pop(wheel, None)
                return fx.Failed("Install", digest, "package.digest_mismatch", "damaged", {"objects": [wheel]})
        return None

    def _later(self, within: tuple[float, float], step: object, key: str, first: Waiting) -> None:
        device = self._device
        device.world.clock.after(device.rng.uniform(*within), self._step, device.boots, step, key, first)

    def _step(self, boot: int, step: object, key: str, first: Waiting) -> None:
        device = self._device
        if device.brain is None or boot != device.boots or self._line.get(key, [None])[0] != first:
            return  # the power went, or it was given up
        device.risk(step, key, first)

    def _ended(self, key: str, outcome: fx.Done | fx.Failed) -> None:
        first = self._line[key].pop(0)
        self._begin(key)
        self._device.ended(first.number, outcome)

    # -- collecting

    def collect(self) -> None:
        """Delete what no installed version names."""
        device = self._device
        needed = {digest: self._needs(digest) for digest in sorted(device.installed)}
        for key in sorted(rules.unneeded(self.built, needed)):
            device.world.truth.collected(device, key)
            device.world.note(device.id, f"collected the environment {key[:12]}")
            del self.built[key]

    def _needs(self, digest: str) -> str | None:
        """The key that an installed version needs; None where its index cannot be read."""
        device = self._device
        module = device.world.library[digest]
        return module.environment if device.complete.get(digest) == module.index else None
