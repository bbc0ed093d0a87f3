"""Environments in the worlds: shared, built over power cuts, collected; and rules about them broken on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from skerry_agent import environments as rules
from skerry_agent.rules.steps import Steps
from skerry_modules.index import Index
from skerry_simulators.world.environments import Environments
from skerry_simulators.world.faults import Faults
from skerry_simulators.world.world import World

from .test_mutations import found
from .test_world import BAD_LINKS, failed_good_rollouts


def test_the_worlds_build_share_and_collect_environments_over_power_cuts() -> None:
    told: list[str] = []
    shared = 0
    for seed in range(50):
        world = World(seed, environments=1.0, trace=5000)
        outcome = world.run()
        assert not outcome.violation, f"seed {seed}: {outcome.violation}"
        told += outcome.trace
        for device in world.devices.values():
            keys = [world.library[digest].environment for digest in device.installed]
            shared += sum(keys.count(key) > 1 for key in device.environments.built)
    text = "\n".join(told)
    assert shared
    for sign in (
        "built the environment",
        "collected the environment",
        "install.environment_failed",
        "unschedulable.environment",
    ):
        assert sign in text, f"no world among 50 met: {sign}"
    cut = [told[at - 1] for at, line in enumerate(told) if "loses power" in line and " install" in told[at - 1]]
    assert cut, "no power was cut while something was being installed"


def test_bad_links_alone_never_fail_a_good_version_with_an_environment() -> None:
    for seed in range(100, 125):
        world = World(seed, faults=BAD_LINKS, environments=1.0)
        assert not world.run().violation
        assert not failed_good_rollouts(world)


def test_a_power_cut_at_any_moment_of_building_harms_nothing() -> None:
    moment, reached = 1, True
    while reached:
        world = World(5, faults=Faults(crash_moment=moment), environments=1.0)
        outcome = world.run()
        assert not outcome.violation, f"moment {moment}: {outcome.violation}"
        assert not failed_good_rollouts(world)
        reached = any(device.moments >= moment for device in world.devices.values())
        moment += 3


# -- broken on purpose -------------------------------------------------------------------------------------------------


def test_an_agent_that_collects_what_a_version_runs_in_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "unneeded", lambda present, needed: set(present))
    found("removes the environment of")


def test_an_agent_that_never_collects_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "unneeded", lambda present, needed: set())
    found("which no installed version names")


def test_an_agent_that_collects_though_it_cannot_read_an_index_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(present: Iterable[str], needed: Mapping[str, str | None]) -> set[str]:
        return set(present) - set(needed.values())

    monkeypatch.setattr(rules, "unneeded", hasty)
    rotten = Faults(rot=1.0, power_every_s=20.0)
    worlds = (World(seed, faults=rotten, environments=1.0) for seed in range(60))
    assert any("removes the environment of" in world.run().violation for world in worlds)


def test_an_agent_that_fetches_the_wheels_of_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "objects_with", lambda self, target: self.objects())
    found("a wheel that is for other devices")


def _trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands under its name is believed without a look at its files."""
    original = Environments._begin

    def begin(self: Environments, key: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Environments, "is_whole", lambda self, module: module.environment in self.built)
            original(self, key)

    monkeypatch.setattr(Environments, "_begin", begin)


def test_a_device_that_believes_a_folder_by_its_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _trust(monkeypatch)
    found("whose environment is not whole")


def test_a_device_that_builds_under_the_final_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Environments.prepare

    def named(self: Environments) -> None:
        for key in self.begun:
            self.built.setdefault(key, {})
        original(self)

    monkeypatch.setattr(Environments, "prepare", named)
    _trust(monkeypatch)
    found("whose environment is not whole")


def test_an_agent_that_loads_without_installing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def straight(self: Steps, slot: object, record: object, live: object, now: float) -> None:
        self._load(slot, record, live, now)  # type: ignore[arg-type]

    monkeypatch.setattr(Steps, "_install", straight)
    found("whose environment is not whole")
