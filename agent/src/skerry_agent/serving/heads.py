"""Request heads that were seen before: a client repeats its head byte for byte, and what that means is remembered.

Only the plainest are kept: HTTP/1.1 that stays open, a declared length, nothing to complain of, expect or upgrade, and
no key of its own. Whatever differs by a byte goes through the parser. What a head means depends on its bytes and on the
settings alone, so the connections of one front share what they learned.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

ENTRIES: Final = 128
HEAD_BYTES: Final = 1024
"""Longer heads are parsed each time."""
END: Final = b"\r\n\r\n"


_LENGTH: Final = re.compile(rb"\r\nContent-Length: *(\d{1,9})\r\n", re.IGNORECASE)
_JSON: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
_BINARY: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n%b\r\n"
)


def answer_head(json: int, size: int, more: bytes = b"") -> bytes:
    """The head of an answer with status 200.

    Args:
        json: length of the JSON in front of binary tensors; −1: all of the body is JSON.
        size: bytes of the body.
        more: further lines.
    """
    return _JSON % (size, more) if json < 0 else _BINARY % (json, size, more)


class Form(NamedTuple):
    """What heads have in common that differ in the length of their bodies alone. Compared by identity."""

    before: bytes  # the digits of Content-Length
    after: bytes
    path: bytes
    json: int
    timeout_s: float


class Head(NamedTuple):
    """What one says."""

    method: bytes
    path: bytes
    length: int  # bytes of the body
    json: int  # of these, the JSON in front of binary tensors; −1: no such
    timeout_s: float
    low: bool
    form: Form | None = None  # None: no request for scores, or one of low priority


class Heads:
    """The heads of one front."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._forms: dict[tuple[bytes, bytes], Form] = {}
        self.get = self._known.get

    def learn(self, raw: bytes, head: Head) -> Head | None:
        """``raw`` was parsed as ``head``. Returns what was kept, None for nothing."""
        # The head ends where the parser found it to end, and nowhere before.
        if len(raw) > HEAD_BYTES or raw.find(END) != len(raw) - len(END):
            return None
        if len(self._known) >= ENTRIES:
            self._known.clear()
        kept = self._known[raw] = head._replace(form=self._form(raw, head))
        return kept

    def _form(self, raw: bytes, head: Head) -> Form | None:
        """Of a plain request that asks for nothing special."""
        found = list(_LENGTH.finditer(raw))
        if head.method != b"POST" or head.low or len(found) != 1:
            return None
        before, after = raw[: found[0].start(1)], raw[found[0].end(1) :]
        if len(self._forms) >= ENTRIES:
            self._forms.clear()
        return self._forms.setdefault((before, after), Form(before, after, head.path, head.json, head.timeout_s))
