"""Memory of a data plane over a long run: looked at often, told by process, and judged.

What is judged cannot be changed by neighbours. PSS can: a file's page counts there by how many others have the file
mapped, whoever they are. So its parts are judged by themselves, each between the first and the last tenth of the time
after the warm-up:

* ``own``: PSS of what is no file's, of all processes together. Between two disturbances the same number of versions is
  loaded, so that this must be the same, however often they were replaced.
* ``files``: resident pages of files, in each process that has them.
* ``agent``, ``zygote``, ``worker``: what each of those processes that live as long as the run has of its own. A leak
  shows here first: the others are replaced before they could grow.

A leak is told from a warm-up by its slope: a warm-up ends, a leak goes on. ``slope`` is the median of all slopes
between two looks of the second half of the time (Theil and Sen), in percent per hour.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

WARM_UP: Final = 0.1
"""Share of the time in which memory is not judged."""
FLAT: Final = 0.05
POINTS: Final = 60
"""Looks of which the slope is taken, at most, evenly spread."""
JUDGED: Final = ("own", "files", "agent", "zygote", "worker")


class Look(NamedTuple):
    """Memory at one moment, in MB (10**6 bytes)."""

    own: float
    files: float
    pss: float
    agent: float
    zygote: float
    worker: float


def look(agent: int, worker: int) -> Look:
    """At the agent's process, its zygotes and workers; ``worker`` is the one that lives as long as they do.

    Looks again where one of them ended meanwhile.
    """
    for _ in range(20):
        try:
            return _look(agent, worker)
        except (OSError, psutil.NoSuchProcess):
            time.sleep(0.1)
    return _look(agent, worker)


def _look(agent: int, worker: int) -> Look:
    found: Counter[str] = Counter()
    root = psutil.Process(agent)
    zygote = 0.0
    for one in (root, *root.children(recursive=True)):
        for file in ("smaps_rollup", "status"):
            for line in Path(f"/proc/{one.pid}/{file}").read_text().splitlines():
                name, _, rest = line.partition(":")
                if rest.endswith("kB"):
                    found[name] += int(rest.split()[0])
        if one.name() == "skerry-onnx":
            zygote = anonymous(one.pid)
    kb = (found["Pss_Anon"] + found["Pss_Shmem"], found["RssFile"], found["Pss"])
    own, files, pss = (round(size * 1024 / 1e6, 2) for size in kb)
    return Look(own, files, pss, anonymous(agent), zygote, anonymous(worker))


def anonymous(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 2)
    return 0.0


class Memory:
    """What was looked at, and when."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.seen: list[tuple[float, Look]] = []

    def figures(self) -> list[dict[str, Any]]:
        """One for each part; those that neighbours can change have no bar."""
        start = self._seconds * WARM_UP
        tenth = (self._seconds - start) / 10
        first = [look for when, look in self.seen if start <= when < start + tenth]
        last = [look for when, look in self.seen if when >= self._seconds - tenth]
        return [self._figure(name, first, last) for name in Look._fields]

    def _figure(self, name: str, first: list[Look], last: list[Look]) -> dict[str, Any]:
        judged = name in JUDGED
        if not first or not last:
            return {"name": f"soak.{name}", "value": None, "unit": "too short to judge memory", "ok": not judged}
        before, after = (statistics.median(getattr(one, name) for one in part) for part in (first, last))
        per_hour = slope([(when, getattr(one, name)) for when, one in self.seen if when >= self._seconds / 2])
        ratio = after / before
        return {
            "name": f"soak.{name}",
            "value": round(after, 2),
            "unit": f"MB, {per_hour / before:+.1%} an hour in the second half",
            "limit": round(before, 2),
            "ratio": round(ratio, 4),
            "bar": 1 + FLAT if judged else None,
            "ok": not judged or abs(ratio - 1) <= FLAT,
        }


def slope(points: list[tuple[float, float]]) -> float:
    """Median slope between any two of these (seconds, MB), in MB per hour; one outlier does not move it."""
    step = max(1, len(points) // POINTS)
    found = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points[::step], 2) if b[0] > a[0]]
    return statistics.median(found) * 3600 if found else 0.0
