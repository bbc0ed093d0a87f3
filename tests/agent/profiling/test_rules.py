"""The pure rules: what to measure, and what is recommended."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.rules import profile_plan, recommend
from skerry_agent.rules.profile_plan import Wanted, parse, ways
from skerry_agent.rules.recommend import Wishes
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest, Resources
from skerry_modules.measurement import Measurement, Setting
from skerry_modules.tensors import TensorSpec

POSITIVE = st.floats(1.0, 1e6)


def measured(engine: str = "onnx", threads: int = 1, batch: int = 1, **numbers: float | str) -> Measurement:
    fields = {
        "p50_us": 90.0,
        "p90_us": 95.0,
        "p99_us": 100.0,
        "max_us": 120.0,
        "spread": 0.0,
        "rows_per_s": 1000.0,
        "cpu_us_per_row": 100.0,
        "limit_mb": 50.0,
        "golden": "passed",
        **numbers,
    }
    fields = {"p99_low_us": fields["p99_us"], "others_percent": 0.0, **fields}
    return Measurement(
        setting=Setting(engine=engine, threads=threads, batch=batch),
        engine_version="1",
        runs=100,
        rounds=5,
        cpu_percent=100.0,
        first_load_ms=1.0,
        load_ms=1.0,
        peak_mb=60.0,
        steady_mb=20.0,
        **fields,  # type: ignore[arg-type]
    )


SETTINGS = st.tuples(st.sampled_from(["onnx", "openvino"]), st.integers(1, 8), st.sampled_from([1, 8, 32]))
NUMBERS = st.fixed_dictionaries(
    {
        "p99_us": POSITIVE,
        "p99_low_us": POSITIVE,
        "rows_per_s": POSITIVE,
        "cpu_us_per_row": POSITIVE,
        "limit_mb": st.floats(0.1, 4000),
        "spread": st.floats(0, 2),
        "golden": st.sampled_from(["passed", "none", "failed: 3 of 4"]),
    }
)
FOUND = st.dictionaries(SETTINGS, NUMBERS, max_size=14).map(
    lambda all_: [measured(*setting, **numbers) for setting, numbers in all_.items()]
)


@given(FOUND, st.floats(0.01, 1.0), st.randoms(use_true_random=False))
def test_what_is_recommended_was_measured_is_near_the_best_and_nothing_near_is_cheaper(
    found: list[Measurement], tolerance: float, rng: random.Random
) -> None:
    wishes = Wishes(tolerance=tolerance)
    best = recommend.recommend(found, wishes)
    good = [one for one in found if not one.golden.startswith("failed")]
    if best is None:
        assert good == []
        return
    (chosen,) = [one for one in good if one.setting == best.setting]
    rivals = [one for one in good if one.setting.batch == chosen.setting.batch]
    assert chosen.setting.batch == min(one.setting.batch for one in good)
    fastest = min(rivals, key=lambda one: (one.p99_low_us, one.setting))
    allowed = min(max(tolerance, fastest.spread), max(wishes.tolerance_max, tolerance))
    assert chosen.p99_low_us <= fastest.p99_low_us * (1 + allowed)
    cheaper = [one for one in rivals if one.cpu_us_per_row < chosen.cpu_us_per_row]
    assert all(one.p99_low_us > fastest.p99_low_us * (1 + allowed) for one in cheaper)
    same = [o for o in good if (o.setting.engine, o.setting.threads) == (best.setting.engine, best.setting.threads)]
    used = [one.limit_mb for one in same]
    assert best.memory_mb >= max(used) + max(wishes.margin_mb, wishes.margin * max(used))
    assert best.max_rows in {one.setting.batch for one in same}
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert recommend.recommend(shuffled, wishes) == best
    assert all(best.reasons)


@given(FOUND, st.floats(1.0, 1e6))
def test_a_batch_is_recommended_only_if_it_is_in_time_and_worth_it(found: list[Measurement], latency_ms: float) -> None:
    best = recommend.recommend(found, Wishes(latency_ms=latency_ms))
    if best is None or best.max_rows == best.setting.batch:
        return
    by_setting = {one.setting: one for one in found}
    batch = by_setting[msgspec.structs.replace(best.setting, batch=best.max_rows)]
    assert batch.p99_us <= latency_ms * 1000
    assert (
        batch.rows_per_s >= by_setting[best.setting].rows_per_s * recommend.WORTH * 0.9
    )  # the tolerance below the best


@given(st.floats(0.0, 1e5), st.floats(0.0, 1e5))
def test_more_memory_used_never_means_a_lower_limit(one: float, other: float) -> None:
    low, high = sorted((one, other))
    limits = [recommend.memory_limit([measured(limit_mb=value)], Wishes()) for value in (low, high)]
    assert limits == sorted(limits)
    assert limits[1] >= high + 16
    assert recommend.raised(limits[0]) > limits[0]


def test_the_reasons_name_the_numbers() -> None:
    found = [
        measured("onnx", 1, p99_us=108.0, cpu_us_per_row=90.0),
        measured("onnx", 2, p99_us=100.0, cpu_us_per_row=170.0),
        measured("openvino", 1, p99_us=300.0),
        measured("onnx", 1, 8, rows_per_s=5000.0, p99_us=500.0, limit_mb=70.0),
        measured("onnx", 1, 32, rows_per_s=9000.0, p99_us=2_000_000.0, limit_mb=900.0),
    ]
    best = recommend.recommend(found, Wishes(), prefer="onnx")
    assert best is not None
    assert (best.setting, best.max_rows, best.memory_mb) == (Setting(engine="onnx", threads=1), 8, 1080)
    setting, batch, memory = best.reasons
    assert "within 10% of the best, 100 µs of onnx with 2 threads" in setting
    assert "5.0 times" in batch, "batch 32 is too slow, however many rows it scores"
    assert "requests of up to 32 rows, at most 900.0 MB" in memory, "a client may send what is not scored together"


def test_what_else_the_machine_did_does_not_choose_and_is_told() -> None:
    """One thread met other work in most of its rounds: its pooled p99 is tenfold, its best round's is not."""
    disturbed = measured("onnx", 1, p99_us=1000.0, p99_low_us=101.0, others_percent=70.0)
    best = recommend.recommend([disturbed, measured("onnx", 2, cpu_us_per_row=170.0)], Wishes())
    assert best is not None
    assert best.setting.threads == 1
    assert best.reasons[-1].startswith("careful: other work took up to 70 % of the machine")


def test_what_fails_its_golden_test_is_never_recommended() -> None:
    found = [measured("openvino", p99_us=1.0, golden="failed: 4 of 4"), measured("onnx")]
    best = recommend.recommend(found, Wishes())
    assert best is not None
    assert best.setting.engine == "onnx"
    assert recommend.recommend(found[:1], Wishes()) is None


def module(**more: object) -> Manifest:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    fields: dict[str, object] = {"engine": "onnx", "model": "m.onnx", "inputs": (spec,), "outputs": (spec,), **more}
    return Manifest(format=1, name="m", **fields)  # type: ignore[arg-type]


@given(
    st.sampled_from(["onnx", "openvino", "python", "pynq"]),
    st.integers(1, 16),
    st.integers(1, 64),
    st.lists(st.integers(1, 8), max_size=3),
)
def test_the_manifests_own_setting_is_always_measured_and_first(
    engine: str, own: int, cores: int, threads: list[int]
) -> None:
    manifest = module(engine=engine, resources=Resources(threads=own))
    found = ways(manifest, Wanted(threads=tuple(threads)), ["onnx", "openvino", "python"], cores)
    assert [way.own for way in found] == [True, *[False] * (len(found) - 1)]
    assert (found[0].engine, found[0].threads) == (engine, own)
    assert len({(way.engine, way.threads) for way in found}) == len(found)
    assert {way.engine for way in found} <= set(profile_plan.engines_for(manifest))


def test_both_engines_of_one_file_are_measured_with_every_thread_count() -> None:
    found = ways(module(), Wanted(), ["onnx", "openvino", "python"], 4)
    assert {(way.engine, way.threads) for way in found} == {(e, n) for e in ("onnx", "openvino") for n in (1, 2, 4)}
    assert {way.batches for way in found} == {(1, 8, 32)}
    assert [
        way.engine for way in ways(module(model="m.xml", engine="openvino"), Wanted(), ["onnx", "openvino"], 1)
    ] == ["openvino"]


def test_a_fixed_batch_is_the_only_one_measured() -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(16, 4))
    assert ways(module(inputs=(spec,)), Wanted(batches=(1, 64)), ["onnx"], 1)[0].batches == (16,)


def test_another_engine_does_not_get_an_engines_own_options() -> None:
    manifest = module(options={"optimization": "none", "threads": 4})
    assert profile_plan.own_threads(manifest) == 4
    assert profile_plan.variant(manifest, "onnx", 2).options == {"optimization": "none", "threads": 2}
    assert profile_plan.variant(manifest, "openvino", 2).options == {"threads": 2}
    assert profile_plan.variant(manifest, "openvino", 2).engine == "openvino"


@pytest.mark.parametrize(
    "arguments",
    [
        {"threads": [0]},
        {"batches": [5000]},
        {"threads": list(range(1, 18))},
        {"seconds": 0},
        {"seconds": 31.0},
        {"seconds": math.nan},
        {"colour": "red"},
        {"engines": "onnx"},
        {"tolerance": 0},
        {"latency_ms": -1.0},
    ],
)
def test_wishes_that_cannot_be_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match="cannot profile") as caught:
        parse(arguments)
    assert caught.value.code == "request.invalid"


def test_an_engine_that_cannot_load_the_model_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"cannot profile m with python: m.onnx runs on onnx, openvino"):
        ways(module(), Wanted(engines=("python",)), ["onnx"], 1)


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 500))
def test_room_is_within_the_limit_and_the_machine(limit: int, used: int, free: int, reserve: int) -> None:
    room = profile_plan.room_mb(limit, used, free, reserve)
    assert 0 <= room <= max(0, limit - used)
    assert room <= max(0, free - reserve)
