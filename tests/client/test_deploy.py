"""From a model file to a device that serves it: the one line, with a real hub, broker, agent and engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

import skerry
from skerry.client import Client
from skerry_agent import control
from support import processes

from .conftest import Run, make_model

DEVICE = "lab-1"


@pytest.fixture(scope="module")
def agent(hub_url: str, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real agent, added and configured by the command line; its scoring address."""
    folder = tmp_path_factory.mktemp("a")
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "SKERRY_URL": hub_url}
    command = [
        sys.executable,
        "-m",
        "skerry.cli.app",
        "devices",
        "add",
        DEVICE,
        "-p",
        "generic-x86_64",
        "-t",
        "site=lab",
    ]
    subprocess.run([*command, "-o", str(folder / "agent.toml")], env=environment, check=True, capture_output=True)
    config = tomlkit.parse((folder / "agent.toml").read_text())
    config["state"]["folder"] = str(folder / "s")
    config["serving"]["http"] = "127.0.0.1:0"
    config["reporting"] = {"telemetry_s": 1.0, "health_s": 1.0, "traffic_s": 0.2}
    (folder / "agent.toml").write_text(tomlkit.dumps(config))
    with (folder / "agent.log").open("wb") as log:
        run = [sys.executable, "-m", "skerry_agent.cli", "run", "--config", str(folder / "agent.toml")]
        process = subprocess.Popen(run, stdout=log, stderr=log)
    try:
        with Client(hub_url) as client:
            processes.wait_until(lambda: client.device(DEVICE).online, what="the agent to connect", seconds=60)
        yield control.ask(folder / "s", "status")["scoring"]
    finally:
        processes.stop(process)


def score(address: str, model: str, rows: list[list[float]]) -> dict[str, object]:
    import httpx

    data = [value for row in rows for value in row]
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), 4], "data": data}]}
    answer = httpx.post(f"{address}/v2/models/{model}/infer", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.timeout(180)
def test_one_line_from_a_model_to_a_device(hub: Client, agent: str, tmp_path: Path, run: Run) -> None:
    """Deployed, served, deployed again (nothing new), refused by the golden test, and rolled back by itself."""
    model = make_model(tmp_path / "line.onnx", seed=1)
    done = run("deploy", model, "--to", "site=lab", "--soak", "0.5", "-m", "first", "--json")
    assert done.json["rollout"]["state"] == "succeeded"
    assert done.json["existed"] is False
    assert score(agent, "line", [[1, 2, 3, 4]])["model_version"] == "1"

    again = run("deploy", model, "--to", "site=lab", "--soak", "0.5")
    assert "this content is registered already: line:1" in again.err
    assert "lab-1 succeeded" in again.err

    # Another model under the first one's golden file: every device must refuse it.
    run("init", "second", "--from", make_model(tmp_path / "other.onnx", seed=2), "--name", "line")
    run("init", "first", "--from", model, "--name", "line")
    golden = Path("first/golden.npz").read_bytes()
    Path("second/golden.npz").write_bytes(golden)
    said = run("deploy", "second", "--to", "site=lab", "--soak", "0.5", code=1)
    assert "install.golden_failed" in said.err
    assert "rolled-back" in said.err
    assert score(agent, "line", [[1, 2, 3, 4]])["model_version"] == "1"
    watched = run("rollouts", "watch", str(hub.rollouts(limit=1)[0].id), "--json", code=1)
    assert watched.json["devices"][0]["reason"] == "install.golden_failed"

    serving = run("devices", "show", DEVICE, "--json").json["device"]["modules"]
    current = {one["module"]: (one["version"], one["phase"]) for one in serving if one["role"] == "current"}
    assert current["line"] == (1, "Healthy")
    shown = run("devices", "show", DEVICE).out
    (told,) = [line for line in shown.splitlines() if "install.golden_failed" in line]
    assert "line:2" in told, "which version it was"
    (why,) = [line for line in run("rollouts", "show", watched.json["id"]).out.splitlines() if "lab-1" in line]
    assert why.endswith(watched.json["devices"][0]["message"]), "piped: one line, however long"
    assert "line:1" in run("devices", "list").out
    assert "install.golden_failed" in {event["code"] for event in run("events", "--device", DEVICE, "--json").json}


@pytest.mark.timeout(120)
def test_the_same_line_in_python(hub: Client, agent: str, tmp_path: Path) -> None:
    steps: list[str] = []
    states: list[str] = []
    done = skerry.deploy(
        make_model(tmp_path / "python-line.onnx", seed=3),
        "site=lab",
        client=hub,
        tags={"stage": "try"},
        plan=skerry.Plan(soak_s=0.2),
        say=steps.append,
        on_change=lambda rollout: states.append(rollout.state),
    )
    assert done.succeeded
    assert (done.version.name, done.version.version, done.version.tags) == ("python-line", 1, {"stage": "try"})
    assert states[0] == "running"
    assert states[-1] == "succeeded"
    assert any("packed python-line" in step for step in steps)
    assert len(score(agent, "python-line", [[0, 0, 0, 0]])["outputs"][0]["data"]) == 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "site=moon"], "no device has these tags; see `skerry devices list` [rollout.empty_target]"),
        (["--to", "moon"], "'moon' has no '='; write TagName=TagValue, comma-separated, or * for all [query.invalid]"),
        (["--to", "site=lab", "--name", "No Name"], "cannot name a module 'No Name': use 1 to 63 of a-z"),
    ],
)
def test_a_slip_of_the_pen_registers_nothing(
    hub: Client, agent: str, tmp_path: Path, run: Run, options: list[str], said: str
) -> None:
    assert said in run("deploy", make_model(tmp_path / "lonely.onnx", seed=4), *options, code=2).err
    assert "lonely" not in {model.name for model in hub.models()}


def test_what_is_not_there_is_said_before_anything_is_sent(hub: Client, run: Run, tmp_path: Path) -> None:
    assert "there is no such file or folder" in run("deploy", "no.onnx", "--to", "*", code=2).err
    (tmp_path / "model.zip").write_bytes(b"PK")
    assert "or a package (.skerry)" in run("deploy", tmp_path / "model.zip", "--to", "*", code=2).err


def test_without_the_runtime_nothing_is_deployed(
    hub: Client, agent: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = run("deploy", make_model(tmp_path / "unproven.onnx", seed=5), "--to", "*", code=4)
    assert "pip install 'skerry[onnx]'" in said.err
    assert "unproven" not in {model.name for model in hub.models()}
