"""A real hub in a process of its own, a home of one's own, and the command line in this process."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from skerry.client import Client
from skerry_modules.errors import SkerryError
from support import processes


def make_model(path: Path, *, rows: Any = "N", seed: int = 0) -> Path:
    """A real ONNX model: y = relu(x · w), shape (rows, 4) to (rows, 3)."""
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 3])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weights]), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 9
    path.write_bytes(made.SerializeToString())
    return path


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[str]:
    """``skerry-hub serve`` until it answers; its URL."""
    arguments = ["-m", "skerry_hub.cli", "serve", "--data", str(folder / "hub"), "--port", "0"]
    with (folder / "hub.log").open("wb") as log:
        hub = subprocess.Popen([sys.executable, *arguments, "--broker-port", "0", *flags], stdout=log, stderr=log)
    url = ""

    def answers() -> bool:
        nonlocal url
        said = (folder / "hub.log").read_text()
        assert hub.poll() is None, said
        found = re.search(r"^Console\s+(\S+)$", said, re.MULTILINE)
        if not found:
            return False
        url = found[1]
        with contextlib.suppress(SkerryError), Client(url, token="test-secret-of-the-hub") as client:
            return client.status().broker_connected
        return False

    try:
        processes.wait_until(answers, what="the hub to serve", seconds=60)
        yield url
    finally:
        processes.stop(hub)


@pytest.fixture(scope="session")
def hub_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("hub")) as url:
        yield url


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this test session's signing keys stand: the hub trusts the default one as its first publisher."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def own_place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder and a home that are nobody else's."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    for name in ("SKERRY_URL", "SKERRY_TOKEN", "SKERRY_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(hub_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("SKERRY_URL", hub_url)
    with Client(hub_url, actor="tester") as client:
        yield client


class Said(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, in this process (a process of its own is in ``test_command.py``)."""
    from skerry.cli import app

    def call(*arguments: str | Path, code: int = 0) -> Said:
        capfdbinary.readouterr()
        monkeypatch.setattr(sys, "argv", ["skerry", *map(str, arguments)])
        ended = 0
        try:
            app.main()
        except SystemExit as exit_:
            ended = int(exit_.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        said = Said(ended, out.decode(), err.decode())
        assert ended == code, said
        return said

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model.onnx")
