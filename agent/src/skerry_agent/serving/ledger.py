"""Memory that the agent and a worker share for a lent connection: the request as it comes, and how far the worker is.

The worker writes, the agent reads: while the worker lives to count what it answered and to see whether it hangs, after
its death to take the request up again (``rules.lending``). The agent writes only that the loan is revoked. The file is
sealed against shrinking: a worker that cut it short could otherwise end the agent, which has it mapped.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from bisect import bisect_right
from typing import Final

from skerry_agent.rules.lending import Notes
from skerry_modules.histogram import LOG2_EDGES, Histogram

REQUEST_BYTES: Final = 1024 * 1024
"""Longer requests go through the agent: what they cost dwarfs the way."""
START: Final = 4096
"""Where the request's bytes begin."""
_SIZE: Final = START + REQUEST_BYTES

# Places of 64-bit floats, exact up to 2**53.
STATE: Final = 0
SINCE: Final = 1  # monotonic seconds at which scoring began
HAVE: Final = 2
SIZE: Final = 3
REVOKED: Final = 4
DONE: Final = 5  # and SENT: written together, so that no moment lies between them
SENT: Final = 6
TOTAL: Final = 8  # of latencies in µs
LEAST: Final = 9
MOST: Final = 10
BINS: Final = 16  # below, the bins of LOG2_EDGES, above
_BIN_COUNT: Final = len(LOG2_EDGES) + 1
_PAIR: Final = struct.Struct("=dd")
_PAIR_AT: Final = DONE * 8


def create() -> int:
    """A descriptor of new memory of this kind."""
    descriptor = os.memfd_create("skerry-loan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, _SIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Ledger:
    """The memory behind a descriptor, which may be closed afterwards."""

    def __init__(self, descriptor: int) -> None:
        self.memory = mmap.mmap(descriptor, _SIZE)
        whole = memoryview(self.memory)
        self.words = whole[:START].cast("d")
        self.request = whole[START:]

    def clear(self) -> None:
        """Before a loan; latencies that nobody has collected stay."""
        for place in (STATE, SINCE, HAVE, SIZE, REVOKED, DONE, SENT):
            self.words[place] = 0.0
        self.memory[START] = 0

    # -- the worker's side

    def answered(self, done: int, sent: int, seconds: float) -> None:
        """One request was answered: bytes of all requests and answers of this loan so far."""
        words = self.words
        _PAIR.pack_into(self.memory, _PAIR_AT, done, sent)
        words[HAVE] = 0.0
        self.memory[START] = 0
        words[STATE] = 0.0
        us = seconds * 1e6
        words[BINS + bisect_right(LOG2_EDGES, us)] += 1.0
        words[TOTAL] += us
        if us < words[LEAST]:  # noqa: PLR1730 - on the way of every request: a write only where one is due
            words[LEAST] = us
        if us > words[MOST]:  # noqa: PLR1730
            words[MOST] = us

    # -- the agent's side

    def notes(self) -> Notes:
        """What the worker noted last. Garbage, should it have gone mad, is refused by the rules."""
        state, have, done, sent, size = (self._number(place) for place in (STATE, HAVE, DONE, SENT, SIZE))
        return Notes(state, have, done, sent, size, began=self.memory[START] != 0)

    def _number(self, place: int) -> int:
        value = self.words[place]
        return int(value) if math.isfinite(value) else -1

    def collect(self, before: list[float]) -> tuple[Histogram, list[float]]:
        """Latencies in µs that were counted since ``before``, and what to give the next time."""
        words = self.words
        now = [words[TOTAL], *(words[BINS + place] for place in range(_BIN_COUNT))]
        news = [int(new - old) for new, old in zip(now[1:], before[1:], strict=True)]
        found = Histogram()
        found.below, found.above = news[0], news[-1]
        found.counts = news[1:-1]
        if found.count:
            found.total = now[0] - before[0]
            found.minimum, found.maximum = words[LEAST], words[MOST]
            # A request that is counted at this moment may keep its value from either: both stay within what was seen.
            words[LEAST], words[MOST] = math.inf, -math.inf
            if not found.minimum <= found.maximum:
                found.minimum = found.maximum = found.total / found.count
        return found, now


NOTHING: Final = [0.0] * (_BIN_COUNT + 1)
"""What :meth:`Ledger.collect` is given the first time."""
