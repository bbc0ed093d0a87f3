"""Do the model file's tensors match what the manifest declares? Read from the file, without running it.

ONNX files are read by :mod:`skerry_modules.onnx_model`, OpenVINO IR (``.xml``) here. An overlay or a python entry
script says nothing of its tensors: the golden test on the device is what holds those to their manifest.

A declared dimension may be narrower than the model's (a number where the model varies), never wider. Every input of
the model must be declared; outputs may be a selection.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from skerry_modules import onnx_model, pipeline
from skerry_modules.compatibility import ModelFacts
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.manifest import PIPELINE, Manifest, is_plain, step_manifest
from skerry_modules.tensors import TensorSpec

MAX_XML_BYTES: Final = 64 * 1024 * 1024
"""The largest OpenVINO topology that is read (the weights stand in the ``.bin`` beside it)."""

_IR_DATATYPES: Final = {
    "boolean": "BOOL",  # elements spell it so, ports the next
    "bool": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
    "fp16": "FP16",
    "fp32": "FP32",
    "fp64": "FP64",
    "string": "BYTES",
}


class Tensors(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file declares. ``companions`` are further files that it cannot be loaded without."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    unranked: tuple[str, ...] = ()
    opset: int = 0
    operators: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()


def read(path: Path) -> Tensors | None:
    """What the file declares, or None for kinds that declare nothing.

    Raises:
        InputError: ``manifest.model_mismatch`` if it is not what its name says.
    """
    if path.suffix == ".onnx":
        model = onnx_model.read(path)
        return Tensors(
            inputs=model.inputs,
            outputs=model.outputs,
            unranked=model.unranked,
            opset=model.opset,
            operators=model.operators,
            companions=model.external_files,
        )
    if path.suffix == ".xml":
        return _read_ir(path)
    return None


def check(folder: Path, manifest: Manifest, files: Mapping[str, int]) -> ModelFacts:
    """Hold the model to its manifest and return what hub and device decide with.

    Args:
        folder: where the files stand.
        manifest: what is declared.
        files: every packed path with its size in bytes.

    Raises:
        InputError: ``manifest.model_mismatch`` naming the tensor and both sides, and the step in a pipeline.
    """
    size = sum(files.values())
    if manifest.engine != PIPELINE:
        own = _check_one(folder, manifest, files)
        return ModelFacts(opset=own.opset, operators=own.operators, size_bytes=size)
    found: dict[str, pipeline.Facts] = {}
    for step in manifest.steps:
        if step.engine is None:
            continue
        try:
            found[step.name] = _check_one(folder, step_manifest(manifest, step), files)
        except SkerryError as error:
            problem = error.message.removeprefix("cannot pack the module: ").removeprefix("cannot pack ")
            raise InputError(
                error.code, f"cannot pack step {step.name!r}: {problem}", **{**error.data, "step": step.name}
            ) from error
    return ModelFacts(
        opset=max((facts.opset for facts in found.values()), default=0),
        operators=tuple(sorted({operator for facts in found.values() for operator in facts.operators})),
        size_bytes=size,
        steps=found,
    )


def _check_one(folder: Path, manifest: Manifest, files: Mapping[str, int]) -> pipeline.Facts:
    if manifest.engine == "pynq":
        _want_beside(manifest.model, Path(manifest.model).with_suffix(".hwh").name, files, "is described by")
    signature = read(folder / manifest.model) if manifest.engine in ("onnx", "openvino") else None
    if signature is None:
        return pipeline.Facts()
    for name in signature.companions:
        _want_beside(manifest.model, name, files, "keeps data in")
    _compare("input", manifest.inputs, signature.inputs, signature.unranked, complete=True)
    _compare("output", manifest.outputs, signature.outputs, signature.unranked, complete=False)
    return pipeline.Facts(opset=signature.opset, operators=signature.operators)


def _want_beside(model: str, name: str, files: Mapping[str, int], why: str) -> None:
    """A file that the model cannot be loaded without must be packed in the model's own folder."""
    parent = model.rpartition("/")[0]
    if not is_plain(name) or (f"{parent}/{name}" if parent else name) not in files:
        raise InputError(
            "manifest.model_mismatch",
            f"cannot pack {model}: it {why} {name!r}, which is not packed beside it; "
            "put the file there and let the manifest's files include it",
            file=name,
        )


def _compare(
    side: str,
    declared: tuple[TensorSpec, ...],
    found: tuple[TensorSpec, ...],
    unranked: tuple[str, ...],
    *,
    complete: bool,
) -> None:
    by_name = {spec.name: spec for spec in found}
    names = ", ".join(by_name) or "none"
    for spec in declared:
        other = by_name.get(spec.name)
        if other is None:
            raise _mismatch(side, spec.name, f"the manifest declares it, the model has {names}")
        if spec.datatype != other.datatype:
            raise _mismatch(side, spec.name, f"the manifest says {spec.datatype}, the model {other.datatype}")
        if spec.name not in unranked and not _narrows(spec.shape, other.shape):
            raise _mismatch(side, spec.name, f"the manifest says {list(spec.shape)}, the model {list(other.shape)}")
    missing = [name for name in by_name if name not in {spec.name for spec in declared}]
    if complete and missing:
        raise _mismatch(side, missing[0], "the model needs it, the manifest does not declare it")


def _narrows(declared: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return len(declared) == len(found) and all(
        theirs in (-1, ours) for ours, theirs in zip(declared, found, strict=True)
    )


def _mismatch(side: str, tensor: str, problem: str) -> InputError:
    return InputError(
        "manifest.model_mismatch",
        f"cannot pack the module: {side} {tensor!r}: {problem}; correct the manifest or export the model again",
        side=side,
        tensor=tensor,
        problem=problem,
    )


# -- OpenVINO IR ------------------------------------------------------------------------------------------------------


def _read_ir(path: Path) -> Tensors:
    """Source: https://docs.openvino.ai/2024/documentation/openvino-ir-format.html (layers, ports, edges)."""
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise _unreadable(path, f"it is larger than {MAX_XML_BYTES} bytes")
        root = _parse_xml(path.read_bytes(), path)
    except OSError as error:
        raise _unreadable(path, str(error)) from error
    if root.tag != "net":
        raise _unreadable(path, f"its root is <{root.tag}>, not <net>")
    layers = root.findall("layers/layer")
    if not layers:
        raise _unreadable(path, "it holds no layers")
    try:
        inputs = tuple(
            _ir_port(layer, layer.find("output/port")) for layer in layers if layer.get("type") == "Parameter"
        )
        outputs = _ir_outputs(root, layers)
    except ValueError as error:
        raise _unreadable(path, str(error)) from error
    kinds = {layer.get("type", "") for layer in root.iter("layer")} - {"Parameter", "Result", "Const", ""}
    weights = path.with_suffix(".bin").name
    return Tensors(
        inputs=inputs,
        outputs=outputs,
        operators=tuple(sorted(kinds)),
        companions=(weights,),
    )


def _parse_xml(data: bytes, path: Path) -> ET.Element:
    # Entities are how a small XML becomes a huge one; IR never has a document type, so any is refused unread.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise _unreadable(path, "it declares entities, which no OpenVINO model does")
    try:
        return ET.fromstring(data)  # noqa: S314 - entity declarations were refused above
    except (ET.ParseError, ValueError, LookupError) as error:
        raise _unreadable(path, str(error)) from error


def _ir_outputs(root: ET.Element, layers: list[ET.Element]) -> tuple[TensorSpec, ...]:
    """A Result's name is that of the tensor which feeds it: the ``names`` of the port at the edge's other end."""
    ports = {
        (layer.get("id"), port.get("id")): (layer, port) for layer in layers for port in layer.findall("output/port")
    }
    feeds = {
        edge.get("to-layer"): (edge.get("from-layer"), edge.get("from-port")) for edge in root.findall("edges/edge")
    }
    found = []
    for layer in layers:
        if layer.get("type") != "Result":
            continue
        source = ports.get(feeds.get(layer.get("id"), ("", "")))
        if source is None:
            raise ValueError(f"nothing feeds its output {layer.get('name')!r}")
        found.append(_ir_port(*source, fallback=layer.get("name", "")))
    return tuple(found)


def _ir_port(layer: ET.Element, port: ET.Element | None, fallback: str = "") -> TensorSpec:
    if port is None:
        raise ValueError(f"its layer {layer.get('name')!r} has no port")
    # Where a tensor has several names the first is the one that the model was exported with.
    names = (port.get("names") or "").split(",")
    data = layer.find("data[@element_type]")
    element = data.get("element_type") if data is not None else None
    precision = port.get("precision") or element or "unknown"
    dims = tuple(int(dim.text or "") for dim in port.findall("dim"))
    return TensorSpec(
        name=names[0] or fallback or layer.get("name", ""),
        datatype=_IR_DATATYPES.get(precision.lower(), precision.upper()),
        shape=tuple(dim if dim > 0 else -1 for dim in dims),
    )


def _unreadable(path: Path, problem: str) -> InputError:
    return InputError(
        "manifest.model_mismatch",
        f"cannot read {path.name} as an OpenVINO model: {problem}; export the model again",
    )
