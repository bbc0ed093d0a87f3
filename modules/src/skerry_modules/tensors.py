"""Tensor datatypes, named as the Open Inference Protocol v2 names them.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md,
"Tensor Data Types"). ``BYTES`` is one length-prefixed string per element.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

NUMPY_OF: Final[dict[str, type[Any]]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}

_NAME_OF: Final[dict[np.dtype[Any], str]] = {np.dtype(kind): name for name, kind in NUMPY_OF.items() if name != "BYTES"}


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype; object and string arrays are ``BYTES``.

    Raises:
        KeyError: the dtype has no name in the protocol (complex, datetime, …).
    """
    if dtype.kind in "OSU":
        return "BYTES"
    return _NAME_OF[dtype.newbyteorder("=")]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One input or output of a model.

    ``shape`` has −1 for a dimension that may vary; the first such dimension of every input is the batch.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    unit: str = ""
    labels: tuple[str, ...] = ()
    allow_nan: bool = True
    description: str = ""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a concrete shape fits this one (same rank, equal where not −1)."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )
