"""A pipeline's whole life on a real daemon: delivered, proven over all its steps, served, told of, refused."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.shell.daemon import Daemon
from agent.shell.hub import FakeHub
from examples.parts import built

pytestmark = pytest.mark.mosquitto

NAME = "digits-ensemble"


def test_an_ensemble_is_proven_serves_and_stays_when_its_successors_fail(
    hub: FakeHub, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    agent = daemon()
    folder, _ = built(NAME)
    hub.desire(hub.pack(folder).wanted(1))
    hub.wait_phase(1, "Healthy")
    heldout = np.load(folder / "heldout.npz")
    rows, labels = heldout["input.pixels"][:50], heldout["label"][:50]

    def right() -> float:
        tensor = {"name": "pixels", "datatype": "FP32", "shape": [50, 64], "data": rows.ravel().tolist()}
        url = f"{agent.status()['scoring']}/v2/models/{NAME}/infer"
        request = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode())
        with urllib.request.urlopen(request, timeout=10) as response:
            (output,) = json.load(response)["outputs"]
        return float((np.array(output["data"]).reshape(50, 10).argmax(axis=1) == labels).mean())

    assert right() > 0.9
    hub.wait(lambda: any(body.steps for body in hub.bodies("telemetry")), "telemetry of the steps")
    told = next(body for body in hub.bodies("telemetry") if body.steps)
    assert set(told.steps) == {"scale", "network", "forest", "average"}
    assert not any(name.startswith(("ink", "scale")) for name in (*told.inputs, *told.outputs))

    elsewhere, _ = built(NAME, engine="openvino")
    hub.desire(hub.pack(elsewhere).wanted(2))
    refused = hub.wait_phase(2, "Unschedulable")
    assert refused.reason == "unschedulable.engine"
    assert "step 'network' needs the engine openvino" in refused.message
    assert right() > 0.9

    wrong = shutil.copytree(folder, tmp_path / "wrong")
    (wrong / "scale.py").write_text("def run(inputs):\n    return {'ink': 16 - inputs['pixels']}\n")
    hub.desire(hub.pack(wrong).wanted(3))
    failed = hub.wait_phase(3, "Failed")
    assert failed.reason == "install.golden_failed"

    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "scale.py").write_text("def run(inputs):\n    raise KeyError('ink')\n")
    hub.desire(hub.pack(broken).wanted(4))
    failed = hub.wait_phase(4, "Failed")
    assert "step 'scale': run() raised KeyError" in failed.message
    assert right() > 0.9
