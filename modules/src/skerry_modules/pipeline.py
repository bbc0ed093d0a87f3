"""A module of several steps: models, scripts and combiners, joined by named tensors. Pure rules over the manifest.

A step names where each of its inputs comes from: ``input.<name>`` is the module's own, ``<step>.<name>`` another
step's output. The rules here say whether that is a graph that can run (:func:`problems`) and in which order
(:func:`order`). They are checked when a module is packed, on the hub, and on the device before it loads.

What they promise: if each step gives what it declares, each step is given what it takes. A dimension that varies (−1)
therefore fits only where −1 is taken; a fixed one fits the same number or −1.

Does not handle: branches that depend on data, loops, steps on an FPGA (a board holds one design).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from skerry_modules.tensors import DATATYPES, TensorSpec

StepEngine = Literal["onnx", "openvino", "python"]
Combiner = Literal["mean", "max", "vote", "weighted"]

INPUT: Final = "input"
"""The step name that stands for the module's own inputs."""
MAX_STEPS: Final = 64

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_FLOATS: Final = ("FP16", "FP32", "FP64")
_NUMBERS: Final = tuple(name for name in DATATYPES if name not in ("BOOL", "BYTES"))
_TAKES: Final[dict[str, tuple[str, ...]]] = {
    "mean": _FLOATS,
    "weighted": _FLOATS,
    "max": _NUMBERS,
    "vote": tuple(DATATYPES),
}

Problem = tuple[str, str]
"""(field, problem), as ``manifest.problems`` gives them."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One step. It has an ``engine`` and a ``model``, or it has a ``combine``.

    ``sources`` is ``from`` in the manifest: by the step's own input name, where that tensor comes from. The inputs of a
    combiner are not declared: they are what they come from.
    """

    name: str
    sources: dict[str, str] = msgspec.field(name="from")
    outputs: tuple[TensorSpec, ...]
    engine: StepEngine | None = None
    model: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    combine: Combiner | None = None
    weights: dict[str, float] = {}
    options: dict[str, str | int | float | bool] = {}  # of the step's engine

    @property
    def kind(self) -> str:
        """The engine's name, or the combiner's."""
        return self.engine or self.combine or ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was read from a step's model file. Operators of the default domain have no prefix."""

    opset: int = 0
    operators: tuple[str, ...] = ()


def split(reference: str) -> tuple[str, str]:
    """``step.tensor`` into its two names (a tensor's may hold dots); the second is empty where there is no dot."""
    step, _, tensor = reference.partition(".")
    return step, tensor


def order(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps so that each comes after those it takes from, otherwise as declared; those of a cycle are left out."""
    names = {step.name for step in steps}
    done: set[str] = set()
    found: list[Step] = []
    waiting = list(steps)
    while waiting:
        ready = next((step for step in waiting if not (_needs(step) & names) - done), None)
        if ready is None:
            break
        waiting.remove(ready)
        done.add(ready.name)
        found.append(ready)
    return tuple(found)


def _needs(step: Step) -> set[str]:
    return {split(source)[0] for source in step.sources.values()}


def problems(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], steps: tuple[Step, ...]) -> list[Problem]:
    """Why these steps do not make a graph that can run; empty if they do.

    What later checks rest on comes first: names, then references, then types and order, then what is of no use.
    """
    if not 0 < len(steps) <= MAX_STEPS:
        return [("steps", f"a pipeline has 1 to {MAX_STEPS} steps, not {len(steps)}")]
    found = _name_problems(steps)
    for place, step in enumerate(steps):
        found += _step_problems(f"steps[{place}]", step)
    if found:
        return found
    given = tensors(inputs, steps)
    found = _reference_problems(outputs, steps, given)
    if found:
        return found
    for place, step in enumerate(steps):
        found += _fit_problems(f"steps[{place}]", step, given)
    for place, spec in enumerate(outputs):
        if why := misfit(given[spec.source], spec):
            found.append((f"outputs[{place}].from", f"{spec.source} {why}"))
    return found + _cycle_problems(steps) + _idle_problems(inputs, outputs, steps)


def tensors(inputs: tuple[TensorSpec, ...], steps: tuple[Step, ...]) -> dict[str, TensorSpec]:
    """Every tensor of the pipeline by its reference."""
    given = {f"{INPUT}.{spec.name}": spec for spec in inputs}
    return given | {f"{step.name}.{spec.name}": spec for step in steps for spec in step.outputs}


def misfit(given: TensorSpec, wanted: TensorSpec) -> str:
    """Why a tensor declared as ``given`` cannot always be taken as ``wanted``; empty if it can."""
    if given.datatype != wanted.datatype:
        return f"is {given.datatype}, {wanted.name!r} is {wanted.datatype}"
    if len(given.shape) == len(wanted.shape) and all(
        want in (-1, have) for have, want in zip(given.shape, wanted.shape, strict=True)
    ):
        return ""
    text = f"has shape {list(given.shape)}, {wanted.name!r} has {list(wanted.shape)}"
    if any(have == -1 != want for have, want in zip(given.shape, wanted.shape, strict=False)):
        text += "; what varies (-1) fits only -1"
    return text


# -- names and fields -------------------------------------------------------------------------------------------------


def _name_problems(steps: tuple[Step, ...]) -> list[Problem]:
    found: list[Problem] = []
    names: set[str] = set()
    for place, step in enumerate(steps):
        field = f"steps[{place}].name"
        if not _NAME.fullmatch(step.name):
            found.append((field, f"{step.name!r}: use 1 to 63 of a-z, 0-9, '-' and '_', a letter or digit first"))
        elif step.name == INPUT:
            found.append((field, f"{INPUT!r} stands for the module's own inputs; choose another name"))
        elif step.name in names:
            found.append((field, f"{step.name!r} stands twice"))
        names.add(step.name)
    return found


def _step_problems(where: str, step: Step) -> list[Problem]:
    if bool(step.engine) == bool(step.combine):
        return [(f"{where}.engine", f"step {step.name!r} needs either an engine or combine, and not both")]
    if step.combine:
        return _combiner_problems(where, step)
    found: list[Problem] = []
    if not step.model:
        found.append((f"{where}.model", f"step {step.name!r} names no file for {step.engine} to load"))
    if step.weights:
        found.append((f"{where}.weights", 'only combine = "weighted" has weights'))
    declared = {spec.name for spec in step.inputs}
    text = "it does not say where input {!r} of step {!r} comes from"
    found += [(f"{where}.from", text.format(name, step.name)) for name in sorted(declared - set(step.sources))]
    strange = sorted(set(step.sources) - declared)
    return found + [(f"{where}.from.{name}", f"step {step.name!r} has no input {name!r}") for name in strange]


def _combiner_problems(where: str, step: Step) -> list[Problem]:
    found = [
        (f"{where}.{field}", f"a combiner has none: step {step.name!r} takes what its from names")
        for field in ("model", "inputs", "options")
        if getattr(step, field)
    ]
    if len(step.sources) < 2:
        found.append((f"{where}.from", f"step {step.name!r} combines {len(step.sources)} tensors; name at least two"))
    if len(step.outputs) != 1:
        found.append((f"{where}.outputs", f"a combiner has one output, step {step.name!r} has {len(step.outputs)}"))
    if step.combine != "weighted":
        if step.weights:
            found.append((f"{where}.weights", 'only combine = "weighted" has weights'))
    elif set(step.weights) != set(step.sources):
        found.append((f"{where}.weights", f"give one for each of {', '.join(sorted(step.sources))}"))
    elif not all(weight > 0 and math.isfinite(weight) for weight in step.weights.values()):
        found.append((f"{where}.weights", "each must be above 0"))
    return found


# -- references, types, order -----------------------------------------------------------------------------------------


def _reference_problems(
    outputs: tuple[TensorSpec, ...], steps: tuple[Step, ...], given: Mapping[str, TensorSpec]
) -> list[Problem]:
    found: list[Problem] = []
    for place, step in enumerate(steps):
        for name, source in step.sources.items():
            if source not in given:
                found.append((f"steps[{place}].from.{name}", _unknown(source, steps, given)))
    for place, spec in enumerate(outputs):
        if not spec.source:
            found.append((f"outputs[{place}].from", f"it does not say which step gives {spec.name!r}: STEP.TENSOR"))
        elif spec.source not in given:
            found.append((f"outputs[{place}].from", _unknown(spec.source, steps, given)))
    return found


def _unknown(source: str, steps: tuple[Step, ...], given: Mapping[str, TensorSpec]) -> str:
    name, tensor = split(source)
    if not tensor:
        return f"{source!r} is not STEP.TENSOR or {INPUT}.TENSOR"
    if name != INPUT and name not in {step.name for step in steps}:
        return f"there is no step {name!r}; there are {', '.join([INPUT, *(step.name for step in steps)])}"
    has = ", ".join(repr(split(key)[1]) for key in given if split(key)[0] == name)
    what = "the module has no input" if name == INPUT else f"step {name!r} has no output"
    return f"{what} {tensor!r}; it has {has or 'none'}"


def _fit_problems(where: str, step: Step, given: Mapping[str, TensorSpec]) -> list[Problem]:
    if not step.combine:
        pairs = ((spec, step.sources[spec.name]) for spec in step.inputs)
        return [
            (f"{where}.from.{spec.name}", f"{source} {why}")
            for spec, source in pairs
            if (why := misfit(given[source], spec))
        ]
    result = step.outputs[0]
    allowed = _TAKES[step.combine]
    for name, source in step.sources.items():
        spec = given[source]
        field = f"{where}.from.{name}"
        if spec.datatype not in allowed:
            return [(field, f"{source} is {spec.datatype}; {step.combine} takes {', '.join(allowed)}")]
        if step.combine == "vote" and spec.datatype in _FLOATS and not spec.shape:
            return [(field, f"{source} is a single number; vote takes scores of classes along the last dimension")]
        if (spec.datatype, spec.shape) != (result.datatype, result.shape):
            gives = f"step {step.name!r} gives {result.datatype} {list(result.shape)}"
            text = f"{source} is {spec.datatype} {list(spec.shape)}, {gives}; what is combined and the result are alike"
            return [(field, text)]
    return []


def _cycle_problems(steps: tuple[Step, ...]) -> list[Problem]:
    left = set(range(len(steps))) - {steps.index(step) for step in order(steps)}
    if not left:
        return []
    by_name = {steps[place].name: steps[place] for place in left}
    walk = [steps[min(left)].name]
    while True:  # each of those left takes from another of them, so that the walk must come back to itself
        before = next(name for name in by_name if name in _needs(by_name[walk[-1]]))
        if before in walk:
            ring = [*walk[walk.index(before) :], before]
            break
        walk.append(before)
    place = next(place for place in sorted(left) if steps[place].name == ring[0])
    return [(f"steps[{place}].from", f"the steps go in a circle: {' takes from '.join(ring)}")]


def _idle_problems(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], steps: tuple[Step, ...]
) -> list[Problem]:
    by_name = {step.name: step for step in steps}
    used = {spec.source for spec in outputs}
    waiting = [split(source)[0] for source in used]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in reached:
            reached.add(name)
            used |= set(by_name[name].sources.values())
            waiting += _needs(by_name[name])
    found = [
        (f"steps[{place}].name", f"nothing that the module gives rests on step {step.name!r}; leave it out")
        for place, step in enumerate(steps)
        if step.name not in reached
    ]
    found += [
        (f"inputs[{place}].name", f"no step takes the module's input {spec.name!r}; leave it out")
        for place, spec in enumerate(inputs)
        if f"{INPUT}.{spec.name}" not in used
    ]
    return found
