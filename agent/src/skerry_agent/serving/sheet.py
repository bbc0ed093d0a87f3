"""Answers alike but for their numbers and values: written once, and filled in for each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from skerry_agent.ports import Arrays
from skerry_agent.serving import frames

if TYPE_CHECKING:
    from skerry_agent.serving.codec import Answer, Plan

MAX_BYTES: Final = 64 * 1024
"""Of all values on it: what a sheet saves for more is nothing beside the copying."""
_NUMBER: Final = "number"
_NUMBER_AT: Final = 8  # in ``frames.HEAD``


class Sheet:
    """The frames that answer up to ``most`` requests of one plan, with all outputs in binary.

    Args:
        name: of the model or endpoint that is asked.
        answer: to one such request.
        outputs: what the model gave for it.
    """

    def __init__(self, name: bytes, plan: Plan, answer: Answer, outputs: Arrays, most: int) -> None:
        self._name, self._plan = name, plan
        self._kinds = [(key, outputs[key].dtype, outputs[key].shape[1:]) for key, _ in plan.outputs]
        frame = frames.answer(0, *answer)
        self._memory = bytearray(frame * most)
        self._size = len(frame)
        at, offsets = len(frame) - len(answer.body) + answer.json, []
        for key, _ in plan.outputs:
            offsets.append(at)
            at += outputs[key].nbytes
        formats = [(dtype.newbyteorder("<"), (plan.rows, *shape)) for _, dtype, shape in self._kinds]
        record = np.dtype(
            {
                "names": [_NUMBER, *(str(place) for place in range(len(formats)))],
                "formats": ["<u8", *formats],
                "offsets": [_NUMBER_AT, *offsets],
                "itemsize": len(frame),
            }
        )
        records: Any = np.frombuffer(self._memory, record)
        self._numbers = records[_NUMBER]
        self._values = [(key, records[str(place)]) for place, (key, _) in enumerate(plan.outputs)]
        self._view = memoryview(self._memory)

    def fits(self, name: bytes, plan: Plan, outputs: Arrays) -> bool:
        """Whether it is for these requests, and for what the model gave."""
        if plan is not self._plan or name != self._name:
            return False
        for key, dtype, shape in self._kinds:
            array = outputs[key]
            if array.dtype != dtype or array.shape[1:] != shape:
                return False
        return True

    def fill(self, numbers: Sequence[int], outputs: Arrays) -> memoryview:
        """The answers to the requests of these numbers; good until the next call."""
        count = len(numbers)
        self._numbers[:count] = numbers
        for key, values in self._values:
            values[:count] = outputs[key].reshape((count, *values.shape[1:]))
        return self._view[: count * self._size]


def fit(plan: Plan, outputs: Arrays, most: int) -> bool:
    """Whether there can be a sheet for such answers; ``outputs`` are those for one request."""
    arrays = [outputs[key] for key, _ in plan.outputs]
    plain = all(binary for _, binary in plan.outputs) and all(array.dtype.kind not in "OSU" for array in arrays)
    return plain and sum(array.nbytes for array in arrays) * most <= MAX_BYTES
