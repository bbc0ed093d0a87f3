"""How a version takes each step of the table, and what its failure or its end means for the others of its module.

One candidate per module; the current version goes first, and a candidate waits until it has settled. A soaking
candidate gives the traffic back at once; a failing current version once the last-good one is ready.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from skerry_agent.rules import effects as fx
from skerry_agent.rules import verify
from skerry_agent.rules.fetch import Fetcher
from skerry_agent.rules.health import Soak
from skerry_agent.rules.lifecycle import SETTLED, TABLE, TERMINAL, Step, Undo, backoff, judge, retreat
from skerry_agent.rules.reconcile import slot_name
from skerry_agent.rules.records import Record, Slot
from skerry_agent.rules.settings import BrainSettings
from skerry_agent.rules.versions import EXCLUSIVE, Live, Versions
from skerry_modules.compatibility import DeviceFacts, environment_on, memory_mb, obstacles, with_memory
from skerry_modules.environments import key_of
from skerry_modules.errors import SkerryError
from skerry_modules.index import Index
from skerry_modules.messages import Severity
from skerry_modules.profiles import Profile
from skerry_modules.trust import PublicKey


class Steps(Versions):
    """The lifecycle in motion."""

    def __init__(
        self, profile: Profile, publishers: Mapping[str, PublicKey], settings: BrainSettings, rng: random.Random
    ) -> None:
        super().__init__(settings, Fetcher(settings.download, rng, settings.objects_at_once))
        self._profile = profile
        self._publishers = publishers
        self._rng = rng
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

    # -- steps: each asks for one thing

    def _enter(self, slot: Slot, record: Record, step: Step, now: float) -> None:
        live = self.live(record.digest)
        live.running, live.due, live.wake = "", None, None
        live.started = True
        self._mark(record, step, now)
        self._steps[step](slot, record, live, now)

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
            self.out += self.fetcher.want([(record.digest, record.index_size)], now, aside=slot.side)

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
        # From here on the rules count what was measured.
        index = msgspec.structs.replace(index, manifest=with_memory(index.manifest, record.memory_mb))
        live.index = index
        facts: DeviceFacts = data.get("facts") or DeviceFacts()
        record.objects = tuple(index.objects_with(environment_on(index.facts, self._profile, facts)).items())
        code, message = self._preflight(slot, record, index, data, now)
        if code:
            self._fail(slot, record, code, message, now)
        else:
            self._enter(slot, record, Step.DOWNLOAD, now)

    def _preflight(self, slot: Slot, record: Record, index: Index, data: dict[str, Any], now: float) -> tuple[str, str]:
        """Why it cannot run or does not fit here: (code, message), or empty strings."""
        if slot.side and index.manifest.engine in EXCLUSIVE:
            return "unschedulable.engine", (
                f"cannot keep {record.name} {record.version} beside another version: the device of the engine "
                f"{index.manifest.engine} holds one at a time"
            )
        facts: DeviceFacts = data.get("facts") or DeviceFacts()
        others = sum(
            memory_mb(live.index.manifest)
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
        missing += self._to_build(index, facts, data)
        needed = -(-missing // 1_000_000) + self._settings.spare_disk_mb
        if missing and needed > free:
            return "resource.no_space", (
                f"cannot fetch {record.name}: it needs {needed} MB with the reserve, {free} MB are free; free some disk"
            )
        return "", ""

    def _to_build(self, index: Index, facts: DeviceFacts, data: dict[str, Any]) -> int:
        """Bytes that the version's environment will take, if it is not there yet."""
        lock = index.facts.environment
        target = environment_on(index.facts, self._profile, facts)
        if lock is None or target is None or key_of(lock) in data.get("environments", ()):
            return 0
        return target.installed

    def _download(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        missing = [(sha256, size) for sha256, size in record.objects if sha256 not in self.fetcher.held]
        if not missing:
            self._enter(slot, record, Step.INSTALL, now)
        elif self._let_go(slot, record, now):
            self.out += self.fetcher.want(missing, now, aside=slot.side)

    def _let_go(self, slot: Slot, record: Record, now: float) -> bool:
        """The current version lacks something that only the network can bring: let the last-good one serve, and fetch
        this one as a candidate meanwhile. False where it cannot be one."""
        if record.digest != slot.current:
            return True
        if slot.side:  # nothing to go back to at the side, and nothing that waits: fetch it in its place
            return True
        if slot.candidate:
            record.reason = "package.digest_mismatch"
            record.message = f"cannot use version {record.version}: a file of it is damaged or gone on this disk"
            self._end(slot, record, Step.FAILED, now)
            return False
        record.proven = False
        self._reclaim(slot)
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
        effect = fx.Load(record.digest, timeout, record.name, record.version, record.memory_mb)
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
        if slot.side:
            self._stand_by(slot, record, live, now)
            return
        record.proven = record.good = True
        record.failures, record.boots, record.reason, record.message = {}, {}, "", ""
        before, older = slot.record(slot.current), slot.record(slot.last_good)
        slot.current = record.digest
        slot.candidate = "" if slot.candidate == record.digest else slot.candidate
        if before is not None and before is not record and self._goes_aside(before):
            slot.last_good = "" if older is record else slot.last_good
            self._move_aside(slot, before, now)
            before = older = None
        if before is not None and before is not record:
            keep = before.step not in TERMINAL
            slot.last_good = before.digest if keep else ""
        elif older is record:
            slot.last_good = ""
        self.route()
        self.emit(Severity.INFO, "module.serving", f"version {record.version} serves", record)
        if before is not None and before is not record:
            self._unload(before)
            if slot.last_good == before.digest:
                before.step = Step.SERVE
                self.live(before.digest).wake = None
            else:  # it had failed: nothing to go back to
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

    def _stand_by(self, slot: Slot, record: Record, live: Live, now: float) -> None:
        """Ready at the side: it may take its share. It proves nothing of a module's current version."""
        record.failures, record.boots, record.reason, record.message = {}, {}, "", ""
        slot.current, slot.candidate = record.digest, ""
        live.watch = self._new_watch(now)
        self.route()
        self.emit(Severity.INFO, "module.serving", f"version {record.version} is ready beside the current one", record)
        self.settled.add(slot.name)

    def _move_aside(self, slot: Slot, record: Record, now: float) -> None:
        """A version of ``slot`` gets a slot of its own; one that is not loaded is brought up there."""
        digest, live = record.digest, self.live(record.digest)
        wanted = self.aside[digest]
        del slot.records[digest]
        for role in ("current", "last_good", "candidate", "rolling"):
            if getattr(slot, role) == digest:
                setattr(slot, role, "")
        record.adopt(wanted)
        name = slot_name(wanted, side=True)
        side = self.slots[name] = Slot(name=name, side=True, records={digest: record})
        if record.step is Step.SERVE and live.loaded:
            side.current, live.watch = digest, self._new_watch(now)
        elif record.step is Step.SERVE or not live.started:
            side.candidate, live.started = digest, False
            self._start_candidate(side, now)
        else:  # on its way, in the middle of a step
            side.candidate = digest
        self.route()

    def _new_watch(self, now: float) -> Soak:
        return Soak(0.0, self._settings.health, now, when="")

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
        if record.digest == slot.current and not slot.last_good and not slot.side:
            self._reclaim(slot)
        if record.digest == slot.current and not slot.last_good and not slot.side:
            self._limp(slot, record, live, now)
            return
        if slot.side and not live.loaded and not live.crashes.looping(now):
            self._limp(slot, record, live, now)
            return
        self._mark(record, Step.ROLLBACK, now)
        if record.digest != slot.current or slot.side:
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
        message = f"{record.message}; " + ("it is loaded again" if slot.side else "there is no version to go back to")
        self.emit_crash(Severity.ERROR, record.reason, message, record, now)
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
        live.soak = live.watch = live.due = live.wake = None
        live.started = False
        slot.candidate = "" if slot.candidate == digest else slot.candidate
        slot.rolling = "" if slot.rolling == digest else slot.rolling
        slot.last_good = "" if slot.last_good == digest else slot.last_good
        if was_current:
            self._reclaim(slot)
        revive = was_current and not slot.last_good and record.good and not slot.side
        self._take_back(slot, record, was=was, keep=Undo.REMOVE_FOLDER if revive else None)
        if not revive:  # also what an earlier start of the agent had laid out
            self.out.append(fx.Remove(digest))
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
        self.route()  # a split waits for it no more
        self.settled.add(slot.name)
        self._start_candidate(slot, now)

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
