"""Scores blocks of rows at the pace of ``rules.pace``, and finds the rows that cannot be scored.

A request that fails because of what is in it is halved until the guilty row stands alone; all others are scored. Two
things are not looked for: a request that ended two workers (each further try would end two more, and with them live
requests), and one whose rows are refused for what the model is (an unknown version ends the job).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from skerry_agent.batch.rows import Block, Model, RowError, Segment
from skerry_agent.rules.pace import Pace, parse_live
from skerry_modules.arrays import Array
from skerry_modules.errors import InputError, ResourceError, SkerryError
from skerry_modules.scorer import Scored, Scorer

_ROW: Final = (
    "scoring.bad_data",
    "scoring.wrong_shape",
    "scoring.wrong_datatype",
    "scoring.failed",
    "internal.bug",
    "request.too_large",
    "scoring.deadline",
)
"""What a row of a request may be to blame for: the request is halved."""
_LATER: Final = ("scoring.overloaded", "scoring.not_ready", "resource.agent_unreachable")
IN_FLIGHT: Final = 2
GONE_S: Final = 30.0
"""A version that was there may be unknown for so long while the agent starts again; then it is gone."""


class Blocks:
    """Scores blocks.

    Args:
        patience_s: without any answer for so long, the job ends with the error (and can be resumed).
        told: called after each request with the rows that are settled.
    """

    def __init__(
        self,
        scorer: Scorer,
        model: Model,
        pace: Pace,
        *,
        timeout_s: float,
        patience_s: float,
        told: Callable[[int, int], None],
    ) -> None:
        self._scorer = scorer
        self._model = model
        self._pace = pace
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._told = told
        self._heard = time.monotonic()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="batch")

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def score(self, block: Block) -> tuple[list[Segment], list[RowError]]:
        """All rows of a block, in order: each in a segment or in an error.

        Raises:
            SkerryError: the job cannot go on.
        """
        segments: list[Segment] = []
        errors: list[RowError] = []
        out: deque[Future[tuple[list[Segment], list[RowError]]]] = deque()
        start, end = 0, len(block.rows)
        while start < end or out:
            while start < end and len(out) < self._pace.in_flight:
                if self._pace.pause_s:
                    time.sleep(self._pace.pause_s)
                size = min(self._pace.rows, end - start) if self._model.batched else 1
                out.append(self._pool.submit(self._range, block, start, start + size))
                start += size
            found, wrong = out.popleft().result()
            segments += found
            errors += wrong
            self._told(sum(len(one.rows) for one in found), len(wrong))
        return segments, errors

    def _range(self, block: Block, start: int, end: int) -> tuple[list[Segment], list[RowError]]:
        """Without recursion: a part of bad rows alone would be as deep as it is long."""
        segments: list[Segment] = []
        errors: list[RowError] = []
        todo = [(start, end)]
        while todo:
            low, high = todo.pop()
            try:
                outputs = self._ask(block, low, high)
            except SkerryError as error:
                if error.code not in _ROW and error.code != "scoring.quarantined":
                    raise
                if high - low > 1 and error.code != "scoring.quarantined":
                    middle = (low + high) // 2
                    todo += [(middle, high), (low, middle)]
                    continue
                errors += [_error(block, row, error) for row in range(low, high)]
                continue
            kept = {name: values[low:high] for name, values in block.kept.items()}
            segments.append(Segment(block.file, block.rows[low:high], kept, outputs))
        return segments, errors

    def _ask(self, block: Block, low: int, high: int) -> dict[str, Array]:
        inputs = {name: array[low:high] for name, array in block.inputs.items()}
        while True:
            began = time.monotonic()
            try:
                scored = self._scorer.score(inputs, timeout_s=self._timeout_s)
            except SkerryError as error:
                if error.code in ("request.too_large", "scoring.deadline"):
                    self._pace.too_large()
                if error.code not in _LATER and error.code != "module.unknown":
                    raise
                patience_s = min(GONE_S, self._patience_s) if error.code == "module.unknown" else self._patience_s
                if self._stop.is_set() or time.monotonic() - self._heard > patience_s:
                    raise
                self._pace.refused()
                self._stop.wait(self._pace.pause_s)
                continue
            self._heard = time.monotonic()
            self._pace.answered(high - low, self._heard - began, parse_live(scored.live))
            return self._outputs(scored, high - low)

    def _outputs(self, scored: Scored, rows: int) -> dict[str, Array]:
        found = {}
        for spec in self._model.outputs:
            array = scored.outputs.get(spec.name)
            if array is None:
                raise ResourceError("scoring.not_ready", f"cannot go on: the model gives no output {spec.name!r} now")
            if not self._model.batched:
                array = array.reshape(1, -1)
            elif array.ndim == 0 or len(array) != rows:
                raise InputError(
                    "scoring.wrong_shape",
                    f"cannot tell the rows of output {spec.name!r} apart: {rows} went in, {list(array.shape)} came out",
                )
            found[spec.name] = array
        return found


def _error(block: Block, place: int, error: SkerryError) -> RowError:
    return RowError(row=block.rows[place], file=block.file, code=error.code, reason=error.message)
