"""A worker that scores only copies in shadow steps aside for those that answer, where the system lets it come back.

It gets the scheduling class for idle work (``SCHED_IDLE``): it runs where nobody else wants the core, and whoever wakes
there takes the core from it at once. Niceness would not do: it sets the share over time, but one that wakes beside a
nice process still waits for that to end its turn of some milliseconds.

And it is held to as many processors as it computes with. Left free, the scheduler moves it whenever a core falls idle
for some microseconds between two requests; and wherever it comes anew, it is due a turn, which is a whole tick (4 ms)
for whoever had the core before. Measured with a model of 6 ms: p95 of the answers 1.6 times as long, and 1.08 held.
Which processors these are changes from call to call, so that one that another uses all the time is not its fate.

Only a process with ``CAP_SYS_NICE`` or ``RLIMIT_NICE`` may leave that class again (``LimitNICE=+0`` of systemd,
Docker's ``--ulimit nice=20``). Where it may not, a version that is promoted would stay behind for ever: there it only
becomes a batch process (``SCHED_BATCH``), which everyone may leave, and which at least never interrupts another when it
wakes.

The zygote does this, as it does the killing: only a parent knows that a process id is still its child's.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

_PARAM: Final = os.sched_param(0)  # static priority: 0 for all classes but real-time


def step_aside(pid: int, processors: set[int]) -> None:
    """All threads of that process yield from now on, and run there. Nothing happens if it is gone."""
    _stand(pid, os.SCHED_IDLE if may_return() else os.SCHED_BATCH, processors)


def come_back(pid: int, processors: set[int]) -> None:
    """And are again as they were, with their old processors; their niceness was never touched."""
    _stand(pid, os.SCHED_OTHER, processors)


def place(allowed: set[int], count: int, turn: int) -> set[int]:
    """``count`` of these processors, from the last on; further ones with each turn."""
    held = sorted(allowed, reverse=True)
    return {held[(turn * count + place) % len(held)] for place in range(count)} if count < len(held) else allowed


@cache
def may_return() -> bool:
    """Whether a process like this one may leave the idle class; tried by a child, which may not come back from it."""
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, _PARAM)
            os.sched_setscheduler(0, os.SCHED_OTHER, _PARAM)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _stand(pid: int, policy: int, processors: set[int]) -> None:
    done: set[str] = set()
    try:
        while left := {task.name for task in Path(f"/proc/{pid}/task").iterdir()} - done:  # it may start one meanwhile
            for name in left:
                _change(int(name), policy, processors)
            done |= left
    except FileNotFoundError:
        return


def _change(thread: int, policy: int, processors: set[int]) -> None:
    try:
        os.sched_setscheduler(thread, policy, _PARAM)
        os.sched_setaffinity(thread, processors)
    except OSError:
        return  # it ended meanwhile; or a system that has no such classes (gVisor): then it stays as it is
