"""Real modules, packages and hubs for the tests of the hub's core."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from skerry_hub.app import Hub, create_app
from skerry_hub.server import Server
from skerry_hub.settings import Settings
from skerry_modules import package, trust
from support.processes import wait_until

MANIFEST = """
format = 1
name = "{name}"
engine = "{engine}"
model = "{model}"
release = "{release}"
[tags]
kind = "test"
[[inputs]]
name = "x"
datatype = "{datatype}"
shape = {shape}
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 3]
"""


def module_folder(
    folder: Path,
    *,
    name: str = "digits",
    release: str = "1",
    engine: str = "python",
    datatype: str = "FP32",
    shape: str = "[-1, 4]",
) -> Path:
    """A module's folder with a model that is really of its engine."""
    folder.mkdir(parents=True)
    model = "model.onnx" if engine == "onnx" else "main.py"
    (folder / "module.toml").write_text(
        MANIFEST.format(name=name, engine=engine, model=model, release=release, datatype=datatype, shape=shape)
    )
    if engine == "onnx":
        (folder / model).write_bytes(onnx_model())
    else:
        (folder / model).write_text("def init():\n    pass\n\n\ndef run(inputs):\n    return inputs\n")
    (folder / "data").mkdir()
    (folder / "data" / "labels.txt").write_text("a\nb\nc\n")
    return folder


PIPELINE = """
format = 1
name = "digits"
engine = "pipeline"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 3]
from = "net.y"
[[steps]]
name = "plain"
engine = "python"
model = "steps/plain.py"
from = {x = "input.x"}
[[steps.inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[steps.outputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[steps]]
name = "net"
engine = "onnx"
model = "steps/net.onnx"
from = {x = "plain.x"}
[[steps.inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]
[[steps.outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 3]
"""


def pipeline_folder(folder: Path) -> Path:
    """A script and a model, one after the other."""
    (folder / "steps").mkdir(parents=True)
    (folder / "module.toml").write_text(PIPELINE)
    (folder / "steps" / "plain.py").write_text("def run(inputs):\n    return inputs\n")
    (folder / "steps" / "net.onnx").write_bytes(onnx_model())
    return folder


def onnx_model() -> bytes:
    """A tiny dense layer: x FP32 [-1, 4] → y FP32 [-1, 3]."""
    weights = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def packed(folder: Path, key: trust.SigningKey | None, **shape: str) -> bytes:
    """A package's bytes, packed from a new folder."""
    target = folder.with_suffix(".skerry")
    return package.write_package(module_folder(folder, **shape), target, key).path.read_bytes()


@contextlib.asynccontextmanager
async def in_process(settings: Settings) -> AsyncIterator[tuple[Hub, httpx.AsyncClient]]:
    """A started hub and a client that speaks to it without a socket."""
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        yield app.state.hub, client


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[tuple[Hub, str]]:
    """A hub behind a real uvicorn on a free port; yields it and its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(settings, lambda _: None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="hub")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), what="the hub to serve")
        if server.hub.failure:
            raise server.hub.failure
        yield server.hub, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "the hub did not stop"
