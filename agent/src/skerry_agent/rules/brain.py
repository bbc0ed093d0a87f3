"""The agent's decisions in one place: ``handle(event, now) -> list[Effect]``. No I/O, no clock, no threads.

* What follows from an event is saved before it is done: the ``Save`` stands first among the effects.
* A restart reads the saved state, verifies it again, and serves what was proven, with no network and no right clock.
* The newest desired document that verifies wins; older ones are refused, others are told as an event and ignored.
* What people and rollouts read of the device is made here too, from the records, as ``Report`` effects.

The lifecycle's table is :mod:`lifecycle`; the moves along it are :mod:`machine`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

from skerry_agent.rules import effects as fx
from skerry_agent.rules import lifecycle, reconcile, records, verify
from skerry_agent.rules.machine import Machine, installed_orphans
from skerry_agent.rules.records import Record, Saved, Slot
from skerry_agent.rules.settings import BrainSettings
from skerry_modules import messages
from skerry_modules.errors import SkerryError
from skerry_modules.index import Index
from skerry_modules.messages import Desired, ModulePhase, ModuleState, Severity, State
from skerry_modules.profiles import Profile
from skerry_modules.trust import PublicKey


class Brain:
    """One device.

    Args:
        device: its id.
        profile: its class; decides what can run.
        publishers: keys whose modules it runs, by key id.
        hub_keys: keys whose desired documents it follows, by key id.
        rng: jitter only.
    """

    def __init__(
        self,
        device: str,
        profile: Profile,
        publishers: Mapping[str, PublicKey],
        hub_keys: Mapping[str, PublicKey],
        settings: BrainSettings | None = None,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self.device = device
        self.boot = ""
        self.desired: Desired | None = None
        self._settings = settings or BrainSettings()
        self._hub_keys = dict(hub_keys)
        self._machine = Machine(profile, publishers, self._settings, rng or random.Random())
        self._machine.wall = self._wall
        self._document = b""
        self._wall_base = 0.0  # wall clock minus monotonic, ms
        self._saved = b""
        self._reported: tuple[ModuleState, ...] | None = None
        self._reported_revision = -1
        self._reported_at = 0.0
        self._wants_report = False
        self._unsaved: list[fx.Effect] = []  # waiting for a save that failed
        self._last: list[fx.Effect] = []
        self._save_at: float | None = None
        self._held_since = 0.0
        self._save_wait = self._settings.save_retry_s

    # -- what the daemon may look at

    @property
    def revision(self) -> int:
        """The desired revision in force; 0 for none."""
        return self.desired.revision if self.desired else 0

    @property
    def waits_for_disk(self) -> bool:
        """A save failed: decisions are held back until one succeeds."""
        return self._save_at is not None

    @property
    def document(self) -> bytes:
        """The signed document in force, as it arrived; empty for none."""
        return self._document

    @property
    def next_deadline(self) -> float | None:
        """When a :class:`~skerry_agent.rules.effects.Tick` is due at the latest; None: only when something happens."""
        if self._save_at is not None:
            return self._save_at
        due = self._reported_at + self._settings.report_progress_s if self._wants_report else None
        return min((time for time in (self._machine.next_deadline, due) if time is not None), default=None)

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The versions by module; to be read only."""
        return self._machine.slots

    @property
    def machine(self) -> Machine:
        return self._machine

    def index(self, digest: str) -> Index | None:
        """A version's verified index, once it was read since the start."""
        return self._machine.live(digest).index if self._machine.find(digest) else None

    # -- events

    def handle(self, event: fx.Event, now: float) -> list[fx.Effect]:
        """What to do about ``event``, in order."""
        if isinstance(event, fx.Failed) and event.effect == "Save":
            return self._save_failed(now)
        if self._save_at is not None:
            if isinstance(event, fx.ChunkArrived):
                return []  # there is no room to store it; it will be asked for again
            if now >= self._save_at:
                self._machine.postpone(now - self._held_since)
            elif isinstance(event, fx.Tick):
                return []  # what was asked for has not begun: its time does not run
        self._dispatch(event, now)
        self._follow_up(now)
        return self._finish(now)

    def _dispatch(self, event: fx.Event, now: float) -> None:
        machine = self._machine
        match event:
            case fx.ChunkArrived():
                machine.chunk(event, now)
            case fx.ObjectGone():
                machine.gone(event, now)
            case fx.Tick():
                self._set_wall(event.wall_ms, now)
                machine.tick(now)
            case fx.Done():
                machine.done(event, now)
            case fx.Failed():
                machine.failed(event, now)
            case fx.Traffic():
                machine.traffic(event, now)
            case fx.WorkerExited():
                machine.exited(event, now)
            case fx.Connected():
                machine.out += machine.fetcher.connected(now)
            case fx.Disconnected():
                machine.out += machine.fetcher.disconnected(now)
            case fx.DesiredArrived():
                self._desired_arrived(event.payload, now)
            case fx.Booted():
                self._booted(event, now)

    def _booted(self, event: fx.Booted, now: float) -> None:
        self._set_wall(event.wall_ms, now)
        self.boot = event.boot
        machine = self._machine
        machine.fetcher.held = set(event.complete)
        machine.fetcher.partial = set(event.partial)
        saved = records.decode(event.saved)
        if saved is None and event.saved is not None:
            machine.emit(Severity.ERROR, "internal.bug", "cannot read the saved state: beginning as a new device")
        saved = saved or Saved()
        if saved.desired:
            try:
                self.desired = verify.read_desired(saved.desired, self.device, self._hub_keys)
                self._document = saved.desired
            except SkerryError as error:  # the hub's key was changed: what was proven goes on serving
                machine.emit(Severity.WARNING, error.code, f"cannot use the saved document: {error.message}")
        machine.slots.update(saved.slots)
        self._take_over()
        for digest in installed_orphans(event.installed, machine.slots):
            machine.out.append(fx.Remove(digest))
        machine.boot(now)
        if self.desired:
            self._reconcile(now)
            machine.collect(now)  # without a document nobody knows what will be needed

    def _desired_arrived(self, payload: bytes, now: float) -> None:
        if payload == self._document:
            return  # retained: it comes again with every connection
        try:
            desired = verify.read_desired(payload, self.device, self._hub_keys)
        except SkerryError as error:
            self._machine.emit(Severity.WARNING, error.code, error.message)
            return
        if self.desired is not None and desired.revision <= self.desired.revision:
            message = f"cannot go back to revision {desired.revision}: {self.desired.revision} is in force"
            self._machine.emit(Severity.WARNING, "desired.stale", message)
            return
        self.desired, self._document = desired, payload
        self._take_over()
        self._machine.settled.update(self._machine.slots)  # what failed under the old document may be forgotten
        self._reconcile(now)
        self._machine.route()
        self._machine.collect(now)

    def _take_over(self) -> None:
        """What the document in force says of endpoints and the versions behind them."""
        self._machine.endpoints = self.desired.endpoints if self.desired else ()
        self._machine.aside = reconcile.aside(self.desired) if self.desired else {}

    def _reconcile(self, now: float, only: set[str] | None = None) -> None:
        machine = self._machine
        assert self.desired is not None
        for decision in reconcile.reconcile(self.desired, machine.slots):
            if isinstance(decision, reconcile.Start | reconcile.Keep):
                name = reconcile.slot_name(decision.wanted, side=decision.side)
            else:
                name = decision.name
            if only is not None and name not in only:
                continue
            match decision:
                case reconcile.Retire():
                    machine.retire(decision.name, now)
                case reconcile.Supersede():
                    machine.supersede(decision.name, decision.digest, now)
                case reconcile.Keep() if name in machine.slots:
                    machine.keep(decision.wanted, name)
                case reconcile.Keep():
                    pass  # a start before it took the side version into its module's slot, to go back to
                case reconcile.Start():
                    machine.start(decision.wanted, now, name=name, side=decision.side)
                case reconcile.Promote():
                    machine.promote(decision.wanted, decision.name, now)
                case reconcile.Aside():
                    machine.put_aside(decision.wanted, now)

    def _follow_up(self, now: float) -> None:
        """Versions that ended are held against the document again, and what nothing needs any more goes."""
        machine = self._machine
        for _ in range(8):  # each round ends a version; a fault in the rules must not become an endless loop
            settled, machine.settled = machine.settled, set()
            if not settled:
                return
            wanted = reconcile.wanted_digests(self.desired) if self.desired else {}
            for name in sorted(settled):
                machine.forget_failed(name, wanted.get(name, ""))
            if self.desired:
                self._reconcile(now, settled)
            machine.collect(now)

    # -- saving and reporting

    def _finish(self, now: float) -> list[fx.Effect]:
        effects, self._machine.out = self._machine.out, []
        report = self._report(now)
        if report is not None:
            effects.append(report)
        if self._save_at is not None:
            self._unsaved += effects
            if now < self._save_at:
                return []
            effects, self._unsaved = self._unsaved, []
        state = records.encode(Saved(desired=self._document, slots=self._machine.slots))
        if state != self._saved or self._save_at is not None:
            effects.insert(0, fx.Save(state))
            self._saved = state
        if self._save_at is None:
            self._save_wait = self._settings.save_retry_s
        self._save_at = None
        self._last = effects
        return effects

    def _save_failed(self, now: float) -> list[fx.Effect]:
        """Nothing of the last effects was done: they wait, in order, until a save succeeds."""
        self._unsaved = [effect for effect in self._last if not isinstance(effect, fx.Save)]
        self._last = []
        self._held_since = now
        self._save_at = now + self._save_wait
        self._save_wait = min(self._save_wait * 2, self._settings.save_retry_max_s)
        return []

    def _report(self, now: float) -> fx.Report | None:
        """A new snapshot if something changed; where only progress did, at most every few seconds."""
        modules = self.snapshot(now)
        if self._reported is not None and self._reported_revision == self.revision:
            if modules == self._reported:
                self._wants_report = False
                return None
            if _without_progress(modules) == _without_progress(self._reported):
                self._wants_report = now < self._reported_at + self._settings.report_progress_s
                if self._wants_report:
                    return None
        self._reported, self._reported_revision = modules, self.revision
        self._reported_at, self._wants_report = now, False
        state = State(device=self.device, boot=self.boot, revision=self.revision, modules=modules)
        return fx.Report(messages.encode(state))

    def snapshot(self, now: float) -> tuple[ModuleState, ...]:
        """Every version on the device as it is reported."""
        return tuple(
            self._state_of(slot, record, now)
            for _, slot in sorted(self._machine.slots.items())
            for record in sorted(slot.records.values(), key=lambda record: (record.version, record.digest))
        )

    def _state_of(self, slot: Slot, record: Record, now: float) -> ModuleState:
        role = slot.role(record.digest)
        troubled = role in ("current", "side") and self._machine.troubled(record, now)
        phase = lifecycle.phase(record.step, troubled=troubled)
        reason, message = record.reason, record.message
        if phase is ModulePhase.UNHEALTHY and not reason:
            reason, message = self._machine.trouble(record, now)
        elif phase is ModulePhase.HEALTHY:
            reason = message = ""
        return ModuleState(
            name=record.name,
            version=record.version,
            digest=record.digest,
            phase=phase,
            step=str(record.step) if role != "last-good" else "",
            role=role,
            reason=reason,
            message=message,
            since=record.since,
            revision=self.revision,
            progress=round(self._machine.progress(record, now), 2),
        )

    def _set_wall(self, wall_ms: int, now: float) -> None:
        if wall_ms:
            self._wall_base = wall_ms - now * 1000

    def _wall(self, now: float) -> int:
        return int(self._wall_base + now * 1000)


def _without_progress(modules: tuple[ModuleState, ...]) -> list[ModuleState]:
    return [msgspec.structs.replace(module, progress=0.0) for module in modules]
