"""Starts a zygote with an environment's Python: run by path, since nothing of ours can be imported there yet.

``python -I environment_boot.py ENGINE FD PATH…``; the paths are where the agent itself imports from. Through them the
worker reaches what it is made of, and nothing else: what a module imports must be in its lock, or it fails on the
first device instead of on the one whose agent happens to lack it. numpy is meant: it is what ``run`` is given and gives
back; an environment that brings its own comes first, and its worker then uses that one throughout.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder

SHARED = ("skerry_agent", "skerry_modules", "msgspec", "numpy")
"""What the agent lends to an environment. ``skerry.resolving`` holds environments to versions that fit these."""
RUNTIMES = {"onnx": ("onnxruntime",), "openvino": ("openvino", "openvino_telemetry", "packaging")}
"""And what the other steps of a pipeline run on."""


class Lent:
    """A finder that is asked last, knows a few names only, and finds them where the agent does."""

    def __init__(self, names: Iterable[str], paths: Sequence[str]) -> None:
        self._names = frozenset(names)
        self._paths = list(paths)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object | None = None
    ) -> ModuleSpec | None:
        if path is None and name in self._names:
            return PathFinder.find_spec(name, self._paths)
        return None


def main() -> None:
    engine, control, *paths = sys.argv[1:]
    sys.dont_write_bytecode = True  # an environment stays as it was built and checked
    runtimes = [name for one in engine.split("+") for name in RUNTIMES.get(one, ())]
    sys.meta_path.append(Lent((*SHARED, *runtimes), paths))
    from skerry_agent.engines import _host
    from skerry_agent.serving import zygote

    _host.lent_from(paths)

    sys.argv = [sys.argv[0], engine, control]
    zygote.main()


if __name__ == "__main__":
    main()
