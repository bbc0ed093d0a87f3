"""Once against the real package index, with a package that has a part in C: a numpy other than the agent's own."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from skerry import environments as client

from .conftest import MakeModule
from .test_device import Device, score, serve

WANTED = "2.1.3" if numpy.__version__ != "2.1.3" else "2.2.6"
SCRIPT = """
import numpy as np

def run(inputs):
    major, minor, patch = (float(part) for part in np.__version__.split("."))
    return {"y": np.full(len(inputs["x"]), 10000 * major + 100 * minor + patch)}
"""


@pytest.mark.index
@pytest.mark.timeout(300)
def test_a_module_has_the_numpy_that_it_names_whichever_the_agent_has(
    make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "cache"))
    folder = make_module("counted", requirements=(f"numpy=={WANTED}",), script=SCRIPT)
    packed = client.pack(folder, tmp_path / "a.skerry")
    device = Device(tmp_path / "device")
    digest, index, told = device.install(packed.path)
    lock = index.facts.environment
    assert lock is not None
    assert told["environment_bytes"] <= lock.targets[0].installed  # what the disk was asked for beforehand
    major, minor, patch = (int(part) for part in WANTED.split("."))
    found = serve(device, (digest, index), then=lambda plane: score(plane, "counted"))
    assert found == [10000 * major + 100 * minor + patch]
