"""Golden comparison, and the reader of .npz files that may be hostile."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry_agent import golden
from skerry_modules import npz
from skerry_modules.errors import InputError, PeerError
from skerry_modules.manifest import Golden, Manifest
from skerry_modules.tensors import DATATYPES, TensorSpec

RULE = Golden(file="g.npz", absolute=0.1, relative=0.0)
CASES = np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.4]], dtype="f4")


def test_equal_passes() -> None:
    report = golden.compare(RULE, {"y": CASES}, {"y": CASES.copy(), "more": CASES})
    assert (report.passed, report.cases, report.failed, report.worst) == (True, 3, 0, 0.0)


@pytest.mark.parametrize(("off", "passed"), [(0.09, True), (0.11, False), (np.nan, False), (np.inf, False)])
def test_tolerance(off: float, passed: bool) -> None:
    got = CASES.copy()
    got[1, 0] += off
    report = golden.compare(RULE, {"y": CASES}, {"y": got})
    assert (report.passed, report.failed) == (passed, 0 if passed else 1)
    assert passed or "output 'y', case 1" in report.message
    assert passed or report.worst > 1


def test_argmax_must_agree_even_within_tolerance() -> None:
    got = CASES.copy()
    got[2] = [0.44, 0.45]
    assert golden.compare(RULE, {"y": CASES}, {"y": got}).passed
    report = golden.compare(Golden(file="g", absolute=0.1, relative=0.0, argmax="y"), {"y": CASES}, {"y": got})
    assert (report.passed, report.failed) == (False, 1)
    assert "another class" in report.message


@pytest.mark.parametrize(("share", "passed"), [(1.0, False), (0.67, False), (0.6, True)])
def test_a_fraction_may_fail(share: float, passed: bool) -> None:
    got = CASES.copy()
    got[0] += 5
    rule = Golden(file="g", absolute=0.1, relative=0.0, min_pass=share)
    assert golden.compare(rule, {"y": CASES}, {"y": got}).passed is passed


def test_a_missing_output_or_another_shape_fails() -> None:
    for got in ({}, {"y": CASES[:, :1]}, {"y": CASES[:2]}):
        report = golden.compare(RULE, {"y": CASES}, got)
        assert (report.passed, report.failed, report.worst) == (False, 3, float("inf"))


def test_expected_nan_infinity_integers_and_text() -> None:
    odd = np.array([[np.nan, np.inf, -np.inf]], "f4")
    assert golden.compare(RULE, {"y": odd}, {"y": odd.copy()}).passed
    assert not golden.compare(RULE, {"y": odd}, {"y": -odd}).passed
    assert golden.compare(RULE, {"y": np.array([[3]])}, {"y": np.array([[3]])}).passed
    assert not golden.compare(RULE, {"y": np.array([[3]])}, {"y": np.array([[4]])}).passed
    assert not golden.compare(RULE, {"y": np.array([[b"a"]])}, {"y": np.array([[b"b"]])}).passed


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays("f4", (4, 3), elements=st.floats(-100, 100, width=32)),
    hnp.arrays("f4", (4, 3), elements=st.floats(-1, 1, width=32)),
    st.floats(1e-6, 1.0),
    st.floats(0.0, 0.1),
)
def test_it_fails_exactly_the_cases_outside_the_tolerance(
    want: Any, off: Any, absolute: float, relative: float
) -> None:
    got = want + off
    rule = Golden(file="g", absolute=absolute, relative=relative)
    report = golden.compare(rule, {"y": want}, {"y": got})
    w, g = want.astype("f8"), got.astype("f8")
    error = np.abs(g - w) / (absolute + relative * np.abs(w))
    assert report.failed == int((error > 1).any(axis=1).sum())
    assert report.worst == pytest.approx(error.max())
    assert report.passed is (report.failed == 0)


def manifest(shape: tuple[int, ...]) -> Manifest:
    spec = (TensorSpec(name="x", datatype="FP32", shape=shape),)
    return Manifest(format=1, name="m", engine="onnx", model="m", inputs=spec, outputs=spec, golden=RULE)


@pytest.mark.parametrize(("shape", "sizes"), [((-1, 2), [32, 32, 6]), ((1, 2), [1] * 70), ((35, 2), [35, 35])])
def test_cases_are_cut_as_the_model_takes_them(tmp_path: Path, shape: tuple[int, ...], sizes: list[int]) -> None:
    x = np.random.default_rng(1).random((70, 2)).astype("f4")
    np.savez(tmp_path / "g.npz", **{"input.x": x, "output.x": x})
    seen: list[int] = []

    def score(inputs: Any) -> Any:
        seen.append(len(inputs["x"]))
        return inputs

    assert golden.run(manifest(shape), tmp_path, score).passed
    assert seen == sizes


@pytest.mark.parametrize(
    "content",
    [
        {"x": CASES},
        {"input.x": CASES},
        {"output.x": CASES},
        {"input.x": CASES, "output.x": CASES[:2]},
        {"input.x": CASES[:0], "output.x": CASES[:0]},
        {"input.x": np.float32(1), "output.x": np.float32(1)},
    ],
)
def test_a_golden_file_that_proves_nothing_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    np.savez(tmp_path / "g.npz", **content)
    with pytest.raises(PeerError) as caught:
        golden.run(manifest((-1, 2)), tmp_path, lambda inputs: inputs)
    assert caught.value.code == "install.golden_failed"


# -- npz ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([name for name in DATATYPES if name != "BYTES"]).flatmap(
        lambda name: hnp.arrays(np.dtype(DATATYPES[name]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    st.booleans(),
)
def test_arrays_are_read_as_numpy_wrote_them(array: Any, compressed: bool) -> None:
    stream = io.BytesIO()
    np.save(stream, array)
    tensor = npz.parse(stream.getvalue())
    assert tensor.shape == array.shape
    assert tensor.data == array.tobytes()
    assert np.dtype(DATATYPES[tensor.datatype]) == array.dtype


def test_npz_npy_rows_and_take(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=CASES, y=np.arange(3))
    found = npz.read(tmp_path / "a.npz")
    assert list(found) == ["x", "y"]
    assert npz.rows(found["x"]) == 3
    part = npz.take(found["x"], 1, 5)
    assert (part.shape, part.data) == ((2, 2), CASES[1:].tobytes())
    np.save(tmp_path / "one.npy", CASES)
    assert npz.read(tmp_path / "one.npy")["one"].data == CASES.tobytes()


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(InputError):
            npz.read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_bombs_stop_at_the_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 50_000_000)
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    with pytest.raises(InputError) as caught:
        npz.read(tmp_path / "bomb.npz", npz.Limits(max_bytes=1_000_000))
    assert caught.value.code == "request.too_large"
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for number in range(20):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(InputError, match="20 arrays"):
        npz.read(tmp_path / "many.npz", npz.Limits(max_arrays=10))


def test_a_member_that_lies_about_its_size(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros(200_000, "f4"))
    path = tmp_path / "liar.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", stream.getvalue())
    data = path.read_bytes()
    real = len(stream.getvalue()).to_bytes(4, "little")
    path.write_bytes(data.replace(real, (1000).to_bytes(4, "little")))
    with pytest.raises(InputError):
        npz.read(path, npz.Limits(max_bytes=100_000))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': [1]}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
        "__import__('os').abort()",
        "{" * 500,
        "7",
    ],
)
def test_hostile_headers(header: str) -> None:
    text = header.encode()
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 16
    with pytest.raises(InputError) as caught:
        npz.parse(data)
    assert caught.value.code == "request.invalid"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_refused_with_a_code(data: bytes) -> None:
    for text in (data, b"\x93NUMPY\x01\x00" + data):
        with pytest.raises(InputError):
            npz.parse(text)
