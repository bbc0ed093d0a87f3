"""A worker that scores copies in shadow steps aside for those that answer, where the system lets it come back.

Its niceness goes up by :data:`BY`, so that on busy cores it gets about a tenth of what a live worker gets: enough to go
on, and hardly felt. It comes back when it is asked for an answer, and stays until :data:`QUIET_S` have passed since the
last one: one that answers and shadows by turns must not be late with its answers.

Only a process with ``CAP_SYS_NICE`` or ``RLIMIT_NICE`` may lower its niceness again (``LimitNICE=+0`` of systemd,
Docker's ``--ulimit nice=20``). Where it may not, it never raises it: a version that is promoted must not stay behind.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Final

BY: Final = 10
QUIET_S: Final = 10.0


class Aside:
    """Of one worker process."""

    def __init__(self) -> None:
        self._base = os.getpriority(os.PRIO_PROCESS, 0)
        self._stepped = False
        self._may: bool | None = None
        self._answered = -QUIET_S

    def answers(self) -> None:
        """A client waits: come back."""
        self._answered = time.monotonic()
        if self._stepped:
            self._stepped = False
            _renice(self._base)

    def shadows(self) -> None:
        """A copy is scored: step aside, unless answers were asked for just now."""
        if self._stepped or self._may is False or time.monotonic() - self._answered < QUIET_S:
            return
        if self._may is None:
            self._may = may_return()
        if self._may:
            self._stepped = True
            _renice(min(19, self._base + BY))


def may_return() -> bool:
    """Whether this process may lower its niceness; tried by a thread of its own, since on Linux each has its own."""
    found: list[bool] = []

    def attempt() -> None:
        base = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, base + 1)
            os.setpriority(os.PRIO_PROCESS, 0, base)
        except OSError:
            return
        found.append(base < 19)

    thread = threading.Thread(target=attempt)
    try:
        thread.start()
    except RuntimeError:  # no memory for its stack
        return False
    thread.join()
    return bool(found and found[0])


def _renice(niceness: int) -> None:
    for task in Path("/proc/self/task").iterdir():  # the engine's threads too
        try:
            os.setpriority(os.PRIO_PROCESS, int(task.name), niceness)
        except ProcessLookupError:
            continue  # it ended meanwhile
