"""1,000 simulated devices on one hub, telemetry every 10 s, and a rollout to all of them: who ends where, what is lost.

A real hub process on its defaults (SQLite, managed Mosquitto), devices registered through its API, a signed package
uploaded and rolled out in three waves. Devices download and verify it over MQTT. At the end everything that a device
produced must be acknowledged, and every telemetry window stand in the database once.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks._streaming import figure
from skerry_hub.broker import find_mosquitto
from skerry_modules.package import write_package
from skerry_modules.trust import SigningKey
from skerry_simulators.fleet import cli
from skerry_simulators.fleet.fleet import Fleet, FleetSettings

DEVICES, WEIGHTS_BYTES, LIMIT_S = 1000, 1_000_000, 300.0

MANIFEST = """
format = 1
name = "blob"
engine = "python"
model = "score.py"

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]
"""


def package(folder: Path, key: SigningKey) -> bytes:
    source = folder / "blob"
    source.mkdir()
    (source / "module.toml").write_text(MANIFEST)
    (source / "score.py").write_text("def init():\n    pass\n\n\ndef run(inputs):\n    return {'y': inputs['x']}\n")
    (source / "weights.bin").write_bytes(os.urandom(WEIGHTS_BYTES))
    target = folder / "blob.skerry"
    write_package(source, target, key)
    return target.read_bytes()


def hub(folder: Path) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    """A hub process that answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "skerry_hub.cli", "serve", "--port", str(port), "--broker-port", "0"]
    command += ["--data", str(folder / "hub"), "--broker", "mosquitto"]
    with (folder / "hub.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    api = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60, headers={"X-Skerry-Actor": "bench"})
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            api.get("/status").raise_for_status()
            return process, api
        except httpx.HTTPError:
            time.sleep(0.2)
    process.kill()
    raise SystemExit(f"cannot measure: the hub did not start: {(folder / 'hub.log').read_text()[-2000:]}")


def upload(api: httpx.Client, folder: Path) -> None:
    key = SigningKey.generate("bench")
    api.post("/keys", json={"text": key.public.text()}).raise_for_status()
    headers = {"Content-Type": "application/vnd.skerry.package"}
    api.post("/models/blob/versions", content=package(folder, key), headers=headers).raise_for_status()


def roll_out(api: httpx.Client) -> int:
    waves = [{"count": 10}, {"percent": 30}, {"percent": 100}]
    body = {"module": "blob", "version": 1, "target": "fleet=bench", "plan": {"waves": waves, "soak_s": 1}}
    answer = api.post("/rollouts", json=body)
    answer.raise_for_status()
    return int(answer.json()["id"])


def perform(folder: Path, api: httpx.Client) -> tuple[Fleet, dict[str, Any], float]:
    """Register, connect, roll out, come to rest; returns the fleet, the rollout and how long it took."""
    upload(api, folder)
    options = argparse.Namespace(devices=DEVICES, prefix="bench-", profile="generic-x86_64", tag=["fleet=bench"])
    passwords, broker, trusted = cli.register(api, options, Console(stderr=True, quiet=True))
    fleet = Fleet(broker, passwords, settings=FleetSettings(telemetry_s=10.0, health_s=60.0), trusted=trusted)
    fleet.start()
    end = time.monotonic() + LIMIT_S
    fleet.run(lambda: fleet.summary().online == DEVICES or time.monotonic() > end)
    rollout, began, state = roll_out(api), time.monotonic(), {"state": ""}

    def ended() -> bool:
        state.update(api.get(f"/rollouts/{rollout}").json())
        return state["state"] not in ("running", "rolling-back") or time.monotonic() > end

    fleet.run(ended, look_s=1.0)
    took = time.monotonic() - began
    settled = time.monotonic() + 15.0  # a window of each device with the new version
    fleet.run(lambda: time.monotonic() > settled)
    fleet.quiet = True
    fleet.run(lambda: not fleet.summary().waiting or time.monotonic() > end)
    return fleet, state, took


def run() -> list[dict[str, Any]]:
    if find_mosquitto() is None:
        raise SystemExit("cannot measure without Mosquitto: apt-get install mosquitto")
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name:
        folder = Path(name)
        process, api = hub(folder)
        try:
            fleet, state, took = perform(folder, api)
            summary = fleet.summary()
            fleet.stop()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        database = sqlite3.connect(folder / "hub" / "hub.db")
        windows = database.execute("SELECT COUNT(*) FROM telemetry").fetchone()[0]
        proven = database.execute("SELECT COUNT(*) FROM rollout_device WHERE step = 'succeeded'").fetchone()[0]
        database.close()
    lost = abs(summary.stats.telemetry - windows) + summary.waiting
    print(f"rollout {state['state']} in {took:.1f} s; {summary}", file=sys.stderr)
    return [
        figure("fleet", proven, "devices that proved the version", DEVICES, 1.0, most=False),
        figure("fleet.lost", lost, "records lost or doubled", summary.stats.produced, 0.0, most=True),
    ]
