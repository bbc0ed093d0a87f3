"""Between numpy arrays and tensors by value."""

from __future__ import annotations

import numpy as np

from skerry_agent.ports import Arrays
from skerry_agent.serving.codec_binary import to_binary, unpack_bytes
from skerry_modules.messages import Tensor
from skerry_modules.tensors import DATATYPES, datatype_of


def to_tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {
        name: Tensor(datatype=datatype_of(array.dtype), shape=array.shape, data=to_binary(array))
        for name, array in arrays.items()
    }


def from_tensors(tensors: dict[str, Tensor]) -> Arrays:
    """Writable arrays of the tensors' own datatypes; ``BYTES`` as objects."""
    found: Arrays = {}
    for name, tensor in tensors.items():
        if tensor.datatype == "BYTES":
            found[name] = unpack_bytes(name, tensor.data, tensor.shape)
        else:
            found[name] = np.frombuffer(tensor.data, DATATYPES[tensor.datatype]).reshape(tensor.shape).copy()
    return found
