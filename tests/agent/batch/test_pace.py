"""The pace of a batch job, the assignment of columns, the progress line: pure rules."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.batch import columns, progress
from skerry_agent.batch.rows import Model
from skerry_agent.rules.pace import Live, Pace, PaceSettings, parse_live
from skerry_modules.errors import InputError
from skerry_modules.oip import Metadata
from skerry_modules.tensors import TensorSpec

LIVES = st.none() | st.builds(Live, *[st.integers(0, n) for n in (500, 10**6, 500, 10**6, 10**8)])


@given(
    st.lists(
        st.tuples(st.just("answered"), st.floats(0, 100), LIVES)
        | st.tuples(st.sampled_from(["refused", "too_large"]), st.just(0.0), st.none()),
        max_size=60,
    )
)
def test_the_pace_stays_within_its_limits_whatever_comes(steps: list[tuple[str, float, Live | None]]) -> None:
    settings = PaceSettings(max_rows=64)
    pace = Pace(settings)
    for what, seconds, live in steps:
        if what == "answered":
            pace.answered(pace.rows, seconds, live)
        else:
            getattr(pace, what)()
        assert 1 <= pace.rows <= settings.max_rows
        assert 0 <= pace.pause_s <= settings.pause_max_s
        assert pace.in_flight in (1, 2)
        if what == "refused" or (live is not None and live.requests):
            assert pace.in_flight == 1


def test_alone_requests_grow_until_they_last_as_long_as_they_may() -> None:
    pace = Pace()
    for _ in range(20):
        pace.answered(pace.rows, pace.rows * 0.001, None)
    assert pace.rows == 50  # 50 ms at 1 ms a row
    assert pace.in_flight == 2
    for _ in range(20):
        waited = 0.2  # behind others: not what its rows cost
        pace.answered(pace.rows, waited + pace.rows * 0.001, Live(10, 1000, 5, 1000, pace.rows * 1000))
    assert pace.rows == 2  # 2 ms while others ask
    assert pace.pause_s == pytest.approx(0.002, rel=0.5)  # and as long a rest
    assert pace.in_flight == 1


def test_it_backs_off_while_live_requests_suffer_and_comes_back_when_they_do_not() -> None:
    pace = Pace()
    pace.answered(pace.rows, 0.0001, Live(200, 1000, 100, 1000))
    seen = pace.rows
    rows = []
    for _ in range(12):
        pace.answered(pace.rows, 0.0001, Live(200, 9000, 10, 0))  # the calm p99 is remembered from before
        rows.append(pace.rows)
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == seen // 2
    assert rows[-1] == 1
    assert pace.pause_s > 0
    for _ in range(30):
        pace.answered(pace.rows, pace.rows * 0.00001, Live(200, 1100, 100, 1000))
    assert pace.pause_s == pytest.approx(0.002, rel=0.1)
    assert pace.rows in (199, 200)  # 2 ms at 10 µs a row


def test_a_few_live_requests_are_no_p99() -> None:
    pace = Pace()
    before = pace.rows
    pace.answered(before, 0.0001, Live(5, 10**6, 5, 1))
    assert pace.rows > before


@given(st.tuples(*[st.integers(0, 10**8)] * 5))
def test_the_header_comes_back_as_it_went(values: tuple[int, int, int, int, int]) -> None:
    text = "requests={}, p99-us={}, calm={}, calm-p99-us={}, took-us={}".format(*values)
    assert parse_live(text) == Live(*values)


@pytest.mark.parametrize(
    "text", ["", "requests=1", "requests=-1, p99-us=0, calm=0, calm-p99-us=0, took-us=0", "x" * 1000]
)
def test_another_header_is_none(text: str) -> None:
    assert parse_live(text) is None


# -- columns -----------------------------------------------------------------------------------------------------------


def model(*inputs: tuple[str, tuple[int, ...]]) -> Model:
    specs = tuple(TensorSpec(name=name, datatype="FP32", shape=shape) for name, shape in inputs)
    return Model(Metadata(name="m", inputs=specs, outputs=specs))


@pytest.mark.parametrize(
    ("names", "chosen", "kept", "expected"),
    [
        (["a", "b"], (), (), ("a", "b")),
        (["id", "a", "b"], (), ("id",), ("a", "b")),
        (["id", "x"], (), (), ("x",)),
        (["x_1", "other", "x_0"], (), (), ("x_0", "x_1")),
        (["a", "b", "c"], ("c", "a"), (), ("c", "a")),
        (["x", "a", "b"], ("a", "b"), (), ("a", "b")),
        (["blob", "id"], ("blob",), (), ("blob",)),
        (["a", "b"], (), ("a",), None),
        (["a", "b", "c"], (), (), None),
        ([], (), (), None),
        (["a", "b"], ("a", "z"), (), None),
    ],
)
def test_columns_of_a_models_only_input(
    names: list[str], chosen: tuple[str, ...], kept: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    if expected is None:
        with pytest.raises(InputError, match="cannot find the") as error:
            columns.assign(names, model(("x", (-1, 2))), chosen=chosen, kept=kept)
        assert error.value.code == "scoring.unknown_input"
    else:
        assert columns.assign(names, model(("x", (-1, 2))), chosen=chosen, kept=kept) == {"x": expected}


def test_more_inputs_are_found_by_name_alone() -> None:
    two = model(("t", (-1,)), ("x", (-1, 2)))
    assert columns.assign(["x_0", "t", "x_1"], two) == {"t": ("t",), "x": ("x_0", "x_1")}
    with pytest.raises(InputError, match="cannot find the input 't'"):
        columns.assign(["a", "x"], two)
    with pytest.raises(InputError, match="cannot use --columns"):
        columns.assign(["a", "x"], two, chosen=("a",))


def test_a_model_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="row by row"):
        model(("x", (8, 4)))
    assert not model(("x", (1, 4))).batched
    assert model(("x", (-1, 4))).batched


# -- the progress line -------------------------------------------------------------------------------------------------


def test_the_line_of_progress() -> None:
    told = progress.line("digits 3", 5120, 10_240, "rows", 2048.4, errors=0, left_s=2.6)
    assert told == "digits 3 [############------------]  50%  5,120 of 10,240 rows  2,048 rows/s  0:03 left"
    told = progress.line("d 1", 10, 10, "files", 3.0, errors=2, left_s=0.0)
    assert told == "d 1 [########################] 100%  10 of 10 files  3 rows/s  2 errors"
    assert progress.line("d 1", 1, 9999, "rows", 1.0, errors=0, left_s=9998).endswith("2:46:38 left")
    assert progress.line("d 1", 0, 0, "rows", 0.0, errors=0, left_s=None).startswith(
        "d 1 [########################] 100%"
    )


def test_no_terminal_no_progress() -> None:
    stream = io.StringIO()
    shown = progress.Progress("d", 10, "rows", stream=stream)
    shown.rows(5, 0)
    shown.units(5)
    shown.close()
    assert stream.getvalue() == ""
