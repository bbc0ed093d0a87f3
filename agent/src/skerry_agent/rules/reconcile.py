"""Desired against what is here → which version of a module to start, stop or leave alone. Values in, decisions out.

* The version that serves and the last-good one are never given up for a version that is not proven.
* A version that failed is not tried again until its ``attempt`` rises.
* A module that is absent from the document goes altogether.
* A version that endpoints want beside the current one (``Desired.sides``) has a slot of its own. It moves between that
  slot and its module's as the document says, loaded as it is: never unloaded in one place to be loaded in the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from skerry_agent.rules.lifecycle import TERMINAL, Step
from skerry_agent.rules.records import Slot
from skerry_modules.messages import Desired, DesiredModule


class Start(msgspec.Struct, frozen=True):
    """Make this version the candidate of its module: from nothing, from last-good, or again after a failure."""

    wanted: DesiredModule
    side: bool = False


class Keep(msgspec.Struct, frozen=True):
    """The version has its place already; only take over what the document says of it."""

    wanted: DesiredModule
    side: bool = False


class Promote(msgspec.Struct, frozen=True):
    """A side version becomes its module's candidate, as it is."""

    wanted: DesiredModule
    name: str


class Aside(msgspec.Struct, frozen=True):
    """The last-good version is wanted loaded: it gets a slot of its own, from which its module can take it back."""

    wanted: DesiredModule
    name: str


class Supersede(msgspec.Struct, frozen=True):
    """End the candidate: another version is wanted now."""

    name: str
    digest: str


class Retire(msgspec.Struct, frozen=True):
    """Remove the module with all its versions."""

    name: str


Decision = Start | Keep | Supersede | Retire | Promote | Aside


def slot_name(wanted: DesiredModule, *, side: bool) -> str:
    """The name of the slot that a version belongs in."""
    return f"{wanted.name}:{wanted.version}" if side else wanted.name


def decide(wanted: DesiredModule, slot: Slot | None, *, side: bool = False) -> list[Decision]:
    """What to do about one version that is desired."""
    if slot is None:
        return [Start(wanted, side)]
    record = slot.record(wanted.digest)
    if record is not None and wanted.digest in (slot.current, slot.rolling):
        ended = [Supersede(slot.name, slot.candidate)] if slot.candidate else []
        again = record.step in TERMINAL and wanted.attempt > record.attempt
        return [*ended, Start(wanted, side) if again else Keep(wanted, side)]
    if record is not None and wanted.digest == slot.candidate:
        return [Keep(wanted, side)]
    if record is not None and record.step in TERMINAL and wanted.attempt <= record.attempt:
        return []
    ended = [Supersede(slot.name, slot.candidate)] if slot.candidate else []
    return [*ended, Start(wanted, side)]


def aside(desired: Desired) -> dict[str, DesiredModule]:
    """The side versions by digest; one that is its module's own desired version is none."""
    own = {wanted.digest for wanted in _by_name(desired).values()}
    return {wanted.digest: wanted for wanted in desired.sides if wanted.digest not in own}


def wanted_digests(desired: Desired) -> dict[str, str]:
    """The digest that each slot should hold."""
    sides = {slot_name(wanted, side=True): wanted.digest for wanted in aside(desired).values()}
    return sides | {name: wanted.digest for name, wanted in _by_name(desired).items()}


def _by_name(desired: Desired) -> dict[str, DesiredModule]:
    """A name that stands twice in the document counts once, the highest version."""
    by_name: dict[str, DesiredModule] = {}
    for wanted in desired.modules:
        if wanted.name not in by_name or wanted.version > by_name[wanted.name].version:
            by_name[wanted.name] = wanted
    return by_name


def reconcile(desired: Desired, slots: Mapping[str, Slot]) -> list[Decision]:
    """What to do about all modules. A name that stands twice in the document counts once, the highest version."""
    by_name = _by_name(desired)
    sides = {slot_name(wanted, side=True): wanted for wanted in aside(desired).values()}
    promoted = {name: found for name, wanted in by_name.items() if (found := _at_the_side(wanted, slots))}
    kept = {*by_name, *sides, *promoted.values()}
    decisions: list[Decision] = [Retire(name) for name in slots if name not in kept]
    for name, wanted in by_name.items():
        slot = slots.get(name)
        if name in promoted:
            ended = [Supersede(name, slot.candidate)] if slot is not None and slot.candidate else []
            decisions += [*ended, Promote(wanted, promoted[name])]
        else:
            decisions += decide(wanted, slot)
    for name, wanted in sides.items():
        main = slots.get(wanted.name)
        role = main.role(wanted.digest) if main is not None else ""
        if role == "last-good":
            decisions.append(Aside(wanted, wanted.name))
        elif not role:  # what has a role in its module's slot keeps it, and leaves it loaded
            decisions += decide(wanted, slots.get(name), side=True)
    return decisions


def _at_the_side(wanted: DesiredModule, slots: Mapping[str, Slot]) -> str:
    """The side slot in which a version stands well; empty for none."""
    name = slot_name(wanted, side=True)
    slot = slots.get(name)
    if slot is None or not slot.side or not slot.role(wanted.digest):
        return ""
    return name if slot.records[wanted.digest].step not in TERMINAL else ""


def unneeded(objects: frozenset[str] | set[str], slots: Mapping[str, Slot]) -> list[str]:
    """Which of the objects held no version here needs: those of versions that ended, or that nobody knows."""
    needed: set[str] = set()
    for slot in slots.values():
        for record in slot.records.values():
            if record.step is Step.FAILED and not record.good:
                continue
            needed.add(record.digest)
            needed.update(sha256 for sha256, _ in record.objects)
    return sorted(objects - needed)


def knows_all(slots: Mapping[str, Slot]) -> bool:
    """Whether each version that is on its way has told its objects; before that nothing is surely unneeded."""
    return all(record.objects or record.step in TERMINAL for slot in slots.values() for record in slot.records.values())
