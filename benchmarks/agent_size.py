"""What an agent takes of a device's memory: a real ``skerry-agent run`` that got a module over MQTT and serves it.

Sizes are proportional (PSS): pages that processes share are divided among them, so that the sum is what the device
misses. Resident sizes (RSS), which count shared pages in full in each process, go to stderr.

PSS also divides pages among processes that are not ours: on a machine where other Python processes map the same
libraries the figures are smaller than on a device. Measure with as little else running as possible.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks import _client, _models

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tests' hub and daemon are the real thing's frame

from agent.shell.daemon import Daemon
from agent.shell.hub import FakeHub
from support import processes, requirements

AGENT_MB = 45.0
ALL_MB = 100.0
REQUESTS = 500


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _models.tiny(folder / "tiny")
        with processes.mosquitto(requirements.need("mosquitto"), folder) as port:
            hub = FakeHub(port, "device-1")
            daemon = Daemon(folder / "agent", port, hub.key.public.text(), hub.publisher.public.text())
            try:
                daemon.start()
                hub.desire(hub.pack(model.folder).wanted(1))
                hub.wait_phase(1, "Healthy", 60)
                score(daemon, model)
                time.sleep(3)  # telemetry, health and spool have run
                return figures(daemon)
            finally:
                daemon.stop()
                hub.close()


def score(daemon: Daemon, model: _models.Model) -> None:
    address = daemon.status()["scoring"]
    with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=10) as response:
        assert json.load(response) == {"ready": True}
    client = _client.Client(int(address.rpartition(":")[2]))
    request = _client.request("tiny", "x", model.example)
    for _ in range(REQUESTS):
        status, body = client.ask(request)
        assert status == 200, body
    client.close()


def figures(daemon: Daemon) -> list[dict[str, Any]]:
    assert daemon.process is not None
    agent = psutil.Process(daemon.process.pid)
    children = agent.children(recursive=True)
    sizes = [process.memory_full_info() for process in (agent, *children)]
    for process, size in zip((agent, *children), sizes, strict=True):
        line = " ".join(process.cmdline()[:4])
        print(f"  {process.name()}: PSS {size.pss / 1e6:.1f} MB, RSS {size.rss / 1e6:.1f} MB: {line}", file=sys.stderr)
    assert len(children) == 2, "the agent, one zygote and one worker are expected"
    return [
        figure("agent-size.agent", sizes[0].pss, AGENT_MB),
        figure("agent-size.all", sum(size.pss for size in sizes), ALL_MB),
    ]


def figure(name: str, size: int, limit: float) -> dict[str, Any]:
    value = size / 1e6
    return {
        "name": name,
        "value": round(value, 1),
        "unit": "MB PSS",
        "limit": limit,
        "ratio": round(value / limit, 3),
        "bar": 1.0,
        "ok": value <= limit,
    }
