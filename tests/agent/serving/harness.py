"""A real data plane in a thread of its own, and the plainest clients for it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import numpy as np

from skerry_agent.serving.plane import Plane
from skerry_agent.serving.settings import ServingSettings
from skerry_modules.messages import Route, Sample
from skerry_modules.tensors import datatype_of

from .models import LIMITS, Module

T = TypeVar("T")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.headers.get("x-skerry-code", "")


class Running:
    """Everything awaitable runs on the plane's own loop, in its own thread."""

    def __init__(self, settings: ServingSettings, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None):
        self.exits: list[tuple[str, str, bool]] = []
        self.samples: list[Sample] = []
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._settings = settings
        self._factory = loop_factory
        self._thread = threading.Thread(target=self._main)
        self._thread.start()
        self._ready.wait(30)
        if self._error is not None:
            self._thread.join()
            raise self._error

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=self._factory) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                self._error = error
                self._ready.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.plane = Plane(self._settings)
        self.plane.on_exit = lambda *what: self.exits.append(what)
        self.plane.on_sample = lambda _, sample: self.samples.append(sample)
        await self.plane.start()
        self._ready.set()
        await self._stop.wait()
        await self.plane.stop()

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def do(self, work: Callable[[], T]) -> T:
        """Run a plain function on the loop."""

        async def wrapped() -> T:
            return work()

        return self.call(wrapped())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    # -- what tests do often

    def load(self, module: Module) -> dict[str, Any]:
        return self.call(self.plane.load(module.digest, module.folder, module.manifest, module.version, LIMITS))

    def route(self, endpoint: str, *shares: tuple[Module, float]) -> None:
        routes = tuple(Route(module=m.manifest.name, version=m.version, percent=percent) for m, percent in shares)
        digests = tuple(module.digest for module, _ in shares)
        self.do(lambda: self.plane.set_routes(endpoint, routes, digests))

    def serve(self, module: Module, endpoint: str = "") -> Module:
        self.load(module)
        self.route(endpoint or module.manifest.name, (module, 100.0))
        return module

    def unload(self, module: Module) -> None:
        self.call(self.plane.unload(module.digest))

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30.0
    ) -> Answer:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.plane.port, timeout=timeout)
        try:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def score(self, name: str, x: Any, timeout: float = 30.0, headers: dict[str, str] | None = None) -> Answer:
        """JSON in and out, input ``x`` as FP32."""
        array = np.asarray(x, dtype="f4")
        return self.ask("POST", f"/v2/models/{name}/infer", json_request({"x": array}), headers, timeout)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.plane.port), timeout=20)


def json_request(arrays: dict[str, np.ndarray[Any, Any]], **more: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype_of(array.dtype),
                "data": array.ravel().tolist(),
            }
            for name, array in arrays.items()
        ],
        **more,
    }


def binary_request(arrays: dict[str, np.ndarray[Any, Any]], **more: Any) -> tuple[bytes, dict[str, str]]:
    """(body, headers) with every input in binary."""
    inputs, parts = [], []
    for name, array in arrays.items():
        data = array.tobytes()
        parts.append(data)
        inputs.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype_of(array.dtype),
                "parameters": {"binary_data_size": len(data)},
            }
        )
    head = json.dumps({"inputs": inputs, **more}).encode()
    return b"".join((head, *parts)), {"Inference-Header-Content-Length": str(len(head))}


def read_answers(sock: socket.socket, count: int) -> list[Answer]:
    """So many answers from one connection, in order; fewer if it is closed."""
    found: list[Answer] = []
    data = b""
    while len(found) < count:
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            lines = data[:end].decode().split("\r\n")
            headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:])}
            size = end + 4 + int(headers.get("content-length", "0"))
            if len(data) >= size:
                found.append(Answer(int(lines[0].split()[1]), headers, data[end + 4 : size]))
                data = data[size:]
                continue
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            break
        if not more:
            break
        data += more
    return found
