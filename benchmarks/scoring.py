"""What the agent's HTTP costs: p50 of a scored request against ``session.run`` in this very process.

Both are measured in turns within one run, in blocks, since a core that sleeps between requests answers twice as slowly
as one that does not, whoever asks; the tiny model is measured both ways. The client is a plain socket, so that what is
measured is the server. CPU is that of the agent and its worker together, per request, against the model's own.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import _awake, _client, _models, _plane
from benchmarks.scoring_batched import Crowd

BLOCK = 25
CPU_CLIENTS = 8
CPU_S = 2.0
CPU_TURNS = 3
CPU_BAR = 3.0
CASES = (
    # figure, model, binary, cores awake, blocks, bar
    ("tiny", "tiny", True, False, 120, 8.0),
    ("tiny-awake", "tiny", True, True, 120, 5.0),
    ("medium", "medium", True, False, 12, 1.07),
    ("medium-json", "medium", False, False, 12, 1.4),
)


def run() -> list[dict[str, Any]]:
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"tiny": _models.tiny(folder / "tiny"), "medium": _models.medium(folder / "medium")}
        with _plane.serving(folder, *models) as facts:
            for figure, key, binary, awake, blocks, bar in CASES:
                with _awake.awake() if awake else contextlib.nullcontext():
                    found = measure(key, models[key], facts["port"], binary=binary, blocks=blocks)
                figures.append(_figure(f"scoring.{figure}", *found, bar))
            figures.append(cpu(models["tiny"], facts))
    return figures


def measure(key: str, model: _models.Model, port: int, *, binary: bool, blocks: int) -> tuple[float, float]:
    """(p50 over HTTP, p50 of the bare call) in microseconds."""
    session = bare(model)
    feed = {"x": model.example}
    client = _client.Client(port)
    request = _client.request(key, "x", model.example, binary=binary)
    status, body = client.ask(request)
    expected = session.run(["y"], feed)[0]
    assert status == 200, body
    if binary:
        assert np.allclose(np.frombuffer(body[-expected.nbytes :], "f4"), expected.ravel(), atol=1e-5)
    served: list[float] = []
    direct: list[float] = []
    for _ in range(blocks):
        direct += times(lambda: session.run(["y"], feed))
        served += times(lambda: client.ask(request))
    client.close()
    return statistics.median(served) * 1e6, statistics.median(direct) * 1e6


def cpu(model: _models.Model, facts: dict[str, Any]) -> dict[str, Any]:
    """CPU per request of all of the agent's processes, in turns with the model's own per call."""
    session = bare(model)
    feed = {"x": model.example}
    processes = [psutil.Process(pid) for pid in facts["pids"] + [facts["pid"]]]
    crowd = Crowd(facts["port"], CPU_CLIENTS)
    request = _client.request("tiny", "x", model.example)
    served, direct = [], []
    for _ in range(CPU_TURNS):
        before, began = _cpu_s(processes), time.perf_counter()
        rate = crowd.rate(request, CPU_S)
        requests = rate * (time.perf_counter() - began)
        served.append((_cpu_s(processes) - before) / requests * 1e6)
        began_cpu = time.process_time()
        for _ in range(20_000):
            session.run(["y"], feed)
        direct.append((time.process_time() - began_cpu) / 20_000 * 1e6)
    crowd.close()
    return _figure("scoring.cpu", statistics.median(served), statistics.median(direct), CPU_BAR, "us CPU per request")


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _figure(name: str, value: float, limit: float, bar: float, unit: str = "us p50") -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "limit": round(limit, 1),
        "ratio": round(value / limit, 3),
        "bar": bar,
        "ok": value / limit <= bar,
    }


def bare(model: _models.Model) -> Any:
    """The runtime alone, with the options that the agent's engine sets."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model.folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def times(work: Callable[[], Any]) -> list[float]:
    found = []
    for _ in range(BLOCK):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found
