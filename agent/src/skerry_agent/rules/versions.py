"""All module versions of the device and what they share: where each stands, who has the traffic, what undoes a step.

The base of :mod:`steps` (how a version moves) and :mod:`machine` (what moves it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from skerry_agent.rules import effects as fx
from skerry_agent.rules import reconcile, routes
from skerry_agent.rules.fetch import Fetcher
from skerry_agent.rules.health import Crashes, Errors, Soak
from skerry_agent.rules.lifecycle import TERMINAL, Step, Undo, undo
from skerry_agent.rules.records import Record, Slot
from skerry_agent.rules.settings import BrainSettings
from skerry_modules.index import Index
from skerry_modules.messages import DesiredModule, Endpoint, Severity
from skerry_modules.messages import Event as EventBody

EXCLUSIVE: Final = frozenset(("pynq",))
"""Engines whose device holds one version at a time: nothing can be kept loaded beside it."""


_KINDS: Final = 8
"""Ways to die of one version that are told within one ``tell_s``."""


class Live:
    """What is known of a version only while the agent runs."""

    __slots__ = (
        "crashes",
        "due",
        "errors",
        "index",
        "loaded",
        "running",
        "soak",
        "started",
        "told",
        "wake",
        "watch",
    )

    def __init__(self, settings: BrainSettings) -> None:
        self.running = ""  # the slow effect that is under way
        self.due: float | None = None  # when the step's time is over
        self.wake: float | None = None  # when to try again
        self.told: dict[str, float] = {}  # when each kind of its crashes was last told as an event
        self.started = False  # since this start of the agent
        self.loaded = False
        self.index: Index | None = None
        self.soak: Soak | None = None
        self.watch: Soak | None = None  # of a side version: it may fail at any time without harm
        self.crashes = Crashes(settings.health)
        self.errors = Errors(settings.health)


class Versions:
    """All slots. Effects are collected in ``out``; the brain puts the ``Save`` before them."""

    def __init__(self, settings: BrainSettings, fetcher: Fetcher) -> None:
        self.slots: dict[str, Slot] = {}
        self.out: list[fx.Effect] = []
        self.fetcher = fetcher
        self.endpoints: tuple[Endpoint, ...] = ()
        self.aside: dict[str, DesiredModule] = {}  # by digest: wanted loaded beside the current versions
        self.settled: set[str] = set()  # modules of which a version ended: to be held against the document again
        self.wall: Callable[[float], int] = lambda now: int(now * 1000)
        self.on_step: Callable[[Record, Step], None] = lambda record, step: None
        self._settings = settings
        self._live: dict[str, Live] = {}
        self._routed: dict[str, fx.SetRoutes] = {}

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
                    times += [live.crashes.forgotten_at, live.errors.until]
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

    def troubled(self, record: Record, now: float) -> bool:
        """Whether a serving version crashed, hung or erred of late."""
        live = self.live(record.digest)
        return live.errors.until is not None or live.crashes.recent(now) > 0

    def trouble(self, record: Record, now: float) -> tuple[str, str]:
        """(reason, message) of a serving version that is :meth:`troubled`: what ended long ago is not the reason."""
        crashes = self.live(record.digest).crashes
        if not crashes.recent(now):
            share = f"{self._settings.health.error_rate:.0%}"
            return "scoring.failed", f"it failed on more than {share} of its requests of late"
        code = crashes.code if crashes.looping(now) or crashes.code == "run.hang" else "run.crashed"
        return code, f"its worker ended of late ({crashes.last_reason})"

    # -- keeping up

    def forget_failed(self, name: str, wanted: str) -> None:
        """Drop the records of versions that ended and are not wanted any more.

        One that is wanted at the side says there that it failed: it is not tried again for having changed its place.
        """
        slot = self.slots.get(name)
        if slot is None:
            return
        for digest, record in list(slot.records.items()):
            if record.step in TERMINAL and not slot.role(digest) and digest != wanted:
                del slot.records[digest]
                self._live.pop(digest, None)
                if digest in self.aside and not slot.side:
                    record.adopt(self.aside[digest])
                    key = reconcile.slot_name(self.aside[digest], side=True)
                    self.slots[key] = Slot(name=key, side=True, records={digest: record})

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

    def _goes_aside(self, record: Record) -> bool:
        """Whether a version that gives up its place is wanted loaded all the same."""
        index = self.live(record.digest).index
        alone = index is not None and index.manifest.engine in EXCLUSIVE
        return record.digest in self.aside and record.step not in TERMINAL and not alone

    def _reclaim(self, slot: Slot) -> None:
        """A module that needs a version to go back to takes its own from the side, loaded as it is."""
        if slot.side or slot.last_good:
            return
        for side in list(self.slots.values()):
            record = side.record(side.current)
            if not side.side or record is None or record.name != slot.name or not record.good:
                continue
            if record.step is Step.SERVE and record.digest not in slot.records:
                del self.slots[side.name]
                self.live(record.digest).watch = None
                slot.records[record.digest] = record
                slot.last_good = record.digest
                return

    def route(self) -> None:
        """Bring the routes up to date."""
        table = routes.compute(self.slots, self.loaded, self.endpoints)
        self.out += [fx.SetRoutes(name, (), (), gone=True) for name in self._routed if name not in table]
        known = {name: one for name, one in table.items() if one.routes or name in self._routed or self._served(name)}
        self.out += [wanted for name, wanted in known.items() if self._routed.get(name) != wanted]
        self._routed = known

    def _served(self, endpoint: str) -> bool:
        """Whether a version of it was proven here, so that those who ask need only wait: after a restart, as a rule."""
        slot = self.slots.get(endpoint)
        if slot is not None and not slot.side and slot.current:
            return True
        behind = {(one.module, one.version) for each in self.endpoints if each.name == endpoint for one in each.routes}
        held = [slot.record(slot.current) for slot in self.slots.values()]
        return any((record.name, record.version) in behind for record in held if record is not None)

    def _mark(self, record: Record, step: Step, now: float) -> None:
        if record.step is not step:
            record.since = self.wall(now)
        record.step = step
        self.on_step(record, step)

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
        live.loaded, live.running, live.soak, live.watch = False, "", None, None
        self.route()
        self.out.append(fx.Unload(record.digest))

    def _drop(self, slot: Slot, record: Record) -> None:
        """Forget a version that no role needs."""
        del slot.records[record.digest]
        self._live.pop(record.digest, None)
        self.out.append(fx.Remove(record.digest))

    # -- telling

    def emit_crash(self, severity: Severity, code: str, message: str, record: Record, now: float) -> None:
        """As :meth:`emit`, but each seldom: a worker that dies ten times a second must not fill the spool."""
        told, again_s = self.live(record.digest).told, self._settings.health.tell_s
        if message in told and now < told[message] + again_s:
            return
        for old in [text for text, at in told.items() if now >= at + again_s]:
            del told[old]
        if len(told) < _KINDS:
            told[message] = now
            self.emit(severity, code, message, record)

    def emit(self, severity: Severity, code: str, message: str, record: Record | None = None) -> None:
        name, version = (record.name, record.version) if record else ("", 0)
        self.out.append(fx.Emit(EventBody(severity=severity, code=code, message=message, module=name, version=version)))
