"""The runtimes that models run on. Each adapter is named for its technology and imports it only in a worker's zygote.

``get`` and ``available`` cost no import of a runtime, so that the agent process stays small.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Final

from skerry_agent.ports import Engine
from skerry_modules.errors import ResourceError

NAMES: Final = ("onnx", "openvino", "pynq", "python")


@cache
def get(name: str) -> Engine:
    """The engine of that name, whether its runtime is installed or not.

    Raises:
        ResourceError: ``unschedulable.engine``: there is no such engine in this agent.
    """
    if name not in NAMES:
        raise ResourceError(
            "unschedulable.engine", f"cannot find the engine {name!r}: choose one of {', '.join(NAMES)}"
        )
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
