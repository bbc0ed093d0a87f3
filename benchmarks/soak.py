"""A long run of the data plane: mixed load, swaps, splits, crashes, models that hang or leak. ``make soak``.

The plane runs in a process of its own. Eight clients, half of the requests JSON and half binary, ask two endpoints:
``alpha`` stands for two versions whose split changes, ``beta`` for one version with another in shadow. Meanwhile, every
few seconds and in random order (``--seed``), a version is swapped, a split is changed, a shadow is replaced, the worker
of a live version or of a shadow is killed by SIGSEGV, or a model that hangs and leaks is loaded, asked and unloaded.

What must hold: every answer is 200 and equal to what the version that it names computes; what hangs is answered 503 at
its deadline, what leaks is answered right all the same; no copy of a shadow fails; and the memory of agent,
zygotes and workers (at rest, with the same number of versions loaded; see ``Look``) is the same within 5 % in the first
and the last tenth of the time after the warm-up. One JSON object goes to standard output, progress to standard error;
the exit code is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks import _client, _models
from benchmarks.scoring import bare

CLIENTS = 8
PAUSE_S = 0.002
"""Between two requests of one client: a soak is long, not a contest."""
GAP_S = 2.0
"""Between two disturbances; memory is looked at in the middle of it."""
SEEDS = 4
"""Different weights per endpoint; version v has those of v mod SEEDS."""
ROWS = 16
"""Different rows that are asked."""
WARM_UP = 0.1
"""Share of the time in which memory is not judged."""
FLAT = 0.05
TOLERANCE = 1e-4
SIZES = {"alpha": [64, 384, 384, 256, 128, 64, 10], "beta": [64, 512, 512, 10]}
BAG = {"swap": 4, "split": 4, "shadow": 1, "crash": 3, "rogue": 1}
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
request_timeout_s = 2
"""
LEAKS = 8  # at 40 MB each more than its limit allows


class Ask(NamedTuple):
    """One prepared request."""

    endpoint: str
    binary: bool
    row: int
    data: bytes


class Expected:
    """What each version answers to each row, from ONNX Runtime without anything in the way."""

    def __init__(self, folder: Path) -> None:
        self.rows = np.random.default_rng(11).normal(size=(ROWS, 64)).astype("f4")
        self._answers = {}
        for name, sizes in SIZES.items():
            for seed in range(SEEDS):
                model = _models.dense(folder / f"{name}-{seed}", name, sizes, seed=seed + 1)
                self._answers[name, seed] = bare(model).run(["y"], {"x": self.rows})[0]
        self.asks = [
            Ask(name, binary, row, _client.request(name, "x", self.rows[row : row + 1], binary=binary))
            for name in SIZES
            for binary in (True, False)
            for row in range(ROWS)
        ]

    def wrong(self, ask: Ask, status: int, body: bytes) -> str:
        """Why this is not the answer; empty if it is."""
        if status != 200:
            return f"{status} {body[:200]!r}"
        size = 40 if ask.binary else 0  # ten floats
        told = json.loads(body[: len(body) - size])
        answer = np.frombuffer(body[-size:], "f4") if size else np.array(told["outputs"][0]["data"], "f4")
        want = self._answers[ask.endpoint, int(told["model_version"]) % SEEDS][ask.row]
        worst = float(np.abs(answer.reshape(-1) - want).max())
        return "" if worst <= TOLERANCE else f"version {told['model_version']} is off by {worst}"


class Crowd:
    """Clients that ask all the time and check every answer."""

    def __init__(self, port: int, expected: Expected) -> None:
        self.asked: Counter[str] = Counter()
        self.failures: list[str] = []
        self._port, self._expected = port, expected
        self._running = True
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        client, chance = _client.Client(self._port), random.Random(number)
        while self._running:
            ask = chance.choice(self._expected.asks)
            try:
                wrong = self._expected.wrong(ask, *client.ask(ask.data))
            except Exception as error:  # a client that ends unseen would be load that is not there
                wrong = repr(error)
            self.asked[f"{ask.endpoint} {'binary' if ask.binary else 'JSON'}"] += 1
            if wrong:
                self.failures.append(f"{ask.endpoint}: {wrong}")
            time.sleep(PAUSE_S)
        client.close()

    def stop(self) -> None:
        self._running = False
        for thread in self._threads:
            thread.join()


class Look(NamedTuple):
    """Memory at one moment, MB. ``pss`` is all of it; but how much of a file's page counts there depends on how many
    others have the file mapped, whoever they are, so what is judged is both of its parts by themselves."""

    own: float  # PSS of what is no file's
    files: float  # resident pages of files, in each process that has them
    pss: float


class Server:
    """The process with the plane, and orders to it."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.soak", "--plane", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self._read()["port"]

    def do(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def memory(self) -> Look:
        """Of agent, zygotes and workers together. Looks again where one of them ended meanwhile."""
        for _ in range(20):
            try:
                return self._look()
            except (OSError, psutil.NoSuchProcess):
                time.sleep(0.1)
        return self._look()

    def _look(self) -> Look:
        found: Counter[str] = Counter()
        root = psutil.Process(self._process.pid)
        for one in (root, *root.children(recursive=True)):
            for file in ("smaps_rollup", "status"):
                for line in Path(f"/proc/{one.pid}/{file}").read_text().splitlines():
                    name, _, rest = line.partition(":")
                    if rest.endswith("kB"):
                        found[name] += int(rest.split()[0])
        own = found["Pss_Anon"] + found["Pss_Shmem"]
        return Look(*(round(kb / 1024, 2) for kb in (own, found["RssFile"], found["Pss"])))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Director:
    """Disturbs. Between two disturbances the same number of versions is loaded."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self._bag: list[str] = []
        self._next = 1
        self.done: Counter[str] = Counter()
        self.shadows: Counter[str] = Counter()
        self.failures: list[str] = []
        self._alpha = [self._load("alpha"), self._load("alpha")]
        self._live, self._copy = self._load("beta"), self._load("beta")
        self._route()

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

    def disturb(self) -> None:
        if not self._bag:
            self._bag = [name for name, weight in BAG.items() for _ in range(weight)]
            self._chance.shuffle(self._bag)
        what = self._bag.pop()
        getattr(self, f"_{what}")()
        self.done[what] += 1
        counted = self._server.do(do="counters")
        self.shadows.update(counted)
        if counted["failed"]:
            self.failures.append(f"{counted['failed']} copies failed in shadow")

    def _split(self) -> None:
        self._route()

    def _swap(self) -> None:
        if self._chance.random() < 0.7:
            old = f"alpha.{self._alpha.pop(0)}"
            self._alpha.append(self._load("alpha"))
        else:
            old = f"beta.{self._live}"
            self._live = self._load("beta")
        self._route()
        self._unload(old)

    def _shadow(self) -> None:
        old, self._copy = self._copy, self._load("beta")
        self._route()
        self._unload(f"beta.{old}")

    def _unload(self, key: str) -> None:
        self.shadows.update(self._server.do(do="counters"))  # an unloaded version takes its counts along
        self._server.do(do="unload", key=key)

    def _crash(self) -> None:
        keys = [*(f"alpha.{version}" for version in self._alpha), f"beta.{self._live}", f"beta.{self._copy}"]
        key = self._chance.choice(keys)
        before = self._server.do(do="pid", key=key)
        os.kill(before["pid"], signal.SIGSEGV)
        end = time.monotonic() + 30
        while (now := self._server.do(do="pid", key=key)) == before or not now["ready"]:
            if time.monotonic() > end:
                self.failures.append(f"{key} is not back 30 s after its crash")
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
            self.failures.append(f"the hanging and the leaking worker were not both ended: {exits}")

    def _ask_rogue(self, client: _client.Client, what: int, wanted: int) -> None:
        began = time.monotonic()
        row = np.array([[what, 1, 2, 3]], "f4")
        status, body = client.ask(_client.request("rogue", "x", row))
        took = time.monotonic() - began
        right = status == wanted and (status != 200 or np.frombuffer(body[-4:], "f4")[0] == row.sum())
        if not right or took > 10:
            self.failures.append(f"rogue {what}: {status} after {took:.1f} s: {body[:200]!r}")


class Memory:
    """What was looked at, and when."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.seen: list[tuple[float, Look]] = []

    def verdict(self) -> dict[str, Any]:
        """Medians of the first and the last tenth after the warm-up, and by how much they differ."""
        start = self._seconds * WARM_UP
        tenth = (self._seconds - start) / 10
        first = [look for when, look in self.seen if start <= when < start + tenth]
        last = [look for when, look in self.seen if when >= self._seconds - tenth]
        if not first or not last:
            return {"flat": False, "why": "too short to judge memory: give it more seconds"}
        told: dict[str, Any] = {"flat": True, "looks": [len(first), len(last)]}
        for name in Look._fields:
            before, after = (statistics.median(getattr(look, name) for look in part) for part in (first, last))
            told[name] = {"first_mb": before, "last_mb": after, "change": round(after / before - 1, 4)}
            told["flat"] &= name == "pss" or abs(after / before - 1) <= FLAT
        return told


def soak(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    expected = Expected(folder)
    (folder / "rogue").mkdir()
    (folder / "rogue" / "main.py").write_text(ROGUE)
    (folder / "rogue" / "module.toml").write_text(ROGUE_MANIFEST)
    server = Server(folder)
    try:
        director = Director(server, seed)
        crowd = Crowd(server.port, expected)
        try:
            memory = disturb(director, crowd, server, seconds)
        finally:
            crowd.stop()
    finally:
        server.close()
    flat = memory.verdict()
    failures = crowd.failures + director.failures
    for one in failures[:20]:
        print(f"  failed: {one}", file=sys.stderr)
    never = [name for name in BAG if not director.done[name]]
    if not director.shadows["rows"]:
        never.append("compared in shadow")
    return {
        "name": "soak",
        "seconds": seconds,
        "seed": seed,
        "requests": crowd.asked.total(),
        "by_kind": dict(crowd.asked),
        "failed": len(crowd.failures),
        "disturbances": dict(director.done),
        "never": never,
        "shadows": dict(director.shadows),
        "broken": len(director.failures),
        "memory": flat,
        "ok": not failures and flat["flat"] and not never,
    }


def disturb(director: Director, crowd: Crowd, server: Server, seconds: float) -> Memory:
    memory = Memory(seconds)
    began = time.monotonic()
    told, often = 0.0, max(5.0, seconds / 60)
    while (now := time.monotonic() - began) < seconds:
        director.disturb()
        time.sleep(GAP_S / 2)
        memory.seen.append((time.monotonic() - began, server.memory()))
        time.sleep(GAP_S / 2)
        if now - told >= often:
            told, look = now, memory.seen[-1][1]
            failed = len(crowd.failures) + len(director.failures)
            counts = ", ".join(f"{count} {name}" for name, count in sorted(director.done.items()))
            line = f"  {now:5.0f} s: {crowd.asked.total()} requests, {failed} failed; {counts}"
            print(f"{line}; {look.own:.1f} MB own, {look.pss:.1f} PSS", file=sys.stderr, flush=True)
    return memory


# -- the process with the plane


async def serve(folder: Path) -> None:
    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings

    plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(folder / "cache")))
    exits: dict[str, list[str]] = {}
    plane.on_exit = lambda digest, reason, _restarting: exits.setdefault(digest, []).append(reason)
    await plane.start()
    print(json.dumps({"port": plane.port}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer = await obey(plane, folder, exits, json.loads(line))
        print(json.dumps(answer), flush=True)
    await plane.stop()


async def obey(plane: Any, folder: Path, exits: dict[str, list[str]], order: dict[str, Any]) -> Any:
    from skerry_modules.manifest import parse

    match order["do"]:
        case "load":
            source = folder / order["folder"]
            manifest = parse((source / "module.toml").read_text())
            await plane.load(order["key"], source, manifest, order["version"], _models.LIMITS)
            await plane.warm(order["key"], manifest)
        case "unload":
            await plane.unload(order["key"])
            return {"exits": exits.pop(order["key"], [])}
        case "route":
            shares, copies = order["live"], [[key, 100.0] for key in order["shadow"]]
            plane.set_routes(order["endpoint"], *_routes(plane, shares), *_routes(plane, copies))
        case "pid":
            version = plane.versions[order["key"]]
            return {"pid": version.facts["pid"], "ready": version.ready}
        case "counters":
            found: Counter[str] = Counter(rows=0, agreed=0, dropped=0, failed=0)
            for key in plane.versions:
                for part in plane.take_counters(key).parts:
                    if part.role == "shadow":
                        told = part.agreement
                        found.update(rows=told.rows, agreed=told.agreed, dropped=told.dropped, failed=told.failed)
            return dict(found)
    return {}


def _routes(plane: Any, parts: list[Any]) -> Any:
    from skerry_modules.messages import Route

    def route(key: str, percent: float) -> Any:
        version = plane.versions[key]
        return Route(module=version.manifest.name, version=version.number, percent=percent)

    return tuple(route(*part) for part in parts), tuple(key for key, _ in parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (default: an hour)")
    parser.add_argument("--seed", type=int, default=0, help="the order of disturbances")
    parser.add_argument("--plane", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plane:
        from skerry_agent.serving.plane import run

        run(serve(options.plane))
        return 0
    with tempfile.TemporaryDirectory() as name:
        found = soak(Path(name), options.seconds, options.seed)
    print(json.dumps(found), flush=True)
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
