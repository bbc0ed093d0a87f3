"""From nothing but a model file to a module's folder: the manifest from the model's own inputs and outputs, golden
inputs made from a seed, and the outputs that the model gives for them.

The golden test of a generated module proves that a device computes what this machine computed. It cannot prove that the
model is right: for that give real inputs (``--golden inputs.npz``).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import tomlkit

from skerry_modules import manifest as manifests
from skerry_modules import model_files
from skerry_modules.errors import InputError, ResourceError
from skerry_modules.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    import numpy as np

CASES: Final = 8
"""Golden cases that are generated, where the model's batch may vary."""
GOLDEN_FILE: Final = "golden.npz"
_MEMORY_FLOOR_MB: Final = 256


class Scaffold(msgspec.Struct, frozen=True, kw_only=True):
    """A module's folder that was written. ``notes`` say what a person should know or do."""

    folder: Path
    manifest: manifests.Manifest
    notes: tuple[str, ...] = ()


def create(
    model: Path,
    folder: Path,
    *,
    name: str = "",
    engine: str = "",
    golden: Path | None = None,
    seed: int = 0,
    require_golden: bool = False,
) -> Scaffold:
    """Write a module's folder for a model.

    Args:
        model: an ``.onnx`` file, or OpenVINO's ``.xml``.
        folder: where to; made if need be. A ``module.toml`` there is never overwritten.
        name: the module's name; by default the file's, made fit.
        engine: what devices run it on; by default what the file is for.
        golden: an ``.npz`` with an array per input (``<name>`` or ``input.<name>``), one case per row.
        seed: of the inputs that are generated otherwise.
        require_golden: an error rather than a note where the expected outputs cannot be computed.

    Raises:
        InputError: ``manifest.model_mismatch`` (no model, or none that a manifest can describe), ``manifest.invalid``,
            ``manifest.unreadable`` if there is a manifest already.
        ResourceError: ``resource.missing_dependency`` with ``require_golden``.
    """
    if (folder / manifests.FILE_NAME).exists():
        raise InputError(
            "manifest.invalid",
            f"cannot write {folder / manifests.FILE_NAME}: it exists; edit it, or name another folder",
            file=str(folder / manifests.FILE_NAME),
        )
    found = model_files.read(model)
    if found is None:
        raise InputError(
            "manifest.model_mismatch", f"cannot describe {model.name}: give an .onnx file or an OpenVINO .xml"
        )
    outputs, notes = _usable(found)
    _check_companions(model, found.companions)
    name = name or slug(model.stem)
    engine = engine or ("openvino" if model.suffix == ".xml" else "onnx")
    try:
        arrays = golden_arrays(model, found.inputs, outputs, golden, seed)
    except ResourceError as error:
        if require_golden:
            raise
        arrays = {}
        notes.append(error.message)
    text = manifest_text(
        name=name,
        engine=engine,
        model=model.name,
        inputs=found.inputs,
        outputs=outputs,
        golden=bool(arrays),
        memory_mb=max(_MEMORY_FLOOR_MB, 4 * -(-model.stat().st_size // 1_000_000)),
    )
    parsed = manifests.parse(text, source=str(folder / manifests.FILE_NAME))
    _write(folder, model, found.companions, arrays, text)
    return Scaffold(folder=folder, manifest=parsed, notes=tuple(notes))


def _write(
    folder: Path, model: Path, companions: tuple[str, ...], arrays: dict[str, np.ndarray[Any, Any]], text: str
) -> None:
    """All files, the manifest last: a folder with one is complete. What is refused was refused before this."""
    folder.mkdir(parents=True, exist_ok=True)
    _copy(model, folder, companions)
    if arrays:
        import numpy as np

        np.savez(folder / GOLDEN_FILE, **arrays)
    (folder / manifests.FILE_NAME).write_text(text)


def slug(text: str) -> str:
    """A name that a module may bear: ``Digits v2`` → ``digits-v2``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63] or "model"


def manifest_text(
    *,
    name: str,
    engine: str,
    model: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    golden: bool,
    memory_mb: int,
) -> str:
    """``module.toml`` with a word on what to fill in."""
    document = tomlkit.document()
    document.add(tomlkit.comment("What this module is. `skerry modules pack` checks it against the model."))
    fields = {"format": 1, "name": name, "description": "", "license": "", "engine": engine, "model": model}
    for key, value in fields.items():
        document.add(key, tomlkit.item(value))
    for side, specs in (("inputs", inputs), ("outputs", outputs)):
        tables = tomlkit.aot()
        for spec in specs:
            table = tomlkit.table()
            table.add("name", spec.name)
            table.add("datatype", spec.datatype)
            table.add("shape", list(spec.shape))
            tables.append(table)
        document.add(side, tables)
    resources = tomlkit.table()
    resources.add("memory_mb", memory_mb)
    resources["memory_mb"].comment("what one running version may take, at most")
    document.add("resources", resources)
    if golden:
        proof = tomlkit.table()
        proof.add(tomlkit.comment("Every device must reproduce these outputs before it serves."))
        proof.add("file", GOLDEN_FILE)
        proof.add("absolute", 1e-4)
        proof.add("relative", 1e-3)
        document.add("golden", proof)
    return tomlkit.dumps(document)


def golden_arrays(
    model: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    given: Path | None,
    seed: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs and the outputs that the model gives for them here, as ``input.<name>`` and ``output.<name>``.

    Raises:
        InputError: ``manifest.invalid``: the given inputs do not fit, or the model fails on them.
        ResourceError: ``resource.missing_dependency``: the runtime is not installed here.
    """
    feed = _given(given, inputs) if given else generate_inputs(inputs, seed)
    run = _run_openvino if model.suffix == ".xml" else _run_onnx
    results = run(model, feed, outputs)
    cases = len(next(iter(feed.values())))
    for name, array in results.items():
        if array.ndim == 0 or len(array) != cases:
            raise InputError(
                "manifest.invalid",
                f"cannot make a golden test: output {name!r} has the shape {list(array.shape)} for {cases} inputs, "
                "not one row for each; write the golden file yourself",
            )
    return {f"input.{name}": array for name, array in feed.items()} | {
        f"output.{name}": array for name, array in results.items()
    }


def generate_inputs(inputs: tuple[TensorSpec, ...], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """The same numbers for the same seed: normal for floats, 0 or 1 for the rest, which any index or flag allows.

    Raises:
        ResourceError: ``resource.missing_dependency`` where a model takes strings, which cannot be made up.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    made = {}
    for spec in inputs:
        if spec.datatype == "BYTES":
            raise ResourceError(
                "resource.missing_dependency",
                f"cannot make up inputs for {spec.name!r}, which takes strings; "
                "the module has no golden test until you write one",
            )
        batch = spec.shape[0] if spec.shape and spec.shape[0] > 0 else CASES
        shape = (batch, *(size if size > 0 else 1 for size in spec.shape[1:]))
        dtype = np.dtype(DATATYPES[spec.datatype])
        values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        made[spec.name] = values.astype(dtype)
    return made


def _given(path: Path, inputs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray[Any, Any]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name.removeprefix("input."): archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            "manifest.invalid", f"cannot read {path} as .npz: {error}; write it with numpy.savez", file=str(path)
        ) from error
    feed = {}
    for spec in inputs:
        array = arrays.get(spec.name)
        if array is None:
            raise InputError(
                "manifest.invalid",
                f"cannot use {path}: it has no array {spec.name!r}, only {', '.join(arrays) or 'none'}",
            )
        if not spec.accepts(array.shape):
            raise InputError(
                "manifest.invalid",
                f"cannot use {path}: {spec.name!r} has the shape {list(array.shape)}, "
                f"the model takes {list(spec.shape)}",
            )
        feed[spec.name] = array.astype(DATATYPES[spec.datatype], copy=False)
    return feed


def _run_onnx(
    model: Path, feed: dict[str, np.ndarray[Any, Any]], outputs: tuple[TensorSpec, ...]
) -> dict[str, np.ndarray[Any, Any]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime", "onnx") from error
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        names = [spec.name for spec in outputs]
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:  # the runtime's errors have no common base that it exports
        raise _cannot_run(model, error) from error


def _run_openvino(
    model: Path, feed: dict[str, np.ndarray[Any, Any]], outputs: tuple[TensorSpec, ...]
) -> dict[str, np.ndarray[Any, Any]]:
    try:
        import openvino
    except ImportError as error:
        raise _missing("openvino", "openvino") from error
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(str(model)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled(feed)
        return {spec.name: results[spec.name] for spec in outputs}
    except Exception as error:  # as above
        raise _cannot_run(model, error) from error


def _missing(package: str, extra: str) -> ResourceError:
    return ResourceError(
        "resource.missing_dependency",
        f"cannot compute the golden outputs: {package} is not installed here; "
        f"`pip install 'skerry[{extra}]'`, or the devices will prove no more than that the model loads",
    )


def _cannot_run(model: Path, error: Exception) -> InputError:
    said = str(error).strip().partition("\n")[0]
    return InputError(
        "manifest.invalid",
        f"cannot compute the golden outputs of {model.name}: {said}; "
        "give inputs that it takes with --golden inputs.npz",
    )


def _usable(found: model_files.Tensors) -> tuple[tuple[TensorSpec, ...], list[str]]:
    """The outputs that can be served, and a note on those that cannot."""
    for spec in found.inputs:
        if spec.datatype not in DATATYPES:
            raise InputError(
                "manifest.model_mismatch",
                f"cannot serve the model: its input {spec.name!r} is {spec.datatype}, which the protocol has no "
                "datatype for; export it with tensor inputs, and cast them in the model",
            )
        if spec.name in found.unranked:
            raise InputError(
                "manifest.model_mismatch",
                f"cannot serve the model: its input {spec.name!r} has no known rank; export it with tensor shapes",
            )
    usable = tuple(spec for spec in found.outputs if spec.datatype in DATATYPES and spec.name not in found.unranked)
    left = [f"{spec.name} ({spec.datatype})" for spec in found.outputs if spec not in usable]
    if not usable:
        raise InputError(
            "manifest.model_mismatch",
            "cannot serve the model: none of its outputs is a tensor of known shape "
            f"({', '.join(left) or 'it has none'}); "
            "for scikit-learn export with options={'zipmap': False}",
        )
    return usable, [f"left out, since they are no tensors of known shape: {', '.join(left)}"] if left else []


def _check_companions(model: Path, companions: tuple[str, ...]) -> None:
    for name in companions:
        if not manifests.is_plain(name):
            raise InputError("manifest.model_mismatch", f"cannot use {model.name}: it keeps data in {name!r}")
        if not (model.parent / name).is_file():
            raise InputError(
                "manifest.model_mismatch",
                f"cannot use {model.name}: {model.parent / name} is missing; put it beside the model",
            )


def _copy(model: Path, folder: Path, companions: tuple[str, ...]) -> None:
    for name in (model.name, *companions):
        source, target = model.parent / name, folder / name
        if source.resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
