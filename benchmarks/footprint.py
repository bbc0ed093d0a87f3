"""What one further version costs in memory, what unloading gives back, and how soon an agent scores after its start.

Memory is PSS of the agent, its zygote and its workers together: what the device misses. The versions are of one shape
with weights of their own, so that nothing is shared that would not be between two modules. The start is that of a real
``skerry-agent run`` that holds a module: from exec to the first scored answer, its golden test and warm-up included.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import _client, _models
from benchmarks._child import Child

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tests' hub and daemon are the real thing's frame

from agent.shell.daemon import Daemon
from agent.shell.hub import FakeHub
from support import processes, requirements

VERSIONS = 4
FURTHER_MB = 10.0
BACK_MB = 5.0
START_S = 0.5
STARTS = 5


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        return [*memory(Path(name) / "memory"), start(Path(name) / "start")]


# -- memory


def memory(folder: Path) -> list[dict[str, Any]]:
    for number in range(VERSIONS):
        _models.dense(folder / f"v{number}", f"v{number}", [64, 384, 384, 256, 256, 128, 64, 10], seed=number)
    weights = (folder / "v0" / "model.onnx").stat().st_size / 1e6
    with Child("benchmarks.footprint", str(folder)) as plane:

        def ask(order: str) -> float:
            plane.ask(order)
            time.sleep(0.5)
            return pss(plane.pid)

        sizes = [ask(f"load v{number}") for number in range(VERSIONS)]
        ask("load again")
        before = ask("unload again")  # what the first of all leaves behind once is no version's
        ask("load again")
        after = ask("unload again")
    steps = [after - before for before, after in itertools.pairwise(sizes)]
    print(f"  PSS with 1 to {VERSIONS} versions: {', '.join(f'{size:.1f}' for size in sizes)} MB", file=sys.stderr)
    return [
        _figure(
            "footprint.version", statistics.mean(steps) - weights, f"MB PSS beside {weights:.1f} of weights", FURTHER_MB
        ),
        _figure("footprint.unload", after - before, "MB PSS left after load and unload", BACK_MB),
    ]


def pss(pid: int) -> float:
    root = psutil.Process(pid)
    return float(sum(one.memory_full_info().pss for one in (root, *root.children(recursive=True)))) / 1e6


async def serve(folder: Path) -> None:
    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules.manifest import parse

    plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(folder / "cache")))
    await plane.start()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        verb, name = line.split()
        if verb == "load":
            source = folder / ("v0" if name == "again" else name)
            manifest = parse((source / "module.toml").read_text())
            await plane.load(name, source, manifest, 1, _models.LIMITS)
            await plane.warm(name, manifest, 20)
        else:
            await plane.unload(name)
        print(json.dumps({"done": line}), flush=True)
    await plane.stop()


# -- start


def start(folder: Path) -> dict[str, Any]:
    model = _models.tiny(folder / "tiny")
    text = (model.folder / "module.toml").read_text()
    (model.folder / "module.toml").write_text(text.replace("memory_mb = 1000", "memory_mb = 300"))
    with processes.mosquitto(requirements.need("mosquitto"), folder) as port:
        hub = FakeHub(port, "device-1")
        daemon = Daemon(folder / "agent", port, hub.key.public.text(), hub.publisher.public.text())
        address = free_port()
        daemon.config.write_text(daemon.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{address}"))
        try:
            daemon.start()
            hub.desire(hub.pack(model.folder).wanted(1))
            hub.wait_phase(1, "Healthy", 60)
            daemon.stop()
            request = _client.request("tiny", "x", model.example)
            times = [first_answer(daemon, address, request) for _ in range(STARTS)]
        finally:
            daemon.stop()
            hub.close()
    print(f"  from exec to the first answer: {', '.join(f'{one * 1000:.0f}' for one in times)} ms", file=sys.stderr)
    return _figure("footprint.start", statistics.median(times), f"s from exec to a score, median of {STARTS}", START_S)


def first_answer(daemon: Daemon, port: int, request: bytes) -> float:
    command = [sys.executable, "-m", "skerry_agent.cli", "run", "--config", str(daemon.config)]
    began = time.perf_counter()
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    while not scores(port, request):
        assert daemon.process.poll() is None, daemon.tail()
        assert time.perf_counter() - began < 30, daemon.tail()
        time.sleep(0.002)
    found = time.perf_counter() - began
    daemon.stop()
    return found


def scores(port: int, request: bytes) -> bool:
    try:
        client = _client.Client(port)
    except OSError:
        return False
    try:
        return client.ask(request)[0] == 200
    finally:
        client.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _figure(name: str, value: float, unit: str, limit: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "limit": limit,
        "ratio": round(value / limit, 3),
        "bar": 1.0,
        "ok": value <= limit,
    }


if __name__ == "__main__":
    from skerry_agent.serving.plane import run as run_loop

    run_loop(serve(Path(sys.argv[1])))
