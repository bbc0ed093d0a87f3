"""The worker that serves dies ten times of SIGSEGV while eight clients score: nothing fails, and it is back at once.

*Back* is the time from the signal to the moment when the next worker has the model loaded and takes requests, looked at
every millisecond in the agent's process. Every answer is checked.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _models
from benchmarks._child import Child
from benchmarks._crowd import Crowd

STEADY_S = 1.0
CRASHES = 10
GAP_S = 0.4
BACK_MS = 50.0


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _models.tiny(folder / "tiny")
        with Child("benchmarks.crash", str(folder)) as plane:
            return measure(plane, model)


def measure(plane: Child, model: _models.Model) -> list[dict[str, Any]]:
    crowd = Crowd(plane.hear()["port"], model)
    crowd.phase = "steady"
    time.sleep(STEADY_S)
    crowd.phase = "disturbed"
    back = plane.ask("go")["back_ms"]
    crowd.stop()
    total = sum(len(times) for times in crowd.times.values())
    assert len(back) == CRASHES
    print(f"  back after {', '.join(f'{one:.0f}' for one in back)} ms", file=sys.stderr)
    longest = max(crowd.times["disturbed"]) * 1000
    print(f"  the longest wait of any client: {longest:.0f} ms", file=sys.stderr)
    return [
        {
            "name": "crash.failed",
            "value": len(crowd.failed),
            "unit": f"of {total} requests, {CRASHES} crashes",
            "limit": 0,
            "ratio": 0.0,
            "bar": 0,
            "ok": not crowd.failed,
        },
        {
            "name": "crash.back",
            "value": round(statistics.median(back), 1),
            "unit": f"ms, median of {CRASHES}; worst {max(back):.0f}",
            "limit": BACK_MS,
            "ratio": round(statistics.median(back) / BACK_MS, 3),
            "bar": 1.0,
            "ok": statistics.median(back) <= BACK_MS,
        },
    ]


async def serve(folder: Path) -> None:
    """The process with the plane: waits for a line, then kills its worker again and again."""
    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules.manifest import parse
    from skerry_modules.messages import Route

    manifest = parse((folder / "tiny" / "module.toml").read_text())
    plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(folder / "cache")))
    await plane.start()
    await plane.load("v", folder / "tiny", manifest, 1, _models.LIMITS)
    plane.set_routes("tiny", (Route(module="tiny", version=1),), ("v",))
    print(json.dumps({"port": plane.port}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    back = []
    version = plane.versions["v"]
    for _ in range(CRASHES):
        await asyncio.sleep(GAP_S)
        old = version.facts["pid"]
        began = time.monotonic()
        os.kill(old, signal.SIGSEGV)
        while not version.ready or version.facts["pid"] == old:
            await asyncio.sleep(0.001)
        back.append((time.monotonic() - began) * 1000)
    await asyncio.sleep(GAP_S)
    print(json.dumps({"back_ms": back}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await plane.stop()


if __name__ == "__main__":
    from skerry_agent.serving.plane import run as run_loop

    run_loop(serve(Path(sys.argv[1])))
