"""The simulated board, fresh for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.parts import built
from support.requirements import need


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """This process's simulated board, without faults; after the test no buffer may be left on it."""
    need("pynq")
    from skerry_agent.engines.pynq import ENGINE

    monkeypatch.setenv("SKERRY_PYNQ_DEVICE", "skerry_simulators.fpga.device")
    ENGINE.preload()
    from skerry_simulators.fpga import device

    found = device.board()
    found.faults.clear()
    yield found
    found.faults.clear()
    assert found.memory.buffers == 0, "a buffer was not given back"


@pytest.fixture
def overlay() -> Path:
    """The folder of a good overlay module; do not change what is in it."""
    need("pynq")
    return built("digits-fpga", quality="better")[0]
