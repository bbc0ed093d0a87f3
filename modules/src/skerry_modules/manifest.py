"""What a module is: ``module.toml`` into validated typed structs.

The manifest says what to run and how to prove it; it never holds the registry's version number, which the hub
assigns when the module is registered (the same content is the same digest wherever it is registered).

Two steps: :func:`parse` checks the text alone (fields, types, names, ranges); that the files are there and that the
model's tensors are those declared is checked when the module is packed (:mod:`skerry_modules.package`) and again
on the hub.
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import Any, Final, Literal, get_args

import msgspec

from skerry_modules import options, pipeline
from skerry_modules.errors import InputError
from skerry_modules.pipeline import Step
from skerry_modules.tensors import DATATYPES, TensorSpec

FILE_NAME: Final = "module.toml"
FORMAT: Final = 1

EngineName = Literal["onnx", "openvino", "pynq", "python"]
PIPELINE: Final = "pipeline"
"""The engine of a module of several steps, each of which has an engine of its own."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Resources(_Part, frozen=True, kw_only=True):
    """What one running version needs. Megabytes are 10**6 bytes."""

    memory_mb: int = 256
    disk_mb: int = 0  # 0: the size of the module's files
    threads: int = 1
    accelerators: tuple[str, ...] = ()  # e.g. "gpu", "npu", "fpga", "cuda"
    load_timeout_s: float = 60.0
    request_timeout_s: float = 10.0


class Targets(_Part, frozen=True, kw_only=True):
    """Where the module may run; an empty tuple means anywhere."""

    profiles: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()  # as `uname -m` prints them: x86_64, aarch64, armv7l
    python: str = ""  # a PEP 440 specifier for `python` modules, e.g. ">=3.11"


class Golden(_Part, frozen=True, kw_only=True):
    """Inputs with their expected outputs: the proof that a device must give before it serves.

    ``file`` is an ``.npz`` with arrays ``input.<name>`` and ``output.<name>``, one case per leading row.
    A case passes if every output is within ``absolute + relative * |expected|``; where ``argmax`` names an
    output, the arg-max along its last axis must agree too. ``min_pass`` is the fraction of cases that must pass.
    """

    file: str
    absolute: float = 1e-4
    relative: float = 1e-3
    argmax: str = ""
    min_pass: float = 1.0


class Baseline(_Part, frozen=True, kw_only=True):
    """The training data's distribution per feature and score: JSON written by ``histogram.Baseline``."""

    file: str


class Capture(_Part, frozen=True, kw_only=True):
    """Which scored inputs a device keeps and sends, by default; a hub setting overrides it."""

    rate: float = 0.0  # fraction of requests, 0 to 1
    low_confidence: float = 0.0  # keep where the largest score is below this; 0: off
    max_per_minute: int = 60


class Environment(_Part, frozen=True, kw_only=True):
    """A python module's packages: pinned requirements, or an environment that the hub knows already.

    What else they need is found and locked when the module is packed (:mod:`skerry_modules.environments`).
    """

    name: str = ""  # the hub lists its versions under this name; empty: the module's own
    requirements: tuple[str, ...] = ()  # each NAME==VERSION
    use: str = ""  # NAME:VERSION of a registered environment, instead of requirements: exactly its lock
    wheels: tuple[str, ...] = ()  # wheel files of the folder that requirements may be met from
    python: tuple[str, ...] = ()  # e.g. "3.12": lock for these Pythons instead of those of the profiles

    @property
    def given(self) -> bool:
        """Whether the module has an environment of its own at all."""
        return bool(self.requirements or self.use)


class Batching(_Part, frozen=True, kw_only=True):
    """Requests that wait together may be scored together, where the model allows it."""

    max_rows: int = 1  # 1: off


class Manifest(_Part, frozen=True, kw_only=True):
    """One module. ``model`` is the file that the engine loads (for ``python``, the entry script).

    A pipeline has ``steps`` instead, and its outputs say ``from`` which of them they come.
    """

    format: int
    name: str
    engine: EngineName | Literal["pipeline"]
    model: str = ""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...] = ()
    description: str = ""
    release: str = ""  # the author's own label; the registry's version is a number of its own
    license: str = ""
    files: tuple[str, ...] = ()  # globs of further files; empty: all files in the folder
    resources: Resources = Resources()
    targets: Targets = Targets()
    golden: Golden | None = None
    baseline: Baseline | None = None
    capture: Capture = Capture()
    environment: Environment = Environment()
    batching: Batching = Batching()
    options: dict[str, str | int | float | bool] = {}  # engine options, e.g. precision = "f32"
    tags: dict[str, str] = {}


def parse(text: str, *, source: str = FILE_NAME) -> Manifest:
    """Read and check a manifest.

    Args:
        text: TOML.
        source: the name that errors give the text.

    Raises:
        InputError: ``manifest.unreadable`` with the line, or ``manifest.invalid`` with ``field`` and ``line``.
    """
    import tomlkit  # a device reads manifests from a module's index, never from TOML: this stays out of its memory
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        line = getattr(error, "line", 0)
        problem = str(error).replace(r"Unexpected character: '\x00'", "Unexpected end")  # how tomlkit says it
        raise InputError(
            "manifest.unreadable", f"cannot read {source}, line {line}: {problem}", file=source, line=line
        ) from error
    try:
        manifest = msgspec.convert(document.unwrap(), Manifest)
    except msgspec.ValidationError as error:
        field, problem = _split(str(error))
        if problem.startswith("Invalid enum value"):
            problem += _choices(field)
        raise _invalid(text, source, field, problem) from error
    for field, problem in problems(manifest) + _option_problems(manifest):
        raise _invalid(text, source, field, problem)
    return manifest


def problems(manifest: Manifest) -> list[tuple[str, str]]:
    """What types alone cannot say: (field, problem) pairs, the first that matters first."""
    found = _number_problems(msgspec.to_builtins(manifest))
    if manifest.format != FORMAT:
        found.append(("format", f"this version reads format {FORMAT}, not {manifest.format}"))
    if not is_name(manifest.name):
        found.append(("name", "use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit"))
    for side, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        found += _tensor_problems(side, specs)
    paths = {"model": manifest.model} if manifest.model else {}
    found += _pipeline_problems(manifest) if manifest.engine == PIPELINE else _single_problems(manifest)
    paths |= {f"steps[{place}].model": step.model for place, step in enumerate(manifest.steps) if step.model}
    if manifest.golden:
        paths["golden.file"] = manifest.golden.file
        if manifest.golden.argmax and manifest.golden.argmax not in {spec.name for spec in manifest.outputs}:
            found.append(("golden.argmax", f"no output is named {manifest.golden.argmax!r}"))
        if not 0 < manifest.golden.min_pass <= 1:
            found.append(("golden.min_pass", "must be above 0 and at most 1"))
        for name in ("absolute", "relative"):
            if getattr(manifest.golden, name) < 0:
                found.append((f"golden.{name}", "must not be negative"))
    if manifest.baseline:
        paths["baseline.file"] = manifest.baseline.file
    found += _environment_problems(manifest)
    for index, wheel in enumerate(manifest.environment.wheels):
        paths[f"environment.wheels[{index}]"] = wheel
    found += [(field, f"{path!r} is not a plain relative path") for field, path in paths.items() if not is_plain(path)]
    resources = manifest.resources
    for name in ("memory_mb", "threads", "load_timeout_s", "request_timeout_s"):
        if getattr(resources, name) <= 0:
            found.append((f"resources.{name}", "must be above 0"))
    if resources.disk_mb < 0:
        found.append(("resources.disk_mb", "must not be negative"))
    if not 0 <= manifest.capture.rate <= 1:
        found.append(("capture.rate", "must be from 0 to 1"))
    if manifest.capture.max_per_minute < 0:
        found.append(("capture.max_per_minute", "must not be negative"))
    if manifest.batching.max_rows < 1:
        found.append(("batching.max_rows", "must be at least 1"))
    return found


def _option_problems(manifest: Manifest) -> list[tuple[str, str]]:
    """Looked for where it is written only: a device must not give up what it proved for an option that it knows not."""
    found = options.problems(manifest.engine, manifest.options)
    for place, step in enumerate(manifest.steps):
        found += options.problems(step.engine or "", step.options, f"steps[{place}].options")
    return found


def _single_problems(manifest: Manifest) -> list[tuple[str, str]]:
    """Of a module that is one model."""
    found: list[tuple[str, str]] = []
    if not manifest.model:
        found.append(("model", f"missing required field: the file that the engine {manifest.engine} loads"))
    if manifest.steps:
        found.append(("steps", f'only engine = "{PIPELINE}" has steps'))
    for place, spec in enumerate(manifest.outputs):
        if spec.source:
            found.append((f"outputs[{place}].from", f'only outputs of engine = "{PIPELINE}" say where they come from'))
    return found + _input_problems("inputs", manifest.inputs)


def _pipeline_problems(manifest: Manifest) -> list[tuple[str, str]]:
    found = [
        (field, "a pipeline has none of its own: give it to the step that it is for")
        for field in ("model", "options")
        if getattr(manifest, field)
    ]
    found += _input_problems("inputs", manifest.inputs)
    for place, step in enumerate(manifest.steps):
        where = f"steps[{place}]"
        if not step.combine:
            found += _tensor_problems(f"{where}.inputs", step.inputs)
        found += _tensor_problems(f"{where}.outputs", step.outputs)
        found += _input_problems(f"{where}.inputs", step.inputs) + _input_problems(f"{where}.outputs", step.outputs)
        for side, specs in (("inputs", step.inputs), ("outputs", step.outputs)):
            text = "only the module's own inputs are looked through for NaN; say it there"
            found += [(f"{where}.{side}[{n}].allow_nan", text) for n, spec in enumerate(specs) if not spec.allow_nan]
    return found or pipeline.problems(manifest.inputs, manifest.outputs, manifest.steps)


def _input_problems(side: str, specs: tuple[TensorSpec, ...]) -> list[tuple[str, str]]:
    """``from`` belongs to a pipeline's outputs; a step says it of its inputs in its own ``from``."""
    return [
        (f"{side}[{place}].from", f"{spec.name!r} has no from: only the module's outputs do, and each step as a whole")
        for place, spec in enumerate(specs)
        if spec.source
    ]


def step_manifest(manifest: Manifest, step: Step) -> Manifest:
    """A step as a module of its own, which is what engines load. Not for combiners."""
    if step.engine is None:
        raise ValueError(f"{step.name} is a combiner")
    return msgspec.structs.replace(
        manifest,
        engine=step.engine,
        model=step.model,
        inputs=step.inputs,
        outputs=step.outputs,
        options=step.options,
        steps=(),
        golden=None,
        baseline=None,
    )


def engines_of(manifest: Manifest) -> tuple[str, ...]:
    """The engines that a device needs for it, ascending; none for a pipeline of combiners alone."""
    if manifest.engine != PIPELINE:
        return (manifest.engine,)
    return tuple(sorted({step.engine for step in manifest.steps if step.engine}))


def _environment_problems(manifest: Manifest) -> list[tuple[str, str]]:
    from skerry_modules import environments

    wanted, found = manifest.environment, []
    if wanted.name and not is_name(wanted.name):
        found.append(("environment.name", "use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit"))
    if wanted.use and not environments.is_reference(wanted.use):
        found.append(("environment.use", f"{wanted.use!r} is not NAME:VERSION, as vision:3"))
    if wanted.use and (wanted.requirements or wanted.name or wanted.wheels or wanted.python):
        found.append(("environment.use", "a registered environment is used as it is: name nothing else beside it"))
    if (wanted.name or wanted.wheels or wanted.python) and not wanted.given:
        found.append(("environment.requirements", "none are named: name them, or leave the environment out"))
    for number, requirement in enumerate(wanted.requirements):
        if not environments.is_pinned(requirement):
            found.append((f"environment.requirements[{number}]", f"{requirement!r} is not pinned: write NAME==VERSION"))
    for number, python in enumerate(wanted.python):
        if not re.fullmatch(r"3\.[0-9]{1,2}", python):
            found.append((f"environment.python[{number}]", f"{python!r} is no Python version such as 3.12"))
    if wanted.given and "python" not in engines_of(manifest):
        found.append(("environment", f"the engine {manifest.engine} runs no code of the module: only python does"))
    return found


def _number_problems(value: Any, field: str = "") -> list[tuple[str, str]]:
    """Numbers that TOML can say and an index, which is JSON, cannot: inf, nan, and integers beyond 64 bits."""
    if isinstance(value, float) and not math.isfinite(value):
        return [(field, "must be a finite number")]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return [(field, "must fit into 64 bits")]
    inner: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inner = [(f"{field}.{name}" if field else name, part) for name, part in value.items()]
    elif isinstance(value, (list, tuple)):
        inner = [(f"{field}[{index}]", part) for index, part in enumerate(value)]
    return [problem for name, part in inner for problem in _number_problems(part, name)]


def _tensor_problems(side: str, specs: tuple[TensorSpec, ...]) -> list[tuple[str, str]]:
    if not specs:
        return [(side, "at least one tensor is needed")]
    found = []
    names: set[str] = set()
    for index, spec in enumerate(specs):
        where = f"{side}[{index}]"
        if spec.name in names:
            found.append((f"{where}.name", f"{spec.name!r} stands twice"))
        names.add(spec.name)
        if spec.datatype not in DATATYPES:
            found.append((f"{where}.datatype", f"{spec.datatype!r} is not one of {', '.join(DATATYPES)}"))
        if any(size < -1 or size == 0 for size in spec.shape):
            found.append((f"{where}.shape", "dimensions are above 0, or -1 where they vary"))
    return found


def is_name(name: str) -> bool:
    """Whether a module may bear the name."""
    return bool(_NAME.fullmatch(name))


def is_plain(path: str) -> bool:
    """Whether a path stays inside its folder: relative, no ``..``, no backslash, no control characters."""
    pure = PurePosixPath(path)
    return (
        path not in ("", ".")
        and len(path) <= 255
        and not pure.is_absolute()
        and ".." not in pure.parts
        and str(pure) == path
        and path.isprintable()
        and "\\" not in path
        and ":" not in path
    )


def _split(message: str) -> tuple[str, str]:
    """msgspec says "problem - at `$.inputs[0].shape`"; unknown and missing fields stand in the problem itself."""
    problem, _, where = message.partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    named = re.search(r"(?:unknown|missing required) field `([^`]+)`", problem)
    if named:
        field = f"{field}.{named[1]}" if field else named[1]
    return field or "(document)", problem


def _choices(field: str) -> str:
    """What may stand in a field of few values; msgspec says only what may not."""
    of_step, _, name = field.rpartition(".")
    engines = get_args(pipeline.StepEngine) if of_step else (*get_args(EngineName), PIPELINE)
    found = {"engine": engines, "combine": get_args(pipeline.Combiner)}.get(name)
    return f": use one of {', '.join(found)}" if found else ""


def _invalid(text: str, source: str, field: str, problem: str) -> InputError:
    line = line_of(text, field)
    return InputError(
        "manifest.invalid",
        f"cannot use {source}, line {line}, field {field}: {problem}",
        file=source,
        line=line,
        field=field,
        problem=problem,
    )


def line_of(text: str, field: str) -> int:
    """The line (from 1) that a dotted field such as ``inputs[1].shape`` stands on; its table's, or 1, if absent."""
    line, best = 0, 1
    wanted = re.sub(r"\[\.\.\.\]", "[0]", field)
    table, counts = "", {}  # type: str, dict[str, int]
    for raw in text.splitlines():
        line += 1
        stripped = raw.strip()
        if header := re.match(r"\[\[\s*([^\]]+?)\s*\]\]", stripped):
            name = _within(header[1], counts)
            counts[name] = counts.get(name, -1) + 1
            table = f"{name}[{counts[name]}]"
        elif header := re.match(r"\[\s*([^\]]+?)\s*\]", stripped):
            table = _within(header[1], counts)
        elif key := re.match(r"([A-Za-z0-9_\"'.-]+)\s*=", stripped):
            name = key[1].strip("\"'")
            here = f"{table}.{name}" if table else name
            if here == wanted:
                return line
            if wanted.startswith((f"{here}.", f"{here}[")):  # an inline table or array
                best = line
            continue
        else:
            continue
        if wanted == table or wanted.startswith((f"{table}.", f"{table}[")):
            best = line
    return best


def _within(header: str, counts: dict[str, int]) -> str:
    """``steps.inputs`` below the third ``[[steps]]`` is ``steps[2].inputs``."""
    outer, dot, inner = header.partition(".")
    return f"{outer}[{counts[outer]}]{dot}{inner}" if dot and outer in counts else header


def to_builtins(manifest: Manifest) -> dict[str, Any]:
    """Plain dicts and lists, for JSON."""
    result: dict[str, Any] = msgspec.to_builtins(manifest)
    return result
