"""The demo's own judge can fail: each thing that could go wrong breaks exactly the claim that is about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skerry.types import Device, ModuleReport, RolloutDetail, RolloutDevice
from skerry_simulators.demo import cast
from skerry_simulators.demo.outcome import Facts, claims
from skerry_simulators.demo.traffic import Tally, read_answer


def report(module: str, version: int, role: str = "current", phase: str = "Healthy") -> ModuleReport:
    return ModuleReport(module=module, version=version, digest="", phase=phase, role=role)


def rollout(version: int, state: str, *devices: RolloutDevice) -> RolloutDetail:
    return RolloutDetail(id=version, module="m", version=version, target="*", state=state, devices=devices)


def step(device: str, name: str, *, wave: int = 0, reason: str = "", assigned: int = 1) -> RolloutDevice:
    return RolloutDevice(device=device, wave=wave, step=name, reason=reason, assigned_at=assigned)


def device(name: str, *modules: ModuleReport) -> Device:
    return Device(id=name, profile="p", modules=modules)


def good() -> Facts:
    both = (step("a", "succeeded"), step("b", "succeeded", wave=1))
    broken = (
        step("a", "rolled-back", reason="install.golden_failed"),
        step("b", "skipped", wave=1, assigned=0),
    )
    counts = {"a": 3, "b": 3}
    tally = Tally(device="a", requests=300, answered={1: 100, 2: 200}, correct={1: 90, 2: 195})
    return Facts(
        devices=tuple(device(name, report("m", 2), report("m", 1, role="last-good")) for name in "ab"),
        module_of={"a": "m", "b": "m"},
        rollouts={
            1: (rollout(1, "succeeded", *both),),
            2: (rollout(2, "succeeded", *both),),
            3: (rollout(3, "rolled-back", *broken),),
        },
        tallies=(tally, msgspec.structs.replace(tally, device="b")),
        telemetry=counts,
        health=counts,
        samples=counts,
        golden_failures=("a",),
        parquet_files=2,
        parquet_rows=9,
    )


def failed(facts: Facts) -> list[str]:
    return [claim.name for claim in claims(facts) if not claim.ok]


def test_a_good_run_fails_no_claim() -> None:
    assert failed(good()) == []


Change = Callable[[Facts], dict[str, Any]]
V1, V2 = "version 1 is proven on every device", "version 2 is proven on every device"
V3 = "version 3 stops at the canary and is rolled back"
SERVES, DROPPED = "version 2 serves everywhere", "no request is dropped"
BETTER = "version 2 is the better one, on live digits"


def third(facts: Facts, state: str, *devices: RolloutDevice) -> dict[str, Any]:
    return {"rollouts": {**facts.rollouts, 3: (rollout(3, state, *devices),)}}


def tally(facts: Facts, **fields: Any) -> dict[str, Any]:
    return {"tallies": (facts.tallies[0], msgspec.structs.replace(facts.tallies[1], **fields))}


FAULTS: dict[str, tuple[Change, list[str]]] = {
    "a device missed version 1": (
        lambda facts: {"rollouts": {**facts.rollouts, 1: (rollout(1, "succeeded", step("a", "succeeded")),)}},
        [V1],
    ),
    "version 2 was rolled back": (
        lambda facts: {"rollouts": {**facts.rollouts, 2: (rollout(2, "rolled-back", *facts.rollouts[2][0].devices),)}},
        [V2],
    ),
    "there was no third rollout": (lambda facts: {"rollouts": {1: facts.rollouts[1], 2: facts.rollouts[2]}}, [V3]),
    "the broken version succeeded": (
        lambda facts: third(facts, "succeeded", step("a", "succeeded"), step("b", "succeeded", wave=1)),
        [V3],
    ),
    "it reached the second device": (
        lambda facts: third(
            facts,
            "rolled-back",
            step("a", "rolled-back", reason="install.golden_failed"),
            step("b", "rolled-back", wave=1, reason="install.golden_failed"),
        ),
        [V3],
    ),
    "it failed for another reason": (
        lambda facts: third(
            facts,
            "rolled-back",
            step("a", "rolled-back", reason="install.load_failed"),
            facts.rollouts[3][0].devices[1],
        ),
        [V3],
    ),
    "another device told of a golden failure": (lambda facts: {"golden_failures": ("a", "b")}, [V3]),
    "a device serves version 1": (
        lambda facts: {"devices": (facts.devices[0], device("b", report("m", 1)))},
        [SERVES],
    ),
    "a device is unhealthy": (
        lambda facts: {"devices": (facts.devices[0], device("b", report("m", 2, phase="Unhealthy")))},
        [SERVES],
    ),
    "a device serves nothing": (lambda facts: {"devices": (facts.devices[0], device("b"))}, [SERVES]),
    "one request was dropped": (lambda facts: tally(facts, failed=1, failures=["status 503"]), [DROPPED]),
    "version 2 answered nobody": (
        lambda facts: tally(facts, answered={1: 300}, correct={1: 290}),
        [DROPPED, BETTER],
    ),
    "nobody asked": (lambda facts: {"tallies": ()}, [DROPPED, BETTER]),
    "version 2 is worse": (lambda facts: tally(facts, correct={1: 99, 2: 100}), [BETTER]),
    "no telemetry of one": (lambda facts: {"telemetry": {"a": 3}}, ["telemetry from every device"]),
    "no health of one": (lambda facts: {"health": {"a": 3, "b": 0}}, ["health from every device"]),
    "no samples of one": (lambda facts: {"samples": {"b": 3}}, ["samples from every device"]),
    "no Parquet": (lambda facts: {"parquet_files": 0}, ["samples are written as Parquet"]),
    "empty Parquet": (lambda facts: {"parquet_rows": 0}, ["samples are written as Parquet"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_breaks_its_claim(fault: str) -> None:
    change, broken = FAULTS[fault]
    facts = good()
    assert failed(msgspec.structs.replace(facts, **change(facts))) == broken


def test_only_ten_probabilities_are_an_answer() -> None:
    body = b'{"model_version":"2","outputs":[{"name":"probabilities","data":[0,0,0,1,0,0,0,0,0,0]}]}'
    assert read_answer(body) == (2, 3)
    for wrong in (b"", b"{}", b"[]", body.replace(b"0,0,0,1", b"1"), body.replace(b"probabilities", b"other")):
        with pytest.raises((ValueError, LookupError, TypeError)):
            read_answer(wrong)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise ImportError('no board support')", "cannot be imported here: ImportError: no board support"),
        ("import os; os._exit(3)", "cannot be imported here: it crashed"),
    ],
)
def test_an_engine_that_cannot_be_imported_is_left_out_and_says_why(
    source: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynq.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(cast, "find_spec", lambda name: object())
    cast._fault.cache_clear()
    able, left_out = cast.cast()
    cast._fault.cache_clear()
    assert {"gate-1", "gate-2"} <= {player.device for player in able}
    assert "board-1" not in {player.device for player in able}
    assert any(line.startswith(f"board-1 is left out: the package pynq {why}") for line in left_out)
