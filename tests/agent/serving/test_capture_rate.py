"""What is kept at random is kept at the rate that was asked for, row by row, however requests come."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.serving.observe import Observer

from .models import linear_module


@pytest.mark.parametrize("rows", [1, 5])
def test_the_share_of_rows_kept_is_the_rate(tmp_path: Path, rows: int) -> None:
    """4,000 rows at 10 %: the seed is fixed, the bounds are ten standard deviations wide."""
    module = linear_module(tmp_path / "m", tail="[capture]\nrate = 0.1\nmax_per_minute = 100000\n")
    observer = Observer(module.manifest, module.folder, digest="d", version=1, one_in=4)
    random.seed(3)
    inputs, outputs = {"x": np.ones((rows, 4), "f4")}, {"y": np.ones((rows, 3), "f4")}
    kept = sum(len(observer.note(inputs, outputs, rows, b"e")) for _ in range(4000 // rows))
    assert 210 < kept < 590
