"""The gate's rule, on arrays alone; and that what it writes into a manifest is what a device then judges by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry.convert import gate
from skerry_agent import golden as device
from skerry_modules.manifest import Golden

Array = np.ndarray[Any, Any]

finite = st.floats(-1e3, 1e3, width=32)
scores = hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(2, 5)), elements=finite)
noise = st.floats(-0.5, 0.5, width=32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """What an original said, and what its conversion says: some of it the same."""
    want = draw(scores)
    shift = draw(hnp.arrays(np.float32, want.shape, elements=noise))
    kept = draw(hnp.arrays(np.bool_, len(want)))
    return want, np.where(kept[:, None], want, want + shift).astype(np.float32)


def judged(want: Array, have: Array, **options: Any) -> gate.Verdict:
    settings: dict[str, Any] = {"bars": {"y": 1.0}, "argmax": ("y",), **options}
    return gate.judge({"y": want}, {"y": have}, **settings)


@given(scores)
def test_a_model_is_its_own_equal(want: Array) -> None:
    verdict = judged(want, want.copy(), bars={"y": 0.0}, min_agreement=1.0)
    assert verdict.ok
    assert (verdict.agreement, verdict.max_delta, verdict.worst) == (1.0, 0.0, ())


@given(pairs(), st.floats(0, 1), st.floats(0, 0.6))
def test_it_counts_what_numpy_counts(pair: tuple[Array, Array], least: float, bar: float) -> None:
    want, have = pair
    verdict = judged(want, have, bars={"y": bar}, min_agreement=least)
    same = want.argmax(1) == have.argmax(1)
    delta = np.abs(want.astype(float) - have.astype(float))
    assert verdict.agreed == same.sum()
    assert verdict.max_delta == delta.max()
    enough = same.sum() >= least * len(same) - 1e-9
    assert verdict.ok == bool(enough and delta.max() <= bar)
    assert all(miss.flipped == (not same[miss.sample]) for miss in verdict.worst)
    assert bool(verdict.problems) != verdict.ok


@given(pairs(), st.randoms())
def test_the_order_of_the_samples_is_nothing_to_it(pair: tuple[Array, Array], random: Any) -> None:
    want, have = pair
    order = list(range(len(want)))
    random.shuffle(order)
    one, other = judged(want, have), judged(want[order], have[order])
    assert (one.ok, one.agreed, one.max_delta) == (other.ok, other.agreed, other.max_delta)


@given(pairs(), st.floats(0, 0.6), st.floats(0, 0.6))
def test_a_wider_bar_never_refuses_what_a_narrower_let_pass(pair: tuple[Array, Array], one: float, two: float) -> None:
    narrow, wide = sorted((one, two))
    if judged(*pair, bars={"y": narrow}).ok:
        assert judged(*pair, bars={"y": wide}).ok


def test_an_accuracy_that_stays_does_not_hide_the_samples_that_flip() -> None:
    truth = np.arange(100) % 2
    want = np.eye(2, dtype=np.float32)[truth]
    want[[3, 4]] = want[[3, 4]][:, ::-1]  # the original errs on two …
    have = np.eye(2, dtype=np.float32)[truth]
    have[[70, 71]] = have[[70, 71]][:, ::-1]  # … and the conversion on two others
    assert (want.argmax(1) == truth).mean() == (have.argmax(1) == truth).mean() == 0.98
    verdict = judged(want, have)
    assert not verdict.ok
    assert verdict.agreement == 0.96
    assert [miss.sample for miss in verdict.worst] == [3, 4, 70, 71]
    assert (verdict.worst[0].expected, verdict.worst[0].got) == ("class 0 (1)", "class 1 (1)")
    assert verdict.problems == ("96 of 100 samples agree (96.00%), 99.00% are needed",)


@pytest.mark.parametrize(("flipped", "ok"), [(0, True), (1, True), (2, False)])
def test_ninety_nine_of_a_hundred_are_enough(flipped: int, ok: bool) -> None:
    want = np.tile(np.float32([0.6, 0.4]), (100, 1))
    have = want.copy()
    have[:flipped] = [0.4, 0.6]
    assert judged(want, have).ok == ok


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_agrees_with_nothing(bad: float) -> None:
    want = np.zeros((4, 3), np.float32)
    want[:, 0] = 1
    have = want.copy()
    have[2, 0] = bad
    verdict = judged(want, have, min_agreement=0.5)
    assert not verdict.ok
    assert verdict.max_delta == math.inf
    assert verdict.worst[0].sample == 2
    # The original's own missing values are no fault of the conversion's.
    assert judged(have, have.copy(), min_agreement=1.0).ok


@pytest.mark.parametrize("have", [{}, {"y": np.zeros((4, 2), np.float32)}, {"y": np.zeros((3, 3), np.float32)}])
def test_a_missing_or_misshapen_output_fails(have: dict[str, Array]) -> None:
    verdict = gate.judge({"y": np.zeros((4, 3), np.float32)}, have, bars={"y": 9.0}, argmax=("y",), min_agreement=0.0)
    assert not verdict.ok
    assert verdict.agreed == 0
    assert "'y' is " in verdict.problems[0]


def test_whole_numbers_and_strings_are_equal_or_not() -> None:
    want = {"class": np.array([1, 2, 3]), "name": np.array(["a", "b", "c"], object)}
    assert gate.judge(want, want, bars={}, min_agreement=1.0).ok
    have = {"class": np.array([1, 9, 3]), "name": np.array(["a", "b", "z"], object)}
    verdict = gate.judge(want, have, bars={}, min_agreement=0.5)
    assert (verdict.agreed, verdict.ok) == (1, False)
    assert {(miss.sample, miss.expected, miss.got) for miss in verdict.worst} == {(1, "2", "9"), (2, "c", "z")}


def test_the_default_bar_follows_a_small_unit_and_stops_at_one() -> None:
    small, large = np.float32([[0.0], [1e-3]]), np.float32([[0.0], [500.0]])
    assert gate.default_bar(small, 0.1) == pytest.approx(1e-4, rel=0.01)
    assert gate.default_bar(large, 0.1) == pytest.approx(0.1, rel=0.01)
    offset = np.float32([[1000.0], [1000.01]])  # small changes on a large value are what it says
    assert gate.default_bar(offset, 0.1) < 0.01
    assert gate.default_bar(np.float32([[np.nan]]), 0.1) == 0.1


def test_only_outputs_with_scores_choose_a_class() -> None:
    outputs = {
        "scores": np.zeros((4, 3), np.float32),
        "value": np.zeros((4, 1), np.float32),
        "flat": np.zeros(4, np.float32),
        "class": np.zeros((4, 2), np.int64),
    }
    assert gate.decisions(outputs) == ("scores",)


@given(pairs())
def test_a_device_that_computes_as_here_passes_the_golden_test_that_is_written(pair: tuple[Array, Array]) -> None:
    want, have = pair
    verdict = judged(want, have, min_agreement=0.0)
    assert verdict.ok
    fitted = gate.fit_tolerance({"y": want}, {"y": have}, verdict)
    if fitted.min_pass == 0:  # nothing agrees: the conversion refuses this
        assert verdict.agreed == 0
        return
    golden = Golden(
        file="g", absolute=fitted.absolute, relative=fitted.relative, argmax=fitted.argmax, min_pass=fitted.min_pass
    )
    assert device.compare(golden, {"y": want}, {"y": have}).passed
    assert fitted.absolute <= max(gate.ABSOLUTE, 1.1 * 2 * verdict.max_delta)


@given(pairs(), st.floats(1e-6, 1), st.floats(0, 0.1), st.sampled_from(["", "y"]))
def test_a_golden_test_is_counted_as_a_device_counts_it(
    pair: tuple[Array, Array], absolute: float, relative: float, argmax: str
) -> None:
    want, have = pair
    golden = Golden(file="g", absolute=absolute, relative=relative, argmax=argmax)
    good, cases = gate.meets_golden(golden, {"y": want}, {"y": have})
    report = device.compare(golden, {"y": want}, {"y": have})
    assert (cases - good, cases) == (report.failed, report.cases)


@given(st.floats(1e-9, 1e9))
def test_rounding_up_never_tightens_and_hardly_loosens(value: float) -> None:
    assert value <= gate.round_up(value) <= 1.11 * value


@given(st.floats(0, 1))
def test_rounding_down_never_demands_more(value: float) -> None:
    assert value - 1e-4 <= gate.round_down(value) <= value
