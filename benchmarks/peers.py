"""The agent's data plane beside MLServer (default, and in one process), BentoML and LitServe, in one interleaved run.

All serve the same ONNX file with the same ONNX Runtime options, one thread, one worker where that is to be chosen, and
are asked in JSON, which all of them speak: the Open Inference Protocol where the peer has it, its own form elsewhere.
Only one is asked at a time, in short turns, while the processes of the others are stopped: some are never idle. Each
peer lives in an environment of its own under a cache folder (``$XDG_CACHE_HOME/skerry-bench``), made at the first run;
one that cannot be installed is left out, and said so.

Two rows beside them have no bar: ours asked with binary tensors, its usual way, which the others do not take over HTTP;
and a bare ``session.run`` of the larger model in the same turns, which is what no server can go below.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import _client, _models

HERE = Path(__file__).with_name("_peers")
PACKAGES = {
    # MLServer's worker processes do not start with uvloop 0.22.
    "mlserver": ("mlserver==1.7.1", "uvloop<0.22"),
    "bentoml": ("bentoml==1.4.39",),
    "litserve": ("litserve==0.2.19",),
}
RUNTIME = "onnxruntime==1.31.1"
OURS = "skerry"
CLIENTS = 8
START_LIMIT_S = 90.0
AWAKE_S = 0.2  # after a stop: timers that fell due meanwhile are done with
FIRST = 40
"""Requests of each connection that are not measured: a client that stays is measured, not one that has just come."""
PLAN = {  # turns, requests a turn of one client, seconds a turn of many
    "tiny": (6, 60, 0.7),
    "medium": (4, 20, 1.0),
}


def run() -> list[dict[str, Any]]:
    homes = environments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"tiny": _models.tiny(folder / "tiny"), "medium": _models.medium(folder / "medium")}
        found = {key: measure(key, model, homes, folder) for key, model in models.items()}
    for key, results in found.items():
        for server, one in results.items():
            print(
                f"  {key:6} {server:17} p50 {one['p50'] * 1e6:8.0f} us  {one['rate']:7.0f}/s at {CLIENTS} clients  "
                f"{one['pss']:6.0f} MB PSS  start {one['start']:5.2f} s",
                file=sys.stderr,
            )
    tiny, medium = found["tiny"], found["medium"]
    return [
        _figure("peers.tiny.p50", tiny, "p50", 1e6, "us p50", 1 / 3),
        _figure("peers.tiny.rate", tiny, "rate", 1, "requests/s", 7.0),
        _figure("peers.medium.p50", medium, "p50", 1e6, "us p50", 1 / 1.3),
        _beside("peers.tiny.p50-binary", tiny, "binary"),
        _beside("peers.medium.p50-binary", medium, "binary"),
        _beside("peers.medium.bare", medium, "bare"),
        _figure("peers.memory", tiny, "pss", 1, "MB PSS", 1.0),
        _figure("peers.start", tiny, "start", 1, "s from exec to a score", 1.0),
    ]


def _figure(
    name: str, found: dict[str, dict[str, float]], what: str, scale: float, unit: str, bar: float
) -> dict[str, Any]:
    """Against the best of the peers; ``bar`` is that of ours divided by theirs: at least for rates, else at most."""
    ours = found[OURS][what]
    others = {server: one[what] for server, one in found.items() if server != OURS}
    more = what == "rate"
    best = (max if more else min)(others, key=lambda server: others[server])
    ratio = ours / others[best]
    return {
        "name": name,
        "value": round(ours * scale, 2),
        "unit": f"{unit}; limit: {best}",
        "limit": round(others[best] * scale, 2),
        "ratio": round(ratio, 3),
        "bar": round(bar, 3),
        "ok": ratio >= bar if more else ratio <= bar,
    }


def _beside(name: str, found: dict[str, dict[str, float]], what: str) -> dict[str, Any]:
    """What ours could do otherwise, or the model alone, against the best peer's p50: told, not judged."""
    best = min((server for server in found if server != OURS), key=lambda server: found[server]["p50"])
    value, limit = found[OURS][what] * 1e6, found[best]["p50"] * 1e6
    return {
        "name": name,
        "value": round(value, 2),
        "unit": f"us p50; limit: {best}",
        "limit": round(limit, 2),
        "ratio": round(value / limit, 3),
        "bar": None,
        "ok": True,
    }


# -- environments


def environments() -> dict[str, Path]:
    """The python of each peer that is installed, or can be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skerry-bench" / "peers"
    found = {}
    for name, packages in PACKAGES.items():
        home = cache / name
        python = home / "bin" / "python"
        if not python.exists() and not install(home, packages):
            continue
        found[name] = python
    if not found:
        raise SystemExit("cannot measure: no peer could be installed")
    return found


def install(home: Path, packages: tuple[str, ...]) -> bool:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    print(f"  installing {packages[0]} into {home}", file=sys.stderr)
    home.parent.mkdir(parents=True, exist_ok=True)
    steps = (
        [uv, "venv", "-q", "--python", sys.executable, str(home)],
        [uv, "pip", "install", "-q", "--python", str(home / "bin" / "python"), *packages, RUNTIME],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  {packages[0]} is left out, it does not install: {done.stderr[-300:]}", file=sys.stderr)
            shutil.rmtree(home, ignore_errors=True)
            return False
    return True


# -- servers


class Server:
    """A running server and how it is asked."""

    def __init__(self, name: str, process: subprocess.Popen[str], port: int, request: bytes) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.request = request
        self.start = 0.0

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def pss(self) -> float:
        return float(sum(one.memory_full_info().pss for one in self.processes())) / 1e6

    def stop(self) -> None:
        for one in self.processes():
            one.suspend()

    def go_on(self) -> None:
        for one in self.processes():
            one.resume()


@contextlib.contextmanager
def running(name: str, command: list[str], port: int, request: bytes, folder: Path, **more: str) -> Iterator[Server]:
    """Start a server and wait for its first answer."""
    with (folder / f"{name}.log").open("w") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", **more},
            start_new_session=True,
        )
        server = Server(name, process, port, request)
        try:
            while not answers(server):
                if process.poll() is not None or time.perf_counter() - began > START_LIMIT_S:
                    raise SystemExit(
                        f"cannot measure: {name} did not start: {(folder / f'{name}.log').read_text()[-2000:]}"
                    )
                time.sleep(0.005)
            server.start = time.perf_counter() - began
            yield server
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """With all of its children: some start theirs in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for one in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def answers(server: Server) -> bool:
    try:
        connection = Connection(server.port)
    except OSError:
        return False
    try:
        connection.sock.sendall(server.request)
        return connection.wait() == 200
    except OSError:
        return False
    finally:
        connection.sock.close()


def servers(key: str, model: _models.Model, homes: dict[str, Path], folder: Path) -> dict[str, Callable[[], Any]]:
    """How each is started."""
    oip = _client.request(key, "x", model.example, binary=False)
    plain = json.dumps({"x": model.example.tolist()}).encode()
    file = str(model.folder / "model.onnx")
    port = free_port()
    own = [sys.executable, "-m", "benchmarks.peers", str(folder), key, str(port)]
    root = str(Path(__file__).parents[1])
    found: dict[str, Callable[[], Any]] = {OURS: lambda: running(OURS, own, port, oip, folder, PYTHONPATH=root)}
    if python := homes.get("mlserver"):
        for name, workers in (("mlserver", None), ("mlserver-1-process", 0)):
            found[name] = _mlserver(name, python, key, file, workers, oip, folder)
    if python := homes.get("bentoml"):
        bento = free_port()
        command = [str(python.with_name("bentoml")), "serve", "bento_service:Scorer", "--port", str(bento)]
        command += ["--host", "127.0.0.1", "--working-dir", str(HERE)]
        more = {"MODEL": file, "BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(folder / "bento")}
        found["bentoml"] = lambda: running("bentoml", command, bento, post("/infer", plain), folder, **more)
    if python := homes.get("litserve"):
        lit = free_port()
        started = [str(python), str(HERE / "lit_server.py"), file, str(lit)]
        found["litserve"] = lambda: running("litserve", started, lit, post("/predict", plain), folder)
    return found


def _mlserver(
    name: str, python: Path, key: str, file: str, workers: int | None, request: bytes, folder: Path
) -> Callable[[], Any]:
    home = folder / f"{name}-{key}"
    home.mkdir()
    port = free_port()
    settings: dict[str, Any] = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port()}
    settings["metrics_port"] = free_port()
    if workers is not None:
        settings["parallel_workers"] = workers
    (home / "settings.json").write_text(json.dumps(settings))
    model = {"name": key, "implementation": "runtime.OnnxRuntime", "parameters": {"uri": file}}
    (home / "model-settings.json").write_text(json.dumps(model))
    command = [str(python.with_name("mlserver")), "start", str(home)]
    return lambda: running(name, command, port, request, folder)


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- measuring


class Connection:
    """One keep-alive connection; takes answers in however many pieces they come."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def take(self) -> int:
        """Read once; the status if an answer is whole, else 0."""
        got = self.sock.recv(262144)
        if not got:
            raise ConnectionResetError("the server closed the connection")
        self._data += got
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        head = self._data[:end].lower()
        start = head.index(b"\r\ncontent-length: ") + 18
        stop = head.find(b"\r\n", start)
        length = int(head[start : stop if stop >= 0 else end])
        if len(self._data) < end + 4 + length:
            return 0
        status = int(self._data[9:12])
        self._data = b""
        return status

    def wait(self) -> int:
        while not (status := self.take()):
            pass
        return status


def measure(key: str, model: _models.Model, homes: dict[str, Path], folder: Path) -> dict[str, dict[str, float]]:
    turns, block, seconds = PLAN[key]
    with contextlib.ExitStack() as stack:
        up = [stack.enter_context(start()) for start in servers(key, model, homes, folder).values()]
        times: dict[str, list[float]] = {server.name: [] for server in up}
        rates: dict[str, list[float]] = {server.name: [] for server in up}
        for server in up:
            settle(server)
        pss = {server.name: server.pss() for server in up}
        ours = next(server for server in up if server.name == OURS)
        binary = _client.request(key, "x", model.example)
        run_bare = bare(model)
        beside: dict[str, list[float]] = {"binary": [], "bare": []}
        for server in up:
            server.stop()
        for turn in range(turns):
            for server in up if turn % 2 else reversed(up):
                server.go_on()
                time.sleep(AWAKE_S)
                times[server.name] += one_by_one(server, server.request, block)
                rates[server.name].append(rate(server, seconds))
                if server is ours:
                    beside["binary"] += one_by_one(server, binary, block)
                server.stop()
            beside["bare"] += run_bare(block)
        return {
            server.name: {
                "p50": statistics.median(times[server.name]),
                "rate": statistics.median(rates[server.name]),
                "pss": pss[server.name],
                "start": server.start,
                **({what: statistics.median(found) for what, found in beside.items()} if server is ours else {}),
            }
            for server in up
        }


def bare(model: _models.Model) -> Callable[[int], list[float]]:
    """Times the model alone in this process, one thread as all servers have."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model.folder / "model.onnx"), options, ["CPUExecutionProvider"])

    def take(count: int) -> list[float]:
        found = []
        for _ in range(count + 5):
            began = time.perf_counter()
            session.run(None, {"x": model.example})
            found.append(time.perf_counter() - began)
        return found[5:]

    return take


def settle(server: Server) -> None:
    """Until it takes many clients at once: some close connections while their workers still start."""
    for attempt in range(5):
        try:
            rate(server, 0.3)
        except ConnectionError:
            if attempt == 4:
                raise SystemExit(f"cannot measure: {server.name} closes its connections") from None
            time.sleep(2)
        else:
            return


def one_by_one(server: Server, request: bytes, count: int) -> list[float]:
    connection = Connection(server.port)
    found = []
    for _ in range(FIRST + count):
        began = time.perf_counter()
        connection.sock.sendall(request)
        status = connection.wait()
        found.append(time.perf_counter() - began)
        assert status == 200, (server.name, status)
    connection.sock.close()
    return found[FIRST:]


def rate(server: Server, seconds: float) -> float:
    """Answers per second at :data:`CLIENTS` clients, in one thread."""
    connections = [Connection(server.port) for _ in range(CLIENTS)]
    with selectors.EpollSelector() as selector:
        for connection in connections:
            selector.register(connection.sock, selectors.EVENT_READ, connection)
            connection.sock.sendall(server.request)
        began = time.perf_counter()
        end, done, asking = began + seconds, 0, len(connections)
        while asking:
            for entry, _ in selector.select(60):
                status = entry.data.take()
                if not status:
                    continue
                assert status == 200, (server.name, status)
                done += 1
                if time.perf_counter() < end:
                    entry.data.sock.sendall(server.request)
                else:
                    asking -= 1
        took = time.perf_counter() - began
    for connection in connections:
        connection.sock.close()
    return done / took


async def serve(folder: Path, key: str, port: int) -> None:
    """Our own server: the agent's data plane with one module."""
    import asyncio

    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules.manifest import parse
    from skerry_modules.messages import Route

    manifest = parse((folder / key / "module.toml").read_text())
    plane = Plane(ServingSettings(http=f"127.0.0.1:{port}", cache=str(folder / "cache")))
    await plane.start()
    await plane.load(key, folder / key, manifest, 1, _models.LIMITS)
    plane.set_routes(key, (Route(module=key, version=1),), (key,))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await plane.stop()


if __name__ == "__main__":
    from skerry_agent.serving.plane import run as run_loop

    run_loop(serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
