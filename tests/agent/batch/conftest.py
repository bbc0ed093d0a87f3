"""A data plane in this process, models, and the command as a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.serving.harness import Running
from agent.serving.models import linear_module, python_module
from skerry_agent.serving.settings import ServingSettings

# Doubles; refuses a row whose first value is -666, and dies of one that is -777.
PICKY = """
import os, time
import numpy as np
def run(inputs):
    x = inputs["x"]
    if (x[:, 0] == -777).any():
        os.kill(os.getpid(), 11)
    if (x[:, 0] == -666).any():
        raise ValueError("the devil is in the data")
    if {log!r}:
        with open({log!r}, "a") as file:
            file.write("".join(f"{{int(value)}}\\n" for value in x[:, 0]))
    time.sleep({seconds} * len(x))
    return {{"y": x.sum(axis=1) * 2}}
"""


def picky(folder: Path, *, name: str = "picky", seconds: float = 0.0, log: Path | None = None) -> Any:
    return python_module(folder, PICKY.format(seconds=seconds, log=str(log or "")), name=name)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("plane")
    one = Running(
        ServingSettings(http="127.0.0.1:0", socket=str(folder / "s.sock"), cache=str(folder / "cache"), report_s=0.1)
    )
    one.serve(linear_module(folder / "linear"))
    one.serve(picky(folder / "picky"))
    yield one
    one.close()


class Command:
    """``skerry-agent batch`` on a plane."""

    def __init__(self, plane: Running) -> None:
        self.url = f"unix:{plane.plane.settings.socket}"

    def arguments(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "skerry_agent.cli", "batch", *map(str, arguments), "--url", self.url]

    def __call__(self, *arguments: str | Path, code: int = 0, env: dict[str, str] | None = None) -> Any:
        """The summary; or, for a code other than 0, the text on stderr."""
        done = subprocess.run(
            [*self.arguments(*arguments), "--json"], capture_output=True, text=True, timeout=90, check=False, env=env
        )
        assert done.returncode == code, done.stderr
        return done.stderr if code else json.loads(done.stdout)


@pytest.fixture
def batch(plane: Running) -> Command:
    return Command(plane)


def csv_of(path: Path, rows: np.ndarray[Any, Any], header: str = "id,a,b,c,d") -> Path:
    """Rows with their number in front."""
    lines = [header] if header else []
    lines += [f"r{number}," + ",".join(f"{value:.9g}" for value in row) for number, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Planes of a test's own."""
    running: list[Running] = []

    def make(**settings: Any) -> Running:
        chosen = {"http": "127.0.0.1:0", "socket": str(tmp_path / "s.sock"), "cache": str(tmp_path / "cache")}
        running.append(Running(ServingSettings(**chosen | settings)))
        return running[-1]

    yield make
    for one in running:
        if not one.loop.is_closed():  # a test may have closed it itself
            one.close()
