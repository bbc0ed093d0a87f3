"""A module is measured on a device: the real hub, the real agent, a real broker, and requests that go on meanwhile."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry.types import Plan
from skerry_modules.errors import SkerryError
from support.processes import wait_until
from support.site import Site

pytestmark = pytest.mark.mosquitto

DEVICE = "dev-1"

SCRIPT = """
import time
held = bytearray({held})

def run(inputs):
    time.sleep({sleep})
    return {{"y": inputs["x"] * 2}}
"""
MANIFEST = """
format = 1
name = "double"
engine = "python"
model = "main.py"
resources = { memory_mb = 300 }
golden = { file = "golden.npz" }
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]
"""


def module_folder(folder: Path, *, sleep: float, held: int) -> Path:
    folder.mkdir()
    (folder / "main.py").write_text(SCRIPT.format(sleep=sleep, held=held))
    (folder / "module.toml").write_text(MANIFEST)
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.savez(folder / "golden.npz", **{"input.x": rows, "output.y": rows * 2})
    return folder


class World(Site):
    """One device that serves ``double``."""

    def register(self, name: str, **script: Any) -> int:
        return self.publish(module_folder(self.folder / name, **script))

    def roll_out(self, version: int) -> None:
        self.client.start_rollout("double", version, "*", Plan(soak_s=0.1))
        wait_until(lambda: self._serves(version), what=f"version {version} to serve", seconds=60)

    def _serves(self, version: int) -> bool:
        reported = self.client.device_modules(DEVICE).reported
        return any((one.version, one.role, one.phase) == (version, "current", "Healthy") for one in reported)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("w")).running(DEVICE) as made:
        version = made.register("one", sleep=0.002, held=40_000_000)
        made.roll_out(version)
        yield made


class Traffic:
    """Requests to the device, one after the other, until it is left."""

    def __init__(self, world: World) -> None:
        self._url = f"{world.scoring(DEVICE)}/v2/models/double/infer"
        self.statuses: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        wait_until(self._serves, what="the device to serve again")  # a test before may have restarted it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> int:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        body = json.dumps({"inputs": [tensor]}).encode()
        try:
            with urllib.request.urlopen(self._url, body, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            return refused.code

    def _serves(self) -> bool:
        return self._ask() == 200

    def _run(self) -> None:
        while not self._over.is_set():
            self.statuses.append(self._ask())
            time.sleep(0.002)


def test_a_device_measures_what_it_serves_while_it_serves(world: World) -> None:
    with Traffic(world) as traffic:
        before = len(traffic.statuses)
        said = world.skerry(
            "modules", "profile", "double:1", "--device", DEVICE, "--batches", "1,4", "--seconds", "0.4", "--json"
        )
        during = len(traffic.statuses) - before
    found = json.loads(said.stdout)
    assert set(traffic.statuses) == {200}
    assert during > 20, "what serves goes on"
    assert [one["setting"]["batch"] for one in found["measurements"]] == [1, 4]
    assert all(one["p50_us"] >= 2000 for one in found["measurements"]), "it sleeps for 2 ms"
    assert (found["device"], found["profile"], found["niceness"]) == (DEVICE, "generic-x86_64", 19)
    assert found["memory_mb"] < 300, "less than it declares"
    assert found["memory_mb"] > 40, "and what it holds"
    assert found["recommendation"]["confirmed"]
    assert {one["golden"] for one in found["measurements"]} == {"passed"}
    stored = {one.device: one for one in world.client.profiles_of("double", 1)}
    assert stored[DEVICE].memory_mb == found["memory_mb"]
    listed = world.skerry("modules", "profiles", "double:1")
    assert f"{found['memory_mb']} MB" in listed.stdout
    assert world.client.device(DEVICE).online
    assert not (world.state(DEVICE) / "profiling").exists(), "what was compiled meanwhile is gone"
    events = [event.code for event in world.client.events(device=DEVICE)]
    assert "command.done" in events


def test_what_is_not_installed_is_refused_with_what_to_do(world: World) -> None:
    version = world.register("two", sleep=0.0, held=0)
    said = world.skerry("modules", "profile", f"double:{version}", "--device", DEVICE, code=4)
    assert f"cannot profile double:{version} on dev-1: it is not installed there; roll it out" in said.stderr
    assert "[measure.not_installed]" in said.stderr


def test_an_agent_that_is_killed_while_it_measures_says_so_when_it_is_back(world: World) -> None:
    told = world.client.measure("double", 1, DEVICE, seconds=20.0, deadline_s=200.0)
    wait_until(lambda: world.client.command(told.id).state == "running", what="the device to begin")
    with pytest.raises(SkerryError) as caught:
        world.client.measure("double", 1, DEVICE)
    assert caught.value.code == "command.busy"
    world.kill(DEVICE)
    wait_until(lambda: not world.client.device(DEVICE).online, what="the last will")
    world.start_agent(DEVICE)
    wait_until(lambda: world.client.command(told.id).ended, what="the end")
    ended = world.client.command(told.id)
    assert (ended.state, ended.code) == ("failed", "command.interrupted")


def test_a_measurement_past_its_deadline_ends_on_the_device(world: World) -> None:
    told = world.client.measure("double", 1, DEVICE, seconds=30.0, deadline_s=3.0)
    wait_until(lambda: world.client.command(told.id).ended, what="the end")
    ended = world.client.command(told.id)
    assert (ended.state, ended.code) == ("failed", "command.deadline")
    assert "allow more time" in ended.message


def test_here_a_version_is_measured_and_kept_without_a_device(world: World) -> None:
    said = world.skerry(
        "modules", "profile", "double:1", "--local", "--batches", "1", "--seconds", "0.2", "--threads", "1", "--json"
    )
    assert json.loads(said.stdout)["version"] == 1
    kept = {one.device: one for one in world.client.profiles_of("double", 1)}
    assert kept[""].profile == ""
    assert kept[""].body.digest == world.client.version("double", 1).digest
