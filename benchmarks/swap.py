"""Versions swap sixty times while eight clients score: nothing may fail, and waiting must stay short.

The data plane runs in a process of its own; the clients are threads of another, each with one keep-alive connection.
Quiet and swaps (load, warm, route, unload the old) take turns, so that what else the machine does meets both; then it
is quiet until 70,000 requests were answered, however slow the machine. Every answer is checked: it must be 200 and come
from a version of this module. What a crash costs is the benchmark ``crash``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _models
from benchmarks._child import Child
from benchmarks._crowd import Crowd

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
        with Child("benchmarks.swap", str(folder)) as plane:
            return measure(plane, model)


def measure(plane: Child, model: _models.Model) -> list[dict[str, Any]]:
    crowd = Crowd(plane.hear()["port"], model)
    time.sleep(0.5)
    swaps = 0
    for _ in range(ROUNDS):
        crowd.phase = "steady"
        time.sleep(STEADY_S / ROUNDS)
        crowd.phase = "disturbed"
        swaps = plane.ask("go")["swaps"]
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


async def serve(folder: Path) -> None:
    """The process with the plane: at each line, a round of swaps."""
    import asyncio

    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules.manifest import parse
    from skerry_modules.messages import Route

    manifest = parse((folder / "tiny" / "module.toml").read_text())
    plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(folder / "cache")))
    await plane.start()

    async def route(version: int) -> None:
        await plane.load(f"v{version}", folder / "tiny", manifest, version, _models.LIMITS)
        await plane.warm(f"v{version}", manifest)
        plane.set_routes("tiny", (Route(module="tiny", version=version),), (f"v{version}",))

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


if __name__ == "__main__":
    from skerry_agent.serving.plane import run as run_loop

    run_loop(serve(Path(sys.argv[1])))
