"""Tensor datatypes, named as the Open Inference Protocol v2 names them.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md,
"Tensor Data Types"). ``BYTES`` is one length-prefixed string per element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    import numpy as np

    NUMPY_OF: dict[str, type[Any]]

DATATYPES: Final[dict[str, str]] = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BYTES": "|O",
}
"""The protocol's names and how numpy spells their little-endian layout (which is also what ``.npy`` files say)."""

ITEM_BYTES: Final[dict[str, int]] = {name: int(code[-1]) for name, code in DATATYPES.items() if name != "BYTES"}
"""Bytes per element; ``BYTES`` has no fixed size."""


def __getattr__(name: str) -> Any:
    # numpy costs a process 20 MB: the agent reads manifests without it, so it is imported when first asked for.
    if name == "NUMPY_OF":
        import numpy as np

        table = {key: np.object_ if key == "BYTES" else np.dtype(code).type for key, code in DATATYPES.items()}
        globals()["NUMPY_OF"] = table
        return table
    raise AttributeError(name)


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype; object and string arrays are ``BYTES``.

    Raises:
        KeyError: the dtype has no name in the protocol (complex, datetime, …).
    """
    if dtype.kind in "OSU":
        return "BYTES"
    return _NAME_OF[f"{dtype.kind}{dtype.itemsize}"]


_NAME_OF: Final[dict[str, str]] = {code[1:]: name for name, code in DATATYPES.items() if name != "BYTES"}


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One input or output of a model.

    ``shape`` has −1 for a dimension that may vary; the first such dimension of every input is the batch.
    ``source`` is ``from`` in the manifest: which step's tensor an output of a pipeline is.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    unit: str = ""
    labels: tuple[str, ...] = ()
    allow_nan: bool = True
    description: str = ""
    source: str = msgspec.field(default="", name="from")

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a concrete shape fits this one (same rank, equal where not −1)."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )
