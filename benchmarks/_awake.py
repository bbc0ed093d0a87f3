"""Cores that do not sleep: a spinner of the idle class on each, which gives way to everything else at once.

A core that sleeps between two requests takes tens of microseconds to wake, and answers a tiny model twice as slowly as
one that is awake, whoever asks. A busy device's cores are awake; an idle one's are not. Both are worth a figure.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[2]):
    for _ in range(10**6):
        pass
"""


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep all cores awake within the block."""
    spinners = [
        subprocess.Popen([sys.executable, "-c", _SPIN, str(core), str(os.getpid())])
        for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
