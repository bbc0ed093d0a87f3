"""Which samples calibrate, which judge, and which become the golden test."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from skerry import scaffold
from skerry.convert import runtimes
from skerry.convert import samples as sampling
from skerry.convert.originals import Original
from skerry.convert.report import Options, Precision
from skerry.convert.samples import Samples
from skerry_modules.errors import InputError
from skerry_modules.tensors import TensorSpec

GENERATED_ROUNDS: Final = 16
"""Times ``scaffold.CASES`` rows are made up where nobody gives samples of a float conversion."""


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """Rows by use. ``labels`` are those of the first judged rows; golden inputs, which follow, have none."""

    judged: Samples
    golden: Samples
    calibration: Samples | None
    labels: Any = None
    notes: tuple[str, ...] = ()


def gather(
    original: Original, given: Samples | None, calibration: Samples | None, precision: Precision, options: Options
) -> Data:
    """Which rows calibrate, which judge, which become the golden test.

    Raises:
        InputError: ``convert.samples``: there are none, or too few.
    """
    notes: list[str] = []
    own = sampling.golden(original.folder, original.manifest) if original.folder and original.manifest else None
    if given is None and own is None:
        given = _generated(original, precision)
        notes.append("judged on generated inputs: give real ones with --samples to prove more than the arithmetic")
    if precision == "int8-static" and calibration is None:
        calibration, given, shared = _shared(given, own)
        notes += shared
    given = given.at_most(options.gate_rows) if given is not None else None
    parts = [part for part in (given, own) if part is not None]
    judged = sampling.joined(parts)
    golden = own if own is not None else judged.at_most(options.golden_cases)
    step = max(fixed(original.inputs), 1)
    judged, golden = (_whole(part, step) for part in (judged, golden))
    if len(judged) < sampling.FEW:
        notes.append(
            f"only {len(judged)} samples were judged, so that one is {1 / len(judged):.1%}: give more with --samples"
        )
    return Data(
        judged=judged,
        golden=golden,
        calibration=_whole(calibration.at_most(options.calibration_rows), step)
        if calibration is not None and precision == "int8-static"
        else None,
        labels=None if given is None or given.labels is None else given.labels[: len(judged)],
        notes=tuple(notes),
    )


def _shared(given: Samples | None, own: Samples | None) -> tuple[Samples, Samples | None, list[str]]:
    """One set for both uses: halves of it, or of the golden inputs, which are judged whole all the same."""
    source = given if given is not None else own
    assert source is not None  # the caller has made sure that there is one
    if len(source) < 2:
        raise InputError(
            "convert.samples",
            f"cannot calibrate with the {len(source)} sample of {source.source}: give more with --calibration",
        )
    fitted, left = sampling.halves(source)
    if given is not None:
        return fitted, left, []
    note = f"calibrated on {len(fitted)} of the golden inputs that it was judged by: give others with --calibration"
    return fitted, None, [note]


def _generated(original: Original, precision: Precision) -> Samples:
    if precision.startswith("int8"):
        raise InputError(
            "convert.samples",
            "cannot quantise without samples: the ranges of made-up inputs are not those of real ones; give an .npz or "
            "captured samples with --samples, or convert a module that has a golden test",
        )
    rounds = [scaffold.generate_inputs(original.inputs, seed) for seed in range(GENERATED_ROUNDS)]
    arrays = {name: np.concatenate([one[name] for one in rounds]) for name in rounds[0]}
    return msgspec.structs.replace(sampling.given(arrays, original.inputs), source="generated inputs")


def fixed(inputs: tuple[TensorSpec, ...]) -> int:
    """The batch that the model insists on, or −1 where it varies."""
    return max((spec.shape[0] for spec in inputs if spec.shape), default=-1)


def rows_of(inputs: tuple[TensorSpec, ...]) -> int:
    """How many rows to score at once."""
    only = fixed(inputs)
    return only if only > 0 else runtimes.BATCH_ROWS


def _whole(samples: Samples, step: int) -> Samples:
    """As many rows as fill the model's fixed batch."""
    count = len(samples) // step * step
    if not count:
        raise InputError(
            "convert.samples",
            f"cannot use the {len(samples)} samples of {samples.source}: the model takes {step} at a time",
        )
    return samples if count == len(samples) else samples.take(range(count))
