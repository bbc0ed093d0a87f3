"""A real hub and real agents, each a process of its own, and a module that all of them serve."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from skerry.client import Client
from skerry.types import BatchDetail, Plan
from skerry_agent import control
from skerry_modules import package, trust
from skerry_modules.errors import SkerryError
from support.processes import free_port, stop, wait_until

# Sums a row and doubles it; refuses one whose first value is -666; takes so long for each row.
SCRIPT = """
import time
def run(inputs):
    x = inputs["x"]
    if (x[:, 0] == -666).any():
        raise ValueError("the devil is in the data")
    time.sleep({seconds} * len(x))
    return {{"y": x.sum(axis=1) * 2}}
"""
MANIFEST = """
format = 1
name = "{name}"
engine = "python"
model = "main.py"
resources = {{ memory_mb = 200 }}
golden = {{ file = "golden.npz" }}
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 3]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1]
"""
LEASE_S = 2.5


class World:
    """``agents`` by device id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client: Client
        self.url = ""
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.hub: subprocess.Popen[bytes] | None = None
        self.key = trust.SigningKey.generate("publisher")
        self._port, self._broker = free_port(), free_port()

    @contextlib.contextmanager
    def running(self, *devices: str) -> Iterator[World]:
        self.start_hub()
        try:
            with Client(self.url, actor="tester") as self.client:
                self.client.trust_key(self.key.public.text())
                for device in devices:
                    made = self.client.add_device(device, profile="generic-x86_64", tags={"site": "lab"})
                    (self.folder / f"{device}.toml").write_text(made.config)
                    self.start_agent(device)
                yield self
        finally:
            for agent in self.agents.values():
                stop(agent)
            if self.hub is not None:
                stop(self.hub)

    def start_hub(self) -> None:
        serve = [sys.executable, "-m", "skerry_hub.cli", "serve", "--data", str(self.folder / "hub")]
        serve += ["--port", str(self._port), "--broker-port", str(self._broker), "--batch-lease-s", str(LEASE_S)]
        log = self.folder / "hub.log"
        before = len(log.read_text()) if log.exists() else 0
        with log.open("ab") as said:
            self.hub = hub = subprocess.Popen(serve, stdout=said, stderr=said)

        def answers() -> bool:
            assert hub.poll() is None, log.read_text()
            found = re.search(r"^Console\s+(\S+)$", log.read_text()[before:], re.MULTILINE)
            self.url = found[1] if found else ""
            with contextlib.suppress(SkerryError):
                if found:
                    with Client(self.url) as client:
                        return client.status().broker_connected
            return False

        wait_until(answers, what="the hub to serve", seconds=60)

    def state(self, device: str) -> Path:
        return self.folder / f"state-{device}"

    def start_agent(self, device: str) -> None:
        chosen = ["serving.http=127.0.0.1:0", f"state.folder={self.state(device)}", "batch.report_s=0.3"]
        # What a device says before the hub listens again is lost; it is said again after this silence.
        chosen += ["hub.retry_min_s=0.2", "hub.retry_max_s=1", "spool.resend_s=1"]
        run = [sys.executable, "-m", "skerry_agent.cli", "run", "--config", str(self.folder / f"{device}.toml")]
        with (self.folder / f"{device}.log").open("ab") as said:
            self.agents[device] = subprocess.Popen(
                [*run, *(part for one in chosen for part in ("--set", one))], stdout=said, stderr=said
            )
        wait_until(lambda: self.answers(device), what=f"the agent of {device}")

    def answers(self, device: str) -> bool:
        with contextlib.suppress(SkerryError):
            return bool(control.ask(self.state(device), "status")["hub"]["connected"])
        return False

    def serves(self, device: str) -> bool:
        """Whether the hub knows it to serve both modules."""
        reported = self.client.device_modules(device).reported
        return sum(one.phase == "Healthy" and one.role == "current" for one in reported) == 2

    def kill(self, device: str) -> None:
        stop(self.agents[device], by=signal.SIGKILL)

    def register(self, name: str, seconds: float) -> int:
        """A module that takes so long for each row; its version."""
        number = len(list(self.folder.glob("module-*")))
        folder = self.folder / f"module-{number}"
        folder.mkdir()
        (folder / "main.py").write_text(SCRIPT.format(seconds=seconds))
        (folder / "module.toml").write_text(MANIFEST.format(name=name))
        rows = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.savez(folder / "golden.npz", **{"input.x": rows, "output.y": rows.sum(axis=1) * 2})
        packed = package.write_package(folder, self.folder / f"{number}.skerry", self.key)
        return self.client.register(packed.path).version

    def roll_out(self, name: str, seconds: float) -> None:
        """The same, on all devices."""
        rollout = self.client.start_rollout(name, self.register(name, seconds), "*", Plan(soak_s=0.1)).id
        wait_until(lambda: self.client.rollout(rollout).state == "succeeded", what="the rollout", seconds=60)

    def score(self, path: Path, target: str, *, model: str = "adder:1", **wishes: Any) -> BatchDetail:
        """A whole job; its result is fetched beside the input."""
        wishes = {"keep": [] if path.is_dir() else ["id"], **wishes}
        upload = self.client.upload_batch_input(path)
        job = self.client.start_batch(model, target, upload=upload, input=path.name, **wishes).id
        ended = self.wait_for(job, "done", "failed")
        if ended.result_size:
            self.client.fetch_batch(job, path.parent)
        return ended

    def skerry(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skerry.cli.app", "--url", self.url, *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, check=False, text=True, timeout=100)
        assert ended.returncode == code, ended.stderr
        return ended

    def wait_for(self, job: int, *states: str, seconds: float = 60) -> BatchDetail:
        wait_until(lambda: self.client.batch(job).state in states, what=f"job {job} to be {states}", seconds=seconds)
        return self.client.batch(job)


def table(path: Path, rows: int, *, bad: tuple[int, ...] = ()) -> np.ndarray[Any, Any]:
    """A CSV of ``id,a,b,c``; returns the sums that version 1 gives, doubled. ``bad`` rows cannot be scored."""
    values = np.random.default_rng(rows).normal(size=(rows, 3)).astype("f4")
    values[list(bad), 0] = -666
    lines = [f"r{number}," + ",".join(f"{cell:.9g}" for cell in row) for number, row in enumerate(values)]
    path.write_text("id,a,b,c\n" + "\n".join(lines) + "\n")
    found: np.ndarray[Any, Any] = values.sum(axis=1) * 2
    return found
