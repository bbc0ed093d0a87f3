"""A python entry script with ``run(inputs) -> outputs``, and ``init()`` and ``close()`` where it has them.

``init()`` is called once in the worker, with the module's folder as first entry of ``sys.path`` and as
``MODULE_FOLDER`` in the script's globals. If it takes a parameter, it gets the folder. ``run`` gets numpy arrays by
name and returns arrays (or lists) by name; they are checked against the manifest, so that a sloppy script is told so
and not its clients.
"""

from __future__ import annotations

import inspect
import itertools
import platform
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry_agent.engines import _host
from skerry_agent.ports import Arrays
from skerry_modules.errors import PeerError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import DATATYPES

_numbers = itertools.count(2)


class PythonModel:
    def __init__(self, module: types.ModuleType, manifest: Manifest) -> None:
        self._module = module
        self._run: Callable[[Arrays], Any] = module.run
        self._outputs = manifest.outputs

    def run(self, inputs: Arrays) -> Arrays:
        import numpy as np

        # Arrays cut from a request's body are read-only, and a script may well write into what it is given.
        given = {name: array if array.flags.writeable else array.copy() for name, array in inputs.items()}
        try:
            results = self._run(given)
        except (MemoryError, SkerryError):
            raise
        except (Exception, SystemExit) as error:  # a script must not end its worker in silence
            raise PeerError(
                "scoring.failed", f"cannot score: run() raised {type(error).__name__}: {str(error)[:500]}"
            ) from error
        if not isinstance(results, dict):
            raise PeerError("scoring.failed", "cannot score: run() did not return a dict of outputs by name")
        checked: Arrays = {}
        for spec in self._outputs:
            if spec.name not in results:
                raise PeerError("scoring.failed", f"cannot score: run() returned no output {spec.name!r}")
            try:
                array = _as(np.asarray(results[spec.name]), np.dtype(DATATYPES[spec.datatype]))
            except (ValueError, TypeError) as error:
                raise PeerError(
                    "scoring.failed", f"cannot score: output {spec.name!r} of run() is no {spec.datatype}: {error}"
                ) from error
            if not spec.accepts(array.shape):
                raise PeerError(
                    "scoring.failed",
                    f"cannot score: output {spec.name!r} of run() has shape {list(array.shape)} but the manifest says "
                    f"{list(spec.shape)}",
                )
            checked[spec.name] = array
        return checked

    def close(self) -> None:
        close = getattr(self._module, "close", None)
        if callable(close):
            close()
        _host.trim()


def _as(array: Any, wanted: Any) -> Any:
    """An array as the declared datatype. A float never becomes a whole number, and a whole number keeps its value.

    Raises:
        ValueError: it cannot be.
        TypeError: likewise.
    """
    if array.dtype == wanted:
        return array
    given = array.dtype.kind
    if wanted.kind in "iub" and given not in "iub" and array.size:
        raise TypeError(f"it is {array.dtype}, which would be cut to whole numbers; round it in the script")
    made = array.astype(wanted)
    if wanted.kind in "iu" and given in "iu" and (made != array).any():
        raise ValueError(f"a value of it ({array.dtype}) does not fit")
    return made


class PythonEngine:
    name = "python"
    exclusive = False

    def version(self) -> str:
        return platform.python_version()

    def preload(self) -> None:
        import numpy  # noqa: F401

    def load(self, folder: Path, manifest: Manifest, cache: Path) -> PythonModel:
        path = folder / manifest.model
        sys.path.insert(0, str(path.parent))
        if path.parent != folder:
            sys.path.insert(1, str(folder))
        sys.dont_write_bytecode = True  # the module's folder stays what was verified
        # A pipeline has several scripts in one process, each a module of its own.
        name = "skerry_module" if "skerry_module" not in sys.modules else f"skerry_module_{next(_numbers)}"
        module = types.ModuleType(name)
        module.__file__ = str(path)
        module.__dict__["MODULE_FOLDER"] = folder
        sys.modules[name] = module
        try:
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102 - signed and verified code
            init = getattr(module, "init", None)
            if callable(init):
                init(folder) if inspect.signature(init).parameters else init()
        except (MemoryError, SkerryError):
            raise
        except (Exception, SystemExit) as error:
            hint = "; name its package under requirements in [environment]" if _lacks_package(error, folder) else ""
            raise PeerError(
                "install.load_failed",
                f"cannot load {manifest.model}: {type(error).__name__}: {str(error)[:500]}{hint}",
            ) from error
        if not callable(getattr(module, "run", None)):
            raise PeerError("install.load_failed", f"cannot load {manifest.model}: it defines no run(inputs)")
        _host.trim()
        return PythonModel(module, manifest)


def _lacks_package(error: BaseException, folder: Path) -> bool:
    return isinstance(error, ModuleNotFoundError) and not (folder / (error.name or "").partition(".")[0]).exists()


ENGINE = PythonEngine()
