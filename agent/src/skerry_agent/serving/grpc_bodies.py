"""gRPC messages of the Open Inference Protocol into the bodies that workers read, and their answers back.

Tensors travel to the worker in the binary form that HTTP clients use too, so there is one path to be right. The
messages come from ``open_inference.binpb``, the compiled ``open_inference.proto``, in a pool of their own: another
package that brings the same protocol's messages does not meet these.
"""

from __future__ import annotations

import array
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from skerry_agent.serving.tensors import Output, outputs_of
from skerry_modules.errors import InputError

_FILE: Final = Path(__file__).with_name("open_inference.binpb")

_CONTENTS: Final[dict[str, tuple[str, str]]] = {
    "BOOL": ("bool_contents", "b"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}
"""Field and array code by datatype. FP16 has no contents of its own in the protocol: it comes raw."""


@cache
def messages() -> dict[str, Any]:
    """Message classes by full name."""
    pool = descriptor_pool.DescriptorPool()
    found = descriptor_pb2.FileDescriptorSet.FromString(_FILE.read_bytes())
    for file in found.file:
        pool.Add(file)
    return dict(message_factory.GetMessageClassesForFiles([file.name for file in found.file], pool))


def message(name: str) -> Any:
    """The class of a message of the protocol."""
    return messages()[f"inference.{name}"]


def body(request: Any) -> tuple[int, bytes]:
    """(length of the JSON part, body) of a ``ModelInferRequest``; all outputs are asked for in binary.

    Raises:
        InputError: ``scoring.bad_data``.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(
            "scoring.bad_data",
            f"cannot read the request: it has {len(request.inputs)} inputs and {len(raw)} raw contents; send one each",
        )
    parts = [raw[place] if raw else _pack(tensor) for place, tensor in enumerate(request.inputs)]
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {"binary_data_size": len(part)},
            }
            for tensor, part in zip(request.inputs, parts, strict=True)
        ],
        "parameters": {"binary_data_output": True},
    }
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [{"name": output.name} for output in request.outputs]
    encoded = msgspec.json.encode(head)
    return len(encoded), b"".join((encoded, *parts))


def timeout_s(request: Any) -> float | None:
    """The deadline that ``parameters.timeout`` asks for (see :func:`oip.timeout_s`).

    Raises:
        InputError: ``request.invalid``.
    """
    if "timeout" not in request.parameters:  # asking a map for what it lacks would put it there
        return None
    parameter = request.parameters["timeout"]
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind else None
    if type(value) is not int or value < 0:
        raise InputError(
            "request.invalid", f"cannot read the parameter timeout {value!r:.40}: give whole microseconds, as 250000"
        )
    return value / 1e6 or None


def _pack(tensor: Any) -> bytes:
    """A tensor's typed contents as little-endian bytes."""
    if tensor.datatype == "BYTES":
        values = tensor.contents.bytes_contents
        return b"".join([piece for value in values for piece in (struct.pack("<I", len(value)), value)])
    field, code = _CONTENTS.get(tensor.datatype, ("", ""))
    if not field:
        raise InputError(
            "scoring.bad_data",
            f"cannot read input {tensor.name!r}: {tensor.datatype[:20]} has no contents; send it in raw_input_contents",
        )
    try:
        packed = array.array(code, getattr(tensor.contents, field))
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError(
            "scoring.bad_data", f"cannot read input {tensor.name!r}: a value is out of the range of {tensor.datatype}"
        ) from error
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def answer(model: str, version: int, request_id: str, json: int, data: bytes) -> Any:
    """A worker's answer to :func:`body` as a ``ModelInferResponse``."""
    made = message("ModelInferResponse")(model_name=model, model_version=str(version), id=request_id)
    found: list[tuple[Output, bytes]] = outputs_of(json, data)
    for output, part in found:
        made.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        made.raw_output_contents.append(part)
    return made
