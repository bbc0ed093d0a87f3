"""What moves the versions: decisions from the desired document, and what the driver tells of its effects.

The lifecycle's table is :mod:`lifecycle`; how a version moves along it is :mod:`steps`. What this does not handle:
documents and reports (:mod:`brain`), single objects (:mod:`fetch`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from skerry_agent.rules import effects as fx
from skerry_agent.rules import verify
from skerry_agent.rules.lifecycle import SETTLED, TABLE, TERMINAL, Step, Undo
from skerry_agent.rules.records import Record, Slot
from skerry_agent.rules.sides import Sides
from skerry_agent.rules.versions import Live
from skerry_modules.messages import DesiredModule, Severity

_WATCHED: Final = 10
"""A side version's errors are counted over at most so many times the requests from which on they are judged."""


class Machine(Sides):
    """All slots. Methods named for events take ``now`` last and append to ``out``."""

    # -- from outside: decisions

    def boot(self, now: float) -> None:
        """The slots were read back: whatever was under way begins again, the current versions first."""
        for slot in sorted(self.slots.values(), key=lambda slot: slot.side):
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

    def start(self, wanted: DesiredModule, now: float, *, name: str = "", side: bool = False) -> None:
        """Make a version the candidate of its slot (or try a failed current one again in its place)."""
        name = name or wanted.name
        slot = self.slots.setdefault(name, Slot(name=name, side=side))
        self._forget_elsewhere(slot, wanted.digest)
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
            self.live(record.digest).started = False
            self._start_candidate(slot, now)

    def _forget_elsewhere(self, slot: Slot, digest: str) -> None:
        """A version is in one slot only: what ended in another one is over."""
        for other in self.slots.values():
            if other is not slot and digest in other.records and not other.role(digest):
                del other.records[digest]
                self._live.pop(digest, None)

    def keep(self, wanted: DesiredModule, name: str = "") -> None:
        """The version has its place; a version that is being rolled back keeps its attempt, to be asked for again."""
        slot = self.slots[name or wanted.name]
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
        if self._goes_aside(record):
            self._move_aside(slot, record, now)
            return
        record.reason = "install.superseded"
        record.message = f"version {record.version} gave way to another before it was done"
        self._end(slot, record, Step.FAILED, now)

    def retire(self, name: str, now: float) -> None:
        """Remove a module with all its versions, or a side version: what another slot has a use for goes there."""
        slot = self.slots[name]
        for record in list(slot.records.values()):
            if not slot.side and slot.role(record.digest) and self._goes_aside(record):
                self._move_aside(slot, record, now)
            elif slot.side and self._is_fallback(record):
                self._give_back(slot, record)
        del self.slots[name]
        self.route()
        for record in slot.records.values():
            self._take_back(slot, record)
            self.out.append(fx.Remove(record.digest))
            self._live.pop(record.digest, None)
        self.collect(now)

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

    def gone(self, event: fx.ObjectGone, now: float) -> None:
        """The hub does not have an object: whoever waits for it waits in vain."""
        self.out += self.fetcher.gone(event.digest, now)
        self._fetched(now)

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
            message = f"the worker ended ({event.reason})" + ("; another takes its place" if event.restarting else "")
            code = "run.hang" if event.reason.startswith("hang") else "run.crashed"
            self.emit_crash(Severity.WARNING, code, message, record, now)
            if live.crashes.looping(now) or not event.restarting:
                self._fail(slot, record, live.crashes.code, f"the worker ended ({event.reason}), too often", now)
        elif record.step in (Step.GOLDEN, Step.WARM) and not event.restarting:
            self._fail(slot, record, live.crashes.code, f"the worker ended ({event.reason})", now)
        self.route()

    def traffic(self, event: fx.Traffic, now: float) -> None:
        found = self.find(event.digest)
        if found is None:
            return
        slot, record = found
        live = self.live(event.digest)
        problem = live.errors.traffic(event.requests, event.errors, now)
        if problem and record.step is Step.SERVE and live.watch is None:
            self.emit(Severity.WARNING, "run.errors", problem, record)
        if record.step is Step.SOAK and live.soak is not None:
            live.soak.traffic(event.requests, event.errors)
            problem = live.soak.failure()
            if problem:
                self._fail(slot, record, "install.soak_failed", problem, now)
        elif record.step is Step.SERVE and live.watch is not None:
            self._watched(slot, record, live, event, now)

    def _watched(self, slot: Slot, record: Record, live: Live, event: fx.Traffic, now: float) -> None:
        """A side version has others to take its share: it may go for errors that a current one must serve on with."""
        assert live.watch is not None
        live.watch.traffic(event.requests, event.errors)
        problem = live.watch.failure()
        if problem:
            self._fail(slot, record, "run.errors", problem, now)
        elif live.watch.requests >= _WATCHED * self._settings.health.error_requests:
            live.watch = self._new_watch(now)

    def postpone(self, seconds: float) -> None:
        """Nothing that was asked for could begin for so long: deadlines and soaks move on."""
        for live in self._live.values():
            if live.due is not None:
                live.due += seconds
            if live.soak is not None:
                live.soak.started += seconds
                live.soak.ends += seconds
        self.fetcher.postpone(seconds)

    def tick(self, now: float) -> None:
        self.out += self.fetcher.tick(now)
        self._fetched(now)
        for slot in list(self.slots.values()):
            for record in list(slot.records.values()):
                live = self.live(record.digest)
                live.crashes.recent(now)
                live.errors.tick(now)
                if live.due is not None and now >= live.due:
                    self._late(slot, record, live, now)
                elif live.wake is not None and now >= live.wake:
                    step = Step.WANT if record.step in TERMINAL else record.step
                    if step is not record.step:
                        record.renew()
                    self._enter(slot, record, step, now)


def installed_orphans(installed: Collection[str], slots: Mapping[str, Slot]) -> list[str]:
    """Module folders that no version needs."""
    needed = {
        digest
        for slot in slots.values()
        for digest, record in slot.records.items()
        if record.step is not Step.FAILED or record.good
    }
    return sorted(set(installed) - needed)
