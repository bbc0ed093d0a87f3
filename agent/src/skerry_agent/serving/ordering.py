"""Orders to the workers of one version (load, golden test, warm up, …), and who waits for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from skerry_agent.serving import frames, orders
from skerry_modules.errors import PeerError, SkerryError

if TYPE_CHECKING:
    from skerry_agent.serving.frames import Frame, Kind
    from skerry_agent.serving.link import WorkerLink

CONTROL: Final = 1 << 63
"""Numbers of orders start here, so that they never meet those of requests."""


class Ordering:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._last = CONTROL
        self._out: dict[int, tuple[WorkerLink, asyncio.Future[bytes]]] = {}

    @property
    def idle(self) -> bool:
        """Nobody waits for an answer."""
        return not self._out

    async def give(self, link: WorkerLink, kind: Kind, body: bytes, on_cancel: Callable[[], None]) -> bytes:
        """One order and its answer.

        Raises:
            SkerryError: what the worker raised; ``install.load_failed`` if it died.
        """
        self._last += 1
        number = self._last
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._out[number] = (link, future)
        link.send(frames.pack(kind, number, size=len(body)), body)
        try:
            return await future
        except asyncio.CancelledError:
            on_cancel()
            raise
        finally:
            self._out.pop(number, None)

    def answered(self, frame: Frame) -> None:
        """The worker's answer to one."""
        _, future = self._out.get(frame.number, (None, None))
        if future is None or future.done():
            return
        if frame.status == 200:
            future.set_result(frame.body)
            return
        try:
            orders.raise_failure(frame.body)
        except SkerryError as error:
            future.set_exception(error)

    def lost(self, link: WorkerLink, text: str) -> None:
        """A worker has ended: who waits for it is told so."""
        for owner, future in self._out.values():
            if owner is link and not future.done():
                future.set_exception(PeerError("install.load_failed", text))
