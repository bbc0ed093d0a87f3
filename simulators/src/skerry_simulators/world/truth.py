"""What must hold in every world, whatever goes wrong: checked while it runs, and at its end.

1. No unverified module ever serves, and none that did not pass its golden test since it was loaded.
2. Every device ends in the desired or the last-good state, with a typed reason where it is not the desired one.
3. No acknowledged sample is lost, none is kept twice.
4. A bad version never passes its wave, and is never proven. A rollout counts no device as done that did not prove it.
5. No step without an end: versions and rollouts settle.
6. A device follows only documents that its hub issued, and never goes back.
7. What is on the disk is not asked for and not stored again, what nobody needs does not stay there, and what a version
   that serves or can be gone back to needs is never removed.
8. Behind an endpoint stands what was asked for, over the versions that did not fail, and nothing bad at rest.
9. No version is loaded or serves without its environment, whole. One that is whole is not built again, whichever module
   asks; none is removed under a version that needs it, and none stays that no version names. No device fetches wheels
   that are for others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerry_agent.rules import records
from skerry_agent.rules.effects import SetRoutes
from skerry_agent.rules.lifecycle import SETTLED, TERMINAL, Step
from skerry_agent.rules.records import Record
from skerry_hub.rules.rollout import ACTIVE, DeviceStep, Rollout, RolloutState
from skerry_modules.errors import CODES
from skerry_modules.messages import Endpoint
from skerry_simulators.world.modules import BAD, UNTRUSTED, Behaviour, Module

if TYPE_CHECKING:
    from skerry_simulators.world.device import Device
    from skerry_simulators.world.world import World

LIVE_FAULTS = frozenset((Behaviour.SOAK_CRASHES, Behaviour.SOAK_ERRORS))


class Violation(AssertionError):  # noqa: N818 - the field's word
    """A rule of the system was broken."""


class Truth:
    """The ledger of one world, written by the virtual parts, which know what the rules cannot."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.proven: dict[tuple[str, str], set[str]] = {}  # (device, module) → digests since it was last removed
        self.ever_proven: set[tuple[str, str]] = set()  # (device, digest)
        self.appended: dict[str, str] = {}  # sample → device
        self.dropped: set[str] = set()
        self.acknowledged: set[str] = set()
        self._revision: dict[str, int] = {}

    # -- while it runs

    def routed(self, device: Device, effect: SetRoutes) -> None:
        if set(effect.digests) & set(effect.shadow_digests):
            raise Violation(f"{device.id} compares a version of {effect.endpoint} with itself")
        if effect.routes and abs(sum(route.percent for route in effect.routes) - 100) > 1e-6:
            raise Violation(f"{device.id} splits {effect.endpoint} into shares that are not a whole")
        for digest in (*effect.digests, *effect.shadow_digests):
            module = self._world.library.get(digest)
            if module is None or module.behaviour in UNTRUSTED:
                raise Violation(f"{device.id} serves {digest[:12]}, which no trusted publisher signed")
            if digest not in device.tested:
                raise Violation(f"{device.id} routes to {module.name}@{module.version} before its golden test")
            if digest not in device.loaded and digest not in device.died:
                raise Violation(f"{device.id} routes to {module.name}@{module.version}, which is not loaded")
            if module.behaviour in BAD and module.behaviour not in LIVE_FAULTS:
                raise Violation(f"{device.id} serves {module.name}@{module.version}: {module.behaviour}")
            if module.environment and not device.environments.is_whole(module):
                raise Violation(f"{device.id} serves {module.name}@{module.version}, whose environment is not whole")

    def loaded(self, device: Device, digest: str) -> None:
        module = self._world.library[digest]
        for sha256 in module.files:
            if device.complete.get(sha256) != module.objects[sha256]:
                raise Violation(f"{device.id} loads {module.name}@{module.version} with a damaged file")
        if module.environment and not device.environments.is_whole(module):
            raise Violation(f"{device.id} loads {module.name}@{module.version}, whose environment is not whole")

    def built(self, device: Device, module: Module) -> None:
        """An environment is about to be finished."""
        if device.environments.is_whole(module):
            raise Violation(f"{device.id} builds the environment {module.environment[:12]} again, which is whole")
        if module.behaviour is Behaviour.BAD_WHEEL:
            raise Violation(f"{device.id} builds an environment from a bad wheel")

    def collected(self, device: Device, key: str) -> None:
        """An environment is about to go: not under a version that runs in it or that can be gone back to."""
        saved = records.decode(device.saved) or records.Saved()
        kept = {record.digest for slot in saved.slots.values() for record in slot.records.values() if record.good}
        for digest in sorted(device.loaded | (kept & device.installed)):
            module = self._world.library[digest]
            if module.environment == key:
                raise Violation(f"{device.id} removes the environment of {module.name}@{module.version}")

    def stepped(self, device: Device, record: Record, step: Step) -> None:
        self._world.note(device.id, f"{record.name}@{record.version} {step} {record.reason}")
        found = device.brain.machine.find(record.digest) if device.brain else None
        if step is Step.SERVE and found is not None and not found[0].side:
            module = self._world.library[record.digest]
            if module.behaviour in BAD:
                raise Violation(f"{device.id} holds {module.name}@{module.version} for proven: {module.behaviour}")
            self.proven.setdefault((device.id, record.name), set()).add(record.digest)
            self.ever_proven.add((device.id, record.digest))

    def followed(self, device: Device, document: bytes, revision: int) -> None:
        if document and document not in self._world.hub.issued[device.id]:
            raise Violation(f"{device.id} follows a document that its hub never issued")
        if revision < self._revision.get(device.id, 0):
            raise Violation(f"{device.id} went back from revision {self._revision[device.id]} to {revision}")
        self._revision[device.id] = revision

    def wanted(self, device: Device, digest: str, parts: list[int]) -> None:
        held = device.parts.get(digest, {})
        if digest in device.complete and parts:
            raise Violation(f"{device.id} asks for {digest[:12]}, which it holds")
        again = [part for part in parts if part in held]
        if again:
            raise Violation(f"{device.id} asks for chunks {again} of {digest[:12]}, which it holds")
        if digest not in self._world.fit:
            raise Violation(f"{device.id} asks for a wheel that is for other devices")

    def stored(self, device: Device, digest: str, part: int) -> None:
        if digest in device.complete or part in device.parts.get(digest, {}):
            raise Violation(f"{device.id} stores chunk {part} of {digest[:12]} again")

    def removed(self, device: Device, digest: str, objects: tuple[str, ...]) -> None:
        """What serves, and what can be gone back to, stays; damaged objects go, to be fetched again."""
        assert device.brain is not None
        for slot in device.brain.slots.values():
            for kept in (slot.current, slot.last_good):
                module = self._world.library.get(kept)
                record = slot.record(kept)
                if module is None or record is None or not record.good or record.step is not Step.SERVE:
                    continue
                if digest == kept:
                    raise Violation(f"{device.id} removes {module.name}@{module.version}, which it may need to serve")
                for sha256 in set(objects) & module.here:
                    if device.complete.get(sha256) == module.objects[sha256]:
                        raise Violation(f"{device.id} removes a file of {module.name}@{module.version}, which it needs")

    def judged(self, rollout: Rollout) -> None:
        """The hub saves what it makes of its devices' reports."""
        module = self._world.modules[rollout.module, rollout.version]
        for one in rollout.devices:
            if one.step is DeviceStep.SUCCEEDED and (one.device, module.digest) not in self.ever_proven:
                raise Violation(f"rollout {rollout.id} counts {one.device} as done, which never proved the version")
        undone = [one.device for one in rollout.devices if one.step is not DeviceStep.SUCCEEDED]
        if rollout.state is RolloutState.SUCCEEDED and undone:
            raise Violation(f"rollout {rollout.id} says success without {undone}")

    def committed(self) -> None:
        samples = self._world.hub.db.samples
        if len(samples) != len(set(samples)):
            raise Violation("a sample is kept twice")

    # -- at the end

    def unsettled(self) -> str:
        """What still goes on; empty when the world is at rest."""
        world = self._world
        for rollout in world.hub.db.rollouts.values():
            if rollout.state in ACTIVE:
                return f"rollout {rollout.id} is {rollout.state}"
        for device in world.devices.values():
            if device.brain is None:
                return f"{device.id} is off"
            if device.brain.revision < world.hub.db.revision.get(device.id, 0):
                return f"{device.id} has not heard of its document"
            for slot in device.brain.slots.values():
                for record in slot.records.values():
                    if record.step not in SETTLED:
                        return f"{device.id} {record.name}@{record.version} is at {record.step}: {record.message}"
            for digest in [one for split in device.splits.values() for one in (*split.digests, *split.shadow_digests)]:
                if self._world.library[digest].behaviour in BAD:
                    return f"{device.id} gives requests to a bad version, which has not shown its fault yet"
            if device.brain.waits_for_disk:
                return f"{device.id} cannot save"
            if device.policy.records:
                return f"{device.id} has {device.policy.records} records in its spool"
        return ""

    def final(self) -> None:
        rest = self.unsettled()
        if rest:
            raise Violation(f"no end: {rest}")
        for device in self._world.devices.values():
            self._final_device(device)
        self._final_samples()
        self._final_rollouts()

    def _final_device(self, device: Device) -> None:
        assert device.brain is not None
        wanted = self._world.hub.wanted(device.id)
        slots = device.brain.slots
        self._final_slots(device, set(wanted))
        needed: set[str] = set()
        for name, slot in slots.items():
            for record in slot.records.values():
                needed.add(record.digest)
                needed.update(sha256 for sha256, _ in record.objects)
                if record.step in TERMINAL and record.reason not in CODES:
                    raise Violation(f"{device.id} {name}@{record.version} ended without a reason: {record.reason!r}")
        self._final_fallbacks(device)
        self._final_environments(device)
        for name, module in wanted.items():
            self._final_serving(device, name, module.digest, device.routes.get(name, ()))
        for row in self._world.hub.db.endpoints.values():
            self._final_endpoint(device, row.endpoint)
        for sha256 in sorted(set(device.complete) | set(device.parts)):
            if sha256 not in needed:
                raise Violation(f"{device.id} keeps {sha256[:12]}, which nothing needs")
        for digest in device.installed:
            if not any(digest in slot.records for slot in slots.values()):
                raise Violation(f"{device.id} keeps the folder of {digest[:12]}")

    def _final_fallbacks(self, device: Device) -> None:
        """What can be gone back to is there to be loaded, with no network: its folder, and its files but for rot."""
        assert device.brain is not None
        for slot in device.brain.slots.values():
            module = self._world.library.get(slot.last_good)
            if module is None:
                continue
            missing = [sha256[:12] for sha256 in sorted(module.here) if sha256 not in device.complete]
            if slot.last_good not in device.installed or missing:
                raise Violation(f"{device.id} cannot go back to {module.name}@{module.version}: {missing} are missing")
            if module.environment and module.environment not in device.environments.built:
                raise Violation(f"{device.id} cannot go back to {module.name}@{module.version}: no environment")

    def _final_environments(self, device: Device) -> None:
        """Each is named by an installed version, unless one cannot say what it needs."""
        library = self._world.library
        if any(device.complete.get(digest) != library[digest].index for digest in device.installed):
            return
        named = {library[digest].environment for digest in device.installed}
        for key in sorted(set(device.environments.built) | device.environments.begun):
            if key not in named or key in device.environments.begun:
                raise Violation(f"{device.id} keeps the environment {key[:12]}, which no installed version names")

    def _final_slots(self, device: Device, wanted: set[str]) -> None:
        """Each module that is desired, each side version in a slot of its own or in its module's; nothing else."""
        assert device.brain is not None
        slots = device.brain.slots
        sides = {f"{name}:{version}": (name, version) for name, version in self._world.hub.sides(device.id)}
        if set(slots) - set(sides) != wanted:
            raise Violation(f"{device.id} has {sorted(slots)}, desired are {sorted(wanted)} and {sorted(sides)}")
        for key, (name, version) in sides.items():
            digest = self._world.modules[name, version].digest
            if key not in slots and not (name in slots and slots[name].role(digest)):
                raise Violation(f"{device.id} has no {name}@{version}, which an endpoint wants")
            found = device.brain.machine.find(digest)
            if found is not None and found[1].step not in TERMINAL and digest not in device.loaded:
                raise Violation(f"{device.id} has not loaded {name}@{version}, which an endpoint wants")
        digests = [digest for slot in slots.values() for digest in slot.records]
        if len(digests) != len(set(digests)):
            raise Violation(f"{device.id} has a version in two slots")

    def _final_endpoint(self, device: Device, endpoint: Endpoint) -> None:
        """The split is what was asked for, over the versions that did not end; a bad one is never in it."""
        assert device.brain is not None
        split = device.splits.get(endpoint.name, SetRoutes(endpoint.name, (), ()))
        ready = {
            (record.name, record.version)
            for slot in device.brain.slots.values()
            for record in slot.records.values()
            if record.step is Step.SERVE and record.digest == slot.current and record.digest in device.loaded
        }
        for digest in (*split.digests, *split.shadow_digests):
            if self._world.library[digest].behaviour in BAD:
                raise Violation(f"{device.id} has a bad version behind {endpoint.name}, at rest")
        wanted = {(r.module, r.version): r.percent for r in endpoint.routes if (r.module, r.version) in ready}
        shares = {(r.module, r.version): r.percent for r in split.routes}
        whole = sum(wanted.values())
        expected = {key: 100 * share / whole for key, share in wanted.items()}
        if wanted and (set(shares) != set(expected) or any(abs(shares[k] - expected[k]) > 1e-6 for k in shares)):
            raise Violation(f"{device.id} splits {endpoint.name} as {shares}, desired is {expected}")
        if not shares and any((r.module, r.version) in ready for r in endpoint.before):
            raise Violation(f"{device.id} answers nothing for {endpoint.name}, though the versions before are ready")
        shadows = {(r.module, r.version) for r in endpoint.shadow} & ready - set(shares) if shares else set()
        if {(r.module, r.version) for r in split.shadow} != shadows:
            raise Violation(f"{device.id} has other shadows behind {endpoint.name} than are desired and ready")

    def _final_serving(self, device: Device, name: str, desired: str, serving: tuple[str, ...]) -> None:
        assert device.brain is not None
        if serving == (desired,):
            return
        record = device.brain.slots[name].records.get(desired)
        if record is None or record.step not in TERMINAL:
            raise Violation(f"{device.id} does not serve the desired {name} and gives no reason")
        proven = self.proven.get((device.id, name), set())
        beyond_repair = {d for d in proven if self._world.library[d].here & self._world.lost}
        if not serving and proven - {desired} - beyond_repair:
            raise Violation(f"{device.id} serves nothing of {name}, though it has proven a version: {record.reason}")
        for digest in serving:
            if digest not in proven:
                raise Violation(f"{device.id} serves a version of {name} that is neither desired nor proven")

    def _final_samples(self) -> None:
        kept = set(self._world.hub.db.samples)
        lost = self.acknowledged - kept
        if lost:
            raise Violation(f"{len(lost)} acknowledged samples are lost")
        missing = set(self.appended) - self.dropped - kept
        if missing:
            raise Violation(f"{len(missing)} samples never arrived though nothing dropped them")

    def _final_rollouts(self) -> None:
        for rollout in self._world.hub.db.rollouts.values():
            module = self._world.modules[rollout.module, rollout.version]
            if module.behaviour not in BAD:
                continue
            if rollout.state is RolloutState.SUCCEEDED:
                raise Violation(f"rollout {rollout.id} of a bad version succeeded: {module.behaviour}")
            beyond = [one.device for one in rollout.devices if one.wave > 0 and one.assigned_at]
            if beyond:
                raise Violation(f"rollout {rollout.id} of a bad version passed its wave: {beyond}")
