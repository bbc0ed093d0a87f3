"""Small real modules for the tests: ONNX models that a device could run, and python scripts that misbehave."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from skerry_modules.manifest import Manifest, parse
from skerry_modules.profiles import Limits

LIMITS = Limits(memory_mb=2000, disk_mb=1000)


def linear(
    path: Path, *, features: int = 4, classes: int = 3, scale: float = 1.0, hidden: int = 0, seed: int = 7
) -> None:
    """softmax(x · w · scale): inputs ``x`` [-1, features], output ``y`` [-1, classes]."""
    random = np.random.default_rng(seed)
    sizes = [features, hidden, classes] if hidden else [features, classes]
    nodes, weights, last = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weights.append(numpy_helper.from_array((random.normal(size=(rows, columns)) * scale).astype("f4"), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"h{index}"]))
        last = f"h{index}"
    nodes.append(helper.make_node("Softmax", [last], ["y"], axis=-1))
    save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        weights,
    )


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] | None = None) -> None:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights or [])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))


def manifest(text: str, **resources: Any) -> Manifest:
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in resources.items())
    return parse(f"format = 1\n{text}\n[resources]\n{lines}\n")


LINEAR = """
name = "{name}"
engine = "{engine}"
model = "model.onnx"
{more}
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
allow_nan = false
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 3]
"""

PYTHON = """
name = "{name}"
engine = "python"
model = "main.py"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1]
"""


class Module:
    """A folder with a manifest, as the agent lays them out."""

    def __init__(self, folder: Path, manifest: Manifest, version: int = 1) -> None:
        self.folder = folder
        self.manifest = manifest
        self.version = version
        self.digest = hashlib.sha256(str(folder).encode()).hexdigest()


def linear_module(
    folder: Path,
    *,
    name: str = "linear",
    engine: str = "onnx",
    scale: float = 1.0,
    version: int = 1,
    more: str = "",
    tail: str = "",
    **resources: Any,
) -> Module:
    folder.mkdir(parents=True, exist_ok=True)
    linear(folder / "model.onnx", scale=scale)
    text = LINEAR.format(name=name, engine=engine, more=more) + tail
    return Module(folder, manifest(text, **{"memory_mb": 300, **resources}), version)


def python_module(
    folder: Path, script: str, *, name: str = "script", version: int = 1, tail: str = "", **resources: Any
) -> Module:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(script)
    return Module(folder, manifest(PYTHON.format(name=name) + tail, **{"memory_mb": 200, **resources}), version)
