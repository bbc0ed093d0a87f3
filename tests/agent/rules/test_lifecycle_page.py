"""The page of the lifecycle is drawn from its table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "lifecycle-diagram.py"


def test_the_page_says_what_the_table_says() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], check=False)
    assert done.returncode == 0, "docs/lifecycle.md is out of date: run scripts/lifecycle-diagram.py"
