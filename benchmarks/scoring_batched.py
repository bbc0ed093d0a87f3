"""What scoring waiting requests together brings: one tiny model twice in one agent, with batching and without.

Throughput at sixteen clients and p50 of a single client, each measured in turns of the two versions within one run. The
sixteen clients are sockets of one process that asks again as soon as an answer is there, so that the clients cost as
little of the machine as they can. What the clients cost is measured in neither version's favour: it is in both.
"""

from __future__ import annotations

import select
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _client, _models, _plane

CLIENTS = 16
TURNS = 14
TURN_S = 0.5
BLOCK = 100
BLOCKS = 30
MORE = 1.6
SLOWER = 1.05


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = _models.tiny(folder / "plain")
        _models.batched(_models.tiny(folder / "batched"), 32)
        with _plane.serving(folder, "plain", "batched") as facts:
            asked = {key: _client.request(key, "x", plain.example) for key in ("plain", "batched")}
            crowd = Crowd(facts["port"])
            rates: dict[str, list[float]] = {"plain": [], "batched": []}
            for turn in range(TURNS):
                for key in ("plain", "batched") if turn % 2 else ("batched", "plain"):
                    rates[key].append(crowd.rate(asked[key], TURN_S))
            crowd.close()
            alone = one_by_one(facts["port"], asked)
    more = statistics.median(b / p for b, p in zip(rates["batched"], rates["plain"], strict=True))
    slower = alone["batched"] / alone["plain"]
    return [
        {
            "name": "scoring-batched.throughput",
            "value": round(statistics.median(rates["batched"])),
            "unit": f"requests/s at {CLIENTS} clients",
            "limit": round(statistics.median(rates["plain"])),
            "ratio": round(more, 3),
            "bar": MORE,
            "ok": more >= MORE,
        },
        {
            "name": "scoring-batched.alone",
            "value": round(alone["batched"] * 1e6, 1),
            "unit": "us p50",
            "limit": round(alone["plain"] * 1e6, 1),
            "ratio": round(slower, 3),
            "bar": SLOWER,
            "ok": slower <= SLOWER,
        },
    ]


class Crowd:
    """Sockets that each ask again as soon as they are answered, in one thread, with as few calls as can be."""

    def __init__(self, port: int, count: int = CLIENTS) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), timeout=30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)  # with a timeout, Python asks the kernel before each call whether it would wait
            self._sockets[sock.fileno()] = sock
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def rate(self, request: bytes, seconds: float) -> float:
        """Requests per second that are answered. Each answer must come whole in one receive, as small ones do."""
        poll, now = self._epoll.poll, time.perf_counter
        clients = {fd: (sock.recv, sock.send) for fd, sock in self._sockets.items()}
        done, asking = 0, len(clients)
        for _, send in clients.values():
            send(request)
        began = now()
        end = began + seconds
        while asking:
            ready = poll(10)
            more = now() < end
            for fd, _ in ready:
                receive, send = clients[fd]
                data = receive(65536)
                if not data.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(f"cannot measure: the agent answered {data[:300]!r}")
                if more:
                    send(request)
            done += len(ready)
            if not more:
                asking -= len(ready)
        return done / (now() - began)

    def close(self) -> None:
        self._epoll.close()
        for sock in self._sockets.values():
            sock.close()


def one_by_one(port: int, asked: dict[str, bytes]) -> dict[str, float]:
    """p50 of a single client in seconds, by version, in turns."""
    client = _client.Client(port)
    times: dict[str, list[float]] = {key: [] for key in asked}
    for _ in range(BLOCKS):
        for key, request in asked.items():
            for _ in range(BLOCK):
                began = time.perf_counter()
                status, body = client.ask(request)
                times[key].append(time.perf_counter() - began)
                assert status == 200, body
    client.close()
    return {key: statistics.median(found) for key, found in times.items()}
