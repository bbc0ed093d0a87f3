"""Distributions merge exactly in any order, keep what sketches drop, and bound every quantile by its bin."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_modules import messages
from skerry_modules.errors import InputError, PeerError
from skerry_modules.histogram import LOG2_EDGES, Baseline, Histogram, quantile_edges
from skerry_modules.messages import Distribution

values = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=60)
latencies = st.lists(st.floats(0.01, 1e9), min_size=1, max_size=200)


def filled(items: list[float], edges: tuple[float, ...] = LOG2_EDGES) -> Histogram:
    made = Histogram(edges)
    for item in items:
        made.add(item)
    return made


def counts(histogram: Histogram) -> tuple[object, ...]:
    return (
        tuple(histogram.counts),
        histogram.below,
        histogram.above,
        histogram.null,
        histogram.infinite,
        histogram.minimum,
        histogram.maximum,
    )


@given(values)
def test_nothing_is_lost_and_arrays_count_as_single_values_do(items: list[float]) -> None:
    one, many = filled(items), Histogram()
    many.add_many(np.array(items))
    assert counts(one) == counts(many)
    assert one.count + one.null + one.infinite == len(items)
    assert one.null == sum(math.isnan(item) for item in items)
    assert one.infinite == sum(math.isinf(item) for item in items)


@given(values, values, values)
def test_merging_is_associative_and_commutative_and_the_same_as_counting_at_once(
    first: list[float], second: list[float], third: list[float]
) -> None:
    left = filled(first)
    left.merge(filled(second))
    left.merge(filled(third))
    inner = filled(third)
    inner.merge(filled(second))
    inner.merge(filled(first))
    assert counts(left) == counts(inner) == counts(filled(first + second + third))


@given(latencies, st.floats(0, 1))
def test_a_quantile_lies_in_the_bin_of_the_true_one(items: list[float], share: float) -> None:
    estimate = filled(items).quantile(share)
    true = sorted(items)[max(math.ceil(share * len(items)), 1) - 1]
    edges = (-math.inf, *LOG2_EDGES, math.inf)
    low = max(edge for edge in edges if edge <= true)
    high = min(edge for edge in edges if edge > true or edge == LOG2_EDGES[-1] == true)
    assert low <= estimate <= high
    assert min(items) <= estimate <= max(items)


@given(latencies)
def test_quantiles_rise_with_their_share(items: list[float]) -> None:
    histogram = filled(items)
    found = [histogram.quantile(share / 20) for share in range(21)]
    assert found == sorted(found)


@given(latencies.map(lambda items: [item for item in items if 1 <= item < 2**26] or [1.0]))
def test_latency_quantiles_are_off_by_less_than_a_fifth(items: list[float]) -> None:
    estimate, true = filled(items).quantile(0.5), sorted(items)[math.ceil(len(items) / 2) - 1]
    assert true / 1.19 <= estimate <= true * 1.19


def test_the_standard_edges_are_a_quarter_of_a_doubling_from_1_us_to_67_s() -> None:
    assert LOG2_EDGES[0] == 1
    assert LOG2_EDGES[4] == 2
    assert LOG2_EDGES[-1] == 2**26
    assert len(LOG2_EDGES) == 105


def test_the_last_bin_holds_its_right_edge() -> None:
    for made in (filled([0.0, 1.0, 2.0, 2.5], (0.0, 1.0, 2.0)), Histogram((0.0, 1.0, 2.0))):
        if not made.count:
            made.add_many(np.array([0.0, 1.0, 2.0, 2.5]))
        assert (made.counts, made.below, made.above) == ([1, 2], 0, 1)


@given(values)
def test_the_wire_gives_the_same_histogram_back(items: list[float]) -> None:
    for edges in (LOG2_EDGES, (-1.0, 0.0, 5.5)):
        histogram = filled(items, edges)
        body = messages.encode(histogram.to_wire())
        back = Histogram.from_wire(msgspec.msgpack.decode(body, type=Distribution))
        assert counts(back) == counts(histogram)
        if math.isfinite(histogram.total):  # a sum past 1.8e308 is held at the largest float
            assert back.total == histogram.total
        assert back.edges == edges


def test_an_empty_window_takes_few_bytes_and_the_standard_edges_none() -> None:
    assert len(messages.encode(Histogram().to_wire())) < 8
    assert len(messages.encode(filled([100.0] * 1000).to_wire())) < 90


@pytest.mark.parametrize(
    "wire",
    [
        Distribution(counts=(1,) * 105),
        Distribution(counts=(-1,)),
        Distribution(below=-1),
        Distribution(null=-1),
        Distribution(edges=(1.0,)),
        Distribution(edges=(1.0, 1.0)),
        Distribution(edges=(2.0, 1.0)),
        Distribution(edges=(0.0, math.inf)),
        Distribution(edges=(0.0, math.nan)),
        Distribution(edges=tuple(float(edge) for edge in range(2000))),
        Distribution(counts=(1,), total=math.nan),
        Distribution(counts=(1,), minimum=-math.inf),
    ],
)
def test_what_no_device_would_send_is_refused(wire: Distribution) -> None:
    with pytest.raises(PeerError, match="cannot read a distribution") as caught:
        Histogram.from_wire(wire)
    assert caught.value.code == "message.malformed"


def test_other_edges_do_not_merge() -> None:
    with pytest.raises(PeerError, match="only those of the same module version"):
        filled([1.0]).merge(filled([1.0], (0.0, 1.0)))


def test_taking_moves_everything_once() -> None:
    histogram = filled([1.0, math.nan, math.inf, 1e9])
    before = counts(histogram)
    assert counts(histogram.take()) == before
    assert counts(histogram) == counts(Histogram())


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 64))
@settings(deadline=None)
def test_a_baselines_edges_hold_all_its_training_data(items: list[float], bins: int) -> None:
    edges = quantile_edges(np.array(items), bins)
    histogram = Histogram(edges)
    histogram.add_many(np.array(items))
    assert (histogram.below, histogram.above) == (0, 0)
    assert 2 <= len(edges) <= bins + 1


def test_a_baseline_round_trips_and_counts_windows_by_feature() -> None:
    rng = np.random.default_rng(7)
    train = {
        "x": rng.normal(size=(500, 3)).astype(np.float32),
        "image": rng.random((500, 8, 8)),
        "name": np.array(["a"] * 500),
    }
    baseline = Baseline.from_arrays(train, {"y": rng.random((500, 1))})
    assert [feature.name for feature in baseline.inputs] == ["x[0]", "x[1]", "x[2]", "image"]
    again = Baseline.from_json(baseline.to_json())
    assert again == baseline
    window = again.window()
    window.add({"x": np.array([[100.0, math.nan, 0.0]]), "image": np.zeros((2, 8, 8)), "unknown": np.ones(3)})
    taken = window.take()
    assert taken["x[0]"].above == 1
    assert taken["x[1]"].null == 1
    assert sum(taken["x[2]"].counts) == 1
    assert sum(taken["image"].counts) + taken["image"].below == 128
    assert not any(Histogram.from_wire(each).count for each in window.take().values())
    shares = Histogram.from_wire(baseline.inputs[0].distribution).counts
    assert max(shares) - min(shares) <= 3  # quantiles: every bin held the same share


def test_a_window_passes_over_rows_that_do_not_fit() -> None:
    baseline = Baseline.from_arrays({"x": np.ones((4, 3))})
    window = baseline.window()
    window.add({"x": np.ones((4, 1))})
    window.add({"x": np.array(["text"])})
    window.add({"x": np.zeros((0, 3))})
    assert [sum(each.counts) for each in window.take().values()] == [4, 0, 0]


def test_bad_baselines_are_refused() -> None:
    with pytest.raises(InputError, match="arrays with no rows"):
        Baseline.from_arrays({})
    with pytest.raises(InputError, match=r"\[2, 3\] rows"):
        Baseline.from_arrays({"a": np.ones(2), "b": np.ones(3)})
    with pytest.raises(PeerError, match="cannot read the baseline"):
        Baseline.from_json(b"{}")
    with pytest.raises(PeerError, match="format 9"):
        Baseline.from_json(b'{"format":9,"rows":1,"inputs":[]}')
    with pytest.raises(PeerError, match="edges"):
        Baseline.from_json(
            b'{"format":1,"rows":1,"inputs":[{"name":"x","tensor":"x","index":0,"distribution":{"edges":[2,1]}}]}'
        )


@given(st.binary(max_size=200))
def test_garbage_is_no_baseline(data: bytes) -> None:
    with pytest.raises(PeerError):
        Baseline.from_json(data)
