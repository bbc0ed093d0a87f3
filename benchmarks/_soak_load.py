"""The load of a soak: clients that check every answer, a batch job over and over, and the log of what failed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _client, _models
from benchmarks.scoring import bare

CLIENTS = 8
PAUSE_S = 0.002
"""Between two requests of one client: a soak is long, not a contest."""
SEEDS = 4
"""Different weights per endpoint; version v has those of v mod SEEDS."""
ROWS = 16
"""Different rows that are asked."""
BATCH_ROWS = 20_000
BATCH_PAUSE_S = 5.0
BATCH_LIMIT_S = 300.0
SHOWN = 50
"""Failures that are shown; all are counted, and recorded."""
TOLERANCE = 1e-4
SIZES = {
    "alpha": [64, 384, 384, 256, 128, 64, 10],
    "beta": [64, 512, 512, 10],
    "gamma": [64, 256, 256, 10],
    "delta": [64, 256, 10],
}
ALONE = "delta"
"""Is asked by one client alone, who asks alike for a while: its connection is lent to the worker."""
ALIKE = 400
"""At most so many times."""


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

    def batch(self) -> np.ndarray[Any, Any]:
        """What ``gamma`` 1 answers to the rows of a batch job."""
        return np.tile(self._answers["gamma", 1], (BATCH_ROWS // ROWS, 1))

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

    def __init__(self, port: int, expected: Expected, log: Log) -> None:
        self.asked: Counter[str] = Counter()
        self._port, self._expected, self._log = port, expected, log
        self._running = True
        self._mixed = [ask for ask in expected.asks if ask.endpoint != ALONE]
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(CLIENTS)]
        self._threads.append(threading.Thread(target=self._ask_alone, daemon=True))
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        client, chance = _client.Client(self._port), random.Random(number)
        while self._running:
            self._check(f"client {number}", client, chance.choice(self._mixed))
            time.sleep(PAUSE_S)
        client.close()

    def _ask_alone(self) -> None:
        client, chance = _client.Client(self._port), random.Random(CLIENTS)
        while self._running:
            binary = chance.random() < 0.5
            alike = [ask for ask in self._expected.asks if ask.endpoint == ALONE and ask.binary == binary]
            for _ in range(chance.randint(1, ALIKE)):
                if self._running:
                    self._check("the lone client", client, chance.choice(alike))
                    time.sleep(PAUSE_S * chance.random())
        client.close()

    def _check(self, who: str, client: _client.Client, ask: Ask) -> None:
        how = "binary" if ask.binary else "JSON"
        try:
            wrong = self._expected.wrong(ask, *client.ask(ask.data))
        except Exception as error:  # a client that ends unseen would be load that is not there
            wrong = repr(error)
        self.asked[f"{ask.endpoint} {how}"] += 1
        if wrong:
            self._log.failed("request", f"{who}, {ask.endpoint}, row {ask.row}, {how}: {wrong}")

    def stop(self) -> None:
        self._running = False
        for thread in self._threads:
            thread.join()


class Batches:
    """A batch job beside it all, over and over, by the command that people use; its answers are checked too."""

    def __init__(self, folder: Path, port: int, expected: Expected, log: Log) -> None:
        self.jobs = self.rows = 0
        self._folder, self._port, self._log = folder, port, log
        self._want = expected.batch()
        np.save(folder / "batch.npy", np.tile(expected.rows, (BATCH_ROWS // ROWS, 1)))
        self._over = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(BATCH_PAUSE_S if self.jobs else 0):
            try:
                wrong = self._job(self._folder / f"batch-{self.jobs}.jsonl")
            except Exception as error:  # a job that ends unseen would be load that is not there
                wrong = repr(error)
            if self._over.is_set():
                return  # it was ended with all else
            self.jobs += 1
            if wrong:
                self._log.failed("batch", f"job {self.jobs}: {wrong}")

    def _job(self, output: Path) -> str:
        """Why it did not score as it should; empty if it did."""
        url, source = f"http://127.0.0.1:{self._port}", str(self._folder / "batch.npy")
        command = [sys.executable, "-m", "skerry_agent.cli", "batch", "gamma", source, "--url", url, "--json"]
        with subprocess.Popen(
            [*command, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            self._process = process
            told, complaint = process.communicate(timeout=BATCH_LIMIT_S)
        if process.returncode:
            return f"it ended with {process.returncode}: {complaint[-500:]}"
        with output.open() as lines:
            found = np.array([json.loads(line)["y"] for line in lines], "f4").reshape(-1, 10)
        output.unlink()
        if found.shape != self._want.shape:
            return f"{len(found)} of {len(self._want)} rows were scored: {told[:500]}"
        self.rows += len(found)
        worst = float(np.abs(found - self._want).max())
        return "" if worst <= TOLERANCE else f"it is off by {worst}"

    def stop(self) -> None:
        self._over.set()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._thread.join()


class Log:
    """What happened, and what failed after it; from many threads."""

    def __init__(self, path: Path | None) -> None:
        self.failures: Counter[str] = Counter()
        self._began = time.monotonic()
        self._last: deque[str] = deque(maxlen=4)
        self._stream = path.open("w", buffering=1) if path else None
        self._lock = threading.Lock()

    def happened(self, what: str, **more: Any) -> None:
        now = time.monotonic() - self._began
        with self._lock:
            if what != "memory":
                self._last.append(f"{what} at {now:.1f} s")
            if self._stream is not None:
                self._stream.write(json.dumps({"at": round(now, 3), "what": what, **more}) + "\n")

    def failed(self, kind: str, text: str) -> None:
        now = time.monotonic() - self._began
        with self._lock:
            self.failures[kind] += 1
            if self.failures.total() <= SHOWN:
                before = ", ".join(self._last)
                print(f"\n  FAILED at {now:.1f} s: {text} (before it: {before})", file=sys.stderr, flush=True)
        self.happened("failed", kind=kind, text=text)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
