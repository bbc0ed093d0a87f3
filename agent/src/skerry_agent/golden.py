"""The golden test: known inputs, expected outputs, and whether a device's own results are close enough.

:func:`load` reads the module's ``.npz`` within limits; :func:`compare` is pure. Both run in the worker, next to the
model, so that what is proven is the very process that will serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_agent.ports import Arrays, GoldenReport
from skerry_modules import golden as files
from skerry_modules import npz
from skerry_modules.errors import InputError, PeerError, SkerryError
from skerry_modules.manifest import Golden, Manifest
from skerry_modules.tensors import DATATYPES

BATCH_ROWS: Final = 32
"""Rows per run where the model takes a varying batch."""


def load(path: Path, limits: npz.Limits = npz.LIMITS) -> tuple[Arrays, Arrays]:
    """(inputs, expected outputs) by tensor name.

    Raises:
        PeerError: ``install.golden_failed``: the file cannot be read, or its arrays differ in length.
    """
    try:
        inputs, expected = files.read(path, limits)
    except InputError as error:
        raise PeerError("install.golden_failed", f"cannot run the golden test: {error.message}") from error
    return _arrays(inputs), _arrays(expected)


def _arrays(tensors: files.Tensors) -> Arrays:
    return {
        name: np.frombuffer(tensor.data, DATATYPES[tensor.datatype]).reshape(tensor.shape)
        for name, tensor in tensors.items()
    }


def _broken(problem: str) -> PeerError:
    return PeerError("install.golden_failed", f"cannot run the golden test: {problem}; pack the module again")


def batches(manifest: Manifest, inputs: Arrays) -> Iterator[Arrays]:
    """Cuts of the cases that the model takes: its fixed batch, or up to :data:`BATCH_ROWS` where that varies.

    Raises:
        PeerError: ``install.golden_failed``: the cases do not divide by the model's fixed batch.
    """
    cases = len(next(iter(inputs.values())))
    fixed = max((spec.shape[0] for spec in manifest.inputs if spec.shape and spec.name in inputs), default=-1)
    step = fixed if fixed > 0 else BATCH_ROWS
    if fixed > 0 and cases % fixed:
        raise _broken(f"{cases} cases do not divide by the model's batch of {fixed}")
    for start in range(0, cases, step):
        yield {name: array[start : start + step] for name, array in inputs.items()}


def compare(golden: Golden, expected: Arrays, got: Arrays) -> GoldenReport:
    """Whether enough cases are within tolerance.

    Args:
        golden: tolerances, the output whose arg-max must agree, the fraction that must pass.
        expected: per output, one case per leading row.
        got: the same from the device; further outputs are ignored.

    Returns:
        The report; ``worst`` is the largest |error| / (absolute + relative · |expected|), infinite where a value
        is missing, NaN against a number, or of another shape.
    """
    cases = len(next(iter(expected.values())))
    good = np.ones(cases, dtype=bool)
    worst, notes = 0.0, []
    for name, want in expected.items():
        have = got.get(name)
        if have is None or have.shape != want.shape:
            shape = "missing" if have is None else f"of shape {list(have.shape)}, not {list(want.shape)}"
            return GoldenReport(False, cases, cases, float("inf"), f"output {name!r} is {shape}")
        error = errors_of(golden, want, have).reshape(cases, -1)
        largest = error.max(axis=1, initial=0.0)
        worst = max(worst, float(largest.max(initial=0.0)))
        passed = largest <= 1.0
        if name == golden.argmax:
            agree = (want.argmax(axis=-1) == have.argmax(axis=-1)).reshape(cases, -1).all(axis=1)
            if not agree.all():
                notes.append(f"{int((~agree).sum())} of {cases} cases choose another class in {name!r}")
            passed &= agree
        if not passed.all():
            row = int(np.argmin(passed))
            notes.append(f"output {name!r}, case {row}: {_first(error[row], want[row], have[row])}")
        good &= passed
    failed = int((~good).sum())
    ok = cases - failed >= golden.min_pass * cases
    text = f"{cases - failed} of {cases} cases pass" + ("; " + "; ".join(notes) if notes else "")
    return GoldenReport(ok, cases, failed, worst, text)


def errors_of(golden: Golden, want: np.ndarray[Any, Any], have: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Element-wise error in units of the tolerance."""
    if want.dtype.kind not in "fiub" or have.dtype.kind not in "fiub":
        unequal: np.ndarray[Any, Any] = np.where(want == have, 0.0, np.inf)
        return unequal
    w, h = want.astype(np.float64), have.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = np.abs(h - w)
        error = difference / (golden.absolute + golden.relative * np.abs(w))
    error[difference == 0] = 0.0  # also where the tolerance is zero
    error[(w == h) | (np.isnan(w) & np.isnan(h))] = 0.0  # equal infinities, expected NaN
    error[np.isnan(error)] = np.inf
    return np.asarray(error)


def _said(value: np.generic) -> str:
    """Six digits of a float: enough to see where it goes wrong."""
    return f"{value:.6g}" if isinstance(value, np.floating) else str(value)


def _first(error: np.ndarray[Any, Any], want: np.ndarray[Any, Any], have: np.ndarray[Any, Any]) -> str:
    index = int(error.argmax())
    return (
        f"expected {_said(want.reshape(-1)[index])}, got {_said(have.reshape(-1)[index])} "
        f"({float(error[index]):.3g} times the tolerance)"
    )


def run(manifest: Manifest, folder: Path, score: Any) -> GoldenReport:
    """The whole test: ``score(inputs) -> outputs`` is the loaded model.

    Raises:
        PeerError: ``install.golden_failed``: the file is unusable.
    """
    if manifest.golden is None:
        return GoldenReport(True, 0, 0, 0.0, "the module has no golden test")
    inputs, expected = load(folder / manifest.golden.file)
    collected: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in expected}
    for batch in batches(manifest, inputs):
        try:
            outputs = score(batch)
        except SkerryError as error:
            cases = len(next(iter(inputs.values())))
            return GoldenReport(False, cases, cases, float("inf"), error.message)
        for name, parts in collected.items():
            if name in outputs:
                parts.append(outputs[name])
    got = {name: np.concatenate(parts) for name, parts in collected.items() if parts}
    return compare(manifest.golden, expected, got)
