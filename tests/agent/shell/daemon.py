"""Real daemons and small real modules for the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent import control
from support.processes import stop, wait_until

PROFILE = """
format = 1
name = "test-board"
title = "The board that the tests run on"
architecture = "x86_64"
cores = 2
memory_mb = 4000
sources = ["the tests"]

[[engines]]
name = "python"

[[engines]]
name = "onnx"

[limits]
memory_mb = 1500
disk_mb = {disk_mb}
"""

SCRIPT = """
import os, time
import numpy as np

def run(inputs):
    x = inputs["x"]
    if os.path.exists({crash!r}):
        os.kill(os.getpid(), 11)
    return {{"y": x * {factor}}}
"""


def module_folder(
    folder: Path, factor: float = 2.0, *, name: str = "double", expected: float | None = None, ballast: int = 0
) -> Path:
    """A python module that multiplies; ``expected`` is what its golden test believes, ``ballast`` extra bytes."""
    folder.mkdir(parents=True)
    crash = str(folder / "crash-now")
    (folder / "main.py").write_text(SCRIPT.format(factor=factor, crash=crash))
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    truth = rows * np.float32(factor if expected is None else expected)
    np.savez(folder / "golden.npz", **{"input.x": rows, "output.y": truth})
    if ballast:
        (folder / "ballast.bin").write_bytes(np.random.default_rng(7).bytes(ballast))
    (folder / "module.toml").write_text(
        f"""
format = 1
name = "{name}"
engine = "python"
model = "main.py"
files = ["*.npz", "*.bin"]
golden = {{ file = "golden.npz" }}
capture = {{ rate = 1.0, max_per_minute = 6000 }}
resources = {{ memory_mb = 300 }}

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]
""".replace('files = ["*.npz", "*.bin"]', 'files = ["*.npz", "*.bin"]' if ballast else 'files = ["*.npz"]')
    )
    return folder


class Daemon:
    """``skerry-agent run`` as a real process on a state folder of its own."""

    def __init__(
        self, folder: Path, port: int | None, hub_key: str, publisher: str, extra: str = "", **limits: Any
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        folder.mkdir(parents=True, exist_ok=True)
        profile = folder / "profile.toml"
        profile.write_text(PROFILE.format(disk_mb=limits.get("disk_mb", 1000)))
        self.config = folder / "agent.toml"
        broker = f"mqtt://127.0.0.1:{port}" if port else ""
        self.config.write_text(
            f"""
[device]
id = "device-1"
profile = "{profile}"
[hub]
broker = "{broker}"
key = "{hub_key}"
publishers = ["{publisher}"]
retry_max_s = 1.0
[state]
folder = "{self.state}"
[serving]
http = "127.0.0.1:0"
[reporting]
telemetry_s = 0.5
health_s = 0.5
traffic_s = 0.1
[spool]
resend_s = 1.0
gather_s = 0.05
{extra}
"""
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "agent.log"

    def start(self) -> Daemon:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "skerry_agent.cli", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
                start_new_session=True,
            )
        wait_until(self.answers, what=f"the agent to answer; log:\n{self.tail()}")
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.tail()
        try:
            self.status()
        except Exception:
            return False
        return True

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = control.ask(self.state, "status")
        return found

    def tail(self) -> str:
        return self.log.read_text()[-6000:] if self.log.exists() else "(no log)"

    def kill(self) -> None:
        """As a power cut would, but for what the disk's cache holds."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            stop(self.process, seconds=15)
        return self.process.returncode or 0

    def score(self, rows: list[list[float]], model: str = "double") -> Any:
        """``(status, body)`` of one HTTP request."""
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}]}
        url = f"{self.status()['scoring']}/v2/models/{model}/infer"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def scores(self, factor: float, model: str = "double") -> bool:
        status, body = self.score([[1.0, 3.0]], model)
        return status == 200 and bool(body["outputs"][0]["data"] == [factor, 3.0 * factor])

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another ``skerry-agent`` command on the same configuration."""
        return subprocess.run(
            [sys.executable, "-m", "skerry_agent.cli", *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
