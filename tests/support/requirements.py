"""What a test may need of the machine, and the one line that says how to get it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

HOW = {
    "mosquitto": "apt-get install mosquitto",
    "postgres": "apt-get install postgresql",
    "chromium": "apt-get install chromium",
    "pynq": "pip install -e '.[pynq]'",
}


def find(name: str) -> str | None:
    """Where the program or package is, or None."""
    if name == "mosquitto":
        return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if name == "postgres":
        folders = [
            *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
            *(Path(part) for part in os.environ.get("PATH", "").split(":")),
        ]
        return next((str(folder) for folder in folders if (folder / "initdb").exists()), None)
    if name == "chromium":
        return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return name if importlib.util.find_spec(name) else None


def need(name: str) -> str:
    """The thing's place; without it the test is skipped, or fails where ``SKERRY_REQUIRE_ALL=1``."""
    place = find(name)
    if place is None:
        line = f"{name} is not on this machine; get it with: {HOW[name]}"
        if os.environ.get("SKERRY_REQUIRE_ALL") == "1":
            pytest.fail(line)
        pytest.skip(line)
    return place
