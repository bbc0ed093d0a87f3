"""What a worker notices about the rows that it scores: their distributions, and which of them to keep as samples.

Runs after the answer was sent, so that no client waits for it, and within a budget: counting takes at most
:data:`SHARE` of the worker's time, whatever the tensors' size, by looking at fewer requests when it falls behind.

Distributions need the module's baseline (its edges); without one nothing is counted. Samples follow the manifest's
capture policy by the pure rule in ``rules.sampling``; every row of a batch is a sample of its own.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from skerry_agent.ports import Arrays
from skerry_agent.rules import sampling
from skerry_agent.serving.codec_binary import to_binary
from skerry_agent.serving.orders import Observed
from skerry_modules.errors import SkerryError
from skerry_modules.histogram import Baseline, Window
from skerry_modules.manifest import Manifest
from skerry_modules.messages import MAX_BYTES, Sample, Tensor
from skerry_modules.tensors import datatype_of

SHARE: Final = 0.02
"""Of the worker's time, at most, goes into counting."""
FOLD_ROWS: Final = 256
FOLD_BYTES: Final = 256 * 1024
"""Rows and bytes that are gathered before they are counted at once: numpy costs per call more than per value."""
SAMPLE_BYTES: Final = MAX_BYTES["sample"] // 2
"""Larger rows are not kept: they would not fit a message."""


class Observer:
    """The eyes of one worker."""

    def __init__(self, manifest: Manifest, folder: Path, *, digest: str, version: int, one_in: int) -> None:
        self._manifest = manifest
        self._digest = digest
        self._version = version
        self._one_in = max(one_in, 1)
        self._turn = 0
        self._windows = _windows(manifest, folder)
        self._parts: list[tuple[Arrays, Arrays]] = []
        self._rows = self._bytes = 0
        self._free_at = 0.0
        self._counted = False
        self._minute = sampling.Window()
        self._score = _score_output(manifest)
        self.set_rate(-1.0)

    def set_rate(self, rate: float) -> None:
        """Capture this share of rows at random; −1: as the manifest says."""
        capture = self._manifest.capture
        self._policy = sampling.Policy(
            capture.rate if rate < 0 else min(rate, 1.0), capture.low_confidence, capture.max_per_minute
        )
        self._samples = self._policy.rate > 0 or (self._policy.low_confidence > 0 and bool(self._score))
        self._looks = self._samples and self._policy.low_confidence > 0  # at every row
        self._next = sampling.gap(self._policy.rate, random.random())

    def note(self, inputs: Arrays, outputs: Arrays, rows: int, endpoint: bytes) -> Sequence[Sample]:
        """Look at one scored request; the samples to keep."""
        if self._windows is not None:
            self._turn += 1
            if self._turn >= self._one_in:
                self._turn = 0
                self._gather(inputs, outputs, rows)
        if not self._looks and self._next > rows:
            self._next -= rows
            return ()  # the common case
        return self._choose(inputs, outputs, rows, endpoint.decode()) if self._samples else ()

    def _gather(self, inputs: Arrays, outputs: Arrays, rows: int) -> None:
        now = time.monotonic()
        if now < self._free_at:
            return
        self._parts.append((inputs, outputs))
        self._rows += rows
        self._bytes += sum(array.nbytes for array in inputs.values())
        if self._rows >= FOLD_ROWS or self._bytes >= FOLD_BYTES:
            self._fold()

    def _fold(self) -> None:
        if not self._parts or self._windows is None:
            return
        began = time.monotonic()
        for place, window in enumerate(self._windows):
            names = self._parts[0][place]
            window.add({name: _stack([part[place][name] for part in self._parts]) for name in names})
        self._parts.clear()
        self._rows = self._bytes = 0
        self._counted = True
        spent = time.monotonic() - began
        self._free_at = began + spent / SHARE

    def take(self) -> Observed | None:
        """The distributions since the last call; None if there is nothing to tell."""
        self._fold()
        capped, self._minute = self._minute.capped, self._minute._replace(capped=0)
        if not self._counted and not capped:
            return None
        self._counted = False
        if self._windows is None:
            return Observed(capped=capped)
        return Observed(self._windows[0].take(), self._windows[1].take(), capped)

    def _choose(self, inputs: Arrays, outputs: Arrays, rows: int, endpoint: str) -> list[Sample]:
        confidence = _confidence(outputs, self._score, rows) if self._policy.low_confidence > 0 else None
        found = []
        now = time.monotonic()
        for row in range(rows):
            score = None if confidence is None else float(confidence[row])
            self._next -= 1
            drawn = self._next == 0
            if drawn:
                self._next = sampling.gap(self._policy.rate, random.random())
            self._minute, kept = sampling.decide(self._policy, self._minute, now, drawn, score)
            if kept is not None:
                sample = self.sample(inputs, outputs, rows, row, kept.reason, kept.probability, endpoint)
                if sample is not None:
                    found.append(sample)
        return found

    def sample(  # noqa: PLR0917
        self, inputs: Arrays, outputs: Arrays, rows: int, row: int, reason: str, probability: float, endpoint: str
    ) -> Sample | None:
        """One row as a message; None if it is too large for one."""
        kept = {name: _row(array, rows, row) for name, array in inputs.items()}
        answers = {name: _row(array, rows, row) for name, array in outputs.items()}
        if sum(len(tensor.data) for tensor in (*kept.values(), *answers.values())) > SAMPLE_BYTES:
            return None
        return Sample(
            id=uuid.uuid4().hex,
            module=self._manifest.name,
            version=self._version,
            digest=self._digest,
            at=time.time_ns() // 1_000_000,
            inputs=kept,
            outputs=answers,
            reason=reason,
            probability=probability,
            endpoint=endpoint,
        )


def _windows(manifest: Manifest, folder: Path) -> tuple[Window, Window] | None:
    if manifest.baseline is None:
        return None
    try:
        baseline = Baseline.from_json((folder / manifest.baseline.file).read_bytes())
    except (OSError, SkerryError, msgspec.MsgspecError) as error:
        print(f"skerry: cannot use the baseline, distributions are off: {error}", flush=True)  # noqa: T201 - the log
        return None
    return baseline.window("inputs"), baseline.window("outputs")


def _score_output(manifest: Manifest) -> str:
    """The output whose largest value is the confidence: what golden compares by arg-max, else the first float."""
    if manifest.golden and manifest.golden.argmax:
        return manifest.golden.argmax
    return next((spec.name for spec in manifest.outputs if spec.datatype.startswith("FP")), "")


def _confidence(outputs: Arrays, name: str, rows: int) -> np.ndarray[Any, Any] | None:
    array = outputs.get(name)
    if array is None or not array.size or array.size % rows:
        return None
    result: np.ndarray[Any, Any] = array.reshape(rows, -1).max(axis=1)
    return result


def _stack(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    if len(arrays) == 1:
        return arrays[0]
    if arrays[0].ndim and all(array.shape[1:] == arrays[0].shape[1:] for array in arrays):
        return np.concatenate(arrays)
    return np.concatenate([array.reshape(-1) for array in arrays])


def _row(array: np.ndarray[Any, Any], rows: int, row: int) -> Tensor:
    """One row with its leading dimension kept as 1; tensors that have no such rows whole."""
    part = array[row : row + 1] if array.ndim and array.shape[0] == rows else array
    return Tensor(datatype=datatype_of(part.dtype), shape=part.shape, data=to_binary(part))
