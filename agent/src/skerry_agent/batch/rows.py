"""What a model takes and gives per row, and blocks of rows on their way."""

from __future__ import annotations

from typing import Any, NamedTuple

from skerry_modules import columns
from skerry_modules.arrays import Array
from skerry_modules.batches import RowError
from skerry_modules.oip import Metadata
from skerry_modules.tensors import TensorSpec


class Block(NamedTuple):
    """Rows that can be sent together: the arrays have one entry per row in front."""

    rows: list[int]
    inputs: dict[str, Array]
    kept: dict[str, list[Any]]
    file: str = ""


class Part(NamedTuple):
    """What is scored and kept at once."""

    number: int
    blocks: list[Block]
    errors: list[RowError]
    units: int  # rows or files of the input that it stands for


class Segment(NamedTuple):
    """Rows that were scored together: the outputs have one entry per row in front."""

    file: str
    rows: list[int]
    kept: dict[str, list[Any]]
    outputs: dict[str, Array]


class Model:
    """A model's inputs and outputs as rows.

    Raises:
        InputError: ``scoring.wrong_shape``: it cannot be scored row by row.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.inputs = metadata.inputs
        self.outputs = metadata.outputs
        both = (*metadata.inputs, *metadata.outputs)
        self.batched = all(spec.shape[:1] == (-1,) for spec in both)
        """Whether rows can be scored together."""
        columns.check_rows(metadata.name, metadata.inputs)

    def width(self, spec: TensorSpec) -> int:
        """Values of one row of an input or output; 0: it varies."""
        return columns.width(spec)


__all__ = ["Block", "Model", "Part", "RowError", "Segment"]
