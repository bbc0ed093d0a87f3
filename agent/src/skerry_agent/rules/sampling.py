"""Which scored rows a device keeps: a pure rule.

A row is kept because its score was low (certain, probability 1), or at random (probability ``rate``). The probability
travels with the sample, so that estimates from samples can be weighted back to what the model really saw. A cap per
minute bounds what a busy or confused device can send; what it holds back is counted, not silently lost.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

WINDOW_S: Final = 60.0
FAR: Final = 1 << 40
"""Rows that no worker lives to see."""


class Policy(NamedTuple):
    """``rate`` 0–1 of rows; ``low_confidence``: keep where the largest score is below it (0: off)."""

    rate: float
    low_confidence: float
    max_per_minute: int


class Window(NamedTuple):
    """The running minute: when it began (monotonic seconds), how many were kept, how many the cap held back."""

    start: float = -WINDOW_S
    kept: int = 0
    capped: int = 0


class Kept(NamedTuple):
    reason: str  # "low_confidence" or "random"
    probability: float


def gap(rate: float, draw: float) -> int:
    """How many rows on the next one lies that is kept at random: what a draw for each row would give, in one.

    Args:
        rate: share of rows that are kept.
        draw: a random number, uniform in [0, 1).

    Returns:
        1: the very next row; at most :data:`FAR`, which ``rate`` 0 always gives.
    """
    if rate >= 1:
        return 1
    scale = -math.log1p(-max(rate, 0.0))
    rows = -math.log1p(-draw)  # exponential with mean 1
    return 1 + int(rows / scale) if rows < FAR * scale else FAR


def decide(
    policy: Policy, window: Window, now: float, drawn: bool, confidence: float | None
) -> tuple[Window, Kept | None]:
    """Whether to keep one row.

    Args:
        policy: what to keep.
        window: as the last call returned it.
        now: monotonic seconds.
        drawn: its lot says so: see :func:`gap`.
        confidence: the row's largest score, or None where the model gives none. NaN counts as low.

    Returns:
        The next window, and why the row is kept (None: it is not).
    """
    low = policy.low_confidence > 0 and confidence is not None and not confidence >= policy.low_confidence
    if not low and not drawn:
        return window, None
    if now - window.start >= WINDOW_S:
        window = Window(start=now)
    if window.kept >= policy.max_per_minute:
        return window._replace(capped=window.capped + 1), None
    kept = Kept("low_confidence", 1.0) if low else Kept("random", policy.rate)
    return window._replace(kept=window.kept + 1), kept
