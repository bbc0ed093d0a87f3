"""A package index that is a folder, and modules that name packages of it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from skerry_modules import profiles

from . import wheels

HERE = platform.machine()
PYTHON = ".".join(platform.python_version_tuple()[:2])
SCRIPT = """
import numpy as np
import greeting

def run(inputs):
    return {"y": inputs["x"].sum(axis=1) * greeting.FACTOR}
"""
MANIFEST = """
format = 1
name = "{name}"
engine = "python"
model = "main.py"
{more}

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1]

[resources]
memory_mb = 200

[targets]
profiles = [{profiles}]

[environment]
{environment}
"""

MakeModule = Callable[..., Path]


def here() -> str:
    """A shipped profile that the machine of the tests is like."""
    return {"x86_64": "generic-x86_64", "aarch64": "generic-aarch64"}[HERE]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package index; pip is told of no other, and wheels are kept apart from the user's."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SKERRY_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def stocked(index: Path) -> Path:
    """An index with a pure package that needs one for a platform."""
    wheels.build(
        index, "greeting", "1.0", {"greeting/__init__.py": "from base_part import FACTOR\n"}, requires=["base_part"]
    )
    for machine in ("x86_64", "aarch64"):
        digits = PYTHON.replace(".", "")
        tag = f"cp{digits}-cp{digits}-manylinux_2_17_{machine}"
        wheels.build(index, "base_part", "2.1", {"base_part.py": "FACTOR = 3.0\n"}, tag=tag)
    return index


@pytest.fixture
def make_module(tmp_path: Path) -> MakeModule:
    """Write a module's folder."""

    def make(
        name: str = "scorer",
        requirements: Sequence[str] = ("greeting==1.0",),
        *,
        targets: Sequence[str] | None = None,
        script: str = SCRIPT,
        use: str = "",
        more: str = "",
        environment: str = "",
    ) -> Path:
        folder = tmp_path / "modules" / name
        folder.mkdir(parents=True, exist_ok=True)
        lines = f'use = "{use}"' if use else f"requirements = {list(requirements)!r}\npython = ['{PYTHON}']"
        text = MANIFEST.format(
            name=name,
            more=more,
            profiles=", ".join(f'"{one}"' for one in (targets if targets is not None else [here()])),
            environment=f"{lines}\n{environment}".strip(),
        )
        (folder / "module.toml").write_text(text)
        (folder / "main.py").write_text(script)
        return folder

    return make


@pytest.fixture
def profile() -> profiles.Profile:
    return profiles.get(here())
