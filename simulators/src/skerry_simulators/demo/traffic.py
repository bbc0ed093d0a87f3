"""Clients that score held-out digits on every agent without a pause, and count what came of each request.

One connection per agent, kept open as a real client would, one request after another at a steady pace. Everything but a
200 with ten probabilities counts as failed: that is what "dropped" means in the demo's summary.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

TIMEOUT_S: Final = 10.0
"""How long a client waits for one answer, seconds."""
RATE_HZ: Final = 20.0
"""Requests per second and agent."""
MAX_FAILURES_KEPT: Final = 20


class Tally(msgspec.Struct, kw_only=True):
    """What one client saw. ``answered`` and ``correct`` are by the version that answered."""

    device: str
    requests: int = 0
    failed: int = 0
    answered: dict[int, int] = {}
    correct: dict[int, int] = {}
    failures: list[str] = []
    slowest_ms: float = 0.0

    def accuracy(self, version: int) -> float:
        """Share of right answers of one version; 0 where it gave none."""
        return self.correct.get(version, 0) / max(self.answered.get(version, 0), 1)


class Client(threading.Thread):
    """Scores on one agent until it is told to stop."""

    def __init__(self, device: str, port: int, module: str, digits: Path) -> None:
        super().__init__(name=f"client-{device}", daemon=True)
        with np.load(digits) as archive:
            self._pixels, self._labels = archive["input.pixels"], archive["label"]
        self._bodies = [
            json.dumps({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": row.tolist()}]})
            for row in self._pixels
        ]
        self._port, self._path = port, f"/v2/models/{module}/infer"
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._answered: Counter[int] = Counter()
        self._correct: Counter[int] = Counter()
        self._requests = self._failed = 0
        self._failures: list[str] = []
        self._slowest = 0.0
        self._device = device

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        row = 0
        while not self._over.is_set():
            started = time.monotonic()
            self._one(connection, row % len(self._bodies))
            row += 1
            self._over.wait(max(0.0, started + 1 / RATE_HZ - time.monotonic()))
        connection.close()

    def stop(self) -> None:
        """Finish the request under way, then end."""
        self._over.set()
        if self.is_alive():
            self.join(2 * TIMEOUT_S)

    def tally(self) -> Tally:
        with self._lock:
            return Tally(
                device=self._device,
                requests=self._requests,
                failed=self._failed,
                answered=dict(self._answered),
                correct=dict(self._correct),
                failures=list(self._failures),
                slowest_ms=round(self._slowest * 1000, 1),
            )

    def _one(self, connection: http.client.HTTPConnection, row: int) -> None:
        started = time.monotonic()
        version, digit, problem = -1, -1, ""
        try:
            connection.request("POST", self._path, self._bodies[row], {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                version, digit = read_answer(body)
            else:
                problem = f"status {answer.status}: {body[:200].decode(errors='replace')}"
        except Exception as error:  # whatever it was, this request got no answer, and the next one must go out
            problem = f"{type(error).__name__}: {error}"
            connection.close()  # the next request opens it again
        with self._lock:
            self._requests += 1
            self._slowest = max(self._slowest, time.monotonic() - started)
            if problem:
                self._failed += 1
                self._failures = [*self._failures, problem][:MAX_FAILURES_KEPT]
            else:
                self._answered[version] += 1
                self._correct[version] += digit == int(self._labels[row])


def read_answer(body: bytes) -> tuple[int, int]:
    """(version that answered, digit with the highest probability).

    Raises:
        ValueError, LookupError, TypeError: the answer is not one of ten probabilities.
    """
    answer = json.loads(body)
    data = {one["name"]: one for one in answer["outputs"]}["probabilities"]["data"]
    if len(data) != 10:
        raise ValueError(f"{len(data)} probabilities instead of 10")
    return int(answer["model_version"]), max(range(10), key=lambda index: float(data[index]))
