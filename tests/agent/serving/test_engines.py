"""The real runtimes: compiling on the device, precision, what cannot be loaded and why, memory given back."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry_agent import engines
from skerry_agent.engines import _host
from skerry_agent.engines.onnx import OnnxEngine
from skerry_agent.engines.openvino import OpenVinoEngine, _config
from skerry_agent.engines.python import PythonEngine
from skerry_modules.errors import PeerError, ResourceError, SkerryError
from skerry_modules.manifest import parse
from skerry_modules.tensors import DATATYPES

from . import models
from .models import linear_module, python_module

X = np.random.default_rng(3).normal(size=(5, 4)).astype("f4")


def reference(folder: Path, x: Any) -> Any:
    """The model by numpy alone."""
    for weight in onnx.load(str(folder / "model.onnx")).graph.initializer:
        x = x @ numpy_helper.to_array(weight)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_scores_are_those_of_the_model(tmp_path: Path, engine: str) -> None:
    module = linear_module(tmp_path / "m", engine=engine)
    model = engines.get(engine).load(module.folder, module.manifest, tmp_path / "cache")
    np.testing.assert_allclose(model.run({"x": X})["y"], reference(module.folder, X), rtol=2e-4, atol=1e-6)
    model.close()


def big_module(folder: Path) -> models.Module:
    module = linear_module(folder)
    models.linear(module.folder / "model.onnx", features=4, classes=3, hidden=40_000, scale=0.01)
    return module


def test_a_model_is_compiled_once_and_mapped(tmp_path: Path) -> None:
    module, cache, engine = big_module(tmp_path / "m"), tmp_path / "cache", OnnxEngine()
    first = engine.load(module.folder, module.manifest, cache).run({"x": X})["y"]
    (compiled,) = cache.iterdir()
    assert engine.version() in compiled.name
    assert _host.cpu_key() in compiled.name
    assert {path.name for path in compiled.iterdir()} == {"model.onnx", "weights.bin"}
    stamp = (compiled / "model.onnx").stat().st_mtime_ns
    model = engine.load(module.folder, module.manifest, cache)
    np.testing.assert_array_equal(model.run({"x": X})["y"], first)
    np.testing.assert_allclose(first, reference(module.folder, X), rtol=1e-3, atol=1e-5)
    assert (compiled / "model.onnx").stat().st_mtime_ns == stamp
    assert "weights.bin" in Path("/proc/self/maps").read_text()
    model.close()


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    module, cache, engine = big_module(tmp_path / "m"), tmp_path / "cache", OnnxEngine()
    want = engine.load(module.folder, module.manifest, cache).run({"x": X})["y"]
    (compiled,) = cache.iterdir()
    (compiled / "model.onnx").write_bytes(b"torn")
    for _ in range(2):
        got = engine.load(module.folder, module.manifest, cache).run({"x": X})["y"]
        np.testing.assert_allclose(got, want, rtol=1e-5)
    assert (compiled / "model.onnx").stat().st_size > 100


def test_no_cache_folder_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    module = big_module(tmp_path / "m")
    (tmp_path / "file").touch()
    for cache in (Path(), tmp_path / "file" / "cache"):
        assert OnnxEngine().load(module.folder, module.manifest, cache).run({"x": X})["y"].shape == (5, 3)


def test_old_compiled_models_go(tmp_path: Path) -> None:
    for number in range(6):
        _host.cached(tmp_path, f"k{number}", lambda folder: (folder / "f").touch())
    _host.cached(tmp_path, "k0", lambda _: pytest.fail("it is there"))
    _host.prune(tmp_path, 3, 1 << 30)
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 3
    assert "k0" in left


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        _host.cached(tmp_path, "k", build)
    assert list(tmp_path.iterdir()) == []


def one_node(folder: Path, node: Any) -> None:
    models.save(
        folder / "model.onnx",
        [node],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )


def error_of(engine: Any, module: models.Module, cache: Path) -> SkerryError:
    with pytest.raises(SkerryError) as caught:
        engine.load(module.folder, module.manifest, cache)
    return caught.value


@pytest.mark.parametrize(
    ("engine", "node", "operator"),
    [
        (OnnxEngine(), helper.make_node("Wondrous", ["x"], ["y"], domain="acme"), "acme.Wondrous"),
        (OpenVinoEngine(), helper.make_node("Wondrous", ["x"], ["y"], domain="acme"), "acme.Wondrous"),
        (
            OpenVinoEngine(),
            helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0]),
            "ai.onnx.ml.Scaler",
        ),
    ],
    ids=["onnx", "openvino", "openvino-ml"],
)
def test_an_operator_that_the_engine_lacks_is_named(tmp_path: Path, engine: Any, node: Any, operator: str) -> None:
    module = linear_module(tmp_path / "m")
    one_node(module.folder, node)
    error = error_of(engine, module, tmp_path / "cache")
    assert isinstance(error, ResourceError)
    assert error.code == "unschedulable.operator"
    assert error.data["operator"] == operator
    assert operator in error.message


@pytest.mark.parametrize("engine", [OnnxEngine(), OpenVinoEngine()], ids=lambda engine: engine.name)
@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x09" + b"\xff" * 100])
def test_what_is_no_model_is_refused(tmp_path: Path, engine: Any, content: bytes) -> None:
    module = linear_module(tmp_path / "m")
    (module.folder / "model.onnx").write_bytes(content)
    assert error_of(engine, module, tmp_path / "cache").code == "install.load_failed"


@pytest.mark.parametrize("engine", [OnnxEngine(), OpenVinoEngine()], ids=lambda engine: engine.name)
def test_tensors_that_the_manifest_does_not_declare(tmp_path: Path, engine: Any) -> None:
    module = linear_module(tmp_path / "m")
    models.save(
        module.folder / "model.onnx",
        [helper.make_node("Identity", ["pixels"], ["y"])],
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    error = error_of(engine, module, tmp_path / "cache")
    assert error.code == "install.load_failed"
    assert "pixels" in error.message


def test_a_run_that_fails_says_what_the_runtime_says(tmp_path: Path) -> None:
    for name in ("onnx", "openvino"):
        module = linear_module(tmp_path / name, engine=name)
        model = engines.get(name).load(module.folder, module.manifest, tmp_path / "cache")
        with pytest.raises(PeerError) as caught:
            model.run({"x": np.zeros((1, 9), "f4")})
        assert caught.value.code == "scoring.failed"
        assert model.run({"x": X})["y"].shape == (5, 3)


def test_openvino_is_pinned_to_f32_and_reads_its_own_format(tmp_path: Path) -> None:
    import msgspec
    import openvino

    module = linear_module(tmp_path / "m", engine="openvino")
    assert _config(module.folder / "model.onnx", module.manifest, Path())["INFERENCE_PRECISION_HINT"] == "f32"
    model = OpenVinoEngine().load(module.folder, module.manifest, tmp_path / "cache")
    assert model._compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    openvino.save_model(openvino.Core().read_model(module.folder / "model.onnx"), module.folder / "model.xml", False)
    ir = msgspec.structs.replace(module.manifest, model="model.xml")
    got = OpenVinoEngine().load(module.folder, ir, tmp_path / "cache").run({"x": X})["y"]
    np.testing.assert_allclose(got, reference(module.folder, X), rtol=2e-4, atol=1e-6)


def test_a_script_finds_its_neighbours_and_its_folder(tmp_path: Path) -> None:
    script = """
import helper_of_this_test
def init(folder): helper_of_this_test.factor = float((folder / "factor.txt").read_text())
def run(inputs): return {"y": list(inputs["x"].sum(axis=1) * helper_of_this_test.factor)}
def close(): helper_of_this_test.factor = None
"""
    module = python_module(tmp_path / "m", script)
    (module.folder / "helper_of_this_test.py").write_text("factor = 0\n")
    (module.folder / "factor.txt").write_text("2.5")
    path = list(sys.path)
    try:
        model = PythonEngine().load(module.folder, module.manifest, tmp_path)
        np.testing.assert_allclose(model.run({"x": X})["y"], X.sum(axis=1) * 2.5, rtol=1e-5)
        assert not (module.folder / "__pycache__").exists()
        model.close()
        assert sys.modules["helper_of_this_test"].factor is None
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = False


VALUES = [
    ("FP32", "np.array([1.5, 2.5])", [1.5, 2.5]),
    ("FP32", "[1, 2]", [1.0, 2.0]),
    ("INT32", "np.array([1, 2])", [1, 2]),
    ("INT64", "np.array([True, False])", [1, 0]),
    ("INT32", "[]", []),
    ("INT64", "np.array([1.5, 2.5])", "it is float64, which would be cut"),
    ("INT64", "[np.nan, 2.0]", "it is float64, which would be cut"),
    ("BOOL", "np.array([0.2, 0.0])", "it is float64, which would be cut"),
    ("UINT8", "np.array([1, 256])", "a value of it (int64) does not fit"),
    ("UINT64", "np.array([-1, 2])", "a value of it (int64) does not fit"),
    ("FP32", "['one', 'two']", "could not convert"),
]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loading a script changes of the process, which is a worker's."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)


@pytest.mark.parametrize(("datatype", "value", "expected"), VALUES)
@pytest.mark.usefixtures("scripts")
def test_what_a_script_returns_keeps_its_value_or_is_refused(
    tmp_path: Path, datatype: str, value: str, expected: Any
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "main.py").write_text(f"import numpy as np\ndef run(inputs):\n    return {{'y': {value}}}\n")
    text = 'format = 1\nname = "m"\nengine = "python"\nmodel = "main.py"\n'
    for side, name, kind in (("inputs", "x", "FP32"), ("outputs", "y", datatype)):
        text += f'[[{side}]]\nname = "{name}"\ndatatype = "{kind}"\nshape = [-1]\n'
    model = PythonEngine().load(folder, parse(text), Path())
    if isinstance(expected, list):
        found = model.run({"x": np.zeros(2, "f4")})["y"]
        assert (found.tolist(), found.dtype) == (expected, np.dtype(DATATYPES[datatype]))
    else:
        with pytest.raises(PeerError, match=f"output 'y' of run.. is no {datatype}: .*{re.escape(expected)}"):
            model.run({"x": np.zeros(2, "f4")})


@pytest.mark.usefixtures("scripts")
def test_a_script_that_lacks_a_package_is_told_where_to_name_it(tmp_path: Path) -> None:
    module = python_module(tmp_path / "m", "import no_such_package_here.part\n")
    with pytest.raises(PeerError, match=r"requirements in \[environment\]"):
        PythonEngine().load(module.folder, module.manifest, Path())


def test_what_is_available_needs_no_import_of_a_runtime() -> None:
    import subprocess

    code = "import sys; from skerry_agent import engines; print(sorted(engines.available())); \
print([m for m in ('onnxruntime', 'openvino', 'numpy', 'pynq') if m in sys.modules])"
    lines = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert "'onnx', 'openvino'" in lines[0]
    assert lines[1] == "[]"
    with pytest.raises(ResourceError, match="choose one of"):
        engines.get("abacus")
