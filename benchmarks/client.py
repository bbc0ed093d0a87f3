"""What the scoring client costs: p50 of ``skerry.Endpoint`` against the standard library's and httpx's HTTP clients.

All send the same binary body to the same data plane and make arrays of the answer, in turns within one run. The limit
is the bare runtime in this process.
"""

from __future__ import annotations

import http.client
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import skerry
from benchmarks import _models, _plane
from benchmarks.scoring import bare, times
from skerry_modules import oip
from skerry_modules.arrays import from_piece, to_piece

BLOCKS = {"tiny": 20, "medium": 3}
IN_TURN = 4
"""Blocks of one way in a row: a client that asks on alone is what is measured, not one that takes turns with others."""
BARS = {"tiny": 1.0, "medium": 1.15}


def run() -> list[dict[str, Any]]:
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"tiny": _models.tiny(folder / "tiny"), "medium": _models.medium(folder / "medium")}
        with _plane.serving(folder, *models) as facts:
            for key, model in models.items():
                figures += measure(key, model, facts)
    return figures


def measure(key: str, model: _models.Model, facts: dict[str, Any]) -> list[dict[str, Any]]:
    session = bare(model)
    feed = {"x": model.example}
    url = f"http://127.0.0.1:{facts['port']}"
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: session.run(["y"], feed)[0],
        "tcp": endpoint(url, key, feed),
        "unix": endpoint(f"unix:{facts['socket']}", key, feed),
        "http.client": standard(facts["port"], key, feed),
        "httpx": with_httpx(url, key, feed),
    }
    expected = ways["bare"]()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():
        assert np.allclose(way(), expected, atol=1e-5), name
    for _ in range(BLOCKS[key]):
        for name, way in ways.items():
            for _ in range(IN_TURN):
                found[name] += times(way)
    p50 = {name: statistics.median(values) * 1e6 for name, values in found.items()}
    best = min(p50["http.client"], p50["httpx"])
    return [
        {
            "name": f"client.{key}.{name}",
            "value": round(value, 1),
            "unit": "us p50",
            "limit": round(p50["bare"], 1),
            "ratio": round(value / p50["bare"], 3),
            "bar": round(best / p50["bare"] * BARS[key], 3),
            "ok": value <= best * BARS[key] or name in ("http.client", "httpx"),
        }
        for name, value in p50.items()
        if name != "bare"
    ]


def endpoint(url: str, name: str, feed: dict[str, Any]) -> Callable[[], Any]:
    client = skerry.Endpoint(url, name)
    return lambda: client.score(feed)["y"]


def body_of(feed: dict[str, Any], bodies: oip.Bodies) -> tuple[bytes, int]:
    pieces = {name: to_piece(array) for name, array in feed.items()}
    head = bodies.request(pieces)
    return b"".join((head, *(piece.data for piece in pieces.values()))), len(head)


def standard(port: int, name: str, feed: dict[str, Any]) -> Callable[[], Any]:
    connection, bodies = http.client.HTTPConnection("127.0.0.1", port), oip.Bodies()

    def ask() -> Any:
        body, head = body_of(feed, bodies)
        connection.request("POST", oip.path(name, None, "infer"), body, {"Inference-Header-Content-Length": str(head)})
        response = connection.getresponse()
        data = bytearray(response.read())
        answer = bodies.answer(int(response.headers["Inference-Header-Content-Length"]), data)
        return from_piece("y", answer.outputs["y"])

    return ask


def with_httpx(url: str, name: str, feed: dict[str, Any]) -> Callable[[], Any]:
    client, bodies = httpx.Client(base_url=url), oip.Bodies()

    def ask() -> Any:
        body, head = body_of(feed, bodies)
        headers = {"Inference-Header-Content-Length": str(head)}
        response = client.post(oip.path(name, None, "infer"), content=body, headers=headers)
        answer = bodies.answer(int(response.headers["Inference-Header-Content-Length"]), bytearray(response.content))
        return from_piece("y", answer.outputs["y"])

    return ask
