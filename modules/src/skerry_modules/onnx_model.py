"""What an ONNX file says of itself: inputs, outputs, opset, operators and external files. Read, never run.

The base install and devices have no ``onnx`` package (and on armv7l no runtime either), so this reads the few protobuf
fields that matter straight from the bytes. Weights are skipped, not copied: a file is memory-mapped, and a 1 GB model
costs no more than a 1 MB one.

It does not check that a model is valid (the engine does that on loading); it is held to the real ``onnx`` package by
tests. Any input, garbage included, ends in a result or in an :class:`~skerry_modules.errors.InputError`.

Sources: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers),
https://protobuf.dev/programming-guides/encoding/ (wire format).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from skerry_modules.errors import InputError
from skerry_modules.tensors import TensorSpec

MAX_SUBGRAPH_DEPTH: Final = 32
"""Nested subgraphs (If, Loop, Scan) that are followed; deeper ones are refused, since each is a recursion."""

_DATATYPES: Final = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
_CONTAINERS: Final = {4: "SEQUENCE", 5: "MAP", 8: "SPARSE", 9: "OPTIONAL"}
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_EXTERNAL: Final = 1  # TensorProto.DataLocation

Value = int | memoryview


class OnnxModel(msgspec.Struct, frozen=True, kw_only=True):
    """What was read.

    A shape has −1 where a dimension varies, and is ``None`` in ``unranked`` outputs (their names stand there, their
    spec has an empty shape). A datatype outside the Open Inference Protocol keeps ONNX's own name in capitals
    (``SEQUENCE``, ``MAP``, ``BF16``, …). Operators of the default domain have no prefix, others ``domain.Name``.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    operators: tuple[str, ...]
    unranked: tuple[str, ...] = ()
    external_files: tuple[str, ...] = ()
    ir_version: int = 0
    producer: str = ""


class _MalformedError(Exception):
    """The bytes are not protobuf as ONNX writes it."""


def read(source: Path | bytes) -> OnnxModel:
    """Read a model.

    Args:
        source: a file, or its bytes.

    Raises:
        InputError: ``manifest.model_mismatch`` if there is no such file or it is no ONNX model.
    """
    if isinstance(source, bytes):
        return _checked(memoryview(source), "the model")
    try:
        with source.open("rb") as file:
            if source.stat().st_size == 0:
                return _checked(memoryview(b""), source.name)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                view = memoryview(mapped)
                try:
                    return _checked(view, source.name)
                finally:
                    view.release()
    except (OSError, ValueError) as error:
        raise InputError("manifest.model_mismatch", f"cannot read the model {source}: {error}") from error


def _checked(data: memoryview, name: str) -> OnnxModel:
    problem: str
    try:
        return _model(data)
    except _MalformedError as error:
        # The cause is not chained: its frames would hold views of a file that is about to be unmapped.
        problem = str(error)
    raise InputError(
        "manifest.model_mismatch", f"cannot read {name} as an ONNX model: {problem}; export the model again"
    ) from None


class _Ports:
    """One graph's inputs and outputs, each with whether its rank is known, and the names that have a value already."""

    def __init__(self) -> None:
        self.inputs: list[tuple[TensorSpec, bool]] = []
        self.outputs: list[tuple[TensorSpec, bool]] = []
        self.initialised: set[str] = set()


class _Seen:
    """What is gathered over the graph, its subgraphs and the model's own functions."""

    def __init__(self) -> None:
        self.operators: set[tuple[str, str]] = set()
        self.external: set[str] = set()
        self.functions: set[tuple[str, str]] = set()


def _model(data: memoryview) -> OnnxModel:
    seen, opsets, ir_version, producer = _Seen(), {}, 0, ""  # type: _Seen, dict[str, int], int, str
    graphs: list[memoryview] = []
    for number, value in _fields(data):
        match number:
            case 1:
                ir_version = _int(value)
            case 2:
                producer = _text(value)
            case 7:
                graphs.append(_bytes(value))
            case 8:
                domain, version = _opset(_bytes(value))
                opsets[domain] = version
            case 25:
                _function(_bytes(value), seen)
    if not graphs:
        raise _MalformedError("it holds no graph")
    ports = _Ports()
    for graph in graphs:
        _graph(graph, seen, ports, 0)
    names = {(_domain(domain), name) for domain, name in seen.operators}
    calls = {(_domain(domain), name) for domain, name in seen.functions}
    # Before IR version 4 every weight was listed as an input too; later ones list those that a caller may override.
    wanted = [(spec, ranked) for spec, ranked in ports.inputs if spec.name not in ports.initialised]
    return OnnxModel(
        inputs=tuple(spec for spec, _ in wanted),
        outputs=tuple(spec for spec, _ in ports.outputs),
        opset=opsets.get("", 0),
        operators=tuple(sorted(f"{domain}.{name}" if domain else name for domain, name in names - calls)),
        unranked=tuple(spec.name for spec, ranked in (*wanted, *ports.outputs) if not ranked),
        external_files=tuple(sorted(seen.external)),
        ir_version=ir_version,
        producer=producer,
    )


def _graph(data: memoryview, seen: _Seen, ports: _Ports, depth: int) -> None:
    if depth > MAX_SUBGRAPH_DEPTH:
        raise _MalformedError(f"its graphs are nested more than {MAX_SUBGRAPH_DEPTH} deep")
    for number, value in _fields(data):
        match number:
            case 1:
                _node(_bytes(value), seen, depth)
            case 5:
                ports.initialised.add(_tensor(_bytes(value), seen))
            case 11:
                ports.inputs.append(_value_info(_bytes(value)))
            case 12:
                ports.outputs.append(_value_info(_bytes(value)))
            case 15:
                for inner, tensor in _fields(_bytes(value)):
                    if inner == 1:  # SparseTensorProto.values carries the initializer's name
                        ports.initialised.add(_tensor(_bytes(tensor), seen))


def _node(data: memoryview, seen: _Seen, depth: int) -> None:
    name = domain = ""
    for number, value in _fields(data):
        match number:
            case 4:
                name = _text(value)
            case 5:
                _attribute(_bytes(value), seen, depth)
            case 7:
                domain = _text(value)
    seen.operators.add((domain, name))


def _attribute(data: memoryview, seen: _Seen, depth: int) -> None:
    for number, value in _fields(data):
        if number in (5, 10):  # t, tensors: a constant may be external too
            _tensor(_bytes(value), seen)
        elif number in (6, 11):  # g, graphs
            _graph(_bytes(value), seen, _Ports(), depth + 1)


def _function(data: memoryview, seen: _Seen) -> None:
    name = domain = ""
    for number, value in _fields(data):
        match number:
            case 1:
                name = _text(value)
            case 7:
                _node(_bytes(value), seen, 0)
            case 10:
                domain = _text(value)
    seen.functions.add((domain, name))


def _tensor(data: memoryview, seen: _Seen) -> str:
    """A TensorProto's name; notes the file that holds its data, if that is another one."""
    name, location, entries = "", 0, []  # type: str, int, list[tuple[str, str]]
    for number, value in _fields(data):
        match number:
            case 8:
                name = _text(value)
            case 13:
                entries.append(_entry(_bytes(value)))
            case 14:
                location = _int(value)
    if location == _EXTERNAL:
        seen.external.update(value for key, value in entries if key == "location")
    return name


def _entry(data: memoryview) -> tuple[str, str]:
    pair = {1: "", 2: ""}
    for number, value in _fields(data):
        if number in pair:
            pair[number] = _text(value)
    return pair[1], pair[2]


def _value_info(data: memoryview) -> tuple[TensorSpec, bool]:
    """The spec, and whether its rank is known."""
    name, datatype, shape = "", "UNKNOWN", None  # type: str, str, tuple[int, ...] | None
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            datatype, shape = _type(_bytes(value))
    return TensorSpec(name=name, datatype=datatype, shape=shape or ()), shape is not None


def _type(data: memoryview) -> tuple[str, tuple[int, ...] | None]:
    datatype, shape = "UNKNOWN", None  # type: str, tuple[int, ...] | None
    for number, value in _fields(data):
        if number in _CONTAINERS:
            datatype = _CONTAINERS[number]
        elif number == 1:
            for inner, part in _fields(_bytes(value)):
                if inner == 1:
                    datatype = _DATATYPES.get(_int(part), f"ONNX_{_int(part)}")
                elif inner == 2:
                    dims = [_bytes(dim) for field, dim in _fields(_bytes(part)) if field == 1]
                    shape = tuple(_dimension(dim) for dim in dims)
    return datatype, shape


def _dimension(data: memoryview) -> int:
    """Its size, or −1 where it is symbolic or not given. A fixed size of 0 (an empty tensor) reads as −1 too."""
    size = -1
    for number, value in _fields(data):
        if number == 1:
            size = _int(value)
    return size if size > 0 else -1


def _opset(data: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(data):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            version = _int(value)
    return _domain(domain), version


def _domain(domain: str) -> str:
    return "" if domain in _DEFAULT_DOMAINS else domain


# -- the protobuf wire format ---------------------------------------------------------------------------------------


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Every field of one message: its number, and an int or a view of its bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _MalformedError("a field has the number 0")
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise _MalformedError(f"a field is of the unknown kind {kind}")
        if at + size > end:
            raise _MalformedError("it is cut short")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _MalformedError("it is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise _MalformedError("a number is longer than 10 bytes")


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise _MalformedError("a number stands as bytes")
    return value - (1 << 64) if value >> 63 else value


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError("a message stands as a number")
    return value


def _text(value: Value) -> str:
    try:
        return bytes(_bytes(value)).decode()
    except UnicodeDecodeError:
        raise _MalformedError("a name is not UTF-8") from None
