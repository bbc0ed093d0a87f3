"""Replay of a data set: the rows of an ``.npz``, at a steady rate, once or for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from skerry_agent.sources import Inputs, Row, Specs
from skerry_agent.sources.values import named
from skerry_modules import npz
from skerry_modules.errors import InputError
from skerry_modules.messages import Tensor


class Replay:
    """Arrays by input name (``<name>`` or ``input.<name>``), one case per leading row; further arrays are ignored.

    Raises:
        InputError: as :func:`skerry_modules.npz.read`; ``request.invalid`` where it holds no rows.
    """

    def __init__(self, path: Path, *, rate: float, batch: int, loop: bool, max_mb: int) -> None:
        self._arrays: dict[str, Tensor] = npz.read(path, npz.Limits(max_bytes=max_mb * 1_000_000))
        self._path = path
        self._rate = rate
        self._batch = batch
        self._loop = loop
        self._count = max((npz.rows(array) for array in self._arrays.values()), default=0)
        if not self._count:
            raise InputError("request.invalid", f"cannot replay {path}: it holds no rows")

    async def rows(self) -> AsyncGenerator[Row, None]:
        due = time.monotonic()
        while True:
            for start in range(0, self._count, self._batch):
                yield self._row(start)
                if self._rate:
                    due += min(self._batch, self._count - start) / self._rate
                    now = time.monotonic()
                    if due < now - 1.0:
                        due = now  # after a pause the rate goes on; it is not made up for
                    await asyncio.sleep(max(0.0, due - now))
                else:
                    await asyncio.sleep(0)
            if not self._loop:
                return

    def _row(self, start: int) -> Row:
        def read(specs: Specs) -> Inputs:
            chosen: dict[str, Tensor] = named(self._arrays, specs, self._path.name)
            return {name: npz.take(array, start, self._batch) for name, array in chosen.items()}

        return Row(f"{self._path.name}[{start}]", read)

    def close(self) -> None:
        self._arrays = {}
