"""An event loop that looks again instead of going to sleep, for a moment, while a crowd is being served.

A worker that has scored a batch wakes the agent to have it answered. Where the agent's core has gone to sleep
meanwhile, this costs the worker's core some ten microseconds (it interrupts the other one; on a virtual machine by way
of the host), and the agent more until it runs. Under a crowd the next batch is no further away than the last one was,
so the agent waits for it awake. Only then, only over modules that score in batches, and not for long: who is idle
sleeps.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

CROWD: Final = 4
"""Answers that came at once, from which on there is one."""


class Vigil:
    """Of one loop, over one worker.

    Args:
        awake_s: from each crowd on; 0: never. Nor is there one where there is one processor only: the worker needs it.
    """

    def __init__(self, awake_s: float) -> None:
        self.kept = False
        self._awake_s = awake_s if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._until = 0.0

    def keep(self, answers: int) -> None:
        """So many answers have come at once."""
        if answers >= CROWD and self._awake_s:
            self._until = time.monotonic() + self._awake_s
            if not self.kept:
                self.kept = True
                self._look(asyncio.get_running_loop())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if time.monotonic() < self._until:
            loop.call_soon(self._look, loop)  # with something to call, a loop looks at its sockets without waiting
        else:
            self.kept = False
