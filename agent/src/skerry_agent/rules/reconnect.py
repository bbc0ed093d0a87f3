"""When to try again after the link was lost: soon after a short outage, less often in a long one.

* The pause is random up to a ceiling (full jitter): a fleet that lost its broker in one moment must not come back in
  one.
* The ceiling is how long the outage has lasted so far, from ``first_s`` up to ``max_s``: who was away for three seconds
  is not kept away for a minute by a few unlucky draws, and a long outage is not hammered against.
* ``spread_s`` is the hub's word on how long its fleet needs to come back; it raises the ceiling of a large fleet's
  first pauses and leaves those of a small one short.
* A connection that ends before it has stood for ``STEADY_S`` ends no outage: two clients of one name, each throwing the
  other out, would otherwise do so for ever at full speed.

Time in between is told, never asked for. Not handled here: why the link was lost.
"""

from __future__ import annotations

import random
from typing import Final

STEADY_S: Final = 30.0
"""A connection that stood for so long ends an outage."""


class Reconnect:
    """The memory of one link.

    Args:
        first_s: ceiling of the first pause, seconds.
        max_s: ceiling of the longest pause, seconds; the hub's word does not go beyond it.
        rng: draws the pauses.
    """

    def __init__(self, first_s: float, max_s: float, rng: random.Random) -> None:
        self.spread_s = 0.0
        self._first_s, self._max_s, self._rng = first_s, max_s, rng
        self._away_s = 0.0

    @property
    def ceiling(self) -> float:
        """The longest that the next pause may be, seconds."""
        return min(self._max_s, max(self._first_s, self.spread_s, self._away_s))

    def pause(self, *, stood_s: float = 0.0, tried_s: float = 0.0) -> float:
        """How long to wait before the next attempt; it counts as waited from then on.

        Args:
            stood_s: how long the connection that has ended now had stood; 0: none came about.
            tried_s: how long the attempt took that has failed now.
        """
        if stood_s >= STEADY_S:
            self._away_s = 0.0
        elif stood_s > 0:
            self._away_s = min(self._max_s, max(self._first_s, 2 * self._away_s))
        else:
            self._away_s += tried_s
        chosen = self._rng.uniform(0, self.ceiling)
        self._away_s += chosen
        return chosen
