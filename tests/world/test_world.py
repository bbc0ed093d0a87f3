"""Thousands of worlds: every rule of ``skerry_simulators.world.truth`` holds in each, whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from skerry_agent.rules.fetch import Fetcher
from skerry_hub.rules.rollout import RolloutState
from skerry_simulators.world.faults import CALM, Faults
from skerry_simulators.world.modules import BAD, Behaviour
from skerry_simulators.world.world import World

SEEDS = 2000
BLOCK = 250


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_rule_holds_in_every_world(first: int) -> None:
    for seed in range(first, first + BLOCK):
        outcome = World(seed).run()
        assert not outcome.violation, (
            f"seed {seed}: {outcome.violation}; see `skerry-sim world --seed {seed} --trace`\n"
            + "\n".join(outcome.trace[-60:])
        )


def test_the_same_seed_is_the_same_world() -> None:
    first, second = World(11).run(), World(11).run()
    assert first == second
    assert World(12).run().digest != first.digest


DIGESTS = """
import sys
from skerry_simulators.world.world import World
for seed in map(int, sys.argv[1:]):
    print(seed, World(seed).run().digest)
"""


def test_a_seed_is_the_same_world_in_every_process() -> None:
    """Keys, hashes of strings and what ran before in the process: none of it shows."""
    seeds = [str(seed) for seed in range(20, 50)]
    told = []
    for hashing, order in (("1", seeds), ("2", seeds[::-1])):
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS, *order],
            env=os.environ | {"PYTHONHASHSEED": hashing},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        told.append(sorted(done.stdout.split("\n")))
    assert len(told[0]) == 31
    assert told[0] == told[1]


def test_a_calm_world_ends_with_every_good_rollout_done() -> None:
    worlds = [World(seed, faults=CALM) for seed in range(30)]
    for world in worlds:
        assert not world.run().violation
    ends = {
        (world.modules[rollout.module, rollout.version].behaviour in BAD, str(rollout.state))
        for world in worlds
        for rollout in world.hub.db.rollouts.values()
    }
    assert (False, "succeeded") in ends
    assert (True, "succeeded") not in ends
    assert any(bad for bad, _ in ends), "no bad version was rolled out: the worlds are too kind"


def failed_good_rollouts(world: World) -> list[str]:
    """Good versions that did not get through though nobody aborted them."""
    return [
        f"seed {world.seed}, rollout {rollout.id}: {rollout.state}, {[str(one.step) for one in rollout.devices]}"
        for rollout in world.hub.db.rollouts.values()
        if world.modules[rollout.module, rollout.version].behaviour not in BAD
        and rollout.state not in (RolloutState.SUCCEEDED, RolloutState.ABORTED)
    ]


BAD_LINKS = Faults(chunk_s=6.0, partition_every_s=30.0, drop=0.05, duplicate=0.05, broker_loss_every_s=200.0)


def test_bad_links_alone_never_fail_a_good_version() -> None:
    for seed in range(40):
        world = World(seed, faults=BAD_LINKS)
        assert not world.run().violation
        assert not failed_good_rollouts(world)


def test_a_power_cut_at_any_moment_alone_harms_nothing() -> None:
    """Before and after each effect of two stories, on every device; the stories differ by what comes before."""
    for seed, step in ((2, 3), (4, 5)):
        moment, reached = 1, True
        while reached:
            world = World(seed, faults=Faults(crash_moment=moment))
            outcome = world.run()
            assert not outcome.violation, f"seed {seed}, moment {moment}: {outcome.violation}"
            assert not failed_good_rollouts(world)
            reached = any(device.moments >= moment for device in world.devices.values())
            moment += step


def test_an_agent_that_does_not_ask_again_after_a_reconnect_fails_good_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fetcher, "connected", lambda self, now: self._reception.up(now) or [])
    worlds = [World(seed, faults=BAD_LINKS) for seed in range(40)]
    assert any(world.run().violation or failed_good_rollouts(world) for world in worlds)


def test_the_worlds_meet_every_kind_of_module_and_of_fault() -> None:
    behaviours: set[Behaviour] = set()
    traces: list[str] = []
    for seed in range(120):
        world = World(seed, trace=5000)
        traces += world.run().trace
        behaviours |= {module.behaviour for module in world.modules.values()}
    assert behaviours == set(Behaviour)
    told = "\n".join(traces)
    for sign in (
        "loses power",
        "is cut off",
        "the broker dies",
        "has a full disk",
        "loses the object",
        "failed install.object_gone",
        "hub  dies",
        "package.digest_mismatch",
        "resource.no_space",
        "install.superseded",
        "rollback install.soak_failed",
        "unschedulable unschedulable.memory",
        "run.crash_loop",
    ):
        assert sign in told, f"no world among 120 met: {sign}"


def test_what_the_hub_lost_is_never_waited_for_in_vain() -> None:
    """With nothing else going wrong, a version whose object is gone fails by the hub's word, not by silence."""
    told = ""
    for seed in range(30):
        outcome = World(seed, faults=Faults(object_loss_every_s=60.0), trace=5000).run()
        assert not outcome.violation
        told += "\n".join(outcome.trace)
    assert "failed install.object_gone" in told
    assert "install.download_timeout" not in told
