"""Tensors by value as request and response bodies, without numpy: how the agent's own sources score.

They go through the same worker path as HTTP clients, in the binary form of the Open Inference Protocol.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from skerry_modules.errors import BugError
from skerry_modules.messages import Tensor


class Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] = {}


class _Answer(msgspec.Struct):
    outputs: list[Output]


_decoder = msgspec.json.Decoder(_Answer)


def request(inputs: dict[str, Tensor]) -> tuple[int, bytes]:
    """(length of the JSON part, body) that asks for all outputs in binary."""
    listed = [
        {
            "name": name,
            "shape": tensor.shape,
            "datatype": tensor.datatype,
            "parameters": {"binary_data_size": len(tensor.data)},
        }
        for name, tensor in inputs.items()
    ]
    head = msgspec.json.encode({"inputs": listed, "parameters": {"binary_data_output": True}})
    return len(head), b"".join((head, *(bytes(tensor.data) for tensor in inputs.values())))


def response(json: int, body: bytes) -> dict[str, Tensor]:
    """The outputs of an answer to :func:`request`."""
    return {
        output.name: Tensor(datatype=output.datatype, shape=output.shape, data=data)
        for output, data in outputs_of(json, body)
    }


def outputs_of(json: int, body: bytes) -> list[tuple[Output, bytes]]:
    """Each output of an answer that is all binary, with its bytes."""
    found = []
    offset = json
    for output in _decoder.decode(body[:json]).outputs:
        size = output.parameters["binary_data_size"]
        if offset + size > len(body):
            raise BugError("internal.bug", "cannot read a worker's answer: it is cut short")
        found.append((output, bytes(body[offset : offset + size])))
        offset += size
    return found


def strings(tensor: Tensor) -> list[bytes]:
    """The elements of a ``BYTES`` tensor."""
    found, offset = [], 0
    while offset < len(tensor.data):
        length = struct.unpack_from("<I", tensor.data, offset)[0]
        found.append(tensor.data[offset + 4 : offset + 4 + length])
        offset += 4 + length
    return found
