"""Combiners: several tensors of one datatype and shape into one, so that an ensemble needs no script.

Element by element, in the order of the inputs' names, so that every device gets the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from skerry_agent.ports import Arrays
from skerry_modules.errors import PeerError
from skerry_modules.pipeline import Step

Array = np.ndarray[Any, Any]


def combiner(step: Step) -> Callable[[Arrays], Arrays]:
    """The step as a function of its inputs, by name.

    The function raises PeerError ``scoring.failed``: the inputs differ in shape.
    """
    name = step.outputs[0].name
    order = sorted(step.sources)
    weights = [step.weights.get(key, 1.0) for key in order]
    work: Callable[[list[Array]], Array]
    if step.combine == "max":
        work = maximum
    elif step.combine == "vote":
        work = vote
    else:
        work = _Weighted(weights)

    def run(inputs: Arrays) -> Arrays:
        arrays = [inputs[key] for key in order]
        if any(array.shape != arrays[0].shape for array in arrays):
            shapes = ", ".join(f"{key} {list(inputs[key].shape)}" for key in order)
            raise PeerError("scoring.failed", f"cannot score: what is combined differs in shape: {shapes}")
        return {name: work(arrays)}

    return run


class _Weighted:
    """The mean, each input counting by its weight. Halves are added up as singles: they hold too few digits."""

    def __init__(self, weights: list[float]) -> None:
        total = sum(weights)
        self._equal = len(set(weights)) == 1
        self._shares = [weight / total for weight in weights]

    def __call__(self, arrays: list[Array]) -> Array:
        dtype = arrays[0].dtype
        wide = np.dtype("f4") if dtype.itemsize == 2 else dtype
        if self._equal:
            result = arrays[0].astype(wide)
            for array in arrays[1:]:
                result += array
            result /= len(arrays)
        else:
            result = np.zeros(arrays[0].shape, wide)
            for share, array in zip(self._shares, arrays, strict=True):
                result += array.astype(wide, copy=False) * wide.type(share)
        return result.astype(dtype, copy=False)


def maximum(arrays: list[Array]) -> Array:
    """The largest value at each place; NaN where any is."""
    result = arrays[0].copy()
    for array in arrays[1:]:
        np.maximum(result, array, out=result)
    return result


def vote(arrays: list[Array]) -> Array:
    """What most say.

    Floats are scores of classes along the last axis: each input votes for its largest (the first, where several
    are), and the result is each class's share of the votes. Anything else is a label: the result is the label that
    most inputs give, the smallest of those where several are equal.
    """
    if arrays[0].dtype.kind == "f":
        result = np.zeros(arrays[0].shape, arrays[0].dtype)
        for array in arrays:
            chosen = np.expand_dims(array.argmax(axis=-1), -1)
            np.put_along_axis(result, chosen, np.take_along_axis(result, chosen, -1) + 1, -1)
        result /= len(arrays)
        return result
    stack = np.sort(np.stack(arrays), axis=0)
    counts = np.stack([np.equal(stack, one).astype(bool).sum(axis=0) for one in stack])
    best = np.expand_dims(counts.argmax(axis=0), 0)
    return np.asarray(np.take_along_axis(stack, best, 0)[0])
