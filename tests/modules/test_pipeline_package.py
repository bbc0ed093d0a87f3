"""A pipeline packed: the facts of all its steps, and what a device needs for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model
from onnx.reference import ReferenceEvaluator

from modules.pipelines import GOOD
from skerry_modules import package
from skerry_modules.compatibility import DeviceFacts, obstacles
from skerry_modules.errors import InputError, PeerError
from skerry_modules.profiles import EngineSupport, Limits, Profile


def write_model(path: Path, rows: int = 4, columns: int = 3, operator: str = "Softmax", opset: int = 17) -> None:
    weights = numpy_helper.from_array(np.ones((rows, columns), "f4"), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(operator, ["h"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    ReferenceEvaluator(model)
    save_model(model, str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "module.toml").write_text(GOOD)
    (tmp_path / "scale.py").write_text("def run(inputs):\n    return inputs\n")
    write_model(tmp_path / "small.onnx")
    write_model(tmp_path / "large.onnx", operator="Sigmoid", opset=18)
    return tmp_path


def test_facts_are_those_of_all_steps(folder: Path) -> None:
    packed = package.write_package(folder, folder / "out.skerry")
    facts = packed.index.facts
    assert (facts.opset, facts.operators) == (18, ("MatMul", "Sigmoid", "Softmax"))
    assert set(facts.steps) == {"scale", "small", "large"}
    assert (facts.steps["large"].opset, facts.steps["large"].operators) == (18, ("MatMul", "Sigmoid"))
    with package.read_package(packed.path) as opened:
        assert opened.index == packed.index


def test_a_steps_model_is_held_to_the_step(folder: Path) -> None:
    write_model(folder / "large.onnx", columns=5)
    with pytest.raises(InputError) as caught:
        package.build_index(folder, package.read_folder(folder))
    assert caught.value.code == "manifest.model_mismatch"
    assert caught.value.message.startswith("cannot pack step 'large': output 'y': the manifest says [-1, 3]")
    assert caught.value.data["step"] == "large"


def test_a_steps_file_must_be_there(folder: Path) -> None:
    (folder / "scale.py").unlink()
    with pytest.raises(InputError, match=r"line 19, field steps\[0\].model: there is no file 'scale.py'"):
        package.build_index(folder, package.read_folder(folder))


def test_an_index_with_a_broken_graph_is_refused(folder: Path) -> None:
    index, _ = package.build_index(folder, package.read_folder(folder))
    data = package.index_bytes(index)
    with pytest.raises(PeerError, match="there is no step 'nobody'") as caught:
        package.parse_index(data.replace(b'"average.y"', b'"nobody.y"'))
    assert caught.value.code == "package.unreadable"


# -- where it can run -------------------------------------------------------------------------------------------------


def profile(*engines: EngineSupport) -> Profile:
    return Profile(
        format=1, name="box", title="A box", architecture="x86_64", cores=4, memory_mb=4000, engines=engines,
        limits=Limits(memory_mb=2000, disk_mb=2000), sources=(),
    )  # fmt: skip


ONNX = EngineSupport(name="onnx", max_opset=17, unsupported_operators=("Sigmoid",))
PYTHON = EngineSupport(name="python")


def test_every_steps_engine_is_needed(folder: Path) -> None:
    index, _ = package.build_index(folder, package.read_folder(folder))
    open_onnx = EngineSupport(name="onnx")
    assert not obstacles(index.manifest, index.facts, profile(open_onnx, PYTHON))
    (lacks,) = obstacles(index.manifest, index.facts, profile(open_onnx))
    assert (lacks.code, lacks.message) == (
        "unschedulable.engine",
        "step 'scale' needs the engine python, box has onnx",
    )
    found = obstacles(index.manifest, index.facts, profile(ONNX, PYTHON))
    assert [one.message for one in found] == [
        "step 'large' uses Sigmoid, which onnx does not support there",
        "step 'large' uses opset 18, onnx there reads up to 17",
    ]
    assert {one.code for one in found} == {"unschedulable.operator"}
    there = DeviceFacts(engines={"python": "3.11"})
    found = obstacles(index.manifest, index.facts, profile(open_onnx, PYTHON), there)
    assert [one.message for one in found] == [
        f"step {name!r} needs the engine onnx, the device has installed python" for name in ("small", "large")
    ]
