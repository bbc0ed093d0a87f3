"""Several steps as one model: engines, scripts and combiners in one process, one after the other.

A tensor goes from step to step as the array that it is, copied only for scripts, which may write into it. What a step
gives is held to what it declares before another step takes it, so that an error names the step that made it.

While a step runs, the process bears its number as its name (``exits.STEP_TITLE``): should it crash or hang there,
whoever finds it knows which step it was in, and ``top`` shows it too.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from skerry_agent import engines
from skerry_agent.engines import _host
from skerry_agent.ports import Arrays, LoadedModel
from skerry_agent.serving.exits import STEP_TITLE
from skerry_modules.errors import PeerError, SkerryError
from skerry_modules.histogram import Histogram
from skerry_modules.manifest import PIPELINE, Manifest, step_manifest
from skerry_modules.messages import Distribution
from skerry_modules.pipeline import INPUT, Step, order
from skerry_modules.tensors import DATATYPES, TensorSpec

SHAPES: Final = 64
"""Shapes of one tensor that are remembered."""
_IDLE: Final = b"skerry-worker"
_PR_SET_NAME: Final = 15


class _Check(NamedTuple):
    """One output of a step, as it must come."""

    name: str
    key: str
    dtype: Any  # None: BYTES
    spec: TensorSpec
    good: set[tuple[int, ...]]  # shapes that were found to fit: looking one up costs a tenth of checking it


class _Part(NamedTuple):
    """A step, ready to run."""

    name: str
    title: bytes
    run: Callable[[Arrays], Arrays]
    sources: tuple[tuple[str, str], ...]  # (its input's name, where it comes from)
    checks: tuple[_Check, ...]
    close: Callable[[], None]
    writes: bool  # into what it is given, perhaps: a script, and another step may take the same tensor
    notes: tuple[tuple[str, str], ...]  # (code, text): what people should know of how it was loaded


class PipelineModel:
    """All steps, loaded; ``run`` is called from one thread. ``notes`` are those of its steps."""

    def __init__(self, parts: list[_Part], outputs: tuple[tuple[str, str], ...]) -> None:
        self._parts = parts
        self._outputs = outputs
        self._spent = [Histogram() for _ in parts]
        self.notes = tuple((code, f"step {part.name!r}: {text}") for part in parts for code, text in part.notes)
        self._title = ctypes.CDLL(None).prctl

    def run(self, inputs: Arrays) -> Arrays:
        values = {f"{INPUT}.{name}": array for name, array in inputs.items()}
        title, now = self._title, time.perf_counter
        began = now()
        try:
            for part, spent in zip(self._parts, self._spent, strict=True):
                title(_PR_SET_NAME, part.title, 0, 0, 0)
                _run(part, values)
                began, before = now(), began
                spent.add((began - before) * 1e6)
        except SkerryError:  # after any other the process ends, and is to tell where
            title(_PR_SET_NAME, _IDLE, 0, 0, 0)
            raise
        title(_PR_SET_NAME, _IDLE, 0, 0, 0)
        return {name: values[source] for name, source in self._outputs}

    def take_steps(self) -> dict[str, Distribution]:
        """Microseconds in each step since the last call; a step that did not run is left out."""
        return {
            part.name: spent.take().to_wire()
            for part, spent in zip(self._parts, self._spent, strict=True)
            if spent.count
        }

    def close(self) -> None:
        for part in reversed(self._parts):
            part.close()
        _host.trim()


def _run(part: _Part, values: Arrays) -> None:
    try:
        if part.writes:
            results = part.run({name: values[source].copy() for name, source in part.sources})
        else:
            results = part.run({name: values[source] for name, source in part.sources})
    except MemoryError as error:
        raise MemoryError(f"step {part.name!r} {error}") from error
    except SkerryError as error:
        raise _named(error, part.name) from error
    for check in part.checks:
        array = results.get(check.name)
        if array is None:
            raise _bad(part.name, f"it gave no output {check.name!r}")
        if (array.dtype != check.dtype) if check.dtype is not None else (array.dtype.kind not in "OSU"):
            raise _bad(part.name, f"output {check.name!r} is {array.dtype}, declared as {check.spec.datatype}")
        if array.shape not in check.good:
            _check_shape(part.name, check, array.shape)
        values[check.key] = array


def _check_shape(step: str, check: _Check, shape: tuple[int, ...]) -> None:
    if not check.spec.accepts(shape):
        declared = list(check.spec.shape)
        raise _bad(step, f"output {check.name!r} has shape {list(shape)}, declared as {declared}")
    if len(check.good) >= SHAPES:
        check.good.clear()
    check.good.add(shape)


def _bad(step: str, problem: str) -> PeerError:
    return PeerError("scoring.failed", f"cannot score: step {step!r}: {problem}", step=step)


def _named(error: SkerryError, step: str) -> SkerryError:
    """The same error, telling its step."""
    for verb in ("cannot score: ", "cannot load "):
        if error.message.startswith(verb):
            rest = error.message.removeprefix(verb)
            text = f"{verb}step {step!r}: {rest}"
            break
    else:
        text = f"cannot run step {step!r}: {error.message}"
    return type(error)(error.code, text, **{**error.data, "step": step})


class PipelineEngine:
    """Loads each step by its own engine. It has no runtime and so no version of its own."""

    name = PIPELINE
    exclusive = False

    def version(self) -> str:
        return ""

    def preload(self) -> None:
        import numpy  # noqa: F401

    def load(self, folder: Path, manifest: Manifest, cache: Path) -> PipelineModel:
        places = {step.name: place for place, step in enumerate(manifest.steps)}
        title = ctypes.CDLL(None).prctl
        parts: list[_Part] = []
        for step in order(manifest.steps):
            name = f"{STEP_TITLE}{places[step.name]}".encode()
            title(_PR_SET_NAME, name, 0, 0, 0)
            parts.append(_load(step, name, folder, manifest, cache))
        title(_PR_SET_NAME, _IDLE, 0, 0, 0)
        return PipelineModel(parts, tuple((spec.name, spec.source) for spec in manifest.outputs))


def _load(step: Step, title: bytes, folder: Path, manifest: Manifest, cache: Path) -> _Part:
    checks = tuple(
        _Check(spec.name, f"{step.name}.{spec.name}", _dtype(spec.datatype), spec, set()) for spec in step.outputs
    )
    sources = tuple(step.sources.items())
    if step.engine is None:
        from skerry_agent.engines.combine import combiner

        return _Part(step.name, title, combiner(step), sources, checks, _nothing, False, ())
    try:
        model: LoadedModel = engines.get(step.engine).load(folder, step_manifest(manifest, step), cache)
    except MemoryError as error:
        raise MemoryError(f"step {step.name!r} {error}") from error
    except SkerryError as error:
        raise _named(error, step.name) from error
    writes, notes = step.engine == "python", getattr(model, "notes", ())
    return _Part(step.name, title, model.run, sources, checks, model.close, writes, notes)


def _nothing() -> None:
    pass


def _dtype(datatype: str) -> Any:
    import numpy as np

    return None if datatype == "BYTES" else np.dtype(DATATYPES[datatype])


ENGINE = PipelineEngine()
