"""Requests that wait together are scored together: which ones, how they are joined and cut apart, and when not to.

No timer: what one receive returned is what waited while the one before was scored, so a request alone waits for nobody.
A model is scored in batches only after :func:`prove` has shown, on the device and with the engine that will serve, that
each row's results are the same as alone. Some models fail that honestly: int8 with scales taken from the batch, a mean
over the batch, a hidden state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from skerry_agent import golden
from skerry_agent.ports import Arrays
from skerry_agent.serving.codec import Request
from skerry_modules.errors import SkerryError
from skerry_modules.manifest import Golden, Manifest
from skerry_modules.tensors import DATATYPES

CASES: Final = 32
"""Rows that the proof scores alone, at most."""
SLOWER: Final = 1.1
"""Scoring together must not take longer than this times the same rows one by one."""

Score = Callable[[Arrays], Arrays]


class Verdict(NamedTuple):
    """``rows`` that may be scored together (1: none), and why not more; empty where nothing was asked for."""

    rows: int
    reason: str = ""


def signature(request: Request) -> tuple[Any, ...] | None:
    """What must be equal for two requests to be joined; None: this one cannot be (no common leading dimension)."""
    rows = request.plan.rows
    parts = []
    for name, array in request.inputs.items():
        if array.ndim == 0 or array.shape[0] != rows or rows == 0:
            return None
        parts.append((name, array.shape[1:]))
    return tuple(sorted(parts))


def groups(requests: Sequence[Request], max_rows: int) -> Iterator[slice]:
    """Cuts of consecutive requests that can be joined, each with at most ``max_rows`` rows (or one request)."""
    start, rows, last, plan = 0, 0, None, None
    for place, request in enumerate(requests):
        same = request.plan is plan and last is not None  # the very same header: no need to look at the arrays
        kind = last if same else signature(request)
        plan = request.plan
        if place > start and (kind is None or kind != last or rows + plan.rows > max_rows):
            yield slice(start, place)
            start, rows = place, 0
        last, rows = kind, rows + plan.rows
    if requests:
        yield slice(start, len(requests))


def join(parts: Sequence[Arrays]) -> Arrays:
    """One batch of all rows, in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def divides(outputs: Arrays, rows: int) -> bool:
    """Whether every output has one entry per row."""
    return all(array.ndim and array.shape[0] == rows for array in outputs.values())


def cut(outputs: Arrays, counts: Sequence[int]) -> list[Arrays]:
    """The reverse of :func:`join` for outputs that :func:`divides` has found right."""
    found, start = [], 0
    for count in counts:
        found.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return found


def prove(manifest: Manifest, folder: Path, score: Score) -> Verdict:
    """Whether this model gives the same for rows scored together, and is not slower then.

    Args:
        score: the loaded model.

    Returns:
        ``manifest.batching.max_rows`` where all is well; 1 and the reason where not.
    """
    wanted = manifest.batching.max_rows
    if wanted <= 1:
        return Verdict(1)
    fixed = [spec.name for spec in (*manifest.inputs, *manifest.outputs) if not spec.shape or spec.shape[0] != -1]
    if fixed:
        return Verdict(1, f"the leading dimension of {', '.join(map(repr, fixed))} is fixed")
    try:
        rows = _cases(manifest, folder)
        alone = [score(row) for row in rows]
        for size in sorted({2, min(3, wanted), wanted}):
            problem = _differs(manifest, rows, alone, score, size)
            if problem:
                return Verdict(1, problem)
        return _no_slower(rows, score, wanted)
    except MemoryError:
        return Verdict(1, f"{wanted} rows at once need more memory than the module may have")
    except SkerryError as error:
        return Verdict(1, f"the test could not be ended: {error.message}")


def _cases(manifest: Manifest, folder: Path) -> list[Arrays]:
    """Rows to try: of the golden test, or drawn at random (always the same) where there is none."""
    if manifest.golden is not None:
        inputs, _ = golden.load(folder / manifest.golden.file)
        count = min(len(next(iter(inputs.values()))), CASES)
        return [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(count)]
    random = np.random.default_rng(1)
    return [{spec.name: _draw(random, spec.datatype, spec.shape) for spec in manifest.inputs} for _ in range(4)]


def _draw(random: np.random.Generator, datatype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    sizes = (1, *(1 if size < 0 else size for size in shape[1:]))
    dtype = np.dtype(DATATYPES[datatype])
    if dtype.kind == "O":
        array = np.empty(sizes, dtype=object)
        array.fill(b"")
        return array
    if dtype.kind == "f":
        return random.normal(size=sizes).astype(dtype)
    return random.integers(0, 2, size=sizes).astype(dtype)


def _differs(manifest: Manifest, rows: list[Arrays], alone: list[Arrays], score: Score, size: int) -> str:
    """What differs when ``size`` rows are scored together; empty: nothing beyond the golden tolerance."""
    order = [place % len(rows) for place in range(size)]
    outputs = score(_same_shapes(rows, order))
    if not divides(outputs, size):
        return "an output has not one entry per row"
    tolerance = manifest.golden or Golden(file="-")
    strict = msgspec.structs.replace(tolerance, min_pass=1.0)
    expected, got = join([alone[place] for place in order]), outputs
    declared = {spec.name for spec in manifest.outputs}
    report = golden.compare(strict, {name: array for name, array in expected.items() if name in declared}, got)
    return "" if report.passed else f"{size} rows scored together differ from the same alone: {report.message}"


def _same_shapes(rows: list[Arrays], order: list[int]) -> Arrays:
    return join([rows[place] for place in order])


def _no_slower(rows: list[Arrays], score: Score, wanted: int) -> Verdict:
    size = min(wanted, 8)
    order = [place % len(rows) for place in range(size)]
    batch = _same_shapes(rows, order)
    together = apart = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        score(batch)
        middle = time.perf_counter()
        for place in order:
            score(rows[place])
        together, apart = min(together, middle - began), min(apart, time.perf_counter() - middle)
    if together > SLOWER * apart:
        text = f"{size} rows take {together * 1000:.3g} ms together and {apart * 1000:.3g} ms one by one"
        return Verdict(1, text)
    return Verdict(wanted)
