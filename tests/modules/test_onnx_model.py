"""The wire reader against the real ``onnx`` package, and against anything at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_modules import model_files, onnx_model
from skerry_modules.compatibility import ModelFacts
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import TensorSpec

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT = TensorProto.FLOAT


def graph_model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **more: Any) -> Any:
    functions = more.pop("functions", [])
    opsets = more.pop("opsets", [helper.make_opsetid("", 17)])
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, **more), opset_imports=opsets)
    made.functions.extend(functions)
    return made


def info(name: str, kind: int = FLOAT, shape: Any = ("N", 4)) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def relu() -> Any:
    return graph_model([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("y")])


def test_a_small_model_reads_as_onnx_says() -> None:
    found = onnx_model.read(relu().SerializeToString())
    assert found.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    assert found.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),)
    assert (found.opset, found.operators, found.unranked) == (17, ("Relu",), ())


DIMENSIONS = st.one_of(st.integers(1, 500), st.sampled_from(["N", "batch", None]))
KINDS = {1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL"}
KINDS |= {10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64"}
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=12),
    st.tuples(st.sampled_from(sorted(KINDS)), st.one_of(st.none(), st.lists(DIMENSIONS, max_size=5))),
    min_size=1,
    max_size=5,
)


@given(TENSORS, TENSORS, st.integers(1, 30), st.sets(st.sampled_from(["Add", "MatMul", "Conv", "Gemm"]), min_size=1))
@settings(max_examples=150, deadline=None)
def test_any_tensors_read_as_onnx_says(inputs: Any, outputs: Any, opset: int, operators: set[str]) -> None:
    made = graph_model(
        [helper.make_node(name, ["a"], ["b"]) for name in operators],
        [info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        opsets=[helper.make_opsetid("ai.onnx", opset)],
    )
    found = onnx_model.read(made.SerializeToString())
    for side, wanted in ((found.inputs, inputs), (found.outputs, outputs)):
        assert [spec.name for spec in side] == list(wanted)
        for spec, (kind, shape) in zip(side, wanted.values(), strict=True):
            assert spec.datatype == KINDS[kind]
            assert spec.shape == tuple(size if isinstance(size, int) else -1 for size in shape or ())
            assert (spec.name in found.unranked) == (shape is None or spec.name in _unranked(inputs, outputs))
    assert found.opset == opset
    assert set(found.operators) == operators


def _unranked(*sides: Any) -> set[str]:
    return {name for side in sides for name, (_, shape) in side.items() if shape is None}


def test_weights_listed_as_inputs_are_not_inputs() -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    made = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x"), info("w", shape=(4, 4))], [info("y")]
    )
    made.graph.initializer.append(weight)
    assert [spec.name for spec in onnx_model.read(made.SerializeToString()).inputs] == ["x"]


def test_subgraphs_and_functions_count_and_calls_of_own_functions_do_not() -> None:
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "then", [], [info("z")])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [])
    call = helper.make_node("Twice", ["x"], ["t"], domain="own")
    trees = helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml")
    made = graph_model([choice, call, trees], [info("x")], [info("y")], functions=[function])
    assert onnx_model.read(made.SerializeToString()).operators == ("Add", "If", "Neg", "ai.onnx.ml.Scaler")


def test_sequences_and_maps_keep_their_kind() -> None:
    value = helper.make_tensor_type_proto(FLOAT, None)
    made = graph_model(
        [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml")],
        [info("x")],
        [helper.make_value_info("y", helper.make_sequence_type_proto(helper.make_map_type_proto(7, value)))],
    )
    assert onnx_model.read(made.SerializeToString()).outputs[0].datatype == "SEQUENCE"


def test_a_real_exported_classifier_reads_as_onnx_says(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx")
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    fitted = LogisticRegression().fit(rows, (rows.sum(axis=1) > 0).astype(int))
    made = to_onnx(fitted, rows[:1], options={"zipmap": False})
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    found = onnx_model.read(path)
    assert [spec.name for spec in found.inputs] == [one.name for one in made.graph.input]
    assert {spec.name: spec.datatype for spec in found.outputs} == {"label": "INT64", "probabilities": "FP32"}
    assert set(found.operators) == {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in made.graph.node
    }
    assert "skl2onnx" in found.producer


def test_data_in_other_files_is_named(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    made = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", shape=(1, 64))], [info("y")])
    made.graph.initializer.append(weight)
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert onnx_model.read(tmp_path / "m.onnx").external_files == ("weights.bin",)


def outcome(data: bytes) -> str:
    try:
        onnx_model.read(data)
    except InputError as error:
        return error.code
    return "read"


@given(st.binary(max_size=400))
@settings(max_examples=400, deadline=None)
def test_garbage_is_an_input_error_and_nothing_else(data: bytes) -> None:
    assert outcome(data) in ("read", "manifest.model_mismatch")


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_model_is_an_input_error_and_nothing_else(data: st.DataObject) -> None:
    original = bytearray(relu().SerializeToString())
    for at in data.draw(st.lists(st.integers(0, len(original) - 1), min_size=1, max_size=5)):
        original[at] = data.draw(st.integers(0, 255))
    assert outcome(bytes(original[: data.draw(st.integers(0, len(original)))])) in ("read", "manifest.model_mismatch")


def test_endless_nesting_is_refused() -> None:
    graph = b""
    for _ in range(2000):
        attribute = _field(6, graph)  # AttributeProto.g
        graph = _field(1, _field(4, b"If") + _field(5, attribute))  # GraphProto.node
    with pytest.raises(InputError, match="nested more than 32 deep"):
        onnx_model.read(_field(7, graph))


def _field(number: int, data: bytes) -> bytes:
    size, out = len(data), bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes(out) + bytes([size]) + data


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04", b"\xff" * 40, b"\x3a\x7f"])
def test_files_that_are_no_models_say_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read model\.onnx as an ONNX model: .*; export the model again"):
        onnx_model.read(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the model"):
        onnx_model.read(tmp_path / "no.onnx")


# -- model against manifest --------------------------------------------------------------------------------------------


def manifest(inputs: Any = None, outputs: Any = None, engine: Any = "onnx", model: str = "model.onnx") -> Manifest:
    x, y = TensorSpec(name="x", datatype="FP32", shape=(-1, 4)), TensorSpec(name="y", datatype="FP32", shape=(-1, 4))
    return Manifest(format=1, name="m", engine=engine, model=model, inputs=inputs or (x,), outputs=outputs or (y,))


def check(tmp_path: Path, declared: Manifest) -> ModelFacts:
    (tmp_path / "model.onnx").write_bytes(relu().SerializeToString())
    return model_files.check(tmp_path, declared, {"model.onnx": 100})


def spec(name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (-1, 4)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def test_what_matches_gives_the_facts(tmp_path: Path) -> None:
    assert check(tmp_path, manifest()) == ModelFacts(opset=17, operators=("Relu",), size_bytes=100)
    assert check(tmp_path, manifest(inputs=(spec(shape=(1, 4)),)))  # narrower than the model is fine
    assert check(tmp_path, manifest(engine="python")) == ModelFacts(size_bytes=100)


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (manifest(inputs=(spec("z"),)), "input 'z': the manifest declares it, the model has x"),
        (manifest(inputs=(spec(datatype="FP64"),)), "input 'x': the manifest says FP64, the model FP32"),
        (manifest(inputs=(spec(shape=(-1, 5)),)), r"input 'x': the manifest says \[-1, 5\], the model \[-1, 4\]"),
        (manifest(inputs=(spec(shape=(-1, -1)),)), r"input 'x': the manifest says \[-1, -1\], the model \[-1, 4\]"),
        (manifest(inputs=(spec(shape=(4,)),)), r"input 'x': the manifest says \[4\], the model \[-1, 4\]"),
        (manifest(outputs=(spec("w"),)), "output 'w': the manifest declares it, the model has y"),
        (manifest(outputs=(spec("y", "INT64"),)), "output 'y': the manifest says INT64, the model FP32"),
    ],
)
def test_a_difference_names_the_tensor_and_both_sides(tmp_path: Path, declared: Manifest, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        check(tmp_path, declared)
    assert caught.value.code == "manifest.model_mismatch"


def test_an_undeclared_input_is_named(tmp_path: Path) -> None:
    made = graph_model([helper.make_node("Add", ["x", "b"], ["y"])], [info("x"), info("b")], [info("y")])
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(InputError, match="input 'b': the model needs it, the manifest does not declare it"):
        model_files.check(tmp_path, manifest(), {"model.onnx": 1})


def test_data_outside_the_module_is_refused(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    made = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x")], [info("y")])
    made.graph.initializer.append(weight)
    onnx.external_data_helper.set_external_data(made.graph.initializer[0], "../../secret")
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(InputError, match=r"keeps data in '\.\./\.\./secret'"):
        model_files.check(tmp_path, manifest(), {"model.onnx": 1})


def test_openvino_ir_is_held_to_its_manifest(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    (tmp_path / "model.onnx").write_bytes(relu().SerializeToString())
    openvino.save_model(openvino.Core().read_model(str(tmp_path / "model.onnx")), tmp_path / "model.xml")
    declared = manifest(engine="openvino", model="model.xml")
    files = {"model.xml": 1, "model.bin": 1}
    assert model_files.check(tmp_path, declared, files).operators == ("ReLU",)
    with pytest.raises(InputError, match=r"keeps data in 'model\.bin'"):
        model_files.check(tmp_path, declared, {"model.xml": 1})
    wrong = manifest(engine="openvino", model="model.xml", outputs=(spec("other"),))
    with pytest.raises(InputError, match="output 'other': the manifest declares it, the model has y"):
        model_files.check(tmp_path, wrong, files)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<net>",
        "<other/>",
        "<net/>",
        '<!DOCTYPE x [<!ENTITY a "aaaa">]><net>&a;</net>',
        '<net><layers><layer id="0" type="Result" name="y"/></layers></net>',
        '<net><layers><layer id="0" type="Parameter" name="y"/></layers></net>',
        '<net><layers><layer type="Parameter"><output><port><dim>a</dim></port></output></layer></layers></net>',
    ],
)
def test_files_that_are_no_openvino_models_say_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.xml").write_text(text)
    with pytest.raises(InputError, match=r"cannot read model\.xml as an OpenVINO model: "):
        model_files.read(tmp_path / "model.xml")
