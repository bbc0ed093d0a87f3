"""Versions swap sixty times while eight clients score: nothing may fail, and waiting must stay short.

The data plane runs in a process of its own; the clients are threads of another, each with one keep-alive connection.
Quiet and swaps (load, warm, route, unload the old) take turns, so that what else the machine does meets both; then it
is quiet until 70,000 requests were answered, however slow the machine. Every answer is checked: it must be 200 and come
from a version of this module. What a crash costs is the benchmark ``crash``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _client, _models

CLIENTS = 8
ROUNDS = 6
SWAPS = 60
REQUESTS = 70_000
STEADY_S = 4.0
"""Without swaps, over all rounds."""
GAP_S = 0.3
"""Between two swaps."""
BAR = 3.5


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _models.tiny(folder / "tiny")
        command = [sys.executable, "-m", "benchmarks.swap", str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        try:
            return measure(process, model)
        finally:
            process.stdin.close()
            process.wait(10)


def measure(process: subprocess.Popen[str], model: _models.Model) -> list[dict[str, Any]]:
    assert process.stdout is not None
    assert process.stdin is not None
    port = json.loads(process.stdout.readline())["port"]
    crowd = Crowd(port, model)
    time.sleep(0.5)
    swaps = 0
    for _ in range(ROUNDS):
        crowd.phase = "steady"
        time.sleep(STEADY_S / ROUNDS)
        crowd.phase = "disturbed"
        process.stdin.write("go\n")
        process.stdin.flush()
        swaps = json.loads(process.stdout.readline())["swaps"]
    crowd.phase = "after"
    while crowd.total < REQUESTS:
        time.sleep(0.1)
    crowd.stop()
    steady, disturbed = crowd.p99("steady"), crowd.p99("disturbed")
    total = crowd.total
    base = {"name": "swap.failed", "unit": f"of {total} requests, {SWAPS} swaps", "limit": 0, "ratio": 0.0, "bar": 0}
    assert swaps == SWAPS, swaps
    return [
        {**base, "value": len(crowd.failed), "ok": not crowd.failed},
        {
            "name": "swap.p99",
            "value": round(disturbed * 1e6),
            "unit": "us",
            "limit": round(steady * 1e6),
            "ratio": round(disturbed / steady, 3),
            "bar": BAR,
            "ok": disturbed <= BAR * steady,
        },
    ]


class Crowd:
    """Clients that ask without pause."""

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


async def serve(folder: Path) -> None:
    """The process with the plane: at each line, a round of swaps."""
    import asyncio

    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules.manifest import parse

    manifest = parse((folder / "tiny" / "module.toml").read_text())
    plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(folder / "cache")))
    await plane.start()

    async def route(version: int) -> None:
        await plane.load(f"v{version}", folder / "tiny", manifest, version, _models_limits())
        await plane.warm(f"v{version}", manifest)
        plane.set_routes("tiny", (_route(version),), (f"v{version}",))

    await route(0)
    print(json.dumps({"port": plane.port}), flush=True)
    loop = asyncio.get_running_loop()
    version = 0
    while await loop.run_in_executor(None, sys.stdin.readline):
        for _ in range(SWAPS // ROUNDS):
            await asyncio.sleep(GAP_S)
            await route(version + 1)
            await plane.unload(f"v{version}")
            version += 1
        await asyncio.sleep(GAP_S)
        print(json.dumps({"swaps": version}), flush=True)
    await plane.stop()


def _models_limits() -> Any:
    from skerry_modules.profiles import Limits

    return Limits(memory_mb=4000, disk_mb=1000)


def _route(version: int) -> Any:
    from skerry_modules.messages import Route

    return Route(module="tiny", version=version)


if __name__ == "__main__":
    from skerry_agent.serving.plane import run as run_loop

    run_loop(serve(Path(sys.argv[1])))
