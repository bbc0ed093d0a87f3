"""Which columns of a table make which input of a model: a pure rule, the same on devices and hub.

An input takes, in this order: the columns that the caller named, the column with its name, the columns ``name_0``,
``name_1``, …; and a model's only input takes all columns that are left, where their number fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from skerry_modules.errors import InputError
from skerry_modules.tensors import TensorSpec


def width(spec: TensorSpec) -> int:
    """Values of one row of an input or output; 0: it varies."""
    inner = spec.shape[1:]
    return 0 if -1 in inner else math.prod(inner)


def check_rows(name: str, inputs: Sequence[TensorSpec]) -> None:
    """Refuse a model that cannot be scored row by row.

    Raises:
        InputError: ``scoring.wrong_shape``.
    """
    if not inputs or not all(spec.shape[:1] in ((-1,), (1,)) for spec in inputs):
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
        raise InputError(
            "scoring.wrong_shape",
            f"cannot score {name} row by row: its inputs are {shapes or 'none'}; the first dimension must be -1 or 1",
        )


def assign(
    names: Sequence[str], inputs: Sequence[TensorSpec], *, chosen: Sequence[str] = (), kept: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The columns of each input.

    Args:
        names: the table's columns, in order.
        inputs: the model's.
        chosen: for a model with one input: these, in this order.
        kept: columns that go into the output beside the scores; they are no inputs unless named.

    Raises:
        InputError: ``scoring.unknown_input`` with what is there and what is missing.
    """
    for name in (*chosen, *kept):
        if name not in names:
            raise InputError("scoring.unknown_input", f"cannot find the column {name!r}: the table has {_told(names)}")
    if chosen and len(inputs) != 1:
        raise InputError(
            "scoring.unknown_input", "cannot use --columns for a model with more inputs; name columns after the inputs"
        )
    return {spec.name: _of(spec, names, len(inputs), tuple(chosen), set(kept)) for spec in inputs}


def _of(
    spec: TensorSpec, names: Sequence[str], inputs: int, chosen: tuple[str, ...], kept: set[str]
) -> tuple[str, ...]:
    wide = width(spec)
    numbered = tuple(f"{spec.name}_{place}" for place in range(wide))
    left = tuple(name for name in names if name not in kept)
    if chosen:
        found = chosen
    elif spec.name in names:
        return (spec.name,)
    elif wide and all(name in names for name in numbered):
        return numbered
    else:
        found = left if inputs == 1 else ()
    if found and (len(found) == wide or (chosen and len(found) == 1)):
        return found
    raise InputError(
        "scoring.unknown_input",
        f"cannot find the input {spec.name!r} (a row has {wide or 'varying'} values) in the columns {_told(names)}; "
        f"name a column {spec.name!r}, or {wide} columns with --columns, or set others apart with --keep",
    )


def _told(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"
