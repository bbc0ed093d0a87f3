"""A hub whose rules are the real ones (rollouts, delivery, marks) and whose database and process are virtual.

A transaction is computed first and applied at once; the hub may die before or after it, never within. Everything
outside ``db`` is memory and dies with it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from skerry_hub.greeter import HAIL
from skerry_hub.rules import marks
from skerry_hub.rules import rollout as rules
from skerry_hub.rules.delivery import Planner
from skerry_hub.rules.rollout import Assign, DeviceProgress, DeviceReport, Plan, Rollout, RolloutState
from skerry_modules import messages, trust
from skerry_modules.messages import Ack, Desired, Endpoint, Hello, ModuleState, Route, Signed, Up, Want
from skerry_simulators.world import modules
from skerry_simulators.world.modules import Module

if TYPE_CHECKING:
    from skerry_simulators.world.world import World


class Down(Exception):  # noqa: N818 - no error: the virtual power went
    """The hub died at this point."""


class Assignment(msgspec.Struct, frozen=True):
    version: int
    soak_s: float
    attempt: int
    rollout: int


class EndpointRow(msgspec.Struct, frozen=True):
    """An endpoint on all devices; ``attempt`` rises with each change."""

    endpoint: Endpoint
    attempt: int


class Database:
    """What a crash leaves."""

    def __init__(self) -> None:
        self.revision: dict[str, int] = {}
        self.documents: dict[str, bytes] = {}
        self.assignments: dict[tuple[str, str], Assignment] = {}
        self.marks: dict[tuple[str, bytes, int], int] = {}
        self.states: dict[str, messages.State] = {}
        self.online: dict[str, bool] = {}
        self.online_since: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self.samples: list[str] = []
        self.rollouts: dict[int, Rollout] = {}
        self.endpoints: dict[str, EndpointRow] = {}


class Hub:
    """One hub. Its restarts are driven by the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.db = Database()
        self.issued: dict[str, set[bytes]] = {}  # all documents ever signed, by device
        self.up = True
        self._start()

    def _start(self) -> None:
        self._planner = Planner()
        self._buffer: list[tuple[str, Up[Any]]] = []
        self._commit_due = False
        self._plan_at: float | None = None
        self._life = getattr(self, "_life", 0) + 1

    # -- process

    def _may_die(self) -> None:
        faults, rng = self._world.faults, self._world.rng
        if faults.crash_hub and rng.random() < faults.crash_hub:
            self.up = False
            self._world.note("hub", "dies")
            self._world.clock.after(rng.uniform(1, 20), self.restart)
            raise Down

    def restart(self) -> None:
        if self.up:
            return
        self.up = True
        self._start()
        for device in self.db.documents:
            self.publish_desired(device)
        for device in sorted(self.db.online):  # who is not there any more does not hear it
            self._world.network.down(device, "ack", HAIL)

    def _guarded(self, life: int, action: Any, *arguments: Any) -> None:
        if self.up and life == self._life:
            with contextlib.suppress(Down):
                action(*arguments)

    def _later(self, seconds: float, action: Any, *arguments: Any) -> None:
        self._world.clock.after(seconds, self._guarded, self._life, action, *arguments)

    @property
    def _ms(self) -> int:
        return int(self._world.clock.now * 1000)

    # -- what devices say

    def receive(self, device: str, kind: str, payload: bytes) -> None:
        self._guarded(self._life, self._receive, device, kind, payload)

    def _receive(self, device: str, kind: str, payload: bytes) -> None:
        message = messages.decode(kind, payload)
        self.db.seen[device] = self._ms
        if isinstance(message, Hello):
            self.presence(device, online=True)
            self._planner.reconnected(device, self._world.clock.now)
            if message.revision < self.db.revision.get(device, 0):
                self.publish_desired(device)
        elif isinstance(message, Want) and message.bitmap and message.digest not in self._world.objects:
            self._world.network.down(device, "ack", messages.encode(Ack(1, b"", {}, gone=(message.digest,))))
        elif isinstance(message, Want):
            now = self._world.clock.now
            self._planner.want(device, message.digest, message.size, message.bitmap, now, alone=message.alone)
            self._plan()
        else:
            self._buffer.append((device, message))
            if not self._commit_due:
                self._commit_due = True
                self._later(0.2, self._commit)

    def presence(self, device: str, *, online: bool) -> None:
        if not self.up:
            return
        if online and not self.db.online.get(device):
            self.db.online_since[device] = self._ms
        self.db.online[device] = online

    def _commit(self) -> None:
        """One batch: judge, commit, acknowledge; in this order."""
        batch, self._buffer, self._commit_due = self._buffer, [], False
        changed: dict[tuple[str, bytes, int], int] = {}
        taken: list[tuple[str, Any]] = []
        for device, message in batch:
            key = (device, message.epoch, message.stream)
            mark = changed.get(key, self.db.marks.get(key, 0))
            verdict = marks.take(mark, message.seq, message.base)
            changed[key] = verdict.mark
            if verdict.verdict is marks.Verdict.TAKE:
                taken.append((device, message.body))
        self.store(changed, taken)
        for device, epoch in sorted({(device, epoch) for device, epoch, _ in changed}):
            all_marks = {s: mark for (d, e, s), mark in self.db.marks.items() if (d, e) == (device, epoch)}
            self._world.network.down(device, "ack", messages.encode(Ack(1, epoch, all_marks)))
        self._world.truth.committed()

    def store(self, changed: dict[tuple[str, bytes, int], int], taken: list[tuple[str, Any]]) -> None:
        """The transaction."""
        self._may_die()
        self.db.marks.update(changed)
        for device, body in taken:
            if isinstance(body, messages.State):
                self.db.states[device] = body
            elif isinstance(body, messages.Sample):
                self.db.samples.append(body.id)
        self._may_die()

    # -- delivery

    def _plan(self) -> None:
        now = self._world.clock.now
        self._plan_at = None
        while True:
            batch = self._planner.plan(now)
            if not batch:
                break
            for publish in batch:
                data = self._world.objects.get(publish.digest)
                if data is not None:
                    self._world.network.chunk(publish.digest, publish.part, data, publish.device)
                    continue
                for device in self._planner.abandon(publish.digest, now):
                    said = Ack(1, b"", {}, gone=(publish.digest,))
                    self._world.network.down(device, "ack", messages.encode(said))
        due = self._planner.next_deadline(now)
        if due is not None:
            self._plan_at = due
            self._later(max(due - now, 0.01), self._planned, due)

    def _planned(self, due: float) -> None:
        if self._plan_at == due:
            self._plan()

    # -- rollouts and documents

    def wanted(self, device: str) -> dict[str, Module]:
        """The versions that a device should have, by module name."""
        return {
            name: self._world.modules[name, row.version]
            for (owner, name), row in self.db.assignments.items()
            if owner == device
        }

    def create(self, module: Module, devices: list[str], plan: Plan) -> None:
        """Start a rollout, as an operator does, unless one runs for the module."""
        running = any(r.module == module.name and r.state in rules.ACTIVE for r in self.db.rollouts.values())
        if not self.up or running:
            return
        rules.check_plan(plan)
        ordered = sorted(devices, key=lambda device: (not self.db.online.get(device), device))
        waves = rules.assign_waves(plan, ordered)
        progress = tuple(
            DeviceProgress(
                device=device,
                wave=wave,
                previous=row.version if (row := self.db.assignments.get((device, module.name))) else None,
            )
            for device, wave in zip(ordered, waves, strict=True)
        )
        number = len(self.db.rollouts) + 1
        self.db.rollouts[number] = Rollout(
            id=number, module=module.name, version=module.version, plan=plan, devices=progress, wave_started_at=self._ms
        )
        self._world.note("hub", f"rollout {number} of {module.name}@{module.version} ({module.behaviour})")
        self.step()

    def operate(self, verb: str) -> None:
        """Pause, resume or abort a rollout that is in a state for it."""
        for rollout in list(self.db.rollouts.values()):
            if verb == "pause" and rollout.state is RolloutState.RUNNING:
                self.db.rollouts[rollout.id] = rules.pause(rollout)
            elif verb == "resume" and rollout.state is RolloutState.PAUSED:
                self.db.rollouts[rollout.id] = rules.resume(rollout)
            elif verb == "abort" and rollout.state in rules.ACTIVE and self.up:
                after, actions = rules.abort(rollout, rollback=True, now=self._ms)
                self._guarded(self._life, self._save, after, actions)

    def step(self) -> None:
        """One look at all running rollouts."""
        self._guarded(self._life, self._step)

    def _step(self) -> None:
        for rollout in list(self.db.rollouts.values()):
            if rollout.state not in rules.ACTIVE:
                continue
            reports = {one.device: self._report(one.device, rollout.module) for one in rollout.devices}
            after, actions = rules.advance(rollout, reports, self._ms)
            if after != rollout:
                self._save(after, actions)

    def _report(self, device: str, module: str) -> DeviceReport:
        state = self.db.states.get(device)
        found: tuple[ModuleState, ...] = tuple(m for m in state.modules if m.name == module) if state else ()
        return DeviceReport(
            online=self.db.online.get(device, False),
            online_since=self.db.online_since.get(device, 0),
            seen_at=self.db.seen.get(device, 0),
            reported_revision=state.revision if state else 0,
            modules=found,
        )

    def _save(self, rollout: Rollout, actions: list[rules.Action]) -> None:
        """One transaction: the rollout, its assignments, their documents; published after the commit."""
        self._may_die()
        assigned = {}
        for action in actions:
            if isinstance(action, Assign):
                assigned[action.device] = self._assign(action, rollout)
        devices = tuple(
            msgspec.structs.replace(one, revision=assigned[one.device]) if one.device in assigned else one
            for one in rollout.devices
        )
        self.db.rollouts[rollout.id] = saved = msgspec.structs.replace(rollout, devices=devices)
        self._world.truth.judged(saved)
        self._world.note("hub", f"rollout {rollout.id} {rollout.state} wave {rollout.wave} {sorted(assigned)}")
        self._may_die()
        for device in assigned:
            self.publish_desired(device)

    def _assign(self, action: Assign, rollout: Rollout) -> int:
        key = (action.device, rollout.module)
        revision = self.db.revision.get(action.device, 0) + 1
        if action.version is None:
            if self.db.assignments.pop(key, None) is None:
                return revision - 1
        else:
            self.db.assignments[key] = Assignment(action.version, action.soak_s, revision, rollout.id)
        self._issue(action.device, revision)
        return revision

    def unassign(self, device: str, module: str) -> None:
        """An operator removes a module, where no rollout is at it."""
        busy = any(r.module == module and r.state in rules.ACTIVE for r in self.db.rollouts.values())
        if self.up and not busy and (device, module) in self.db.assignments:
            del self.db.assignments[device, module]
            self._issue(device, self.db.revision[device] + 1)
            self._world.note("hub", f"unassigns {module} on {device}")
            self.publish_desired(device)

    # -- endpoints

    def set_endpoint(self, name: str, routes: tuple[Route, ...], shadow: tuple[Route, ...] = ()) -> None:
        """What an operator does: a new split on all devices, no versions at all to delete it."""
        if self.up:
            self._guarded(self._life, self._set_endpoint, name, routes, shadow)

    def _set_endpoint(self, name: str, routes: tuple[Route, ...], shadow: tuple[Route, ...]) -> None:
        self._may_die()
        row = self.db.endpoints.pop(name, None)
        if routes:
            before = row.endpoint.routes if row else ()
            made = Endpoint(name=name, routes=routes, shadow=shadow, before=before)
            self.db.endpoints[name] = EndpointRow(made, (row.attempt if row else self._ms) + 1)
        shares = ", ".join(f"{r.module}@{r.version} {r.percent:g} %" for r in routes) or "deleted"
        shadows = ", ".join(f"{r.module}@{r.version}" for r in shadow)
        self._world.note("hub", f"endpoint {name}: {shares}{f'; in shadow {shadows}' if shadows else ''}")
        for device in self._world.devices:
            self._issue(device, self.db.revision.get(device, 0) + 1)
        self._may_die()
        for device in self._world.devices:
            self.publish_desired(device)

    def sides(self, device: str) -> dict[tuple[str, int], int]:
        """(module, version) → attempt of the versions that endpoints want on a device beside its assigned ones."""
        found: dict[tuple[str, int], int] = {}
        for row in self.db.endpoints.values():
            for route in (*row.endpoint.routes, *row.endpoint.shadow, *row.endpoint.before):
                key = (route.module, route.version)
                found[key] = max(found.get(key, 0), row.attempt)
        own = {(name, row.version) for (owner, name), row in self.db.assignments.items() if owner == device}
        return {key: attempt for key, attempt in found.items() if key not in own}

    def _issue(self, device: str, revision: int) -> None:
        wanted = []
        for (owner, name), row in sorted(self.db.assignments.items()):
            if owner == device:
                module = self._world.modules[name, row.version]
                wanted.append(module.wanted(soak_s=row.soak_s, attempt=row.attempt))
        sides = tuple(
            self._world.modules[key].wanted(attempt=attempt) for key, attempt in sorted(self.sides(device).items())
        )
        desired = Desired(
            device=device,
            revision=revision,
            issued_at=self._ms,
            modules=tuple(wanted),
            endpoints=tuple(row.endpoint for _, row in sorted(self.db.endpoints.items())),
            sides=sides,
        )
        payload = messages.encode(desired)
        signature = modules.HUB.sign(trust.DESIRED_TYPE, payload)
        document = messages.encode(Signed(1, payload, (signature,)))
        self.db.revision[device] = revision
        self.db.documents[device] = document
        self.issued.setdefault(device, set()).add(document)

    def publish_desired(self, device: str) -> None:
        if self.up and device in self.db.documents:
            self._world.network.down(device, "desired", self.db.documents[device], retain=True)
