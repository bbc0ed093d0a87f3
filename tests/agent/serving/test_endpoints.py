"""Splits and shadows in a real data plane: sticky keys, copies that are compared and never felt, changes under load."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.ports import PartCounters
from skerry_agent.serving import compare
from skerry_agent.serving.counters import merge
from skerry_modules.manifest import Golden, Manifest
from skerry_modules.messages import Agreement, Route
from skerry_modules.tensors import TensorSpec

from .conftest import Start
from .harness import Running
from .models import Module, linear_module, python_module
from .test_faults import settled

ADD = "def run(inputs):\n    return {{'y': inputs['x'].sum(axis=-1) + {add}}}\n"
CRASH = """
import ctypes
count = 0
def run(inputs):
    global count
    count += 1
    if count % {every} == 0:
        ctypes.string_at(0)
    return {{'y': inputs['x'].sum(axis=-1) + {add}}}
"""


def adder(folder: Path, version: int, script: str = ADD, **more: Any) -> Module:
    """Answers the sum of its four inputs and 1000 times its version."""
    text = script.format(add=1000 * version, **more)
    return python_module(folder / f"v{version}", text, name="adder", version=version)


def split(plane: Running, *live: tuple[Module, float], shadow: tuple[Module, ...] = (), endpoint: str = "e") -> None:
    def routes(parts: tuple[tuple[Module, float], ...]) -> tuple[tuple[Route, ...], tuple[str, ...]]:
        made = tuple(Route(module=m.manifest.name, version=m.version, percent=percent) for m, percent in parts)
        return made, tuple(module.digest for module, _ in parts)

    copies = tuple((module, 100.0) for module in shadow)
    plane.do(lambda: plane.plane.set_routes(endpoint, *routes(live), *routes(copies)))


def parts_of(plane: Running, module: Module) -> dict[tuple[str, str], PartCounters]:
    taken = plane.do(lambda: plane.plane.take_counters(module.digest))
    return {(part.endpoint, part.role): part for part in taken.parts}


# -- comparing

SPEC = TensorSpec(name="p", datatype="FP32", shape=(-1, 3))
MANIFEST = Manifest(
    format=1,
    name="m",
    engine="onnx",
    model="m",
    inputs=(SPEC,),
    outputs=(SPEC,),
    golden=Golden(file="g", absolute=0.1, relative=0.0),
)


@given(st.lists(st.tuples(*[st.floats(-5, 5, width=32)] * 3), min_size=1, max_size=8))
def test_an_output_agrees_with_itself(rows: list[tuple[float, ...]]) -> None:
    array = np.array(rows, "f4")
    found = compare.compare(MANIFEST, {"p": array}, {"p": array.copy()})
    assert found == Agreement(rows=len(rows), agreed=len(rows), within=len(rows), worst=0.0)


def test_rows_are_counted_by_their_largest_score_and_by_tolerance() -> None:
    live = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0.5, 0.45, 0]], "f4")
    shadow = np.array([[1, 0, 0], [0.95, 0, 0], [0, 1, 0], [0.45, 0.5, 0]], "f4")
    found = compare.compare(MANIFEST, {"p": live}, {"p": shadow})
    assert (found.rows, found.agreed, found.within, found.worst) == (4, 2, 3, 1.0)


def test_what_is_missing_or_of_another_shape_agrees_nowhere() -> None:
    live = {"p": np.ones((2, 3), "f4")}
    assert compare.compare(MANIFEST, live, {}) == Agreement(rows=2)
    assert compare.compare(MANIFEST, live, {"p": np.ones((2, 4), "f4")}) == Agreement(rows=2)


def test_labels_and_texts_agree_where_they_are_equal() -> None:
    live = {"label": np.array([1, 2, 3]), "text": np.array([b"a", b"b", b"c"], object)}
    other = {"label": np.array([1, 2, 4]), "text": np.array([b"a", b"x", b"c"], object)}
    found = compare.compare(MANIFEST, live, other)
    assert (found.rows, found.agreed, found.within) == (3, 1, 1)


def test_agreements_add_up() -> None:
    one = Agreement(rows=1, agreed=1, within=0, worst=0.5, dropped=2, failed=1)
    assert merge(one, one) == Agreement(rows=2, agreed=2, within=0, worst=0.5, dropped=4, failed=2)
    assert merge(Agreement(), one) == one


# -- in a plane


def test_a_shadow_scores_copies_and_is_never_answered(start: Start, tmp_path: Path) -> None:
    plane = start()
    live = linear_module(tmp_path / "1", version=1)
    same = linear_module(tmp_path / "2", version=2)
    other = linear_module(tmp_path / "3", version=3, scale=-1.0)
    for module in (live, same, other):
        plane.load(module)
    split(plane, (live, 100.0), shadow=(same, other))
    rng = np.random.default_rng(3)
    for number in range(20):
        answer = plane.score("e", rng.normal(size=(2, 4)))
        assert (answer.status, answer.json["model_version"]) == (200, "1")
        if number % 2:
            binary = {
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}],
                "parameters": {"binary_data_output": True},
            }
            assert plane.ask("POST", "/v2/models/e/infer", binary).status == 200
    compared = 20 * 2 + 10
    found = {one.version: Agreement() for one in (same, other)}

    def collect() -> bool:
        for module in (same, other):
            for key, part in parts_of(plane, module).items():
                assert key == ("e", "shadow")
                assert (part.errors, part.rejected) == (0, 0)
                found[module.version] = merge(found[module.version], part.agreement)
        return all(one.rows + one.dropped >= compared - 30 and one.rows for one in found.values())

    settled(collect)
    assert found[2].rows == found[2].agreed == found[2].within
    assert found[3].agreed < found[3].rows
    assert found[3].worst > 0.1
    assert parts_of(plane, live)["e", "live"].requests == 30
    assert plane.ask("GET", "/v2/models/linear/versions/2").status == 404  # nobody may ask a shadow by its number


def test_a_key_stays_with_its_version_and_moves_only_to_the_one_that_grew(start: Start, tmp_path: Path) -> None:
    plane = start()
    one, two = adder(tmp_path, 1), adder(tmp_path, 2)
    plane.load(one)
    plane.load(two)

    def answered(key: str) -> str:
        answer = plane.score("e", [[1, 2, 3, 4]], headers={"X-Skerry-Key": key})
        assert answer.status == 200
        version: str = answer.json["model_version"]
        return version

    keys = [f"user-{number}" for number in range(60)]
    split(plane, (one, 70.0), (two, 30.0))
    before = {key: answered(key) for key in keys}
    assert {answered(key) == version for key, version in before.items()} == {True}
    assert set(before.values()) == {"1", "2"}
    split(plane, (two, 60.0), (one, 40.0))
    after = {key: answered(key) for key in keys}
    assert {(before[key], after[key]) for key in keys if before[key] != after[key]} == {("1", "2")}
    found = Counter(plane.score("e", [[1, 2, 3, 4]]).json["model_version"] for _ in range(100))
    assert min(found.values()) > 10  # without a key by chance
    assert plane.score("e", [[1, 2, 3, 4]], headers={"X-Skerry-Key": "k" * 257}).status == 400


@pytest.mark.parametrize("every", [7])
def test_splits_change_and_shadows_crash_under_load_and_nothing_fails(start: Start, tmp_path: Path, every: int) -> None:
    """Every answer is right for the version that it names, and no answer is ever a shadow's."""
    plane = start()
    one, two, three = (adder(tmp_path, version) for version in (1, 2, 3))
    bad = adder(tmp_path, 9, CRASH, every=every)
    for module in (one, two, three, bad):
        plane.load(module)
    split(plane, (one, 100.0), shadow=(bad,))
    wrong: list[Any] = []
    seen: Counter[int] = Counter()
    running = True

    def client(number: int) -> None:
        headers = {"X-Skerry-Key": f"client-{number}"} if number % 2 else {}
        while running:
            answer = plane.score("e", [[1, 2, 3, 4]], headers=headers)
            version = int(json.loads(answer.body).get("model_version", 0))
            seen[version] += 1
            if answer.status != 200 or answer.json["outputs"][0]["data"] != [10.0 + 1000 * version]:
                wrong.append(answer)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    splits = [
        ((one, 90.0), (two, 10.0)),
        ((one, 50.0), (two, 30.0), (three, 20.0)),
        ((three, 100.0),),
        ((one, 20.0), (three, 80.0)),
        ((two, 100.0),),
    ]
    for number in range(40):
        split(plane, *splits[number % len(splits)], shadow=(bad,) if number % 3 else ())
        goal = sum(seen.values()) + 20
        while sum(seen.values()) < goal:
            time.sleep(0.001)
    settled(lambda: len([exit for exit in plane.exits if exit[0] == bad.digest]) >= 3)
    running = False
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert set(seen) == {1, 2, 3}
    assert sum(seen.values()) >= 800
    assert {exit[0] for exit in plane.exits} == {bad.digest}
    assert parts_of(plane, one).keys() == {("e", "live")}


def test_a_shadow_that_cannot_keep_up_drops_copies_and_holds_up_nobody(start: Start, tmp_path: Path) -> None:
    plane = start(shadow_requests=2)
    live = adder(tmp_path, 1)
    slow = python_module(
        tmp_path / "slow",
        "import time\ndef run(i):\n    time.sleep(0.2)\n    return {'y': i['x'].sum(axis=-1)}",
        version=2,
    )
    plane.load(live)
    plane.load(slow)
    split(plane, (live, 100.0), shadow=(slow,))
    for _ in range(40):
        assert plane.score("e", [[1, 2, 3, 4]]).status == 200
    part = parts_of(plane, slow)["e", "shadow"]
    assert part.agreement.dropped >= 30
    assert parts_of(plane, live)["e", "live"].requests == 40
    plane.unload(slow)  # what is under way with it is nobody's loss
    assert plane.score("e", [[1, 2, 3, 4]]).status == 200


def test_a_shadow_that_takes_other_inputs_fails_by_itself(start: Start, tmp_path: Path) -> None:
    plane = start()
    live = adder(tmp_path, 1)
    other = python_module(tmp_path / "other", "def run(i): return {'z': i['x']}", version=2)  # gives no output y
    plane.load(live)
    plane.load(other)
    split(plane, (live, 100.0), shadow=(other,))
    found = Agreement()

    def collect() -> bool:
        nonlocal found
        assert plane.score("e", [[1, 2, 3, 4]]).status == 200
        part = parts_of(plane, other).get(("e", "shadow"))
        found = merge(found, part.agreement) if part else found
        return found.failed >= 3

    settled(collect)
    assert found.rows == 0
