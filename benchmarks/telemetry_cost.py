"""What watching costs a request: one model twice in one real agent, with all telemetry and 1 % capture, and with none.

*On* has a baseline, so that the distributions of every input and output are counted, and keeps one row in a hundred as
a sample, which goes through the spool to the hub. *Off* has neither. Requests and latency are counted in both: that
cannot be turned off. One client asks both in turns, in blocks, with the cores kept awake.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _awake, _client, _models
from benchmarks.scoring import bare
from skerry_modules.histogram import Baseline

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tests' hub and daemon are the real thing's frame

from agent.shell.daemon import Daemon
from agent.shell.hub import FakeHub
from support import processes, requirements

BLOCK = 200
BLOCKS = 150
BAR = 1.03
CAPTURE = '[baseline]\nfile = "baseline.json"\n[capture]\nrate = 0.01\nmax_per_minute = 60000\n'


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {key: model(folder / key, key) for key in ("off", "on")}
        watch(models["on"])
        with processes.mosquitto(requirements.need("mosquitto"), folder) as port:
            hub = FakeHub(port, "device-1")
            daemon = Daemon(folder / "agent", port, hub.key.public.text(), hub.publisher.public.text())
            try:
                daemon.start()
                hub.desire(*(hub.pack(one.folder).wanted(1) for one in models.values()))
                for key in models:
                    wait_ready(daemon, key)
                return measure(daemon, hub, models["off"])
            finally:
                daemon.stop()
                hub.close()


def model(folder: Path, name: str) -> _models.Model:
    made = _models.dense(folder, name, [64, 384, 384, 256, 256, 128, 128, 64, 64, 10])
    text = (folder / "module.toml").read_text()
    (folder / "module.toml").write_text(text.replace("memory_mb = 1000", "memory_mb = 300"))
    return made


def watch(one: _models.Model) -> None:
    rows = np.random.default_rng(5).normal(size=(500, 64)).astype("f4")
    answers = bare(one).run(["y"], {"x": rows})[0]
    (one.folder / "baseline.json").write_bytes(Baseline.from_arrays({"x": rows}, {"y": answers}).to_json())
    path = one.folder / "module.toml"
    path.write_text(path.read_text() + CAPTURE)


def wait_ready(daemon: Daemon, name: str) -> None:
    end = time.monotonic() + 60
    client = _client.Client(int(daemon.status()["scoring"].rpartition(":")[2]))
    ask = f"GET /v2/models/{name}/ready HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    while client.ask(ask)[0] != 200:
        assert time.monotonic() < end, daemon.tail()
        time.sleep(0.05)
    client.close()


def measure(daemon: Daemon, hub: FakeHub, example: _models.Model) -> list[dict[str, Any]]:
    client = _client.Client(int(daemon.status()["scoring"].rpartition(":")[2]))
    asked = {key: _client.request(key, "x", example.example) for key in ("off", "on")}
    medians: dict[str, list[float]] = {"off": [], "on": []}
    with _awake.awake():
        for turn in range(BLOCKS):
            for key in ("off", "on") if turn % 2 else ("on", "off"):
                times = []
                for _ in range(BLOCK):
                    began = time.perf_counter()
                    status, body = client.ask(asked[key])
                    times.append(time.perf_counter() - began)
                    assert status == 200, body
                medians[key].append(statistics.median(times))
    client.close()
    time.sleep(2)
    samples = sum(kind == "sample" for kind, _ in hub.records)
    print(f"  {samples} samples reached the hub of {BLOCK * BLOCKS} rows", file=sys.stderr)
    assert samples > BLOCK * BLOCKS * 0.005, "nothing was captured: this would measure nothing"
    ratio = statistics.median(on / off for on, off in zip(medians["on"], medians["off"], strict=True))
    return [
        {
            "name": "telemetry-cost",
            "value": round(statistics.median(medians["on"]) * 1e6, 1),
            "unit": "us p50",
            "limit": round(statistics.median(medians["off"]) * 1e6, 1),
            "ratio": round(ratio, 3),
            "bar": BAR,
            "ok": ratio <= BAR,
        }
    ]
