"""How long a call takes before and after, measured in turn.

One model after the other would compare the machine's two moods: its clock, its caches and its other work change from
second to second by more than models differ. Calls in turn share them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from skerry.convert.report import Latency
from skerry.convert.runtimes import BATCH_ROWS, Score

WARM_CALLS: Final = 3
MIN_CALLS: Final = 7
"""Of each model, however long one takes."""
MAX_CALLS: Final = 5_000


def interleaved(
    before: Score, after: Score, inputs: Mapping[str, np.ndarray[Any, Any]], rows: int, seconds: float
) -> tuple[Latency, Latency]:
    """The median call of both, called in turn with the same ``rows`` rows for about ``seconds`` in all."""
    batch = {name: np.ascontiguousarray(array[:rows]) for name, array in inputs.items()}
    for _ in range(WARM_CALLS):
        before(batch)
        after(batch)
    taken: tuple[list[int], list[int]] = ([], [])
    end = time.perf_counter() + seconds
    while len(taken[0]) < MIN_CALLS or (time.perf_counter() < end and len(taken[0]) < MAX_CALLS):
        # Who goes first changes each round: the second finds the inputs in the cache.
        order = (0, 1) if len(taken[0]) % 2 else (1, 0)
        for which in order:
            score = (before, after)[which]
            start = time.perf_counter_ns()
            score(batch)
            taken[which].append(time.perf_counter_ns() - start)
    first, second = (
        Latency(rows=rows, p50_us=round(float(np.median(side)) / 1000, 1), calls=len(side)) for side in taken
    )
    return first, second


def sizes(fixed: int, available: int) -> tuple[int, ...]:
    """The batch sizes worth timing: the model's fixed one, or one row and many."""
    if fixed > 0:
        return (fixed,)
    return (1, BATCH_ROWS) if available >= BATCH_ROWS else (1,)
