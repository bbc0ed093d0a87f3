"""A long run of the data plane: mixed load, swaps, splits, crashes, models that hang or leak. ``make soak``.

The plane runs in a process of its own. Eight clients, half of the requests JSON and half binary, ask three endpoints:
``alpha`` stands for two versions whose split changes, ``beta`` for one version with another in shadow, ``gamma`` for
one that stays from the beginning to the end. A ninth has ``delta`` for itself: its connection is lent to the worker. A
batch job (``skerry-agent batch``) scores a table by ``gamma``, over and over. Meanwhile, every few seconds and in
random order (``--seed``), a version is swapped, unloaded and loaded again, a split is changed, a shadow is replaced,
the worker of a live version or of a shadow is killed by SIGSEGV, or a model that hangs and leaks is loaded, asked and
unloaded.

What must hold: every answer is 200 and equal to what the version that it names computes, the batch's too; what hangs is
answered 503 at its deadline, what leaks is answered right all the same; no copy of a shadow fails; no worker ends but
those that were to; and memory is flat within 5 % (see ``benchmarks._soak_memory``).

One JSON line per figure goes to standard output, progress to standard error. ``--record FILE`` keeps each look at the
memory, each disturbance and each failure with its time, as JSON lines. The exit code is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _client, _soak_memory
from benchmarks._child import Child
from benchmarks._soak_load import BATCH_ROWS, SEEDS, Batches, Crowd, Expected, Log

GAP_S = 2.0
"""Between two disturbances; memory is looked at in the middle of it."""
BAG = {"swap": 4, "reload": 2, "split": 4, "shadow": 1, "crash": 3, "rogue": 1}
"""So many of each, in random order, then again."""

ROGUE = """
import time
kept = []

def run(inputs):
    x = inputs["x"]
    if x[0, 0] == 1:
        time.sleep(3600)
    if x[0, 0] == 2:
        kept.append(bytearray(40_000_000))
    return {"y": x.sum(axis=-1)}
"""
ROGUE_MANIFEST = """
format = 1
name = "rogue"
engine = "python"
model = "main.py"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1]
[resources]
memory_mb = 200
request_timeout_s = 5
"""
LEAKS = 8  # at 40 MB each more than its limit allows


class Server(Child):
    """The process with the plane, and orders to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__("benchmarks._soak_plane", str(folder))
        self.port = self.hear()["port"]

    def do(self, **order: Any) -> Any:
        return self.ask(json.dumps(order))


class Director:
    """Disturbs. Between two disturbances the same number of versions is loaded."""

    def __init__(self, server: Server, seed: int, log: Log) -> None:
        self._server = server
        self._log = log
        self._chance = random.Random(seed)
        self._bag: list[str] = []
        self._next = 1
        self.done: Counter[str] = Counter()
        self.shadows: Counter[str] = Counter()
        self.loans = 0  # the most of any one moment's versions
        self.steady = self._load_gamma()
        self._alpha = [self._load("alpha"), self._load("alpha")]
        self._live, self._copy = self._load("beta"), self._load("beta")
        self._lone = self._load("delta")
        self._route()

    def _load_gamma(self) -> int:
        """The version that stays; its worker's process id."""
        self._server.do(do="load", key="gamma.1", folder="gamma-1", version=1)
        self._server.do(do="route", endpoint="gamma", live=[["gamma.1", 100.0]], shadow=[])
        pid: int = self._server.do(do="pid", key="gamma.1")["pid"]
        return pid

    def _load(self, name: str) -> int:
        version = self._next
        self._next += 1
        self._server.do(do="load", key=f"{name}.{version}", folder=f"{name}-{version % SEEDS}", version=version)
        return version

    def _route(self) -> None:
        share = self._chance.choice((1.0, 10.0, 50.0, 90.0, 99.0))
        live = [[f"alpha.{self._alpha[0]}", share], [f"alpha.{self._alpha[1]}", 100.0 - share]]
        self._server.do(do="route", endpoint="alpha", live=live, shadow=[])
        live = [[f"beta.{self._live}", 100.0]]
        self._server.do(do="route", endpoint="beta", live=live, shadow=[f"beta.{self._copy}"])
        self._server.do(do="route", endpoint="delta", live=[[f"delta.{self._lone}", 100.0]], shadow=[])

    def disturb(self) -> None:
        if not self._bag:
            self._bag = [name for name, weight in BAG.items() for _ in range(weight)]
            self._chance.shuffle(self._bag)
        what = self._bag.pop()
        self._log.happened(what)
        getattr(self, f"_{what}")()
        self.done[what] += 1
        counted = self._count()
        if counted["failed"]:
            self._log.failed("shadow", f"{counted['failed']} copies failed in shadow")

    def _count(self) -> dict[str, int]:
        counted: dict[str, int] = self._server.do(do="counters")
        self.loans = max(self.loans, counted.pop("loans"))
        self.shadows.update(counted)
        return counted

    def _split(self) -> None:
        self._route()

    def _swap(self) -> None:
        chance = self._chance.random()
        if chance < 0.5:
            old = f"alpha.{self._alpha.pop(0)}"
            self._alpha.append(self._load("alpha"))
        elif chance < 0.75:
            old = f"delta.{self._lone}"
            self._lone = self._load("delta")
        else:
            old = f"beta.{self._live}"
            self._live = self._load("beta")
        self._route()
        self._unload(old)

    def _reload(self) -> None:
        """A version goes and comes back; the other answers meanwhile."""
        other, gone = self._alpha
        self._server.do(do="route", endpoint="alpha", live=[[f"alpha.{other}", 100.0]], shadow=[])
        self._unload(f"alpha.{gone}")
        self._server.do(do="load", key=f"alpha.{gone}", folder=f"alpha-{gone % SEEDS}", version=gone)
        self._route()

    def _shadow(self) -> None:
        old, self._copy = self._copy, self._load("beta")
        self._route()
        self._unload(f"beta.{old}")

    def _unload(self, key: str) -> None:
        self._count()  # an unloaded version takes its counts along
        self._server.do(do="unload", key=key)

    def _crash(self) -> None:
        keys = [*(f"alpha.{version}" for version in self._alpha), f"beta.{self._live}", f"beta.{self._copy}"]
        keys.append(f"delta.{self._lone}")
        key = self._chance.choice(keys)
        before = self._server.do(do="pid", key=key)
        os.kill(before["pid"], signal.SIGSEGV)
        end = time.monotonic() + 30
        while (now := self._server.do(do="pid", key=key)) == before or not now["ready"]:
            if time.monotonic() > end:
                self._log.failed("crash", f"{key} is not back 30 s after its crash")
                return
            time.sleep(0.005)

    def _rogue(self) -> None:
        self._server.do(do="load", key="rogue", folder="rogue", version=1)
        self._server.do(do="route", endpoint="rogue", live=[["rogue", 100.0]], shadow=[])
        client = _client.Client(self._server.port)
        self._ask_rogue(client, 0, 200)
        self._ask_rogue(client, 1, 503)
        for _ in range(LEAKS):
            self._ask_rogue(client, 2, 200)
        self._ask_rogue(client, 0, 200)
        client.close()
        exits = self._server.do(do="unload", key="rogue")["exits"]
        if len(exits) < 2:
            self._log.failed("rogue", f"the hanging and the leaking worker were not both ended: {exits}")

    def _ask_rogue(self, client: _client.Client, what: int, wanted: int) -> None:
        began = time.monotonic()
        row = np.array([[what, 1, 2, 3]], "f4")
        status, body = client.ask(_client.request("rogue", "x", row))
        took = time.monotonic() - began
        right = status == wanted and (status != 200 or np.frombuffer(body[-4:], "f4")[0] == row.sum())
        if not right or took > 15:
            self._log.failed("rogue", f"rogue {what}: {status} after {took:.1f} s: {body[:200]!r}")

    def check_ends(self) -> None:
        """No worker may have ended but those that were killed."""
        ended = self._server.do(do="ended")
        if ended != ({"signal 11": self.done["crash"]} if self.done["crash"] else {}):
            self._log.failed("ended", f"workers ended by themselves: {ended} beside {self.done['crash']} killed")


def soak(folder: Path, seconds: float, seed: int, record: Path | None) -> list[dict[str, Any]]:
    expected = Expected(folder)
    (folder / "rogue").mkdir()
    (folder / "rogue" / "main.py").write_text(ROGUE)
    (folder / "rogue" / "module.toml").write_text(ROGUE_MANIFEST)
    log = Log(record)
    server = Server(folder)
    try:
        director = Director(server, seed, log)
        crowd = Crowd(server.port, expected, log)
        batches = Batches(folder, server.port, expected, log)
        try:
            memory = disturb(director, crowd, batches, server, seconds, log)
        finally:
            batches.stop()
            crowd.stop()
        director.check_ends()
    finally:
        server.close()
        log.close()
    return figures(director, crowd, batches, log, memory)


def figures(
    director: Director, crowd: Crowd, batches: Batches, log: Log, memory: _soak_memory.Memory
) -> list[dict[str, Any]]:
    def count(name: str, value: int, unit: str) -> dict[str, Any]:
        return {"name": name, "value": value, "unit": unit, "limit": 0, "ratio": 0.0, "bar": 0, "ok": not value}

    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(crowd.asked.items()))
    done = ", ".join(f"{number} {what}" for what, number in sorted(director.done.items()))
    shadows = director.shadows
    never = [name for name in BAG if not director.done[name]]
    if not shadows["rows"]:
        never.append("compared in shadow")
    if not director.loans:
        never.append("lent")
    if not batches.jobs:
        never.append("batch")
    others = log.failures.total() - log.failures["request"]
    told = f"{done}; {batches.jobs} batch jobs of {BATCH_ROWS} rows; {shadows['rows']} copies compared in shadow, "
    return [
        count("soak.failed", log.failures["request"], f"of {crowd.asked.total()} requests: {kinds}"),
        count("soak.broken", others, f"of {told}{shadows['dropped']} dropped while busy"),
        count("soak.never", len(never), f"of what was to happen: {', '.join(never) or 'all of it did'}"),
        *memory.figures(),
    ]


def disturb(
    director: Director, crowd: Crowd, batches: Batches, server: Server, seconds: float, log: Log
) -> _soak_memory.Memory:
    memory = _soak_memory.Memory(seconds)
    began = time.monotonic()
    told, often = 0.0, 1.0 if sys.stderr.isatty() else max(5.0, seconds / 60)
    while (now := time.monotonic() - began) < seconds:
        director.disturb()
        time.sleep(GAP_S / 2)
        look = _soak_memory.look(server.pid, director.steady)
        memory.seen.append((time.monotonic() - began, look))
        log.happened("memory", **look._asdict())
        time.sleep(GAP_S / 2)
        if now - told >= often:
            told = now
            tell(now / seconds, now, director, crowd, batches, log, look)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return memory


def tell(
    share: float,
    now: float,
    director: Director,
    crowd: Crowd,
    batches: Batches,
    log: Log,
    look: _soak_memory.Look,
) -> None:
    """One line of progress, over the one before where a person looks on."""
    bar = "#" * round(share * 20)
    text = (
        f"  [{bar:<20}] {now:5.0f} s: {crowd.asked.total():,} requests, {director.done.total()} disturbances, "
        f"{batches.jobs} batches, {log.failures.total()} failed; MB: {look.own:.1f} own, {look.pss:.1f} PSS, "
        f"{look.agent:.1f} agent, {look.zygote:.1f} zygote, {look.worker:.1f} worker"
    )
    print(text, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (default: an hour)")
    parser.add_argument("--seed", type=int, default=0, help="the order of disturbances")
    parser.add_argument("--record", type=Path, help="keep what happened here, as JSON lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = soak(Path(name), options.seconds, options.seed, options.record)
    for figure in found:
        print(json.dumps(figure), flush=True)
    return 0 if all(figure["ok"] for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
