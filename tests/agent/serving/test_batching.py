"""Requests that wait together: joined and cut without loss, only where the device has shown that nothing changes."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.rules.dispatch import Dispatch, Ticket
from skerry_agent.serving import batching
from skerry_agent.serving.codec import Codec, Plan, Request
from skerry_modules.manifest import parse
from support.processes import wait_until

from .conftest import Start
from .harness import Answer, Running, binary_request, json_request
from .models import Module, linear_module, python_module

BATCHING = "[batching]\nmax_rows = {rows}\n"


def request(rows: int, width: int = 2, *, scalar: bool = False) -> Request:
    array = np.arange(rows * width, dtype="f4").reshape(rows, width)
    inputs: dict[str, Any] = {"x": array}
    if scalar:
        inputs["t"] = np.float32(1.0)
    return Request(Plan((), {}, (("y", True),), "", rows), inputs)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([2, 3]), st.booleans()), max_size=30), st.integers(1, 9))
def test_groups_cover_all_in_order_and_join_only_what_fits(shapes: list[tuple[int, int, bool]], limit: int) -> None:
    requests = [request(rows, width, scalar=scalar) for rows, width, scalar in shapes]
    cuts = list(batching.groups(requests, limit))
    assert [place for part in cuts for place in range(len(requests))[part]] == list(range(len(requests)))
    for part in cuts:
        group = requests[part]
        assert group
        if len(group) > 1:
            assert sum(one.plan.rows for one in group) <= limit
            assert len({batching.signature(one) for one in group}) == 1
            assert batching.signature(group[0]) is not None
    for one, next_one in itertools.pairwise(cuts):  # and none is left out that would have fitted
        both = requests[one.start : next_one.start + 1]
        kinds = {batching.signature(each) for each in both}
        assert len(kinds) > 1 or None in kinds or sum(each.plan.rows for each in both) > limit


@given(st.lists(st.integers(1, 6), min_size=1, max_size=10))
def test_what_is_joined_is_cut_apart_again(counts: list[int]) -> None:
    parts = [request(rows).inputs for rows in counts]
    apart = batching.cut(batching.join(parts), counts)
    for before, after in zip(parts, apart, strict=True):
        np.testing.assert_array_equal(before["x"], after["x"])
    assert batching.divides(batching.join(parts), sum(counts))
    assert not batching.divides({"y": np.zeros(sum(counts) + 1)}, sum(counts))
    assert not batching.divides({"y": np.zeros(())}, 1)


LINEAR = """
format = 1
name = "m"
engine = "onnx"
model = "m"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]
[[outputs]]
name = "y"
datatype = "FP32"
shape = {shape}
[[outputs]]
name = "s"
datatype = "BYTES"
shape = [-1]
"""


@given(st.integers(2, 5), st.booleans(), st.sampled_from(["y", "ys", "yz"]), st.integers(1, 3))
def test_answers_cut_from_a_batch_are_those_of_each_alone(count: int, binary: bool, wanted: str, rows: int) -> None:
    codec = Codec(parse(LINEAR.format(shape="[-1, 2]")), 1)
    plan = Plan((), {}, tuple((name, binary) for name in wanted), "", rows)
    total = rows * count
    outputs: dict[str, Any] = {"y": np.random.default_rng(1).normal(size=(total, 2)).astype("f4")}
    outputs["z"] = np.arange(total)
    outputs["s"] = np.array([b"x" * row for row in range(total)], dtype=object)
    parts = batching.cut(outputs, [rows] * count)
    got = codec.format_alike("m", plan, outputs, count)
    assert got == [codec.format("m", plan, part) for part in parts]


def dispatch(count: int) -> Dispatch:
    rules = Dispatch(window=9, window_bytes=999, queue_requests=99, queue_bytes=999, run_limit_s=1.0)
    rules.batched = True
    assert all(rules.offer(Ticket(number, None, 1, 9.0)) for number in range(count))
    return rules


@given(st.integers(1, 8), st.sets(st.integers(0, 7), max_size=3), st.integers(2, 3))
def test_only_those_that_kill_are_quarantined_after_a_batch_died(count: int, guilty: set[int], limit: int) -> None:
    guilty = {one for one in guilty if one < count}
    rules = dispatch(count)
    deaths, answered, quarantined = 0, [], []
    together = True
    while rules.send(0.0) or rules.flying:
        held = list(rules.flying.values())
        assert all(ticket.alone for ticket in held) or together
        if (together and any(ticket.number in guilty for ticket in held)) or held[0].number in guilty:
            deaths += 1
            together = False
            quarantined += [ticket.number for ticket in rules.crashed(limit)]
        else:
            assert rules.answered(held[0].number, 0.0) is held[0]
            answered.append(held[0].number)
    assert set(quarantined) == guilty
    assert sorted(answered + quarantined) == list(range(count))
    assert deaths == (1 + (limit - 1) * len(guilty) if guilty else 0)


# -- real planes


def many(plane: Running, name: str, rows: list[Any], headers: list[dict[str, str]] | None = None) -> list[Answer]:
    """All at once, each from a client of its own."""
    found: list[Answer | None] = [None] * len(rows)

    def one(place: int) -> None:
        found[place] = plane.score(name, [rows[place]])

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in found if answer is not None]


SLOW = """
import os, time
def run(inputs):
    x = inputs["x"]
    with open({log!r}, "a") as log:
        log.write(f"{{len(x)}}\\n")
    if len(x) == 1 or (x != 0).any():
        time.sleep(0.003)
    if (x[:, 0] == 666).any():
        os.kill(os.getpid(), 11)
    if (x[:, 0] == 13).any():
        raise ValueError("thirteen")
    return {{"y": x.sum(axis=1)}}
"""


def slow(folder: Path, rows: int) -> tuple[Module, Path]:
    log = folder.parent / f"{folder.name}.log"
    return python_module(folder, SLOW.format(log=str(log)), tail=BATCHING.format(rows=rows)), log


def sizes(log: Path, since: int) -> list[int]:
    return [int(line) for line in log.read_text().split()[since:]]


def test_requests_that_wait_are_scored_together_and_each_gets_its_own(start: Start, tmp_path: Path) -> None:
    plane = start()
    module, log = slow(tmp_path / "m", 4)
    plane.serve(module)
    before = len(sizes(log, 0))
    rows = [[float(k), 0.5, 0, 0] for k in range(100, 120)]
    answers = many(plane, "script", rows)
    assert [answer.json["outputs"][0]["data"] for answer in answers] == [[row[0] + 0.5] for row in rows]
    found = sizes(log, before)
    assert sum(found) == len(rows)
    assert 1 < max(found) <= 4
    assert plane.do(lambda: plane.plane.take_counters(module.digest)).requests == len(rows)


def test_one_request_that_fails_or_kills_costs_no_other(start: Start, tmp_path: Path) -> None:
    plane = start()
    module, _ = slow(tmp_path / "m", 16)
    plane.serve(module)
    rows = [[float(k), 0, 0, 0] for k in (1, 2, 13, 3, 4, 666, 5, 6, 7, 8)]
    answers = many(plane, "script", rows)
    by_row = {row[0]: answer for row, answer in zip(rows, answers, strict=True)}
    assert (by_row[13].status, by_row[13].code) == (500, "scoring.failed")
    assert "thirteen" in by_row[13].json["error"]
    assert (by_row[666].status, by_row[666].code) == (500, "scoring.quarantined")
    assert {value for value, answer in by_row.items() if answer.status == 200} == {1, 2, 3, 4, 5, 6, 7, 8}
    wait_until(lambda: len(plane.exits) >= 2, what="both ends to be heard of")  # they may come after the answers
    assert [reason for _, reason, _ in plane.exits] == ["signal 11", "signal 11"]


def test_nan_is_refused_in_each_encoding_while_others_wait(start: Start, tmp_path: Path) -> None:
    """``allow_nan = false``, whatever else is in the batch."""
    plane = start()
    plane.serve(linear_module(tmp_path / "m", tail=BATCHING.format(rows=8)))
    good, bad = np.ones((1, 4), "f4"), np.array([[1, np.nan, 1, 1]], "f4")
    answers: list[tuple[bool, Answer]] = []

    def ask(array: np.ndarray[Any, Any], binary: bool) -> None:
        if binary:
            body, headers = binary_request({"x": array})
            answer = plane.ask("POST", "/v2/models/linear/infer", body, headers)
        else:
            answer = plane.ask("POST", "/v2/models/linear/infer", json_request({"x": array}))
        answers.append((bool(np.isnan(array).any()), answer))

    threads = [
        threading.Thread(target=ask, args=(array, binary))
        for array, binary in [(good, True), (bad, True), (good, False), (bad, False)] * 5
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    for has_nan, answer in answers:
        assert answer.status == (400 if has_nan else 200), answer
        if has_nan:
            assert answer.json.keys() == {"error"}


ROWS_SEE_EACH_OTHER = 'def run(inputs):\n    x = inputs["x"]\n    return {"y": (x - x.mean()).sum(axis=1)}\n'
COUNTS = 'import numpy as np\ndef run(inputs):\n    return {"y": np.ones(1)}\n'
SLOWER = (
    'import time\ndef run(inputs):\n    x = inputs["x"]\n    time.sleep(0.002 * len(x) ** 2)\n'
    '    return {"y": x.sum(axis=1)}\n'
)


@pytest.mark.parametrize(
    ("script", "why"),
    [(ROWS_SEE_EACH_OTHER, "differ"), (COUNTS, "one entry per row"), (SLOWER, "one by one")],
    ids=["rows-see-each-other", "no-row-per-output", "slower"],
)
def test_batching_stays_off_where_the_device_shows_otherwise(
    start: Start, tmp_path: Path, script: str, why: str
) -> None:
    plane = start()
    notices: list[tuple[str, str, str]] = []
    plane.plane.on_notice = lambda *what: notices.append(what)
    module = python_module(tmp_path / "m", script, tail=BATCHING.format(rows=8))
    assert plane.load(module)["batch_rows"] == 1
    ((digest, code, text),) = notices
    assert (digest, code) == (module.digest, "run.batching_off")
    assert why in text


def test_a_model_without_a_varying_batch_is_scored_alone(tmp_path: Path) -> None:
    module = linear_module(tmp_path / "m", tail=BATCHING.format(rows=8))
    text = LINEAR.format(shape="[1, 2]") + BATCHING.format(rows=8)
    verdict = batching.prove(parse(text), module.folder, lambda inputs: inputs)
    assert verdict.rows == 1
    assert "'y'" in verdict.reason
    assert batching.prove(parse(LINEAR.format(shape="[-1, 2]")), module.folder, lambda inputs: inputs) == (1, "")


def test_what_was_proven_is_not_proven_again_after_a_crash(start: Start, tmp_path: Path) -> None:
    plane = start()
    module, log = slow(tmp_path / "m", 4)
    plane.serve(module)
    proof = len(sizes(log, 0))
    assert proof > 3
    plane.do(lambda: plane.plane._versions[module.digest].kill("test"))
    end = time.monotonic() + 20
    while plane.score("script", [[1.0, 0, 0, 0]]).status != 200 and time.monotonic() < end:
        time.sleep(0.01)
    assert sizes(log, proof) == [1]
