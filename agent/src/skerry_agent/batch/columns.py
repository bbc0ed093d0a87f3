"""Which columns of a table make which input: a pure rule.

An input takes, in this order: the columns that the caller named, the column with its name, the columns ``name_0``,
``name_1``, …; and a model's only input takes all columns that are left, where their number fits.
"""

from __future__ import annotations

from collections.abc import Sequence

from skerry_agent.batch.rows import Model
from skerry_modules.errors import InputError
from skerry_modules.tensors import TensorSpec


def assign(
    names: Sequence[str], model: Model, *, chosen: Sequence[str] = (), kept: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The columns of each input.

    Args:
        names: the table's columns, in order.
        chosen: for a model with one input: these, in this order.
        kept: columns that go into the output beside the scores; they are no inputs unless named.

    Raises:
        InputError: ``scoring.unknown_input`` with what is there and what is missing.
    """
    for name in (*chosen, *kept):
        if name not in names:
            raise InputError("scoring.unknown_input", f"cannot find the column {name!r}: the table has {_told(names)}")
    if chosen and len(model.inputs) != 1:
        raise InputError(
            "scoring.unknown_input", "cannot use --columns for a model with more inputs; name columns after the inputs"
        )
    return {spec.name: _of(spec, names, model, tuple(chosen), set(kept)) for spec in model.inputs}


def _of(
    spec: TensorSpec, names: Sequence[str], model: Model, chosen: tuple[str, ...], kept: set[str]
) -> tuple[str, ...]:
    width = model.width(spec)
    numbered = tuple(f"{spec.name}_{place}" for place in range(width))
    left = tuple(name for name in names if name not in kept)
    if chosen:
        found = chosen
    elif spec.name in names:
        return (spec.name,)
    elif width and all(name in names for name in numbered):
        return numbered
    else:
        found = left if len(model.inputs) == 1 else ()
    if found and (len(found) == width or (chosen and len(found) == 1)):
        return found
    raise InputError(
        "scoring.unknown_input",
        f"cannot find the input {spec.name!r} (a row has {width or 'varying'} values) in the columns {_told(names)}; "
        f"name a column {spec.name!r}, or {width} columns with --columns, or set others apart with --keep",
    )


def _told(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"
