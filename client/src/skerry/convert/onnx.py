"""ONNX to better ONNX: cut to what is asked for, folded, and quantised by onnxruntime.quantization.

What stands here beyond calling the tools is what they need to succeed on real models (each held by a test):

* Outputs that the manifest does not declare are cut with all that only they need. A classifier's label branch uses
  operators of ``ai.onnx.ml`` that OpenVINO does not have and that cannot be quantised.
* A Gemm's bias of shape [1, n] becomes [n]: the same sum, but per-channel quantisation fails on the former.
* Shapes that are stated of weights are dropped (torch states them): the quantiser transposes a weight and leaves its
  old shape standing, which no longer holds.
* Imports of operator sets that no node uses are dropped: a runtime without them would refuse the model for nothing.
* The final scores stay floats: 256 steps of a softmax are coarser than the gate's bar for near ties.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry.convert.report import Options
from skerry.convert.runtimes import missing, unsupported
from skerry_modules import onnx_model
from skerry_modules.errors import InputError

Array = np.ndarray[Any, Any]

MAX_MODEL_BYTES: Final = 1_500_000_000
"""ONNX is one protobuf message of at most 2 GB, and a conversion holds several copies."""
PER_CHANNEL_OPSET: Final = 13
"""Since then QuantizeLinear takes a scale per channel."""
QUANTISED_OPSET: Final = 17
_FLOAT_OPERATORS: Final = ("Softmax", "LogSoftmax", "Sigmoid", "Tanh")
"""Bounded curves whose steepest part int8 would flatten; they cost little as floats."""
_QUANTISED: Final = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_STATIC: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_DYNAMIC: Final = ("Attention", "Gemm", "LSTM", "MatMul")
"""Where the weights are that a method applies to; a model without any has nothing to quantise. Convolutions stay floats
in the dynamic method: its ConvInteger took nine times as long as floats, where the static method took a third."""
CALIBRATION_BATCH: Final = 32


def prepare(source: Path, target: Path, outputs: tuple[str, ...]) -> None:
    """Cut, tidy and fold a model without changing what it computes.

    Args:
        source: an ONNX file, with its external data beside it.
        target: one file to write.
        outputs: names to keep.

    Raises:
        InputError: ``convert.unsupported``.
        ResourceError: ``resource.missing_dependency``.
    """
    onnx, _ = _tools()
    beside = [source.parent / name for name in onnx_model.read(source).external_files]
    if sum(path.stat().st_size for path in (source, *beside) if path.is_file()) > MAX_MODEL_BYTES:
        raise InputError(
            "convert.unsupported", f"cannot convert {source.name}: it is larger than {MAX_MODEL_BYTES / 1e9:g} GB"
        )
    try:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        model = onnx.load(str(source))
        _cut(model.graph, outputs)
        staged = target.with_suffix(".staged")
        _save(model, staged)
        quant_pre_process(str(staged), str(target), skip_symbolic_shape=True)
        staged.unlink()
        folded = onnx.load(str(target))
        _flatten_biases(folded)  # folding is what makes a Gemm of a MatMul and an Add
        _forget_weight_shapes(folded.graph)
        _drop_imports(folded)
        onnx.checker.check_model(folded)
        _save(folded, target)
    except Exception as error:  # protobuf, onnx and the runtime each raise their own
        raise unsupported(f"prepare {source.name}", error) from error


def quantise_static(
    source: Path, target: Path, feeds: Mapping[str, Array], options: Options, tell: Callable[[int, int], None]
) -> None:
    """QDQ int8 with ranges from calibration: 8-bit weights and activations, sums in 32 bits.

    Args:
        source: a prepared model.
        target: one file to write.
        feeds: calibration inputs by name, one row a sample.
        options: calibrator, channels, range.
        tell: told rows done and in all.
    """
    onnx, quantization = _tools()
    _need_weights(onnx, source, _STATIC, "int8-dynamic")
    try:
        staged = _at_opset(onnx, source, target.with_suffix(".staged"))
        methods = quantization.CalibrationMethod
        rows = _batch(staged, len(next(iter(feeds.values()))))
        with contextlib.redirect_stdout(io.StringIO()):  # the tool talks on stdout, which is for results
            quantization.quantize_static(
                str(staged),
                str(target),
                _reader(quantization, feeds, rows, tell),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=options.per_channel,
                reduce_range=options.reduce_range,
                calibrate_method={
                    "minmax": methods.MinMax,
                    "entropy": methods.Entropy,
                    "percentile": methods.Percentile,
                }[options.calibrator],
                nodes_to_exclude=_float_nodes(onnx, staged),
            )
        _finish(onnx, staged, target)
    except Exception as error:  # as above
        raise unsupported("quantise the model statically", error) from error


def quantise_dynamic(source: Path, target: Path, options: Options) -> None:
    """8-bit weights; each call chooses its activations' range anew, from all rows of that call together."""
    onnx, quantization = _tools()
    _need_weights(onnx, source, _DYNAMIC, "int8-static")
    try:
        staged = _at_opset(onnx, source, target.with_suffix(".staged"))
        quantization.quantize_dynamic(
            str(staged),
            str(target),
            op_types_to_quantize=list(_DYNAMIC),
            weight_type=quantization.QuantType.QInt8,
            per_channel=options.per_channel,
            reduce_range=options.reduce_range,
        )
        _finish(onnx, staged, target)
    except Exception as error:  # as above
        raise unsupported("quantise the model dynamically", error) from error


def _tools() -> tuple[Any, Any]:
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise missing("onnx or onnxruntime", "'skerry[convert]'", "convert the model") from error
    return onnx, quantization


def _save(model: Any, target: Path) -> None:
    """The same model gives the same bytes."""
    target.write_bytes(model.SerializeToString(deterministic=True))


def _cut(graph: Any, outputs: tuple[str, ...]) -> None:
    """Keep the named outputs and what they need."""
    kept = [output for output in graph.output if output.name in outputs]
    needed = {output.name for output in kept}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(_read_by(node)) - {""}  # the empty name stands for an input that was left out
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    nodes.reverse()
    for field, values in (("output", kept), ("node", nodes), ("initializer", weights)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def _read_by(node: Any) -> Iterator[str]:
    """A node's inputs, and all names that its subgraphs may take from around them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (output.name for output in graph.output)


def _flatten_biases(model: Any) -> None:
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    for tensor in model.graph.initializer:
        if tensor.name in biases and readers[tensor.name] == 1 and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


def _forget_weight_shapes(graph: Any) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    for at in reversed(range(len(graph.value_info))):
        if graph.value_info[at].name in weights:
            del graph.value_info[at]


def _drop_imports(model: Any) -> None:
    used = {"", *(node.domain for node in _nodes(model.graph))}
    for function in model.functions:
        used |= {function.domain, *(node.domain for node in function.node)}
    kept = [one for one in model.opset_import if one.domain in used or (one.domain == "ai.onnx" and "" in used)]
    copies = [type(one).FromString(one.SerializeToString()) for one in kept]
    model.ClearField("opset_import")
    model.opset_import.extend(copies)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _need_weights(onnx: Any, source: Path, wanted: tuple[str, ...], other: str) -> None:
    found = {node.op_type for node in _nodes(onnx.load(str(source), load_external_data=False).graph)}
    if found & set(_QUANTISED):
        raise InputError(
            "convert.unsupported",
            "cannot quantise the model: it is quantised already; convert the one in floats that it was made of",
        )
    if not found & set(wanted):
        raise InputError(
            "convert.unsupported",
            f"cannot quantise the model: its operators ({', '.join(sorted(found))}) hold no weights that int8 "
            f"applies to ({', '.join(wanted)}); keep it as f32, or try {other}",
            operator=next(iter(sorted(found)), ""),
        )


def _at_opset(onnx: Any, source: Path, staged: Path) -> Path:
    """A copy that is new enough for a scale per channel."""
    model = onnx.load(str(source))
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < PER_CHANNEL_OPSET:
        model = onnx.version_converter.convert_version(model, QUANTISED_OPSET)
    _save(model, staged)
    return staged


def _float_nodes(onnx: Any, path: Path) -> list[str]:
    """Names of the nodes that stay floats; nodes without a name are given one, since the tool goes by names."""
    model = onnx.load(str(path))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    _save(model, path)
    return [node.name for node in model.graph.node if node.op_type in _FLOAT_OPERATORS]


def _finish(onnx: Any, staged: Path, target: Path) -> None:
    staged.unlink()
    model = onnx.load(str(target))
    _drop_imports(model)
    onnx.checker.check_model(model)
    _save(model, target)


def _batch(path: Path, rows: int) -> int:
    """Rows per calibration run: all runs alike, since the tool's histograms take no shorter last one."""
    fixed = max((spec.shape[0] for spec in onnx_model.read(path).inputs if spec.shape), default=-1)
    return fixed if fixed > 0 else max(size for size in range(1, CALIBRATION_BATCH + 1) if rows % size == 0)


def _reader(quantization: Any, feeds: Mapping[str, Array], rows: int, tell: Callable[[int, int], None]) -> Any:
    total = len(next(iter(feeds.values())))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands out batches in order."""

        def __init__(self) -> None:
            self.at = 0

        def get_next(self) -> dict[str, Array] | None:
            start, self.at = self.at, min(self.at + rows, total)
            tell(self.at, total)
            return {name: array[start : self.at] for name, array in feeds.items()} if start < total else None

    return Reader()
