"""Desired against what is here → which version of a module to start, stop or leave alone. Values in, decisions out.

* The version that serves and the last-good one are never given up for a version that is not proven.
* A version that failed is not tried again until its ``attempt`` rises.
* A module that is absent from the document goes altogether.
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


class Keep(msgspec.Struct, frozen=True):
    """The version has its place already; only take over what the document says of it."""

    wanted: DesiredModule


class Supersede(msgspec.Struct, frozen=True):
    """End the candidate: another version is wanted now."""

    name: str
    digest: str


class Retire(msgspec.Struct, frozen=True):
    """Remove the module with all its versions."""

    name: str


Decision = Start | Keep | Supersede | Retire


def decide(wanted: DesiredModule, slot: Slot | None) -> list[Decision]:
    """What to do about one module that is desired."""
    if slot is None:
        return [Start(wanted)]
    record = slot.record(wanted.digest)
    if record is not None and wanted.digest in (slot.current, slot.rolling):
        ended = [Supersede(slot.name, slot.candidate)] if slot.candidate else []
        again = record.step in TERMINAL and wanted.attempt > record.attempt
        return [*ended, Start(wanted) if again else Keep(wanted)]
    if record is not None and wanted.digest == slot.candidate:
        return [Keep(wanted)]
    if record is not None and record.step in TERMINAL and wanted.attempt <= record.attempt:
        return []
    ended = [Supersede(slot.name, slot.candidate)] if slot.candidate else []
    return [*ended, Start(wanted)]


def reconcile(desired: Desired, slots: Mapping[str, Slot]) -> list[Decision]:
    """What to do about all modules. A name that stands twice in the document counts once, the highest version."""
    by_name: dict[str, DesiredModule] = {}
    for wanted in desired.modules:
        if wanted.name not in by_name or wanted.version > by_name[wanted.name].version:
            by_name[wanted.name] = wanted
    gone: list[Decision] = [Retire(name) for name in slots if name not in by_name]
    return gone + [decision for name, wanted in by_name.items() for decision in decide(wanted, slots.get(name))]


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
