"""Where samples come from: files people write, and those that the hub writes of what devices captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry import convert
from skerry.convert import samples as sampling
from skerry_hub.samples import Captured, encode
from skerry_modules.errors import InputError
from skerry_modules.messages import Sample, Tensor
from skerry_modules.tensors import TensorSpec

from . import models

SPECS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)


def captured(rows: Any, *, datatype: str = "FP32", shape: tuple[int, ...] = (1, 3), name: str = "x") -> list[Captured]:
    """Rows as a device captures them and the hub keeps them."""
    made = []
    for number, row in enumerate(rows):
        tensor = Tensor(datatype=datatype, shape=shape, data=np.ascontiguousarray(row).tobytes())
        sample = Sample(id=f"s{number}", module="m", version=1, digest="d", at=number, inputs={name: tensor})
        made.append(Captured(device="gate-1", received_at=number, sample=sample))
    return made


def written(path: Path, rows: list[Captured]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(rows, "m", 1))
    return path


@pytest.mark.parametrize("shape", [(1, 3), (3,)], ids=["with a row axis", "without"])
def test_captured_samples_come_back_as_they_were_scored(shape: tuple[int, ...], tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    written(tmp_path / "captured/m/1/2026-11-20/a.parquet", captured(rows, shape=shape))
    written(tmp_path / "captured/m/1/2026-11-21/b.parquet", captured(rows[:2], shape=shape))
    found = sampling.load([tmp_path / "captured"], SPECS, "label")
    assert np.array_equal(found.inputs["x"], np.concatenate([rows, rows[:2]]))
    assert found.names[:2] == ("sample s0", "sample s1")
    assert found.labels is None


def test_samples_of_several_rows_and_of_other_forms(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    double = captured(np.ones((1, 3)), datatype="FP64")  # a second datatype: the hub keeps both as they came
    file = written(tmp_path / "a.parquet", [*captured(rows, shape=(2, 3)), *double])
    found = sampling.load([file], SPECS, "label")
    assert np.array_equal(found.inputs["x"], rows.reshape(4, 3))
    assert found.names == ("sample s0 row 0", "sample s0 row 1", "sample s1 row 0", "sample s1 row 1")


def test_captured_samples_calibrate_and_judge_a_conversion(tmp_path: Path) -> None:
    module = models.digits_module(tmp_path / "digits")
    _, _, pixels, _ = models.digits()
    written(tmp_path / "captured" / "a.parquet", captured(pixels[:200], shape=(1, 64), name="pixels"))
    report = convert.convert(
        module,
        tmp_path / "int8",
        precision="int8-static",
        samples=[tmp_path / "captured"],
        options=convert.Options(timing_s=0),
    )
    assert report.calibration is not None
    assert (report.calibration.rows, report.calibration.source) == (100, "a.parquet")
    assert report.verdict.cases == 100 + 32


def test_an_npz_may_bring_labels_and_the_agents_names(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.float64).reshape(2, 3)
    np.savez(tmp_path / "a.npz", **{"input.x": rows, "label": np.array([1, 0])})
    np.savez(tmp_path / "b.npz", x=rows)
    labelled = sampling.load([tmp_path / "a.npz"], SPECS, "label")
    assert labelled.inputs["x"].dtype == np.float32
    assert labelled.labels.tolist() == [1, 0]
    both = sampling.load([tmp_path / "a.npz", tmp_path / "b.npz"], SPECS, "label")
    assert both.labels is None
    assert both.names == ("a.npz row 0", "a.npz row 1", "b.npz row 0", "b.npz row 1")


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"y": np.zeros((2, 3))}, "it has no array 'x', only y"),
        ({"x": np.zeros((2, 4))}, r"'x' has the shape \[2, 4\], the model takes \[-1, 3\]"),
        ({"x": np.zeros((2, 3)), "label": np.zeros(3)}, "'label' has 3 rows, the inputs 2"),
        ({"x": np.zeros((0, 3))}, "it holds no samples"),
    ],
)
def test_what_does_not_fit_is_said(arrays: dict[str, Any], text: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=text) as refused:
        sampling.load([tmp_path / "a.npz"], SPECS, "label")
    assert refused.value.code == "convert.samples"


def test_files_that_are_not_samples_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("a.npz", "a.parquet", "a.csv"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(InputError, match="cannot use the samples of") as refused:
            sampling.load([tmp_path / name], SPECS, "label")
        assert refused.value.code == "convert.samples"
    with pytest.raises(InputError, match=r"there is no \.npz and no \.parquet"):
        sampling.load([tmp_path / "empty"], SPECS, "label")
    other = written(tmp_path / "other.parquet", captured(np.zeros((2, 3), np.float32), name="z"))
    with pytest.raises(InputError, match="these are samples of another model"):
        sampling.load([other], SPECS, "label")
    wide = written(tmp_path / "wide.parquet", captured(np.zeros((2, 4), np.float32), shape=(1, 4)))
    with pytest.raises(InputError, match="none of its samples fits"):
        sampling.load([wide], SPECS, "label")


def test_an_npz_with_pickles_in_it_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="cannot use the samples of"):
        sampling.load([tmp_path / "a.npz"], SPECS, "label")


@given(st.integers(1, 400), st.integers(1, 400))
def test_halves_and_limits_lose_and_double_nothing(rows: int, limit: int) -> None:
    matrix = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    samples = sampling.given(matrix, SPECS, np.arange(rows))
    one, two = sampling.halves(samples)
    assert sorted([*one.labels, *two.labels]) == list(range(rows))
    some = samples.at_most(limit)
    assert len(some) == min(rows, limit)
    assert len(set(some.labels.tolist())) == len(some)
    assert all(np.array_equal(matrix[at], row) for at, row in zip(some.labels, some.inputs["x"], strict=True))
