"""Where inputs come from when nobody calls: a dataset replay, a watched folder, an MQTT topic.

A source yields :class:`Row` values; the one :class:`Feeder` scores each through the data plane, the same way as HTTP
clients do, and says to the row how it went. A source outlives everything: no version ready, a broken file, a full
queue. numpy is not needed: tensors are bytes with a shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from skerry_agent.events import Events
from skerry_agent.ports import DataPlane, Source
from skerry_agent.sources.values import to_json
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.messages import Severity, Tensor
from skerry_modules.tensors import TensorSpec

log = logging.getLogger(__name__)

Specs = tuple[TensorSpec, ...]
Inputs = dict[str, Tensor]

_LATER: Final = frozenset({"scoring.not_ready", "scoring.overloaded", "module.unknown"})
_PAUSE_S: Final = 1.0


class Row(msgspec.Struct, frozen=True):
    """One thing to score.

    ``read`` makes the inputs for a model's declared inputs; it may raise :class:`InputError`. ``wait``: keep it until
    a version is ready (a file, a data set); otherwise it is let go (a sensor's reading, which the next one replaces).
    ``done`` hears the outputs or the error.
    """

    label: str
    read: Callable[[Specs], Inputs]
    wait: bool = True
    done: Callable[[dict[str, Tensor] | SkerryError], None] | None = None


Results = Callable[[dict[str, Any]], None]
Opened = tuple[Source, Results | None]
"""A source, and what takes one JSON object per scored row (it must not block for long)."""


class Feeder:
    """Scores what one source yields.

    Args:
        name: in status and events.
        endpoint: who scores.
        open_source: opens where rows come from; called again when the source broke.
        plane: what scores them.
        specs_of: an endpoint's declared inputs, or None while no version is loaded.
        timeout_s: of one request.
    """

    def __init__(
        self,
        name: str,
        endpoint: str,
        open_source: Callable[[], Opened],
        plane: DataPlane,
        *,
        specs_of: Callable[[str], Specs | None],
        events: Events,
        timeout_s: float = 30.0,
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._open = open_source
        self._plane = plane
        self._specs_of = specs_of
        self._events = events
        self._results: Results | None = None
        self._timeout_s = timeout_s
        self.scored = self.failed = self.let_go = 0
        self.waiting = ""
        self.last_error = ""

    def facts(self) -> dict[str, Any]:
        """For status."""
        return {
            "name": self.name,
            "endpoint": self._endpoint,
            "scored": self.scored,
            "failed": self.failed,
            "let_go": self.let_go,
            "waiting": self.waiting,
            "last_error": self.last_error,
        }

    async def run(self) -> None:
        """Until cancelled, or the source has no more.

        Raises:
            InputError: the source cannot be opened; the caller tries again.
        """
        try:
            source, self._results = self._open()
        except InputError as error:
            self.last_error = error.message
            raise
        self.last_error = ""
        rows = source.rows()
        try:
            async for row in rows:
                await self._score(row)
        finally:
            await rows.aclose()
            source.close()

    async def _score(self, row: Row) -> None:
        while True:
            try:
                outputs = await self._once(row)
            except SkerryError as error:
                if error.code in _LATER:
                    self.waiting = error.code
                    if row.wait:
                        await asyncio.sleep(_PAUSE_S)
                        continue
                    self.let_go += 1
                    return
                self._failed(row, error)
                return
            self.waiting = ""
            self.scored += 1
            if row.done:
                row.done(outputs)
            return

    async def _once(self, row: Row) -> dict[str, Tensor]:
        specs = self._specs_of(self._endpoint)
        if specs is None:
            raise InputError("scoring.not_ready", f"cannot score on {self._endpoint}: no version is ready")
        began = time.perf_counter()
        outputs = await self._plane.infer_tensors(self._endpoint, row.read(specs), timeout_s=self._timeout_s)
        if self._results:
            millis = (time.perf_counter() - began) * 1000
            plain = {name: to_json(tensor) for name, tensor in outputs.items()}
            with contextlib.suppress(OSError):
                self._results({"source": row.label, "outputs": plain, "ms": round(millis, 3)})
        return outputs

    def _failed(self, row: Row, error: SkerryError) -> None:
        self.waiting = ""
        self.failed += 1
        self.last_error = f"{row.label}: {error.message}"
        if row.done:
            row.done(error)
        self._events.tell(
            Severity.WARNING, error.code, f"cannot score {row.label} of {self.name}: {error.message}", source=self.name
        )
