"""Counters into traffic for the soak and windows for the hub: each request is told once to each."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.ports import VersionCounters
from skerry_agent.rules.effects import Traffic
from skerry_agent.telemetry import Telemeter
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Distribution, Telemetry
from skerry_modules.tensors import TensorSpec

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
MANIFEST = Manifest(format=1, name="m", engine="python", model="main.py", inputs=(SPEC,), outputs=(SPEC,))


class Plane:
    """The counters' part of the port."""

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.outputs: dict[str, Distribution] = {}
        self.steps: dict[str, Distribution] = {}

    def traffic(self, _digest: str) -> tuple[int, int]:
        return self.requests, self.errors

    def take_counters(self, _digest: str) -> VersionCounters:
        taken = VersionCounters(
            self.requests, self.errors, 0, Distribution(), {}, outputs=self.outputs, steps=self.steps
        )
        self.requests = self.errors = 0
        self.outputs, self.steps = {}, {}
        return taken


def make() -> tuple[Plane, Telemeter, list[Telemetry], list[Traffic]]:
    plane, windows, traffic = Plane(), list[Telemetry](), list[Traffic]()
    meter = Telemeter(plane, windows.append, traffic.append, traffic_s=1.0, telemetry_s=10.0)  # type: ignore[arg-type]
    return plane, meter, windows, traffic


@given(st.lists(st.one_of(st.tuples(st.integers(0, 9), st.integers(0, 9)), st.sampled_from(["look", "flush"]))))
def test_the_brain_and_the_hub_hear_of_each_request_once(steps: list[object]) -> None:
    plane, meter, windows, traffic = make()
    meter.loaded("d", "m", 3, MANIFEST)
    meter.routed("front", ("d",))
    total = [0, 0]
    for step in steps:
        if isinstance(step, tuple):
            plane.requests += step[0]
            plane.errors += step[1]
            total = [total[0] + step[0], total[1] + step[1]]
        elif step == "flush":
            meter.flush()
        else:
            meter._look("d", meter._versions["d"])
    meter.unloaded("d")
    assert [sum(one.requests for one in traffic), sum(one.errors for one in traffic)] == total
    assert [sum(one.requests for one in windows), sum(one.errors for one in windows)] == total
    assert all((one.module, one.version, one.endpoint) == ("m", 3, "front") for one in windows)
    assert all(one.requests or one.errors for one in windows)
    assert all(after.start >= before.end for before, after in pairwise(windows))


def test_the_golden_tests_own_requests_are_nobodys_traffic() -> None:
    plane, meter, windows, traffic = make()
    plane.requests = 32
    meter.loaded("d", "m", 1, MANIFEST)
    meter.flush()
    assert not windows
    assert not traffic


def test_what_a_worker_tells_after_the_window_closed_is_in_the_next() -> None:
    plane, meter, windows, _ = make()
    meter.loaded("d", "m", 1, MANIFEST)
    plane.requests = 3
    meter.flush()
    seen = Distribution(counts=(0, 3))
    plane.outputs, plane.steps = {"y": seen}, {"scale": seen}
    meter.flush()
    meter.flush()
    assert [(one.requests, one.outputs, one.steps) for one in windows] == [
        (3, {}, {}),
        (0, {"y": seen}, {"scale": seen}),
    ]


def test_an_endpoint_that_moves_on_leaves_the_version_behind() -> None:
    _, meter, _, _ = make()
    meter.loaded("a", "m", 1, MANIFEST)
    meter.loaded("b", "m", 2, MANIFEST)
    assert meter.specs_of("m") is None
    meter.routed("m", ("a",))
    assert meter.specs_of("m") == (SPEC,)
    meter.routed("m", ("b",))
    assert [one["endpoint"] for one in meter.names()] == ["", "m"]
    meter.routed("m", ())
    assert meter.specs_of("m") is None
