"""Models for the scoring benchmarks, built with the onnx package: a tiny one (~25 µs) and one of a few milliseconds."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from skerry_modules.manifest import Manifest, parse
from skerry_modules.profiles import Limits

LIMITS = Limits(memory_mb=4000, disk_mb=1000)


class Model(NamedTuple):
    """A module's folder as an agent lays it out, with an input that it takes."""

    folder: Path
    manifest: Manifest
    digest: str
    example: np.ndarray[Any, Any]


def dense(folder: Path, name: str, sizes: list[int], *, seed: int = 1) -> Model:
    """Layers of MatMul, Add and Relu; ``x`` [-1, sizes[0]] to ``y`` [-1, sizes[-1]]."""
    random = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weight = (random.normal(size=(rows, columns)) / np.sqrt(rows)).astype("f4")
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        weights.append(numpy_helper.from_array(np.zeros(columns, "f4"), f"b{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Add", [f"m{index}", f"b{index}"], [f"a{index}"]))
        last = f"r{index}"
        nodes.append(helper.make_node("Relu", [f"a{index}"], [last]))
    return _write(folder, name, nodes, weights, last, [sizes[0]], sizes[-1])


def convolutional(folder: Path, name: str, side: int, channels: list[int], *, seed: int = 1) -> Model:
    """3×3 convolutions with Relu, then a mean over the image: ``x`` [-1, channels[0], side, side]."""
    random = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for index, (before, after) in enumerate(itertools.pairwise(channels)):
        weight = (random.normal(size=(after, before, 3, 3)) / np.sqrt(9 * before)).astype("f4")
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        last = f"r{index}"
        nodes.append(helper.make_node("Relu", [f"c{index}"], [last]))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], axis=1))
    return _write(folder, name, nodes, weights, "flat", [channels[0], side, side], channels[-1])


def _write(
    folder: Path, name: str, nodes: list[Any], weights: list[Any], last: str, row: list[int], classes: int
) -> Model:
    nodes.append(helper.make_node("Softmax", [last], ["y"], axis=-1))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *row])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        weights,
    )
    folder.mkdir(parents=True, exist_ok=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(made, str(folder / "model.onnx"))
    text = f"""
format = 1
name = "{name}"
engine = "onnx"
model = "model.onnx"
[[inputs]]
name = "x"
datatype = "FP32"
shape = {[-1, *row]}
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, {classes}]
[resources]
memory_mb = 1000
"""
    (folder / "module.toml").write_text(text)
    digest = hashlib.sha256(str(folder).encode()).hexdigest()
    example = np.random.default_rng(seed=2).normal(size=(1, *row)).astype("f4")
    return Model(folder, parse(text), digest, example)


def tiny(folder: Path) -> Model:
    """About 25 µs in ONNX Runtime on a desktop core."""
    return dense(folder, "tiny", [64, 384, 384, 256, 256, 128, 128, 64, 64, 10])


def medium(folder: Path) -> Model:
    """About 6 ms: convolutions over a 64×64 image of three channels (12,288 floats)."""
    return convolutional(folder, "medium", 64, [3, 64, 96, 112, 10])


def batched(model: Model, max_rows: int) -> Model:
    """The same module, with requests that wait together scored together."""
    path = model.folder / "module.toml"
    path.write_text(path.read_text() + f"[batching]\nmax_rows = {max_rows}\n")
    return model._replace(manifest=parse(path.read_text()))
