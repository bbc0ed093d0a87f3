"""Scored rows as they go to the hub: see ``skerry_modules.batches``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from skerry_agent.batch.rows import RowError, Segment
from skerry_modules.arrays import to_piece
from skerry_modules.batches import ResultFrame, encode_frame
from skerry_modules.messages import Tensor

FRAME_BYTES: Final = 4 * 1024 * 1024
"""Of outputs in one frame, about: who reads it holds one at a time."""
FRAME_ERRORS: Final = 10_000


def frames(segments: Sequence[Segment], errors: Sequence[RowError]) -> Iterator[bytes]:
    """The encoded frames of one part."""
    for segment in segments:
        size = sum(array.nbytes for array in segment.outputs.values())
        rows = len(segment.rows)
        step = max(1, rows if size <= FRAME_BYTES else rows * FRAME_BYTES // size)
        for start in range(0, rows, step):
            yield encode_frame(_frame(segment, start, min(start + step, rows)))
    for start in range(0, len(errors), FRAME_ERRORS):
        yield encode_frame(ResultFrame(errors=tuple(errors[start : start + FRAME_ERRORS])))


def _frame(segment: Segment, start: int, end: int) -> ResultFrame:
    outputs = {}
    for name, array in segment.outputs.items():
        piece = to_piece(array[start:end])
        outputs[name] = Tensor(datatype=piece.datatype, shape=tuple(piece.shape), data=bytes(piece.data))
    return ResultFrame(
        file=segment.file,
        rows=tuple(segment.rows[start:end]),
        kept={name: values[start:end] for name, values in segment.kept.items()},
        outputs=outputs,
    )
