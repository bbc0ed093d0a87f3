"""Requests of one version that ended too many workers: answered 500, kept as samples, known when they come again."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from skerry_agent.serving import frames, oip
from skerry_agent.serving.frames import Kind

if TYPE_CHECKING:
    from skerry_agent.rules.dispatch import Ticket
    from skerry_agent.serving.link import WorkerLink

TEXT: Final = "cannot score this request: it ended two workers and is not tried again; see the captured sample"
MARKS: Final = 64
"""Bodies that are remembered."""


class Quarantine:
    """Of one version."""

    def __init__(self) -> None:
        self._marks: dict[bytes, None] = {}
        self._samples: list[Ticket] = []

    @property
    def empty(self) -> bool:
        return not self._marks

    def holds(self, body: bytes) -> bool:
        """Whether this very request did so before."""
        return bool(self._marks) and hashlib.sha256(body).digest() in self._marks

    def add(self, ticket: Ticket) -> None:
        """Remember one; unless it is a copy, the next worker is asked to keep it as a sample."""
        if len(self._marks) >= MARKS:
            self._marks.pop(next(iter(self._marks)))
        self._marks[hashlib.sha256(ticket.item.body).digest()] = None
        if not ticket.item.shadow:
            self._samples.append(ticket)

    def capture(self, link: WorkerLink) -> None:
        """Have a worker make samples of those that were added."""
        for ticket in self._samples:
            item = ticket.item
            head = frames.pack(Kind.CAPTURE, 0, json=item.json, name=item.endpoint, size=len(item.body))
            link.send(head, item.body)
        self._samples.clear()

    @staticmethod
    def answer() -> tuple[int, str, int, bytes]:
        return 500, "scoring.quarantined", -1, oip.error_body(TEXT)
