"""Which message of a device's spool the hub takes: the receiving half of the rule in ``skerry_modules.messages``.

Pure. One call judges one message of one stream of one spool (device, epoch, stream). The caller keeps the mark in the
same transaction as what the message carried, and acknowledges only marks that are committed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

MAX_NUMBER: Final = 2**63 - 1
"""The largest number that every database keeps."""


class Verdict(StrEnum):
    """What to do with a message."""

    TAKE = "take"
    DUPLICATE = "duplicate"  # committed before: drop it, and acknowledge again, for the acknowledgement may be lost
    GAP = "gap"  # something before it has not arrived: drop it, the device sends again from its base
    INVALID = "invalid"  # numbers that no spool can say


class Taken(NamedTuple):
    """``mark`` is the stream's mark from now on; ``lost`` how many records the device's spool had dropped."""

    verdict: Verdict
    mark: int
    lost: int


def take(mark: int, seq: int, base: int) -> Taken:
    """Judge the message ``seq`` of a spool whose lowest kept number is ``base``, against the committed ``mark``.

    ``mark`` is 0 for a stream never seen. A base above ``mark + 1`` says that the numbers between were dropped by the
    device itself: they will never come, so the mark jumps and the jump is counted, once.
    """
    if base < 1 or seq < base or seq > MAX_NUMBER:
        return Taken(Verdict.INVALID, mark, 0)
    if seq <= mark:
        return Taken(Verdict.DUPLICATE, mark, 0)
    expected = max(mark + 1, base)
    if seq > expected:
        return Taken(Verdict.GAP, mark, 0)
    return Taken(Verdict.TAKE, seq, expected - mark - 1)
