"""Clients that ask a plane without pause while something is done to it; every answer is checked."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np

from benchmarks import _client, _models

CLIENTS = 8


class Crowd:
    """Threads, each with one keep-alive connection, that ask the model ``tiny``."""

    def __init__(self, port: int, model: _models.Model) -> None:
        self.phase = "warm"
        self.times: dict[str, list[float]] = {"warm": [], "steady": [], "disturbed": [], "after": []}
        self.failed: list[tuple[int, bytes]] = []
        self._port = port
        self._request = _client.request("tiny", "x", model.example)
        self._running = True
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        client = _client.Client(self._port)
        while self._running:
            phase = self.phase
            began = time.perf_counter()
            status, body = client.ask(self._request)
            self.times[phase].append(time.perf_counter() - began)
            if status != 200 or b'"model_name":"tiny"' not in body:
                self.failed.append((status, body[:200]))
                print("failed:", status, body[:200], file=sys.stderr)
        client.close()

    @property
    def total(self) -> int:
        """Requests answered or failed until now."""
        return sum(len(times) for times in self.times.values())

    def stop(self) -> None:
        self._running = False
        for thread in self._threads:
            thread.join()

    def p99(self, phase: str) -> float:
        return float(np.percentile(self.times[phase], 99))
