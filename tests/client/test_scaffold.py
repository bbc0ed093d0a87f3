"""A module from nothing but a model: what is generated is complete, deterministic, and true to the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry import scaffold
from skerry_modules import manifest, package
from skerry_modules.errors import InputError, ResourceError

from .conftest import make_model


def model_of(path: Path, inputs: list[Any], outputs: list[Any], nodes: list[Any]) -> Path:
    from onnx import helper

    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 9
    path.write_bytes(made.SerializeToString())
    return path


def info(name: str, kind: str, shape: Any) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, **attributes)


def test_a_folder_is_complete_and_packs(model: Path, tmp_path: Path) -> None:
    made = scaffold.create(model, tmp_path / "module")
    assert made.notes == ()
    assert (made.manifest.name, made.manifest.engine) == ("model", "onnx")
    assert made.manifest.inputs[0].shape == (-1, 4)
    packed = package.write_package(made.folder, tmp_path / "m.skerry")
    assert [entry.path for entry in packed.index.files] == ["golden.npz", "model.onnx", "module.toml"]
    with np.load(made.folder / "golden.npz") as golden:
        assert golden["input.x"].shape == (8, 4)
        assert golden["output.y"].shape == (8, 3)


def test_the_golden_outputs_are_the_models_own(model: Path, tmp_path: Path) -> None:
    import onnxruntime

    scaffold.create(model, tmp_path / "module")
    session = onnxruntime.InferenceSession(str(model))
    with np.load(tmp_path / "module" / "golden.npz") as golden:
        np.testing.assert_allclose(session.run(None, {"x": golden["input.x"]})[0], golden["output.y"], rtol=1e-6)


def test_the_same_model_gives_the_same_package(model: Path, tmp_path: Path) -> None:
    digests = set()
    for place in ("one", "two"):
        scaffold.create(model, tmp_path / place)
        digests.add(package.write_package(tmp_path / place, tmp_path / f"{place}.skerry").digest)
    assert len(digests) == 1


def test_given_inputs_are_the_golden_ones(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.arange(12, dtype=np.float64).reshape(3, 4))
    scaffold.create(model, tmp_path / "module", golden=tmp_path / "inputs.npz")
    with np.load(tmp_path / "module" / "golden.npz") as golden:
        assert golden["input.x"].dtype == np.float32
        assert golden["input.x"].tolist() == np.arange(12).reshape(3, 4).tolist()


def test_a_fixed_batch_gets_as_many_cases(tmp_path: Path) -> None:
    scaffold.create(make_model(tmp_path / "m.onnx", rows=2), tmp_path / "module")
    with np.load(tmp_path / "module" / "golden.npz") as golden:
        assert golden["input.x"].shape == (2, 4)


def test_integers_and_flags_get_values_that_any_index_allows(tmp_path: Path) -> None:
    inputs = [info("ids", "INT64", ["N", 3]), info("flag", "BOOL", ["N", 3])]
    nodes = [node("Cast", ["flag"], ["f"], to=7), node("Add", ["ids", "f"], ["y"])]
    path = model_of(tmp_path / "m.onnx", inputs, [info("y", "INT64", ["N", 3])], nodes)
    scaffold.create(path, tmp_path / "module")
    with np.load(tmp_path / "module" / "golden.npz") as golden:
        assert set(np.unique(golden["input.ids"])) <= {0, 1}
        assert golden["input.flag"].dtype == np.bool_


def test_openvino_ir_gets_its_weights_and_its_own_golden(model: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(str(model)), tmp_path / "net.xml", compress_to_fp16=False)
    made = scaffold.create(tmp_path / "net.xml", tmp_path / "module")
    assert (made.manifest.engine, made.manifest.model) == ("openvino", "net.xml")
    packed = package.write_package(made.folder, tmp_path / "m.skerry")
    assert {entry.path for entry in packed.index.files} == {"golden.npz", "module.toml", "net.bin", "net.xml"}


def test_a_model_without_its_weights_leaves_nothing(model: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(str(model)), tmp_path / "net.xml")
    (tmp_path / "net.bin").unlink()
    with pytest.raises(InputError, match=r"net\.bin is missing; put it beside the model"):
        scaffold.create(tmp_path / "net.xml", tmp_path / "module")
    assert not (tmp_path / "module").exists()


def test_a_real_classifier_with_a_map_output_keeps_what_can_be_served(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx")
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    fitted = LogisticRegression().fit(rows, (rows.sum(axis=1) > 0).astype(int))
    (tmp_path / "Class_1.onnx").write_bytes(to_onnx(fitted, rows[:1], target_opset=17).SerializeToString())
    made = scaffold.create(tmp_path / "Class_1.onnx", tmp_path / "module")
    assert made.manifest.name == "class-1"
    assert [spec.name for spec in made.manifest.outputs] == ["output_label"]
    assert made.notes == ("left out, since they are no tensors of known shape: output_probability (SEQUENCE)",)


def test_without_the_runtime_it_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    made = scaffold.create(model, tmp_path / "module")
    assert made.manifest.golden is None
    assert "pip install 'skerry[onnx]'" in made.notes[0]
    with pytest.raises(ResourceError, match="onnxruntime is not installed here") as caught:
        scaffold.create(model, tmp_path / "other", require_golden=True)
    assert caught.value.code == "resource.missing_dependency"


def test_a_manifest_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    scaffold.create(model, tmp_path / "module")
    before = (tmp_path / "module" / "module.toml").read_bytes()
    with pytest.raises(InputError, match=r"module\.toml: it exists; edit it"):
        scaffold.create(model, tmp_path / "module")
    assert (tmp_path / "module" / "module.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"z": np.ones((2, 4))}, "it has no array 'x', only z"),
        ({"x": np.ones((2, 5))}, r"'x' has the shape \[2, 5\], the model takes \[-1, 4\]"),
        (None, "cannot read .* as .npz"),
    ],
)
def test_inputs_that_do_not_fit_say_how(model: Path, tmp_path: Path, arrays: Any, text: str) -> None:
    path = tmp_path / "inputs.npz"
    path.write_bytes(b"no archive")
    if arrays:
        np.savez(path, **arrays)
    with pytest.raises(InputError, match=text):
        scaffold.create(model, tmp_path / "module", golden=path)
    assert not (tmp_path / "module").exists()


def test_a_name_that_no_module_may_bear_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="field name: use 1 to 63"):
        scaffold.create(model, tmp_path / "module", name="Bad Name")
    assert not (tmp_path / "module").exists()


@pytest.mark.parametrize(
    ("content", "suffix", "text"),
    [
        (b"garbage", ".onnx", "as an ONNX model"),
        (b"", ".onnx", "it holds no graph"),
        (b"import x", ".py", "give an .onnx file or an OpenVINO .xml"),
        (b"<x/>", ".xml", "as an OpenVINO model"),
    ],
)
def test_what_is_no_model_says_so(tmp_path: Path, content: bytes, suffix: str, text: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=text):
        scaffold.create(path, tmp_path / "module")
    assert not (tmp_path / "module").exists()


def test_a_model_that_fails_on_generated_inputs_asks_for_real_ones(tmp_path: Path) -> None:
    inputs = [info("a", "FLOAT", ["N", 4]), info("b", "FLOAT", ["M", "K"])]
    path = model_of(tmp_path / "m.onnx", inputs, [info("y", "FLOAT", ["N", 4])], [node("MatMul", ["a", "b"], ["y"])])
    with pytest.raises(InputError, match="give inputs that it takes with --golden"):
        scaffold.create(path, tmp_path / "module")


def test_outputs_that_are_not_by_row_ask_for_a_golden_file(tmp_path: Path) -> None:
    path = model_of(
        tmp_path / "m.onnx",
        [info("x", "FLOAT", ["N", 4])],
        [info("y", "FLOAT", [1, 4])],
        [node("ReduceSum", ["x", "axes"], ["y"])],
    )
    from onnx import load, numpy_helper, save

    made = load(path)
    made.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    save(made, path)
    with pytest.raises(InputError, match=r"output 'y' has the shape \[1, 4\] for 8 inputs"):
        scaffold.create(path, tmp_path / "module")


@pytest.mark.parametrize(
    ("text", "name"),
    [("Digits v2", "digits-v2"), ("__", "model"), ("ÄÖ", "model"), ("a" * 90, "a" * 63), ("x.y", "x-y")],
)
def test_names_are_made_fit(text: str, name: str) -> None:
    assert scaffold.slug(text) == name
    assert manifest.is_name(name)
