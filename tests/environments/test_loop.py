"""The whole way: packed and registered by the command, listed, used again by name, run by a real agent, collected."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tomlkit

from client.conftest import serving
from skerry import environments as packing
from skerry import keys
from skerry.client import Client
from skerry_agent import control
from skerry_modules import environments, package
from skerry_modules.errors import SkerryError
from support.processes import stop, wait_until

from . import wheels
from .conftest import HERE, PYTHON, MakeModule, here


@pytest.fixture
def hub(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    place = tmp_path / "hub"
    place.mkdir()
    with serving(place) as url:
        monkeypatch.setenv("SKERRY_URL", url)
        with Client(url, actor="tester") as client:
            yield client


def skerry(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "skerry.cli.app", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Agent:
    """A real agent on a device that the hub knows."""

    def __init__(self, hub: Client, folder: Path) -> None:
        self.state = folder / "state"
        document = tomlkit.parse(hub.add_device("gate-1", profile=here()).config)
        document["state"] = {"folder": str(self.state)}
        document["serving"] = {"http": "127.0.0.1:0"}
        document["reporting"] = {"traffic_s": 0.1}
        config = folder / "agent.toml"
        config.write_text(tomlkit.dumps(document))
        self.log = folder / "agent.log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "skerry_agent.cli", "run", "--config", str(config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def score(self, module: str) -> Any:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}
        try:
            url = f"{control.ask(self.state, 'status')['scoring']}/v2/models/{module}/infer"
            request = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode())
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)["outputs"][0]["data"]
        except (OSError, SkerryError):
            return None

    def built(self) -> list[str]:
        folder = self.state / "environments"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def want(hub: Client, module: str, version: int | None) -> None:
    body = {"version": version, "soak_s": 0.0} if version else None
    request = urllib.request.Request(
        f"{hub.url}/api/v1/devices/gate-1/modules/{module}",
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json"},
        method="PUT" if body else "DELETE",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def test_an_environment_goes_the_whole_way(
    hub: Client, stocked: Path, make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skerry("models", "register", make_module("first", environment='name = "greetings"'))
    (listed,) = json.loads(skerry("environments", "list", "--json"))
    assert (listed["name"], listed["last_version"]) == ("greetings", 1)
    assert listed["versions"][0]["modules"] == ["first:1"]
    assert "base_part-2.1" in skerry("environments", "show", "greetings")

    # Used by name, from the hub alone: the index is gone and nothing is cached.
    shutil.rmtree(stocked)
    stocked.mkdir()
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "another-cache"))
    skerry("models", "register", make_module("second", use="greetings:1"))
    detail = hub.environment_version("greetings", 1)
    assert detail.modules == ("first:1", "second:1")
    assert hub.environment("greetings").last_version == 1
    assert hub.version("second", 1).environment == "greetings:1"
    assert environments.key_of(detail.lock) == detail.digest

    agent = Agent(hub, tmp_path)
    try:
        want(hub, "first", 1)
        want(hub, "second", 1)
        for module in ("first", "second"):
            wait_until(lambda m=module: agent.score(m) == [30.0], seconds=60, what=f"{module}: {agent.log.read_text()}")  # type: ignore[misc]
        assert agent.built() == [detail.digest]
        want(hub, "first", None)
        wait_until(lambda: agent.score("first") is None, what="the first to be gone")
        assert agent.score("second") == [30.0]
        assert agent.built() == [detail.digest]
        want(hub, "second", None)
        wait_until(lambda: agent.built() == [], what="the environment to be collected")
    finally:
        stop(agent.process)

    # Another lock under the same name is its next version; a version in use by none stays listed and packable.
    wheels.build(stocked, "other", "1", {"other.py": ""})
    third = make_module("third", requirements=("other==1",), environment='name = "greetings"')
    skerry("models", "register", third)
    assert [one.version for one in hub.environment("greetings").versions] == [2, 1]
    hub.delete_version("first", 1)
    assert hub.environment_version("greetings", 1).modules == ("second:1",)

    forged = make_module("forged", use="greetings:1")  # it will say greetings:2, and bring the lock of greetings:1
    packing.pack(forged, tmp_path / "forged.skerry", hub=lambda: hub)
    for path in (forged / environments.LOCK_FILE, forged / "module.toml"):
        path.write_text(path.read_text().replace("greetings:1", "greetings:2"))
    signing, _ = keys.load_or_generate()
    packed = packing.pack(forged, tmp_path / "forged.skerry", signing)
    with pytest.raises(SkerryError) as caught:
        hub.register(packed.path)
    assert caught.value.code == "environment.unknown"


def test_the_hub_itself_scores_with_an_environment(hub: Client, make_module: MakeModule, tmp_path: Path) -> None:
    skerry("models", "register", make_module("first"))
    (tmp_path / "in.csv").write_text("x_0,x_1,x_2,x_3\n" + "".join(f"{n},1,2,3\n" for n in range(50)))
    upload = hub.upload_batch_input(tmp_path / "in.csv")
    job = hub.start_batch("first:1", "hub", upload=upload).id
    wait_until(lambda: hub.batch(job).ended_at, seconds=60, what="the job to end")
    ended = hub.batch(job)
    assert (ended.state, ended.scored, ended.message) == ("done", 50, "")
    hub.fetch_batch(job, tmp_path)
    scores = pq.read_table(tmp_path / f"batch-{job}.parquet")
    assert scores.column("y").to_pylist() == [3.0 * (n + 6) for n in range(50)]
    work = tmp_path / "hub" / "hub" / "batches"
    wait_until(lambda: not list(work.glob("[0-9]*")), what="what was built to go with the job")

    strange = {"x86_64": "generic-aarch64", "aarch64": "generic-x86_64"}[HERE]
    skerry("models", "register", make_module("strange", targets=[strange]))
    with pytest.raises(SkerryError, match=r"was not locked for Python .* name devices that serve it") as caught:
        hub.start_batch("strange:1", "hub", upload=upload)
    assert caught.value.code == "unschedulable.environment"


def test_what_the_hub_refuses_and_does_not_know(hub: Client, make_module: MakeModule, tmp_path: Path) -> None:
    for ask in (lambda: hub.environment("none"), lambda: hub.environment_version("none", 1)):
        with pytest.raises(SkerryError) as caught:
            ask()
        assert caught.value.code == "environment.unknown"
    with pytest.raises(SkerryError) as caught:
        packing.prepare(folder := make_module("late", use="none:3"), package.read_folder(folder), hub=lambda: hub)
    assert caught.value.code == "environment.unknown"

    # Locked for another Python than the class has: refused before anything is sent, with the reason.
    folder = make_module("old")
    text = (folder / "module.toml").read_text().replace(f"python = ['{PYTHON}']", "python = ['3.8']")
    (folder / "module.toml").write_text(
        text.replace('"greeting==1.0"', '"plain==1"').replace("greeting==1.0", "plain==1")
    )
    wheels.build(tmp_path / "index", "plain", "1", {"plain.py": ""})
    skerry("models", "register", folder)
    hub.add_device("gate-1", profile=here())
    with pytest.raises(urllib.error.HTTPError) as refused:
        want(hub, "old", 1)
    with refused.value as answer:
        problem = json.load(answer)
    assert problem["code"] == "unschedulable.environment"
    assert f"locked for Python 3.8, manylinux_2_35_{HERE}" in problem["detail"]
