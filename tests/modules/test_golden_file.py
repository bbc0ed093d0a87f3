"""A golden file that no device could use fails where it is packed, and the error names the array."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_modules import golden, manifest, package
from skerry_modules.errors import InputError
from skerry_modules.messages import Tensor
from skerry_modules.tensors import TensorSpec

MANIFEST = """\
format = 1
name = "echo"
engine = "{engine}"
model = "{model}"

[golden]
file = "golden.npz"
argmax = "y"

[[inputs]]
name = "x"
datatype = "FP32"
shape = [{batch}, 2]
allow_nan = false

[[inputs]]
name = "n"
datatype = "INT64"
shape = [{batch}, -1]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [{batch}, 3]

[[outputs]]
name = "z"
datatype = "FP32"
shape = [{batch}]
"""
Arrays = dict[str, np.ndarray[Any, Any]]


def arrays(cases: int = 4) -> Arrays:
    return {
        "input.x": np.zeros((cases, 2), "f4"),
        "input.n": np.zeros((cases, 5), "i8"),
        "output.y": np.zeros((cases, 3), "f4"),
    }


def folder(path: Path, content: Mapping[str, Any] | bytes, batch: int = -1, model: str = "main.py") -> Path:
    path.mkdir()
    engine = "pynq" if model.endswith(".bit") else "python"
    (path / "module.toml").write_text(MANIFEST.format(batch=batch, model=model, engine=engine))
    (path / model).write_text("")
    if isinstance(content, bytes):
        (path / "golden.npz").write_bytes(content)
    else:
        np.savez(path / "golden.npz", **content)
    return path


def without(name: str) -> Arrays:
    return {key: array for key, array in arrays().items() if key != name}


def test_a_selection_of_outputs_and_any_number_of_cases_is_enough(tmp_path: Path) -> None:
    packed = package.write_package(folder(tmp_path / "m", arrays(7)), tmp_path / "m.skerry")
    assert "golden.npz" in [file.path for file in packed.index.files]


@pytest.mark.parametrize(
    ("content", "batch", "array", "says"),
    [
        (b"no archive", -1, None, "cannot read golden.npz as .npz or .npy: .*; write it anew"),
        (without("input.n"), -1, "input.n", "no array 'input.n', which the manifest declares"),
        (without("output.y"), -1, None, "the same number of cases, at least one"),
        (without("output.y") | {"output.z": np.zeros(4, "f4")}, -1, "output.y", "whose arg-max the manifest compares"),
        (arrays() | {"probe": np.zeros(4)}, -1, "probe", "neither input.<name> nor output.<name>"),
        (arrays() | {"input.m": np.zeros((4, 2), "f4")}, -1, "input.m", "no input of the manifest, which has x, n"),
        (arrays() | {"output.x": np.zeros((4, 2), "f4")}, -1, "output.x", "no output of the manifest, which has y, z"),
        (arrays() | {"input.x": np.zeros((4, 2), "f8")}, -1, "input.x", "is FP64, the manifest says FP32"),
        (arrays() | {"input.x": np.zeros((4, 3), "f4")}, -1, "input.x", r"shape \[4, 3\], the manifest says \[-1, 2\]"),
        (arrays() | {"output.y": np.zeros((4, 3, 1), "f4")}, -1, "output.y", r"shape \[4, 3, 1\]"),
        (arrays() | {"output.y": np.zeros((5, 3), "f4")}, -1, None, "the same number of cases"),
        (arrays(0), -1, None, "at least one"),
        (arrays(), 3, "input.x", "4 cases, which do not divide by the model's batch of 3"),
        (arrays() | {"input.x": np.full((4, 2), np.nan, "f4")}, -1, "input.x", "holds NaN, which the manifest forbids"),
    ],
)
def test_what_no_device_could_use_is_not_packed(
    content: Arrays | bytes, batch: int, array: str | None, says: str, tmp_path: Path
) -> None:
    module = folder(tmp_path / "m", content, batch)
    with pytest.raises(InputError, match=says) as caught:
        package.write_package(module, tmp_path / "m.skerry")
    assert (caught.value.code, caught.value.data.get("array")) == ("manifest.golden_mismatch", array)
    assert caught.value.message.startswith("cannot use the golden file: ")
    assert not (tmp_path / "m.skerry").exists()


def test_a_golden_file_over_the_limit_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "golden.npz", **{"input.x": np.zeros((40_000_000, 2), "f4")})
    assert (tmp_path / "golden.npz").stat().st_size < 1_000_000
    with pytest.raises(InputError, match="take 320000128 bytes, the limit is 268435456"):
        golden.read(tmp_path / "golden.npz")


def test_an_overlay_without_its_description_is_not_packed(tmp_path: Path) -> None:
    module = folder(tmp_path / "m", arrays(), model="net.bit")
    with pytest.raises(InputError, match=r"cannot pack net.bit: it is described by 'net.hwh', which is not packed"):
        package.write_package(module, tmp_path / "m.skerry")
    (module / "net.hwh").write_text("<x/>")
    assert package.write_package(module, tmp_path / "m.skerry").path.exists()


def test_an_error_told_anew_reads_anew() -> None:
    error = InputError("request.invalid", "cannot pack it")
    error.message = "cannot register it"
    assert str(error) == "cannot register it"


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    made = {}
    for name in draw(st.sets(st.sampled_from(["x", "n", "y", "z", "other"]))):
        shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
        kind = draw(st.sampled_from([("FP32", 4), ("INT64", 8)]))
        made[name] = Tensor(datatype=kind[0], shape=shape, data=os.urandom(kind[1] * int(np.prod(shape))))
    return made


def fits(tensor: Tensor, spec: TensorSpec) -> bool:
    return (
        tensor.datatype == spec.datatype
        and len(tensor.shape) == len(spec.shape)
        and tensor.shape[0] % max(spec.shape[0], 1) == 0
        and all(want in (-1, got) for want, got in zip(spec.shape[1:], tensor.shape[1:], strict=True))
    )


@given(inputs=tensors(), outputs=tensors(), batch=st.sampled_from([-1, 1, 2]))
def test_what_has_no_problem_fits_the_manifest(
    inputs: dict[str, Tensor], outputs: dict[str, Tensor], batch: int
) -> None:
    parsed = manifest.parse(MANIFEST.format(batch=batch, model="main.py", engine="python"))
    found = list(golden.problems(parsed, inputs, outputs))
    takes = {spec.name: spec for spec in parsed.inputs}
    gives = {spec.name: spec for spec in parsed.outputs}
    right = (
        inputs.keys() == takes.keys()
        and "y" in outputs
        and outputs.keys() <= gives.keys()
        and all(fits(tensor, takes[name]) for name, tensor in inputs.items())
        and all(fits(tensor, gives[name]) for name, tensor in outputs.items())
        and not (inputs["x"].datatype == "FP32" and np.isnan(np.frombuffer(inputs["x"].data, "<f4")).any())
    )
    assert right == (not found)
