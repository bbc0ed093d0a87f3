"""What a version takes and whom it tells: the faces between it, the fronts and the plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from skerry_modules import messages


class Item(Protocol):
    """A request that wants one answer. ``began`` is monotonic seconds."""

    endpoint: bytes
    body: bytes
    json: int
    began: float
    low: bool  # of low priority: see ``serving.yielding``
    shadow: bool  # a copy that nobody waits for: see ``serving.endpoint``
    after: Callable[[int, bytes], None] | None  # called with an answer of status 200, once it is on its way

    def reply(self, status: int, code: str, json: int, body: bytes) -> None: ...


class Events(Protocol):
    """Whom a version tells."""

    def worker_exited(self, digest: str, reason: str, restarting: bool) -> None: ...

    def sampled(self, digest: str, sample: messages.Sample) -> None: ...

    def noticed(self, digest: str, code: str, text: str) -> None: ...
