"""Request heads that were seen before: a client repeats its head byte for byte, and what that means is remembered.

Only the plainest are kept: HTTP/1.1 that stays open, a declared length, nothing to complain of, expect or upgrade, and
no key of its own. Whatever differs by a byte goes through the parser. What a head means depends on its bytes and on the
settings alone, so the connections of one front share what they learned.
"""

from __future__ import annotations

from typing import Final, NamedTuple

ENTRIES: Final = 128
HEAD_BYTES: Final = 1024
"""Longer heads are parsed each time."""
END: Final = b"\r\n\r\n"


class Head(NamedTuple):
    """What one says."""

    method: bytes
    path: bytes
    length: int  # bytes of the body
    json: int  # of these, the JSON in front of binary tensors; −1: no such
    timeout_s: float
    low: bool


class Heads:
    """The heads of one front."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self.get = self._known.get

    def learn(self, data: bytes, head: Head) -> None:
        """``data`` was one whole request and was parsed as ``head``."""
        size = len(data) - head.length
        # The head ends where the parser found it to end, and nowhere before.
        if size > HEAD_BYTES or data.find(END) != size - len(END):
            return
        if len(self._known) >= ENTRIES:
            self._known.clear()
        self._known[data[:size]] = head
