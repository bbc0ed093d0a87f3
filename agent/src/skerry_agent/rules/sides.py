"""How a version moves between its module's slot and one of its own, loaded as it is and without losing a request.

The moves: a side version becomes its module's candidate, a version that gives up its place stays loaded at the side,
and a side version that is no longer wanted goes back to its module where that has nothing to go back to.
"""

from __future__ import annotations

from skerry_agent.rules.lifecycle import SETTLED, Step
from skerry_agent.rules.records import Record, Slot
from skerry_agent.rules.steps import Steps
from skerry_modules.messages import DesiredModule


class Sides(Steps):
    """The moves between slots."""

    def promote(self, wanted: DesiredModule, name: str, now: float) -> None:
        """The version in the side slot ``name`` becomes its module's candidate."""
        side = self.slots.pop(name)
        record = side.records[wanted.digest]
        live = self.live(wanted.digest)
        live.watch = None
        slot = self.slots.setdefault(wanted.name, Slot(name=wanted.name))
        slot.records[wanted.digest] = record
        slot.candidate = wanted.digest
        record.adopt(wanted)
        self.out += self.fetcher.prefer((record.digest, *(sha256 for sha256, _ in record.objects)), now)
        current = slot.record(slot.current)
        if record.step is Step.SERVE and live.loaded and (current is None or current.step in SETTLED):
            self._enter(slot, record, Step.SERVE if record.proven else Step.SOAK, now)
        elif record.step is Step.SERVE:
            record.renew()
            live.started = False
            self._start_candidate(slot, now)
        self.route()

    def put_aside(self, wanted: DesiredModule, now: float) -> None:
        """The last-good version of a module is wanted loaded."""
        slot = self.slots[wanted.name]
        record = slot.records[wanted.digest]
        if self._goes_aside(record):
            self._move_aside(slot, record, now)

    def _is_fallback(self, record: Record) -> bool:
        """Whether its module has nothing to go back to but this version."""
        main = self.slots.get(record.name)
        return main is not None and not main.last_good and record.good and record.step is Step.SERVE

    def _give_back(self, side: Slot, record: Record) -> None:
        """Unload a version and keep it as its module's last-good one."""
        main = self.slots[record.name]
        side.records.pop(record.digest)
        main.records[record.digest] = record
        main.last_good = record.digest
        self.live(record.digest).watch = None
        self._unload(record)
        self._live.pop(record.digest, None)
