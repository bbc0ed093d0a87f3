"""An MQTT topic of the device's own sensors: each message is one input, as JSON or as a raw tensor.

A reading that comes while no version is ready, or faster than it can be scored, is let go and counted: the next one
replaces it. Oversized payloads are refused before they are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

from skerry_agent.sources import Inputs, Row, Specs
from skerry_agent.sources.folder import read_json
from skerry_modules.errors import InputError
from skerry_modules.messages import Tensor

QUEUE: Final = 64
"""Messages that may wait; the oldest goes first."""


class Topic:
    """Messages arrive by :meth:`take` on the event loop.

    Args:
        input_name, datatype, shape: for raw payloads; an empty datatype means JSON.
        on_close: gives the subscription back.
    """

    def __init__(
        self,
        *,
        input_name: str,
        datatype: str,
        shape: tuple[int, ...],
        max_mb: int,
        on_close: Callable[[], None],
    ) -> None:
        self._input = input_name
        self._datatype = datatype
        self._shape = shape
        self._limit = max_mb * 1_000_000
        self._on_close = on_close
        self._queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(QUEUE)
        self.overflowed = 0

    def take(self, topic: str, payload: bytes) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self.overflowed += 1
        self._queue.put_nowait((topic, payload))

    async def rows(self) -> AsyncGenerator[Row, None]:
        while True:
            topic, payload = await self._queue.get()
            yield self._row(topic, payload)

    def _row(self, topic: str, payload: bytes) -> Row:
        def read(specs: Specs) -> Inputs:
            return self._read(topic, payload, specs)

        return Row(topic, read, wait=False)

    def _read(self, topic: str, payload: bytes, specs: Specs) -> Inputs:
        if len(payload) > self._limit:
            raise InputError(
                "request.too_large",
                f"cannot take {len(payload)} bytes from {topic}: the limit is {self._limit}",
            )
        if not self._datatype:
            return read_json(payload, specs, topic)
        return {self._input: Tensor(datatype=self._datatype, shape=self._shape, data=payload)}

    def close(self) -> None:
        self._on_close()
