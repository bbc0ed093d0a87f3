"""The runtimes that models run on. Each adapter is named for its technology and imports it only in a worker's zygote.

``get`` and ``available`` cost no import of a runtime, so that the agent process stays small.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Final

from skerry_agent.ports import Engine
from skerry_modules.errors import ResourceError
from skerry_modules.manifest import PIPELINE, Manifest, engines_of

NAMES: Final = ("onnx", "openvino", "pynq", "python")
"""The runtimes. ``pipeline`` is an engine too, without a runtime of its own."""
_ALL: Final = (*NAMES, PIPELINE)


@cache
def get(name: str) -> Engine:
    """The engine of that name, whether its runtime is installed or not.

    Raises:
        ResourceError: ``unschedulable.engine``: there is no such engine in this agent.
    """
    if name not in _ALL:
        raise ResourceError("unschedulable.engine", f"cannot find the engine {name!r}: choose one of {', '.join(_ALL)}")
    try:
        module = importlib.import_module(f"skerry_agent.engines.{name}")
    except ModuleNotFoundError as error:
        raise ResourceError(
            "unschedulable.engine", f"cannot use the engine {name!r}: {error}; install skerry[{name}]"
        ) from error
    engine: Engine = module.ENGINE
    return engine


def available() -> dict[str, str]:
    """Engines whose runtime is installed, with its version."""
    found: dict[str, str] = {}
    for name in NAMES:
        try:
            version = get(name).version()
        except ResourceError:
            continue
        if version:
            found[name] = version
    return found


def zygote_of(manifest: Manifest) -> str:
    """The runtimes that a worker of this module finds imported, joined by ``+``: which zygote it is forked from.

    A pipeline of scripts and ONNX models shares the zygote of plain ONNX modules: what scripts need is there too.
    """
    wanted = engines_of(manifest)
    runtimes = [name for name in wanted if name != "python"]
    return "+".join(runtimes) or "python"


def preload(zygote: str) -> str:
    """Import the runtimes of a zygote, and open nothing; their versions, as they are told."""
    found = []
    for name in zygote.split("+"):
        engine = get(name)
        engine.preload()
        found.append(engine.version())
    return found[0] if len(found) == 1 else ", ".join(found)


def version_of(manifest: Manifest) -> str:
    """The version of a module's engine; of a pipeline, its engines' by name."""
    wanted = engines_of(manifest)
    if manifest.engine != PIPELINE:
        return get(manifest.engine).version()
    return ", ".join(f"{name} {get(name).version()}" for name in wanted) or "none"
