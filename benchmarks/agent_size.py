"""What an agent takes of a device's memory: a real ``skerry-agent run`` that got a module over MQTT and serves it.

Sizes are proportional (PSS): pages that processes share are divided among them, so that the sum is what the device
misses. Resident sizes (RSS), which count shared pages in full in each process, go to stderr.

PSS also divides pages among processes that are not ours: on a machine where other Python processes map the same
libraries the figures are smaller than on a device. ``agent-size.distinct`` is not: it counts each physical page that
any of ours maps once. The kernel tells these only to root; without, the figure is left out.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
import time
import urllib.request
from array import array
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
_PRESENT = 63
_FRAME = (1 << 55) - 1
"""Of an entry of pagemap, see the kernel's documentation."""


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
    found = [
        figure("agent-size.agent", sizes[0].pss, AGENT_MB),
        figure("agent-size.all", sum(size.pss for size in sizes), ALL_MB),
    ]
    frames = set().union(*(page_frames(process.pid) for process in (agent, *children)))
    if frames:
        found.append(figure("agent-size.distinct", len(frames) * mmap.PAGESIZE, ALL_MB, "MB of distinct pages"))
    else:
        print("  agent-size.distinct: left out: only root may see which pages are shared", file=sys.stderr)
    return found


def page_frames(pid: int) -> set[int]:
    """Numbers of the physical pages that a process maps; empty where the kernel does not tell."""
    frames: set[int] = set()
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(part, 16) // mmap.PAGESIZE for part in line.split()[0].split("-"))
            if "[v" not in line:  # the kernel's own
                data = os.pread(pagemap.fileno(), (end - start) * 8, start * 8)
                entries = array("Q", data[: len(data) // 8 * 8])
                frames.update(entry & _FRAME for entry in entries if entry >> _PRESENT)
    return frames - {0}


def figure(name: str, size: int, limit: float, unit: str = "MB PSS") -> dict[str, Any]:
    value = size / 1e6
    return {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "limit": limit,
        "ratio": round(value / limit, 3),
        "bar": 1.0,
        "ok": value <= limit,
    }
