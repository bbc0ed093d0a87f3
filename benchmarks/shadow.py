"""What a shadow of every request costs those who are answered: one version behind two endpoints, one of them shadowed.

One client asks both endpoints in turns, in blocks, at a pace that leaves the cores time (``PACE_S`` between requests,
as devices are asked), with the cores kept awake. The shadow is the same model in a worker of its own, and scores and
compares every request; how many copies were dropped is told. The figure is the median of the blocks' p95 ratios.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _awake, _client, _models

BLOCK = 100
BLOCKS = 30
PACE_S = 0.004
BAR = 1.10


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _models.tiny(folder / "tiny")
        command = [sys.executable, "-m", "benchmarks.shadow", str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            port = json.loads(process.stdout.readline())["port"]
            ratio, plain, shadowed = measure(port, model)
            process.stdin.close()
            told = json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(10)
    print(f"  compared {told['rows']} rows, dropped {told['dropped']} copies of {BLOCK * BLOCKS}", file=sys.stderr)
    assert told["rows"] >= 0.9 * BLOCK * BLOCKS, "the shadow scored too little: this would measure nothing"
    return [
        {
            "name": "shadow",
            "value": round(shadowed * 1e6, 1),
            "unit": "us p95",
            "limit": round(plain * 1e6, 1),
            "ratio": round(ratio, 3),
            "bar": BAR,
            "ok": ratio <= BAR,
        }
    ]


def measure(port: int, model: _models.Model) -> tuple[float, float, float]:
    """(median ratio, median p95 plain, median p95 shadowed) in seconds."""
    client = _client.Client(port)
    asked = {key: _client.request(key, "x", model.example) for key in ("plain", "shadowed")}
    found: dict[str, list[float]] = {"plain": [], "shadowed": []}
    with _awake.awake():
        for turn in range(BLOCKS + 2):
            for key in ("plain", "shadowed") if turn % 2 else ("shadowed", "plain"):
                times = []
                for _ in range(BLOCK):
                    began = time.perf_counter()
                    status, body = client.ask(asked[key])
                    times.append(time.perf_counter() - began)
                    assert status == 200, body
                    time.sleep(PACE_S)
                if turn >= 2:  # the first ones warm up
                    found[key].append(sorted(times)[len(times) * 95 // 100])
    client.close()
    ratio = statistics.median(s / p for s, p in zip(found["shadowed"], found["plain"], strict=True))
    return ratio, statistics.median(found["plain"]), statistics.median(found["shadowed"])


async def main(folder: Path) -> None:
    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules.manifest import parse
    from skerry_modules.messages import Route
    from skerry_modules.profiles import Limits

    plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(folder / "cache")))
    await plane.start()
    manifest = parse((folder / "tiny" / "module.toml").read_text())
    for version in (1, 2):
        await plane.load(f"v{version}", folder / "tiny", manifest, version, Limits(memory_mb=4000, disk_mb=1000))
    live, copy = ((Route(module="tiny", version=version),) for version in (1, 2))
    plane.set_routes("plain", live, ("v1",))
    plane.set_routes("shadowed", live, ("v1",), copy, ("v2",))
    print(json.dumps({"port": plane.port}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.sleep(0.5)
    parts = plane.take_counters("v2").parts
    told = {what: sum(getattr(part.agreement, what) for part in parts) for what in ("rows", "dropped")}
    print(json.dumps(told), flush=True)
    await plane.stop()


if __name__ == "__main__":
    from skerry_agent.serving.plane import run as run_loop

    run_loop(main(Path(sys.argv[1])))
