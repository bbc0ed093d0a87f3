"""Real models to convert: the digits example, a small convolutional net, and one that int8 cannot carry."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from examples.parts import built, script

Array = np.ndarray[Any, Any]


def digits_module(target: Path, **options: Any) -> Path:
    """A copy of the digits example's folder."""
    folder, _ = built("digits", **options)
    return Path(shutil.copytree(folder, target))


@cache
def digits() -> tuple[Array, Array, Array, Array]:
    """Pixels and labels to train with, and held out."""
    found: tuple[Array, Array, Array, Array] = script("digits").load()
    return found


def heldout(path: Path, *, images: bool = False) -> Path:
    """Held-out digits with their labels as an ``.npz``."""
    _, _, pixels, labels = digits()
    shaped = pixels.reshape(-1, 1, 8, 8) / 16 if images else pixels
    np.savez(path, **{"image" if images else "pixels": shaped.astype(np.float32), "label": labels})
    return path


@cache
def _readout() -> tuple[Array, Array, Array, Array]:
    """Fixed random filters, and a trained layer on what they see."""
    from sklearn.linear_model import LogisticRegression

    filters = np.random.default_rng(0).normal(size=(8, 1, 3, 3)).astype(np.float32) / 3
    bias = np.full(8, 0.1, np.float32)
    train_x, train_y, _, _ = digits()
    images = train_x.reshape(-1, 8, 8) / 16
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    seen = np.maximum(np.einsum("nhwij,fij->nfhw", windows, filters[:, 0]) + bias[None, :, None, None], 0)
    layer = LogisticRegression(max_iter=200).fit(seen.reshape(len(images), -1), train_y)
    return filters, bias, layer.coef_.T.astype(np.float32), layer.intercept_.astype(np.float32)


def convnet(
    path: Path,
    *,
    batch: Any = "batch",
    opset: int = 17,
    stretch: float = 1.0,
    external: bool = False,
    stated: bool = False,
) -> Path:
    """Convolution, Relu, a dense layer, softmax, and the chosen class.

    ``stretch`` scales the first channel up and what reads it down: the same function in floats (a Relu lets a positive
    factor through), but an int8 scale shared by all channels then has no steps left for the other seven. ``stated``
    writes the dense layer as torch does: a Gemm that transposes its weight, and the weights' shapes beside the graph's.
    """
    filters, bias, dense, offset = (array.copy() for array in _readout())
    filters[0] *= stretch
    bias[0] *= stretch
    dense[:36] /= stretch
    weights = [
        numpy_helper.from_array(array, name)
        for name, array in (("filters", filters), ("bias", bias), ("dense", dense), ("offset", offset[None, :]))
    ]
    nodes = [
        helper.make_node("Conv", ["image", "filters", "bias"], ["seen"]),
        helper.make_node("Relu", ["seen"], ["fired"]),
        helper.make_node("Flatten", ["fired"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["summed"]),
        helper.make_node("Add", ["summed", "offset"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["class"], axis=1, keepdims=0),
    ]
    shapes = []
    if stated:
        weights = [
            numpy_helper.from_array(array, tensor.name)
            for tensor, array in zip(weights, (filters, bias, np.ascontiguousarray(dense.T), offset), strict=True)
        ]
        nodes[3:5] = [helper.make_node("Gemm", ["flat", "dense", "offset"], ["logits"], transB=1)]
        shapes = [helper.make_tensor_value_info(one.name, TensorProto.FLOAT, one.dims) for one in weights]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 10]),
            helper.make_tensor_value_info("class", TensorProto.INT64, [batch]),
        ],
        weights,
        value_info=shapes,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path), save_as_external_data=external, location="weights.data", size_threshold=64)
    return path
