"""Endpoints in the worlds: versions beside the current one, in splits and in shadow; and rules broken on purpose."""

from __future__ import annotations

from typing import Any

import pytest

from skerry_agent.rules import routes
from skerry_agent.rules.machine import Machine
from skerry_agent.rules.versions import Versions
from skerry_simulators.world.modules import BAD, UNTRUSTED
from skerry_simulators.world.world import World

from .test_mutations import found


def _no_op(*_: Any) -> None:
    return None


def test_the_worlds_split_shadow_and_move_versions_good_and_bad() -> None:
    splits = shadows = bad = untrusted = failed = moved = 0
    for seed in range(80):
        world = World(seed, trace=5000)
        outcome = world.run()
        assert not outcome.violation
        rows = [row.endpoint for row in world.hub.db.endpoints.values()]
        named = [world.modules[r.module, r.version].behaviour for e in rows for r in (*e.routes, *e.shadow)]
        bad += sum(one in BAD for one in named)
        untrusted += sum(one in UNTRUSTED for one in named)
        for device in world.devices.values():
            assert device.brain is not None
            splits += sum(len(split.routes) > 1 for split in device.splits.values())
            shadows += sum(bool(split.shadow) for split in device.splits.values())
            moved += sum(
                record.good for slot in device.brain.slots.values() if slot.side for record in slot.records.values()
            )
        failed += sum("failed run.errors" in line for line in outcome.trace)
    assert min(splits, shadows, bad, untrusted, failed, moved) > 0, (splits, shadows, bad, untrusted, failed, moved)


def test_an_agent_that_routes_to_what_is_not_proven_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_is_ready", lambda slot, record: True)
    found("before its golden test")


def test_an_agent_that_keeps_a_failing_side_version_in_its_split_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "_watched", _no_op)
    found("which has not shown its fault yet")


def test_an_agent_that_unloads_what_an_endpoint_wants_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Versions, "_goes_aside", lambda self, record: False)
    found("has not loaded")
