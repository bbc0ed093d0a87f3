"""Every module version of the device, moved through the lifecycle's table: events of the world in, effects out.

The table (:mod:`lifecycle`) says what each step asks for, how often it may fail and what undoes it; here stands how a
version takes its step, who serves meanwhile, and what the end of one version means for the others of its module:

* One candidate per module; the current version goes first, and a candidate waits until it has settled.
* Effects are collected in ``out``; the brain puts the ``Save`` before them.

What it does not handle: documents and reports (:mod:`brain`), single objects (:mod:`fetch`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from skerry_agent.rules import effects as fx
from skerry_agent.rules import reconcile, routes, verify
from skerry_agent.rules.fetch import Fetcher
from skerry_agent.rules.health import Crashes, Soak
from skerry_agent.rules.lifecycle import SETTLED, TABLE, TERMINAL, Step, Undo, backoff, judge, retreat, undo
from skerry_agent.rules.records import Record, Slot
from skerry_agent.rules.settings import BrainSettings
from skerry_modules.compatibility import DeviceFacts, obstacles
from skerry_modules.errors import SkerryError
from skerry_modules.index import Index
from skerry_modules.messages import DesiredModule, Endpoint, Severity
from skerry_modules.messages import Event as EventBody
from skerry_modules.profiles import Profile
from skerry_modules.trust import PublicKey


class Live:
    """What is known of a version only while the agent runs."""

    __slots__ = ("crashes", "due", "erring", "index", "loaded", "running", "soak", "started", "wake")

    def __init__(self, settings: BrainSettings) -> None:
        self.running = ""  # the slow effect that is under way
        self.due: float | None = None  # when the step's time is over
        self.wake: float | None = None  # when to try again
        self.started = False  # since this start of the agent
        self.loaded = False
        self.index: Index | None = None
        self.soak: Soak | None = None
        self.crashes = Crashes(settings.health)
        self.erring = False


class Machine:
    """All slots. Methods named for events take ``now`` last and append to ``out``."""

    def __init__(
        self, profile: Profile, publishers: Mapping[str, PublicKey], settings: BrainSettings, rng: random.Random
    ) -> None:
        self.slots: dict[str, Slot] = {}
        self.out: list[fx.Effect] = []
        self.fetcher = Fetcher(settings.download, rng, settings.objects_at_once)
        self.endpoints: tuple[Endpoint, ...] = ()
        self.settled: set[str] = set()  # modules of which a version ended: to be held against the document again
        self.wall: Callable[[float], int] = lambda now: int(now * 1000)
        self.on_step: Callable[[Record, Step], None] = lambda record, step: None
        self._profile = profile
        self._publishers = publishers
        self._settings = settings
        self._rng = rng
        self._live: dict[str, Live] = {}
        self._routed: dict[str, fx.SetRoutes] = {}
        self._steps: dict[Step, Callable[[Slot, Record, Live, float], None]] = {
            Step.WANT: self._want,
            Step.VERIFY: self._verify,
            Step.DOWNLOAD: self._download,
            Step.INSTALL: self._install,
            Step.LOAD: self._load,
            Step.GOLDEN: self._golden,
            Step.WARM: self._warm,
            Step.SOAK: self._soak,
            Step.SERVE: self._serve,
        }

    # -- looking

    def find(self, digest: str) -> tuple[Slot, Record] | None:
        for slot in self.slots.values():
            record = slot.records.get(digest)
            if record is not None:
                return slot, record
        return None

    def live(self, digest: str) -> Live:
        if digest not in self._live:
            self._live[digest] = Live(self._settings)
        return self._live[digest]

    @property
    def loaded(self) -> set[str]:
        return {digest for digest, live in self._live.items() if live.loaded}

    @property
    def next_deadline(self) -> float | None:
        times = [self.fetcher.next_deadline]
        for slot in self.slots.values():
            for record in slot.records.values():
                live = self.live(record.digest)
                times += [live.due, live.wake]
                if record.step is Step.SERVE:
                    times.append(live.crashes.forgotten_at)
        return min((time for time in times if time is not None), default=None)

    def progress(self, record: Record, now: float) -> float:
        """0 to 1 of a long step."""
        if record.step is Step.SOAK:
            soak = self.live(record.digest).soak
            return soak.progress(now) if soak else 0.0
        if record.step is Step.DOWNLOAD and record.objects:
            total = sum(size for _, size in record.objects)
            have = sum(self.fetcher.progress(sha256) * size for sha256, size in record.objects)
            return have / total if total else 1.0
        return 0.0

    # -- from outside: decisions

    def boot(self, now: float) -> None:
        """The slots were read back: whatever was under way begins again, the current versions first."""
        for slot in self.slots.values():
            rolling = slot.record(slot.rolling)
            if rolling is not None:
                self._end(slot, rolling, Step.FAILED, now)
            current = slot.record(slot.current)
            if current is not None:
                self._reboot(slot, current, now)
        for slot in self.slots.values():
            for record in slot.records.values():
                if record.step is Step.UNSCHEDULABLE and not slot.candidate:
                    record.renew()  # the device may have changed meanwhile
                    slot.candidate = record.digest
            candidate = slot.record(slot.candidate)
            if candidate is not None:
                self._reboot(slot, candidate, now)
        self.route()

    def _reboot(self, slot: Slot, record: Record, now: float) -> None:
        was = record.step
        replaceable = slot.current != record.digest or bool(slot.last_good)
        if was not in SETTLED and was in TABLE and replaceable:
            record.boots[was] = boots = record.boots.get(was, 0) + 1
            if boots > TABLE[was].boots:
                record.reason = "install.interrupted"
                record.message = f"cannot go on: the device restarted {boots} times during the step {was}"
                self._end(slot, record, Step.FAILED, now)
                return
        if was in TERMINAL:
            record.renew()
        if record.digest == slot.candidate:
            self._start_candidate(slot, now)
        else:
            self._enter(slot, record, Step.WANT, now)

    def start(self, wanted: DesiredModule, now: float) -> None:
        """Make a version the candidate of its module (or try a failed current one again in its place)."""
        slot = self.slots.setdefault(wanted.name, Slot(name=wanted.name))
        record = slot.records.get(wanted.digest)
        if record is None:
            record = slot.records[wanted.digest] = Record.of(wanted)
        else:
            record.adopt(wanted)
            record.renew()
        problem = verify.is_sound(wanted, self._settings.max_index_bytes)
        if problem:
            record.reason, record.message = "install.verify_failed", f"cannot fetch {wanted.name}: {problem}"
            self._end(slot, record, Step.FAILED, now)
        elif slot.current == record.digest:
            self._enter(slot, record, Step.WANT, now)
        else:
            slot.candidate = record.digest
            self._start_candidate(slot, now)

    def keep(self, wanted: DesiredModule) -> None:
        """The version has its place; a version that is being rolled back keeps its attempt, to be asked for again."""
        slot = self.slots[wanted.name]
        record = slot.records[wanted.digest]
        attempt = record.attempt if wanted.digest == slot.rolling else wanted.attempt
        record.adopt(wanted)
        record.attempt = attempt

    def supersede(self, name: str, digest: str, now: float) -> None:
        """End a candidate because another version is wanted."""
        slot = self.slots[name]
        record = slot.records[digest]
        if digest == slot.last_good:  # it was to come back; it stays what it was
            slot.candidate = ""
            self._take_back(slot, record, keep=Undo.REMOVE_FOLDER)
            record.step = Step.SERVE
            self._live.pop(digest, None)
            return
        record.reason = "install.superseded"
        record.message = f"version {record.version} gave way to another before it was done"
        self._end(slot, record, Step.FAILED, now)

    def retire(self, name: str, now: float) -> None:
        """Remove a module with all its versions."""
        slot = self.slots.pop(name)
        self.route()
        for record in slot.records.values():
            self._take_back(slot, record)
            self.out.append(fx.Remove(record.digest))
            self._live.pop(record.digest, None)
        self.collect(now)

    def forget_failed(self, name: str, wanted: str) -> None:
        """Drop the records of versions that ended and are not wanted any more."""
        slot = self.slots.get(name)
        if slot is None:
            return
        for digest, record in list(slot.records.items()):
            if record.step in TERMINAL and not slot.role(digest) and digest != wanted:
                del slot.records[digest]
                self._live.pop(digest, None)

    def collect(self, now: float) -> None:
        """Remove what no version needs any more: downloads, objects."""
        needed: set[str] = set()
        for slot in self.slots.values():
            for record in slot.records.values():
                if record.step is Step.WANT:
                    needed.add(record.digest)
                elif record.step is Step.DOWNLOAD:
                    needed.update(sha256 for sha256, _ in record.objects)
        self.out += self.fetcher.keep_only(needed, now)
        if reconcile.knows_all(self.slots):
            rest = reconcile.unneeded(self.fetcher.held | self.fetcher.partial, self.slots)
            if rest:
                self.out.append(fx.Remove("", tuple(rest)))
                self.fetcher.held.difference_update(rest)
                self.fetcher.partial.difference_update(rest)

    def route(self) -> None:
        """Bring the routes up to date."""
        table = routes.compute(self.slots, self.loaded, self.endpoints)
        for name in [name for name in self._routed if name not in table]:
            table[name] = fx.SetRoutes(name, (), ())
        for name, wanted in table.items():
            if self._routed.get(name, fx.SetRoutes(name, (), ())) != wanted:
                self.out.append(wanted)
        self._routed = {name: wanted for name, wanted in table.items() if wanted.routes}

    # -- from outside: what happened

    def done(self, event: fx.Done, now: float) -> None:
        if event.effect in ("ListParts", "CompleteObject"):
            self.out += self.fetcher.done(event.effect, event.digest, event.data.get("parts", []), now)
            self._fetched(now)
            return
        found = self.find(event.digest)
        if found is None or self.live(event.digest).running != event.effect:
            return  # of a step that was given up meanwhile
        slot, record = found
        live = self.live(event.digest)
        live.running, live.due = "", None
        if event.effect == "ReadIndex":
            self._index_read(slot, record, live, event.data, now)
            return
        if event.effect == "Load":
            live.loaded = True
        then = TABLE[record.step].then
        if then is Step.SOAK and (record.proven or slot.current == record.digest):
            then = Step.SERVE
        self._enter(slot, record, then, now)

    def failed(self, event: fx.Failed, now: float) -> None:
        damaged = event.data.get("objects", ())
        self.fetcher.held.difference_update(damaged)
        if event.effect in ("ListParts", "CompleteObject", "StoreChunk"):
            self.out += self.fetcher.failed(event.effect, event.digest, event.code, event.message, now)
            self._fetched(now)
            return
        found = self.find(event.digest)
        if found is None or self.live(event.digest).running != event.effect:
            return
        self._fail(*found, event.code, event.message, now)

    def chunk(self, event: fx.ChunkArrived, now: float) -> None:
        self.out += self.fetcher.chunk(event.digest, event.part, event.payload, now)

    def exited(self, event: fx.WorkerExited, now: float) -> None:
        """A worker died. One crash is let pass; the data plane has started another."""
        found = self.find(event.digest)
        if found is None:
            return
        slot, record = found
        live = self.live(event.digest)
        live.crashes.add(event.reason, now)
        live.loaded = live.loaded and event.restarting
        if record.step is Step.SOAK and live.soak is not None:
            live.soak.crashes += 1
            problem = live.soak.failure() or ("" if event.restarting else f"its worker died ({event.reason})")
            if problem:
                self._fail(slot, record, "install.soak_failed", f"{problem} ({event.reason})", now)
        elif record.step is Step.SERVE and slot.current == record.digest:
            message = f"the worker ended ({event.reason})"
            self.emit(Severity.WARNING, live.crashes.code, message, record)
            if live.crashes.looping(now) or not event.restarting:
                self._fail(slot, record, live.crashes.code, f"{message}, too often", now)
        self.route()

    def traffic(self, event: fx.Traffic, now: float) -> None:
        found = self.find(event.digest)
        if found is None:
            return
        slot, record = found
        live = self.live(event.digest)
        limits = self._settings.health
        if event.requests >= limits.error_requests:
            live.erring = event.errors > limits.error_rate * event.requests
        if record.step is Step.SOAK and live.soak is not None:
            live.soak.traffic(event.requests, event.errors)
            problem = live.soak.failure()
            if problem:
                self._fail(slot, record, "install.soak_failed", problem, now)

    def tick(self, now: float) -> None:
        self.out += self.fetcher.tick(now)
        self._fetched(now)
        for slot in list(self.slots.values()):
            for record in list(slot.records.values()):
                live = self.live(record.digest)
                live.crashes.recent(now)
                if live.due is not None and now >= live.due:
                    self._late(slot, record, live, now)
                elif live.wake is not None and now >= live.wake:
                    step = Step.WANT if record.step in TERMINAL else record.step
                    if step is not record.step:
                        record.renew()
                    self._enter(slot, record, step, now)

    def troubled(self, record: Record, now: float) -> bool:
        """Whether a serving version crashed, hung or erred of late."""
        live = self.live(record.digest)
        return live.erring or live.crashes.recent(now) > 0

    # -- steps: each asks for one thing

    def _enter(self, slot: Slot, record: Record, step: Step, now: float) -> None:
        live = self.live(record.digest)
        live.running, live.due, live.wake = "", None, None
        live.started = True
        self._mark(record, step, now)
        self._steps[step](slot, record, live, now)

    def _mark(self, record: Record, step: Step, now: float) -> None:
        if record.step is not step:
            record.since = self.wall(now)
        record.step = step
        self.on_step(record, step)

    def _ask(self, live: Live, effect: fx.Effect, timeout_s: float, now: float) -> None:
        live.running = type(effect).__name__
        live.due = now + timeout_s
        self.out.append(effect)

    def _start_candidate(self, slot: Slot, now: float) -> None:
        current = slot.record(slot.current)
        candidate = slot.record(slot.candidate)
        if candidate is None or (current is not None and current.step not in SETTLED):
            return
        if not self.live(candidate.digest).started:
            self._enter(slot, candidate, Step.WANT, now)

    def _want(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        if record.digest in self.fetcher.held:
            self._enter(slot, record, Step.VERIFY, now)
        elif self._let_go(slot, record, now):
            self.out += self.fetcher.want([(record.digest, record.index_size)], now)

    def _verify(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        self._ask(live, fx.ReadIndex(record.digest), self._settings.lifecycle.verify_s, now)

    def _index_read(self, slot: Slot, record: Record, live: Live, data: dict[str, Any], now: float) -> None:
        try:
            index = verify.read_index(data["index"], record.digest, record.name, record.signatures, self._publishers)
        except SkerryError as error:
            if error.code == "package.digest_mismatch":
                self.fetcher.held.discard(record.digest)
                self.out.append(fx.Remove("", (record.digest,)))
            self._fail(slot, record, error.code, error.message, now)
            return
        live.index = index
        record.objects = tuple(index.objects().items())
        code, message = self._preflight(slot, record, index, data, now)
        if code:
            self._fail(slot, record, code, message, now)
        else:
            self._enter(slot, record, Step.DOWNLOAD, now)

    def _preflight(self, slot: Slot, record: Record, index: Index, data: dict[str, Any], now: float) -> tuple[str, str]:
        """Why it cannot run or does not fit here: (code, message), or empty strings."""
        facts: DeviceFacts = data.get("facts") or DeviceFacts()
        others = sum(
            live.index.manifest.resources.memory_mb
            for digest, live in self._live.items()
            if live.loaded and live.index is not None and digest not in slot.records
        )
        found = obstacles(
            index.manifest, index.facts, self._profile, msgspec.structs.replace(facts, memory_in_use_mb=others)
        )
        if found:
            return found[0].code, f"cannot run {record.name} here: " + "; ".join(o.message for o in found)
        missing = sum(size for sha256, size in record.objects if sha256 not in self.fetcher.held)
        free = int(data.get("free_disk_mb", 0))
        needed = -(-missing // 1_000_000) + self._settings.spare_disk_mb
        if missing and needed > free:
            return "resource.no_space", (
                f"cannot fetch {record.name}: it needs {needed} MB with the reserve, {free} MB are free; free some disk"
            )
        return "", ""

    def _download(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        missing = [(sha256, size) for sha256, size in record.objects if sha256 not in self.fetcher.held]
        if not missing:
            self._enter(slot, record, Step.INSTALL, now)
        elif self._let_go(slot, record, now):
            self.out += self.fetcher.want(missing, now)

    def _let_go(self, slot: Slot, record: Record, now: float) -> bool:
        """The current version lacks something that only the network can bring: let the last-good one serve, and fetch
        this one as a candidate meanwhile. False where it cannot be one."""
        if record.digest != slot.current:
            return True
        if slot.candidate:
            record.reason = "package.digest_mismatch"
            record.message = f"cannot use version {record.version}: a file of it is damaged or gone on this disk"
            self._end(slot, record, Step.FAILED, now)
            return False
        record.proven = False
        slot.current, slot.last_good, slot.candidate = slot.last_good, "", record.digest
        fallback = slot.record(slot.current)
        if fallback is not None:
            self._enter(slot, fallback, Step.WANT, now)
        return slot.candidate == record.digest

    def _install(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        self._ask(live, fx.Install(record.digest), self._settings.lifecycle.install_s, now)

    def _load(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        if live.index is None:
            self._enter(slot, record, Step.VERIFY, now)
            return
        timeout = live.index.manifest.resources.load_timeout_s
        effect = fx.Load(record.digest, timeout, record.name, record.version)
        self._ask(live, effect, timeout + self._settings.lifecycle.grace_s, now)

    def _golden(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        if live.index is not None and live.index.manifest.golden is None:
            self._enter(slot, record, Step.WARM, now)
            return
        limits = self._settings.lifecycle
        self._ask(live, fx.Golden(record.digest, limits.golden_s), limits.golden_s + limits.grace_s, now)

    def _warm(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        limits = self._settings.lifecycle
        self._ask(live, fx.Warm(record.digest, limits.warm_s), limits.warm_s + limits.grace_s, now)

    def _soak(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        live.soak = Soak(record.soak_s, self._settings.health, now)
        live.due = live.soak.ends
        self.route()

    def _serve(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        """Proven: it is the current version, the one before is kept as last-good, older ones go."""
        live.soak = None
        record.proven = record.good = True
        record.failures, record.boots, record.reason, record.message = {}, {}, "", ""
        before, older = slot.record(slot.current), slot.record(slot.last_good)
        slot.current = record.digest
        slot.candidate = "" if slot.candidate == record.digest else slot.candidate
        if before is not None and before is not record:
            keep = before.step is Step.SERVE
            slot.last_good = before.digest if keep else ""
        elif older is record:
            slot.last_good = ""
        self.route()
        self.emit(Severity.INFO, "module.serving", f"version {record.version} serves", record)
        if before is not None and before is not record:
            self._unload(before)
            if slot.last_good != before.digest:  # it had failed: nothing to go back to
                before.good = False
                self._live.pop(before.digest, None)
                self.out.append(fx.Remove(before.digest))
            if older is not None and older is not record:
                self._drop(slot, older)
        rolling = slot.record(slot.rolling)
        if rolling is not None:
            self._end(slot, rolling, Step.FAILED, now)
        self.settled.add(slot.name)
        self._start_candidate(slot, now)

    # -- failures

    def _late(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        """The step's time is over: the end of a soak, the failure of all else."""
        if record.step is Step.SOAK and live.soak is not None:
            problem = live.soak.final_failure()
            if problem:
                self._fail(slot, record, "install.soak_failed", problem, now)
            else:
                self._enter(slot, record, Step.SERVE, now)
            return
        row = TABLE[record.step]
        self._fail(slot, record, row.late, f"cannot {record.step} version {record.version}: it took too long", now)

    def _fail(self, slot: Slot, record: Record, code: str, message: str, now: float) -> None:
        """A step failed: again after a pause, or the end."""
        live = self.live(record.digest)
        live.running, live.due, live.wake = "", None, None
        step = record.step
        failures = record.failures[step] = record.failures.get(step, 0) + 1
        verdict = judge(step, code, failures)
        record.reason, record.message = verdict.reason, message
        if not verdict.final:
            for way in retreat(step, verdict.to):
                self._undo_one(record, way)
            live.wake = now + backoff(failures, self._settings.lifecycle) * self._rng.uniform(0.8, 1.2)
            self._mark(record, verdict.to, now)
        elif verdict.to is Step.ROLLBACK:
            self._roll_back(slot, record, live, now)
        else:
            self._end(slot, record, verdict.to, now)

    def _roll_back(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        """It had the traffic. A soaking candidate gives it back at once; a current version once last-good is ready."""
        if record.digest == slot.current and not slot.last_good:
            self._limp(slot, record, live, now)
            return
        self._mark(record, Step.ROLLBACK, now)
        if record.digest != slot.current:
            self._end(slot, record, Step.FAILED, now)
            return
        self.emit(Severity.ERROR, record.reason, f"rolling back: {record.message}", record)
        record.proven = record.good = False
        slot.rolling, slot.current, slot.last_good = record.digest, slot.last_good, ""
        if slot.candidate == slot.current:
            slot.candidate = ""
        fallback = slot.records[slot.current]
        if fallback.step is not Step.SERVE or not self.live(fallback.digest).loaded:
            fallback.renew()
            self._enter(slot, fallback, Step.WANT, now)
        else:
            self._enter(slot, fallback, Step.SERVE, now)

    def _limp(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        """Nothing to go back to: serve on as well as it goes, and load again if the worker is gone."""
        self.emit(Severity.ERROR, record.reason, f"{record.message}; there is no version to go back to", record)
        if not live.loaded:
            tries = record.failures.get(Step.SERVE, 1)
            self._mark(record, Step.LOAD, now)
            live.wake = now + backoff(tries, self._settings.lifecycle) * self._rng.uniform(0.8, 1.2)
            self.route()

    def _end(self, slot: Slot, record: Record, step: Step, now: float) -> None:
        """Terminal: the version undoes what it did, and the module goes on with what it has."""
        digest, live = record.digest, self.live(record.digest)
        was_current = slot.current == digest
        was, record.proven = record.step, False
        live.soak = live.due = live.wake = None
        live.started = False
        slot.candidate = "" if slot.candidate == digest else slot.candidate
        slot.rolling = "" if slot.rolling == digest else slot.rolling
        slot.last_good = "" if slot.last_good == digest else slot.last_good
        revive = was_current and not slot.last_good and record.good
        self._take_back(slot, record, was=was, keep=Undo.REMOVE_FOLDER if revive else None)
        record.good = revive
        self._mark(record, step, now)
        severity = Severity.INFO if record.reason == "install.superseded" else Severity.ERROR
        self.emit(severity, record.reason or "internal.bug", record.message, record)
        if revive:
            live.wake = now + self._settings.lifecycle.revive_s
        elif was_current:
            slot.current, slot.last_good = slot.last_good, ""
            fallback = slot.record(slot.current)
            if fallback is not None:
                fallback.renew()
                self._enter(slot, fallback, Step.WANT, now)
        rolling = slot.record(slot.rolling)
        if rolling is not None and was_current:
            self._end(slot, rolling, Step.FAILED, now)
        self.settled.add(slot.name)
        self._start_candidate(slot, now)

    # -- undo

    def _take_back(self, slot: Slot, record: Record, *, was: Step | None = None, keep: Undo | None = None) -> None:
        """Undo all steps of a version, last first. The traffic moves before the worker stops."""
        ways = undo(was or record.step)
        if Undo.UNLOAD not in ways and (self.live(record.digest).loaded):
            ways.insert(0, Undo.UNLOAD)
        for way in ways:
            if way is not keep:
                self._undo_one(record, way)

    def _undo_one(self, record: Record, way: Undo) -> None:
        if way is Undo.UNLOAD:
            self._unload(record)
        elif way is Undo.REMOVE_FOLDER:
            self.out.append(fx.Remove(record.digest))
        elif way is Undo.ROUTE_BACK:
            self.route()

    def _unload(self, record: Record) -> None:
        live = self.live(record.digest)
        live.loaded, live.running, live.soak = False, "", None
        self.route()
        self.out.append(fx.Unload(record.digest))

    def _drop(self, slot: Slot, record: Record) -> None:
        """Forget a version that no role needs."""
        del slot.records[record.digest]
        self._live.pop(record.digest, None)
        self.out.append(fx.Remove(record.digest))

    # -- downloads

    def _fetched(self, now: float) -> None:
        for ended in self.fetcher.ended():
            for slot in list(self.slots.values()):
                for record in list(slot.records.values()):
                    if self._awaits(record, ended.digest):
                        self._arrived(slot, record, ended.code, ended.message, now)

    def _awaits(self, record: Record, digest: str) -> bool:
        if self.live(record.digest).wake is not None:
            return False
        if record.step is Step.WANT:
            return record.digest == digest
        return record.step is Step.DOWNLOAD and any(sha256 == digest for sha256, _ in record.objects)

    def _arrived(self, slot: Slot, record: Record, code: str, message: str, now: float) -> None:
        if code:
            self._fail(slot, record, code, message, now)
        elif record.step is Step.WANT or all(sha256 in self.fetcher.held for sha256, _ in record.objects):
            self._enter(slot, record, TABLE[record.step].then, now)

    # -- telling

    def emit(self, severity: Severity, code: str, message: str, record: Record | None = None) -> None:
        name, version = (record.name, record.version) if record else ("", 0)
        self.out.append(fx.Emit(EventBody(severity=severity, code=code, message=message, module=name, version=version)))


def installed_orphans(installed: Collection[str], slots: Mapping[str, Slot]) -> list[str]:
    """Module folders that no record knows."""
    known = {digest for slot in slots.values() for digest in slot.records}
    return sorted(set(installed) - known)
