"""Which columns of a table make which input: the rule of :mod:`skerry_modules.columns` for a served model."""

from __future__ import annotations

from collections.abc import Sequence

from skerry_agent.batch.rows import Model
from skerry_modules import columns


def assign(
    names: Sequence[str], model: Model, *, chosen: Sequence[str] = (), kept: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Raises InputError ``scoring.unknown_input``."""
    return columns.assign(names, model.inputs, chosen=chosen, kept=kept)
