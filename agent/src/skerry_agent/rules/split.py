"""Which version of a split answers one request: by its key, always the same, or by chance.

With a key it is weighted rendezvous hashing (Schindelhauer and Schomaker 2005): each version draws a number from the
key's hash, stretched by its share, and the smallest wins. So

* a key keeps its version while the split stays, on every device and after every restart, with nothing stored;
* the order in which versions are listed means nothing;
* where one version's share grows against the others', keys only move to it; where it shrinks, only away from it. For
  two versions that is the least that can move at all.

Without a key it is a draw by share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

MAX_KEY_BYTES: Final = 256
"""A longer key is refused: it is hashed for each version at each request."""

_SCALE: Final = 1.0 / 2**64


def by_key(key: bytes, salts: Sequence[bytes], shares: Sequence[float]) -> int:
    """The place of the version that this key goes to.

    Args:
        key: what the client names: a user, a session, a machine.
        salts: names each version, the same at all times and places.
        shares: above 0, of any sum.
    """
    best, chosen = math.inf, 0
    for place, (salt, share) in enumerate(zip(salts, shares, strict=True)):
        number = int.from_bytes(blake2b(key, digest_size=8, key=salt).digest(), "little")
        drawn = -math.log((number + 0.5) * _SCALE) / share
        if drawn < best:
            best, chosen = drawn, place
    return chosen


def by_chance(draw: float, shares: Sequence[float]) -> int:
    """The place of the version for a ``draw`` from [0, 1)."""
    left = draw * sum(shares)
    for place, share in enumerate(shares):
        left -= share
        if left < 0:
            return place
    return len(shares) - 1


def salt_of(endpoint: str, module: str, version: int) -> bytes:
    """Of at most 64 bytes. The endpoint is part of it, so that the same users are not the first in every trial."""
    return blake2b(f"{endpoint}\n{module}\n{version}".encode(), digest_size=32).digest()
