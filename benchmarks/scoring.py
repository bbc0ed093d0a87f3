"""What the agent's HTTP costs: p50 of a scored request against ``session.run`` in this very process.

Both are measured in turns within one run, in blocks, since a core that sleeps between requests answers twice as slowly
as one that does not, whoever asks. The client is a plain socket, so that what is measured is the server.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _client, _models, _plane

BLOCK = 25
BARS = {"tiny": 8.0, "medium": 1.10}
BLOCKS = {"tiny": 120, "medium": 12}


def run() -> list[dict[str, Any]]:
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"tiny": _models.tiny(folder / "tiny"), "medium": _models.medium(folder / "medium")}
        with _plane.serving(folder, *models) as facts:
            for key, model in models.items():
                figures.append(measure(key, model, facts["port"]))
    return figures


def measure(key: str, model: _models.Model, port: int) -> dict[str, Any]:
    session = bare(model)
    feed = {"x": model.example}
    client = _client.Client(port)
    request = _client.request(key, "x", model.example)
    status, body = client.ask(request)
    expected = session.run(["y"], feed)[0]
    assert status == 200, body
    assert np.allclose(np.frombuffer(body[-expected.nbytes :], "f4"), expected.ravel(), atol=1e-5)
    served: list[float] = []
    direct: list[float] = []
    for _ in range(BLOCKS[key]):
        direct += times(lambda: session.run(["y"], feed))
        served += times(lambda: client.ask(request))
    client.close()
    value, limit = statistics.median(served) * 1e6, statistics.median(direct) * 1e6
    bar = BARS[key]
    return {
        "name": f"scoring.{key}",
        "value": round(value, 1),
        "unit": "us p50",
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
