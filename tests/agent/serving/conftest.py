"""Data planes for the tests: real processes, real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skerry_agent.serving.settings import ServingSettings

from .harness import Running

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start planes with the settings given; they are stopped at the end."""
    running: list[Running] = []

    def make(loop_factory: Any = None, **settings: Any) -> Running:
        chosen = {"http": "127.0.0.1:0", "cache": str(tmp_path / "cache"), "report_s": 0.1, **settings}
        running.append(Running(ServingSettings(**chosen), loop_factory))
        return running[-1]

    yield make
    for one in running:
        one.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One plane for a whole file, for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("plane")
    one = Running(
        ServingSettings(
            http="127.0.0.1:0", socket=str(folder / "s.sock"), cache=str(folder / "cache"), report_s=0.1, sweep_s=0.05
        )
    )
    yield one
    one.close()
