"""The example modules, built once per test session."""

from __future__ import annotations

import importlib.util
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from skerry_modules import manifest
from skerry_modules.manifest import Manifest

HERE = Path(__file__).parents[2] / "modules" / "examples"


@cache
def script(name: str) -> ModuleType:
    """An example's ``train.py`` as a module, as the demo imports it."""
    spec = importlib.util.spec_from_file_location(f"train_{name.replace('-', '_')}", HERE / name / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_keep: list[tempfile.TemporaryDirectory[str]] = []


@cache
def built(name: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    """(folder, card) of an example built with these options; do not change what is in the folder."""
    folder = tempfile.TemporaryDirectory(prefix="skerry-example-")
    _keep.append(folder)
    return Path(folder.name), script(name).build(Path(folder.name), **options)


def read(folder: Path) -> Manifest:
    return manifest.parse((folder / manifest.FILE_NAME).read_text())
