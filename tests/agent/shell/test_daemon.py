"""The real daemon as a process of its own, against a hub over a real Mosquitto: the whole way of a module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.shell.daemon import Daemon, module_folder
from agent.shell.hub import FakeHub

pytestmark = pytest.mark.mosquitto


def test_a_signed_module_from_desired_to_serving_telemetry_and_samples(
    hub: FakeHub, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    agent = daemon()
    hub.desire(hub.pack(module_folder(tmp_path / "m1")).wanted(1))
    state = hub.wait_phase(1, "Healthy")
    assert (state.role, state.step) == ("current", "serve")
    assert agent.scores(2.0)
    hub.wait(lambda: sum(one.requests for one in hub.bodies("telemetry")) >= 1, "telemetry")
    hub.wait(lambda: hub.bodies("sample"), "a sample")
    hub.wait(lambda: hub.bodies("health"), "health")
    sample = hub.bodies("sample")[0]
    assert (sample.module, sample.version, sample.digest) == ("double", 1, state.digest)
    hub.wait(lambda: agent.status()["spool"]["records"] <= 2, "the spool to drain")
    assert hub.gaps == 0
    assert agent.stop() == 0
    hub.wait(lambda: hub.presence is not None and not hub.presence.online, "the farewell")
