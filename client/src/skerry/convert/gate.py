"""The gate: may a converted model stand for its original? Values in, a verdict out.

A single accuracy hides what matters: a quantised model may lose some samples, win others and keep its accuracy, while
one in fifty devices answers otherwise than before. So the gate compares sample by sample with the original's own
outputs, on two counts:

* **agreement**: the share of samples that come out the same: for outputs that choose a class, the arg-max along the
  last axis at every position; for whole numbers, flags and strings, equal values;
* **|Δ|**: the largest difference of any float value from the original's, held to a bar per output.

A value that is missing, of another shape, or not a number where the original has one, agrees with nothing and differs
without bound. Rules kept: no files, no clocks, no models; the same arrays give the same verdict.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from skerry_modules.manifest import Golden

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

MIN_AGREEMENT: Final = 0.99
"""Share of samples that must come out as the original's."""
DELTA_SHARES: Final[Mapping[str, float]] = {"f32": 1e-3, "f16": 1e-2, "int8-static": 0.1, "int8-dynamic": 0.1}
"""By precision, the bar of |Δ| where none is declared, as a share of the output's spread (or of 1, if that is less)."""
FLOAT_NOISE: Final = 1e-6
"""What any other order of the same 32-bit sums may change, relative to the output's largest value."""
ABSOLUTE: Final = 1e-4
RELATIVE: Final = 1e-3
"""A golden test's tolerance where the original has none: what two engines' float kernels differ by at most."""
WORST: Final = 5
"""Samples that a verdict names."""


class Miss(msgspec.Struct, frozen=True, kw_only=True):
    """One sample that differs: its row, the output, and what the two models say (class or value) there.

    ``delta`` is infinite (null in JSON) where no number can be compared. ``name`` is where the row comes from, which
    the gate does not know: the caller fills it in.
    """

    sample: int
    output: str
    expected: str
    got: str
    delta: float
    flipped: bool
    name: str = ""


class OutputVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One output. ``decides`` says how samples agree: by ``argmax``, as ``equal`` values, or not at all (empty)."""

    name: str
    decides: str
    agreed: int
    max_delta: float
    bar: float


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says. ``problems`` is empty if the model passed; ``worst`` is the worst first."""

    ok: bool
    cases: int
    agreed: int
    agreement: float
    min_agreement: float
    max_delta: float
    outputs: tuple[OutputVerdict, ...]
    worst: tuple[Miss, ...] = ()
    problems: tuple[str, ...] = ()


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """A golden test's fields that let the converted model prove itself against its original."""

    absolute: float
    relative: float
    argmax: str
    min_pass: float


def decisions(reference: Arrays) -> tuple[str, ...]:
    """The float outputs that may choose a class: at least two scores along the last axis, beside the row's own."""
    return tuple(
        name for name, array in reference.items() if _is_float(array) and array.ndim > 1 and array.shape[-1] > 1
    )


def default_bar(reference: Array, share: float) -> float:
    """The bar of |Δ| for an output of which nothing is declared.

    A share of what the output varies by over the samples, so that a small unit is not waved through, and at most that
    share of 1, so that a large unit has to be declared; never below what rounding alone may do.
    """
    finite = reference[np.isfinite(reference)].astype(np.float64) if _is_float(reference) else np.zeros(0)
    if not finite.size:
        return share
    spread = float(finite.max() - finite.min())
    return share * min(1.0, spread) + FLOAT_NOISE * float(np.abs(finite).max())


def judge(
    reference: Arrays,
    candidate: Arrays,
    *,
    bars: Mapping[str, float],
    argmax: Collection[str] = (),
    min_agreement: float = MIN_AGREEMENT,
) -> Verdict:
    """Compare sample by sample.

    Args:
        reference: the original's outputs by name; all have the same number of leading rows, at least one.
        candidate: the converted model's, for the same inputs; further outputs are ignored.
        bars: largest |Δ| allowed by output name.
        argmax: outputs that choose a class along their last axis.
        min_agreement: share of samples that must agree in every output, 0 to 1.
    """
    cases = len(next(iter(reference.values())))
    agree = np.ones(cases, dtype=bool)
    found, misses, problems = [], [], []  # type: list[OutputVerdict], list[Miss], list[str]
    for name, want in reference.items():
        have = candidate.get(name)
        if have is None or have.shape != want.shape:
            shape = "missing" if have is None else f"of the shape {list(have.shape)}, not {list(want.shape)}"
            problems.append(f"output {name!r} is {shape}")
            agree[:] = False
            continue
        decides = _decides(want, name in argmax)
        same = _same(want, have, decides)
        delta = _deltas(want, have)
        bar = bars.get(name, 0.0)
        largest = float(delta.max(initial=0.0))
        if largest > bar and _is_float(want):
            over = int((delta > bar).sum())
            problems.append(
                f"output {name!r} differs by up to {largest:.3g} (allowed {bar:.3g}), over that in {over} samples"
            )
        found.append(OutputVerdict(name=name, decides=decides, agreed=int(same.sum()), max_delta=largest, bar=bar))
        misses += _misses(found[-1], want, have, same, delta)
        agree &= same
    agreed = int(agree.sum())
    if agreed < math.ceil(min_agreement * cases - 1e-9):
        problems.insert(0, f"{agreed} of {cases} samples agree ({agreed / cases:.2%}), {min_agreement:.2%} are needed")
    misses.sort(key=lambda miss: (-miss.flipped, -miss.delta, miss.sample))
    return Verdict(
        ok=not problems,
        cases=cases,
        agreed=agreed,
        agreement=agreed / cases,
        min_agreement=min_agreement,
        max_delta=max((one.max_delta for one in found), default=math.inf if problems else 0.0),
        outputs=tuple(found),
        worst=tuple(misses[:WORST]),
        problems=tuple(problems),
    )


def fit_tolerance(
    reference: Arrays,
    candidate: Arrays,
    verdict: Verdict,
    *,
    absolute: float = ABSOLUTE,
    relative: float = RELATIVE,
) -> Tolerance:
    """The tightest golden test that this model passes here with room for another processor's rounding.

    Twice the largest |Δ| seen on the golden cases, at least ``absolute``, and never beyond the gate's own bar. Cases
    that choose another class here are allowed for in ``min_pass``, and no others.

    Args:
        reference: the original's outputs for the golden inputs.
        candidate: the converted model's.
        verdict: of the gate, which has passed.
        absolute: what the original's golden test allowed.
        relative: as above.
    """
    bars = {one.name: one for one in verdict.outputs}
    needed = absolute
    for name, want in reference.items():
        seen = float(_deltas(want, candidate[name]).max(initial=0.0)) if _is_float(want) else 0.0
        needed = max(needed, seen, min(2 * seen, bars[name].bar))
    argmax = next((one.name for one in verdict.outputs if one.decides == "argmax"), "")
    cases = len(next(iter(reference.values())))
    good = np.ones(cases, dtype=bool)
    for name, want in reference.items():
        if name == argmax or bars[name].decides == "equal":
            good &= _same(want, candidate[name], bars[name].decides)
    share = int(good.sum()) / cases
    return Tolerance(
        absolute=round_up(needed), relative=relative, argmax=argmax, min_pass=1.0 if share == 1 else round_down(share)
    )


def meets_golden(golden: Golden, expected: Arrays, got: Arrays) -> tuple[int, int]:
    """(cases that pass, cases) of a golden test, as a device counts: see :class:`skerry_modules.manifest.Golden`."""
    cases = len(next(iter(expected.values())))
    good = np.ones(cases, dtype=bool)
    for name, want in expected.items():
        have = got.get(name)
        if have is None or have.shape != want.shape:
            return 0, cases
        if _is_float(want):
            left, right = want.astype(np.float64), have.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                near = np.abs(right - left) <= golden.absolute + golden.relative * np.abs(left)
            near |= (left == right) | (np.isnan(left) & np.isnan(right))
            good &= near.reshape(cases, -1).all(axis=1)
        else:
            good &= _same(want, have, "equal")
        if name == golden.argmax:
            good &= _same(want, have, "argmax")
    return int(good.sum()), cases


def round_up(value: float, digits: int = 2) -> float:
    """The next number of so many significant digits, never below ``value``."""
    # By its shortest spelling: 1e-4 is a little more than 0.0001 in binary, and would become 0.00011.
    return float(decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING).create_decimal(repr(value)))


def round_down(value: float, digits: int = 4) -> float:
    """To so many decimals, never above ``value``."""
    return float(decimal.Decimal(repr(value)).quantize(decimal.Decimal(10) ** -digits, rounding=decimal.ROUND_FLOOR))


def _is_float(array: Array) -> bool:
    return bool(array.dtype.kind == "f")


def _decides(want: Array, argmax: bool) -> str:
    if not _is_float(want):
        return "equal"
    return "argmax" if argmax else ""


def _same(want: Array, have: Array, decides: str) -> Array:
    """Per sample, whether the two decide alike. A value that is no number decides nothing, unless both have it."""
    rows = len(want)
    if decides == "equal":
        equal: Array = np.asarray(want == have, dtype=bool).reshape(rows, -1).all(axis=1)
        return equal
    if decides == "argmax":
        alike: Array = (want.argmax(axis=-1) == have.argmax(axis=-1)).reshape(rows, -1).all(axis=1)
        lost: Array = (np.isnan(have) & ~np.isnan(want)).reshape(rows, -1).any(axis=1)
        return alike & ~lost
    return np.ones(rows, dtype=bool)


def _deltas(want: Array, have: Array) -> Array:
    """Per sample, the largest |Δ|; infinite where one is a number and the other is not. Zero for what is no float."""
    rows = len(want)
    if not _is_float(want):
        return np.zeros(rows)
    if have.dtype.kind not in "fiub":
        return np.full(rows, math.inf)
    left, right = want.astype(np.float64), have.astype(np.float64)
    with np.errstate(invalid="ignore"):
        delta = np.abs(right - left)
    delta[(left == right) | (np.isnan(left) & np.isnan(right))] = 0.0
    delta[np.isnan(delta)] = math.inf
    return np.asarray(delta.reshape(rows, -1).max(axis=1, initial=0.0))


def _misses(found: OutputVerdict, want: Array, have: Array, same: Array, delta: Array) -> list[Miss]:
    """The worst samples of one output: those that flipped first, then those over the bar, by their |Δ|."""
    bad = np.flatnonzero(~same | (delta > found.bar if _is_float(want) else False))
    order = sorted(bad.tolist(), key=lambda row: (bool(same[row]), -float(delta[row]), row))
    misses = []
    for row in order[:WORST]:
        flipped = not bool(same[row])
        expected, got = _said(want[row], have[row], flipped=flipped)
        misses.append(
            Miss(sample=row, output=found.name, expected=expected, got=got, delta=float(delta[row]), flipped=flipped)
        )
    return misses


def _said(want: Array, have: Array, *, flipped: bool) -> tuple[str, str]:
    """What the two say of one sample: the first class that differs, or the value that differs most."""
    if not _is_float(np.asarray(want)):
        differ = np.flatnonzero(np.asarray(want != have).reshape(-1))
        at = int(differ[0]) if len(differ) else 0
        return str(np.asarray(want).reshape(-1)[at]), str(np.asarray(have).reshape(-1)[at])
    if flipped and np.ndim(want):
        left, right = want.argmax(axis=-1).reshape(-1), have.argmax(axis=-1).reshape(-1)
        differ = np.flatnonzero(left != right)
        if len(differ):
            at = int(differ[0])
            scores = have.reshape(-1, have.shape[-1])[at], want.reshape(-1, want.shape[-1])[at]
            return (
                f"class {left[at]} ({float(scores[1][left[at]]):.3g})",
                f"class {right[at]} ({float(scores[0][right[at]]):.3g})",
            )
    at = int(np.argmax(_deltas(np.reshape(want, (-1, 1)), np.reshape(have, (-1, 1)))))
    return f"{float(np.reshape(want, -1)[at]):.6g}", f"{float(np.reshape(have, -1)[at]):.6g}"
