"""An endpoint from the command line to the device: real hub, agent and broker, and requests that go on meanwhile."""

from __future__ import annotations

import functools
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from skerry.types import EndpointState
from support.processes import wait_until
from support.site import Site

pytestmark = pytest.mark.mosquitto

DEVICE = "dev-1"

SCRIPT = """
count = 0

def run(inputs):
    global count
    count += 1
    if {every} and count > 20 and count % {every} == 0:
        raise ValueError("as it does")
    return {{"y": inputs["x"] * 2 + {add}}}
"""
MANIFEST = """
format = 1
name = "double"
engine = "python"
model = "main.py"
release = "{name}"
resources = {{ memory_mb = 100 }}
golden = {{ file = "golden.npz" }}
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]
"""


class Front(Site):
    """One device whose module doubles, and the endpoint ``front`` on it."""

    AGENT = ("reporting.telemetry_s=1",)

    def register(self, name: str, *, add: float = 0.0, every: int = 0) -> int:
        folder = self.folder / name
        folder.mkdir()
        (folder / "main.py").write_text(SCRIPT.format(add=add, every=every))
        (folder / "module.toml").write_text(MANIFEST.format(name=name))
        rows = np.arange(8, dtype=np.float32).reshape(4, 2)
        np.savez(folder / "golden.npz", **{"input.x": rows, "output.y": rows * 2 + add})
        return self.publish(folder)

    def told(self, *arguments: str, code: int = 0) -> str:
        """What the command line says, on both its streams."""
        ended = self.skerry(*arguments, code=code)
        return ended.stdout + ended.stderr

    @functools.cached_property
    def address(self) -> str:
        return f"{self.scoring(DEVICE)}/v2/models/front/infer"

    def ask(self, key: str = "") -> tuple[int, str]:
        """(status, version that answered)."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        headers = {"X-Skerry-Key": key} if key else {}
        request = urllib.request.Request(self.address, json.dumps({"inputs": [tensor]}).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)["model_version"]
        except urllib.error.HTTPError as refused:
            return refused.code, ""

    def traffic(self, window_s: int = 300) -> dict[tuple[int, str], Any]:
        found: EndpointState = self.client.endpoint("front", window_s=window_s)
        return {(one.version, one.role): one for one in found.traffic}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front(tmp_path_factory.mktemp("s")).running(DEVICE) as made:
        yield made


class Clients:
    """Requests, one after the other, until it is left."""

    def __init__(self, site: Front) -> None:
        self._site = site
        self.answers: list[tuple[int, str]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self.answers.append(self._site.ask())
            time.sleep(0.002)

    def versions(self, last: int) -> set[str]:
        return {version for _, version in self.answers[-last:]} if len(self.answers) >= last else set()


def test_a_split_a_shadow_a_version_that_errs_and_the_way_back(site: Front) -> None:
    one, two, three = (site.register(name, add=add) for name, add in (("one", 0), ("two", 0), ("three", 0.5)))
    bad = site.register("bad", every=3)
    assert DEVICE not in site.told("endpoints", "set", "front", "--split", f"double:{one}", "--to", "site=lab")
    wait_until(lambda: site.ask()[0] == 200, what="the endpoint to answer", seconds=60)

    with Clients(site) as clients:
        said = site.told(
            "endpoints", "set", "front", "--split", f"double:{one}=60,double:{two}=40", "--shadow", f"double:{three}"
        )
        assert "on 1 device" in said
        wait_until(lambda: clients.versions(60) == {str(one), str(two)}, what="the split", seconds=60)
        wait_until(lambda: (three, "shadow") in site.traffic(), what="the shadow to be compared", seconds=60)
        found = site.traffic()[three, "shadow"].agreement
        assert found.rows > 0
        assert found.agreed == found.rows  # the largest of two is at the same place
        assert (found.within, found.worst) == (0, 0.5)
        kept = {site.ask("customer-7")[1] for _ in range(20)}
        assert len(kept) == 1
        shown = site.told("endpoints", "show", "front")
        assert "100.00 % of" in shown
        assert "0.00 % within" in shown
        assert "1 of 1" in shown

        site.told("endpoints", "set", "front", "--split", f"double:{one}=50,double:{bad}=50", "--reason", "try")
        wait_until(lambda: _told(site, bad), what="the hub to be told", seconds=60)
        wait_until(lambda: clients.versions(60) == {str(one)}, what="the bad one to be out", seconds=60)
        assert any(event.code == "run.errors" for event in site.client.events(device=DEVICE))
        out = sum(answer[0] != 200 for answer in clients.answers)  # those that the bad version failed on before

        site.told("endpoints", "back", "front")
        wait_until(lambda: clients.versions(60) == {str(one), str(two)}, what="the way back", seconds=60)
    by_status = Counter(status for status, _ in clients.answers)
    assert set(by_status) == {200, 500}
    assert by_status[500] == out  # none since
    assert "in use" in site.told("models", "delete", f"double:{two}", "--yes", code=2)
    site.told("endpoints", "delete", "front", "--yes")
    wait_until(lambda: site.ask()[0] in (404, 503), what="the endpoint to go")
    wait_until(lambda: not site.client.device_modules(DEVICE).reported, what="its versions to go", seconds=60)


def _told(site: Front, version: int) -> bool:
    reported = site.client.device_modules(DEVICE).reported
    return any((one.version, one.phase, one.reason) == (version, "Failed", "run.errors") for one in reported)
