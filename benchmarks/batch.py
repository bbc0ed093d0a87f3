"""A batch job from the hub against the same file scored by ``skerry-agent batch`` on the same device; and live traffic.

A real hub with its managed Mosquitto and a real agent, each a process of its own, all on this machine. Local runs and
jobs take turns, so that both meet the same machine; a figure is the median of the turns' ratios. Both are taken whole:
a local run from exec to exit, a job from its start (the upload is made before) to its merged result, with everything
between: cutting, the way there over MQTT, scoring in the agent behind live traffic, the way back, merging.

* ``batch.device``: rows per second of a job on the device, with a model that takes some 0.2 ms of a core for each row.
* ``batch.device-tiny``: the same with the model of some 25 µs, which a local run scores about as fast as it reads a
  CSV: what is measured is the way there and back. No bar.
* ``batch.hub``: a job on the hub itself against ``skerry-agent batch --module-folder``, which has no agent either.
* ``batch.live``: p95 of a client that asks the device's agent for the small model every 4 ms, while a job of the same
  model goes on there, against the same without, in turns. The input lies on the device: the hub, which on this machine
  would take its time from the same cores, has nothing to do meanwhile. The limit is p95 without a job and one slice of
  it (``PaceSettings.live_slice_s``): what is being scored is not interrupted, so that is what a live request can lose.
  Shadows may cost a tenth only since they are dropped where there is no time; a job has to move on.

The bars: a job cannot be as fast as a local run here, since the hub's work for it takes its time from the same two
cores, and begin and end some of the two seconds that it lasts. Where fetching, scoring and sending go one after the
other, and each part has a process of its own, ``batch.device`` is 0.3.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _client, _models, fleet
from skerry.client import Client
from skerry.types import Plan
from skerry_agent import control
from skerry_agent.rules.pace import PaceSettings
from skerry_hub.broker import find_mosquitto
from skerry_modules.errors import SkerryError
from skerry_modules.package import write_package
from skerry_modules.trust import SigningKey

DEVICE = "bench-1"
WIDTH = 64
SIZES = {"tiny": [WIDTH, 384, 384, 256, 256, 128, 128, 64, 64, 10], "small": [WIDTH, 2048, 2048, 512, 10]}


class Case(NamedTuple):
    """How one figure of throughput is measured."""

    name: str
    model: str
    rows: int
    target: str
    bar: float | None


CASES = (
    Case("batch.device", "small", 16_000, f"id={DEVICE}", 0.6),
    Case("batch.device-tiny", "tiny", 30_000, f"id={DEVICE}", None),
    Case("batch.hub", "small", 16_000, "hub", 0.7),
)
ROUNDS = 3
LIVE_MODEL, LIVE_ROWS, LIVE_ROUNDS = "small", 60_000, 2
PACE_S, BLOCK = 0.004, 250
WAIT_S = 60.0


class Stand:
    """A hub and an agent that serves both models. ``port``: where it scores."""

    def __init__(self, folder: Path, client: Client) -> None:
        self.folder, self.client, self.port = folder, client, 0
        self.state = folder / "state"
        self._key = SigningKey.generate("bench")
        client.trust_key(self._key.public.text())  # before the device is added: its configuration names it

    def skerry_agent(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "skerry_agent.cli", *arguments]

    @contextlib.contextmanager
    def agent(self) -> Iterator[None]:
        config = self.folder / "agent.toml"
        config.write_text(self.client.add_device(DEVICE, profile="generic-x86_64").config)
        chosen = ["serving.http=127.0.0.1:0", f"state.folder={self.state}"]
        command = self.skerry_agent("run", "--config", str(config))
        with (self.folder / "agent.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *(part for one in chosen for part in ("--set", one))], stdout=log, stderr=log
            )
        try:
            wait(self._connected, "the agent")
            yield
        finally:
            process.terminate()
            process.wait(30)

    def _connected(self) -> bool:
        with contextlib.suppress(SkerryError):
            status = control.ask(self.state, "status")
            self.port = int(str(status["scoring"]).split(", ")[0].rpartition(":")[2])
            return bool(status["hub"]["connected"])
        return False

    def roll_out(self, name: str) -> None:
        made = _models.dense(self.folder / name, name, SIZES[name]).folder / "module.toml"
        made.write_text(made.read_text().replace("memory_mb = 1000", "memory_mb = 200"))  # both fit the device
        self.client.register(write_package(self.folder / name, self.folder / f"{name}.skerry", self._key).path)
        rollout = self.client.start_rollout(name, 1, "*", Plan(soak_s=0.1)).id
        wait(lambda: self.client.rollout(rollout).state == "succeeded", f"the rollout of {name}")

    def table(self, rows: int) -> Path:
        """A CSV with a column for each value."""
        path = self.folder / f"{rows}.csv"
        if not path.exists():
            values = np.random.default_rng(rows).normal(size=(rows, WIDTH)).astype("f4")
            names = ",".join(f"x_{number}" for number in range(WIDTH))
            np.savetxt(path, values, fmt="%.6g", delimiter=",", header=names, comments="")
        return path

    def start(self, case: Case) -> int:
        upload = self.client.upload_batch_input(self.table(case.rows))
        return self.client.start_batch(case.model, case.target, upload=upload).id

    def job(self, case: Case) -> float:
        """Rows per second of a whole job, by the hub's own clock."""
        job = self.start(case)
        wait(lambda: self.client.batch(job).ended_at, f"job {job} of {case.name}")
        ended = self.client.batch(job)
        assert (ended.state, ended.scored) == ("done", case.rows), ended
        return case.rows / (ended.ended_at - ended.created_at) * 1000

    def scored(self, job: int) -> int:
        """Rows of the device's own part that are on its disk; 0 once it is forgotten."""
        with contextlib.suppress(FileNotFoundError):
            journal = self.state / f"batch/work/{job}-0/result.rows.batch/journal.jsonl"
            return sum(int(json.loads(line)["rows"]) for line in journal.read_text().splitlines())
        return 0

    def idle(self, job: int) -> bool:
        return not (self.state / f"batch/work/{job}-0").exists()

    def local(self, case: Case) -> float:
        """Rows per second of ``skerry-agent batch``, from exec to exit."""
        output = self.folder / "local.parquet"
        command = self.skerry_agent("batch", f"{case.model}:1", str(self.table(case.rows)), f"--output={output}")
        where = f"--module-folder={self.folder / case.model}" if case.target == "hub" else f"--url={self.url}"
        began = time.monotonic()
        subprocess.run([*command, where, "--restart"], check=True, capture_output=True)
        return case.rows / (time.monotonic() - began)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def wait(check: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not check():
        if time.monotonic() > end:
            raise SystemExit(f"cannot measure: waited {WAIT_S:.0f} s for {what}")
        time.sleep(0.05)


def run() -> list[dict[str, Any]]:
    if find_mosquitto() is None:
        raise SystemExit("cannot measure without Mosquitto: apt-get install mosquitto")
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name:
        folder = Path(name)
        process, api = fleet.hub(folder)
        try:
            with Client(str(api.base_url).removesuffix("/api/v1/"), actor="bench") as client:
                stand = Stand(folder, client)
                with stand.agent():
                    for model in SIZES:
                        stand.roll_out(model)
                    return [*(throughput(stand, case) for case in CASES), live(stand)]
        finally:
            api.close()
            process.terminate()
            process.wait(30)


def throughput(stand: Stand, case: Case) -> dict[str, Any]:
    """One figure of rows per second."""
    found: dict[str, list[float]] = {"local": [], "job": []}
    measure = {"local": stand.local, "job": stand.job}
    for turn in range(ROUNDS):
        for key in ("local", "job") if turn % 2 else ("job", "local"):
            found[key].append(measure[key](case))
    ratio = statistics.median(one / other for one, other in zip(found["job"], found["local"], strict=True))
    return {
        "name": case.name,
        "value": round(statistics.median(found["job"])),
        "unit": "rows/s",
        "limit": round(statistics.median(found["local"])),
        "ratio": round(ratio, 3),
        "bar": case.bar,
        "ok": case.bar is None or ratio >= case.bar,
    }


def live(stand: Stand) -> dict[str, Any]:
    """p95 of a client beside a job, against the same client without one."""
    inputs = stand.state / "inputs"
    inputs.mkdir(exist_ok=True)
    stand.table(LIVE_ROWS).rename(inputs / "live.csv")
    client = _client.Client(stand.port)
    request = _client.request(LIVE_MODEL, "x", np.zeros((1, WIDTH), "f4"))
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    rates: list[float] = []
    block(client, request)
    for _ in range(LIVE_ROUNDS):
        found["alone"].append(block(client, request))
        job = stand.client.start_batch(LIVE_MODEL, f"id={DEVICE}", path="live.csv").id
        wait(functools.partial(stand.scored, job), "rows of the job")
        began, before = time.monotonic(), stand.scored(job)
        found["beside"] += [block(client, request), block(client, request)]
        rate = (stand.scored(job) - before) / (time.monotonic() - began)
        rates.append(rate)
        assert rate, "it ended too soon, or never moved on: there was nothing to feel"
        stand.client.cancel_batch(job)
        wait(functools.partial(stand.idle, job), "the job to end on the device")
        found["alone"].append(block(client, request))
    client.close()
    alone, beside = (statistics.median(found[key]) for key in ("alone", "beside"))
    print(f"  batch.live: p95 {alone * 1e6:.0f} us alone, {beside * 1e6:.0f} us beside", file=sys.stderr)
    limit = alone + PaceSettings().live_slice_s
    return {
        "name": "batch.live",
        "value": round(beside * 1e6),
        "unit": f"us p95 beside {statistics.median(rates):.0f} rows/s",
        "limit": round(limit * 1e6),
        "ratio": round(beside / limit, 3),
        "bar": 1.0,
        "ok": beside <= limit,
    }


def block(client: _client.Client, request: bytes) -> float:
    """p95 in seconds."""
    times = []
    for _ in range(BLOCK):
        began = time.perf_counter()
        status, body = client.ask(request)
        times.append(time.perf_counter() - began)
        assert status == 200, body
        time.sleep(PACE_S)
    return sorted(times[1:])[BLOCK * 95 // 100]
