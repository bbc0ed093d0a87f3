"""The new module's folder: the original's manifest with the new model, its golden test, and where it comes from.

The golden outputs are the **original's**: a device that proves the new version proves that it still says what the
original said, on that device's own processor, within the tolerance that was measured here.

``conversion.json`` is packed with the module: what it was made from, with which method and versions, on which
calibration data, and what the gate found. It holds no times, so that the same conversion gives the same digest.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import tomlkit

from skerry import scaffold
from skerry.convert.gate import Arrays
from skerry.convert.originals import Original
from skerry.convert.report import Conversion
from skerry_modules import manifest as manifests
from skerry_modules import model_files, package
from skerry_modules.errors import InputError

RECORD: Final = "conversion.json"
FORMAT: Final = 1
_MEMORY_FLOOR_MB: Final = 256
_KEPT_OPTIONS: Final = ("threads",)
"""Of the engine's options; the others may name what another engine has not, or a precision that was not judged."""


def check_free(out: Path) -> None:
    """Raises:
    InputError: ``convert.unsupported`` if something stands where the module shall.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "convert.unsupported", f"cannot write {out}: it is there already; name a new folder with --out"
        )


def write(
    original: Original, model: Path, out: Path, *, golden: tuple[Arrays, Arrays], report: Conversion
) -> manifests.Manifest:
    """Write the folder, whole or not at all.

    Args:
        original: what was converted.
        model: the new model file; what belongs to it stands beside it.
        out: the folder; it must not exist, or be empty.
        golden: inputs, and the original's outputs for them.
        report: what goes into the record, and the golden test's tolerance.

    Raises:
        InputError: ``manifest.*`` if the new model does not fit the manifest.
    """
    stage = out.absolute().parent / f".{out.absolute().name}.{os.getpid()}.partial"
    stage.mkdir(parents=True)
    try:
        kept = _copy_rest(original, stage)
        found = model_files.read(model)
        assert found is not None  # by its suffix
        for name in (model.name, *found.companions):
            shutil.copyfile(model.parent / name, stage / name)
        np.savez(
            stage / scaffold.GOLDEN_FILE,
            **{f"input.{name}": array for name, array in golden[0].items()},
            **{f"output.{name}": array for name, array in golden[1].items()},
        )
        (stage / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(_record(report)), indent=2) + b"\n")
        document = _document(original, model, found)
        _change(document, report, (model.name, *found.companions, RECORD) if kept else ())
        (stage / manifests.FILE_NAME).write_text(tomlkit.dumps(document))
        manifest = package.read_folder(stage)
        package.build_index(stage, manifest)  # it packs, or it is not written
        if out.is_dir():
            out.rmdir()
        stage.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return manifest


def _copy_rest(original: Original, stage: Path) -> bool:
    """What else the original module holds; returns whether its manifest lists files by name."""
    if original.folder is None or original.manifest is None:
        return False
    manifest = original.manifest
    found = model_files.read(original.folder / manifest.model)
    parent = Path(manifest.model).parent
    left = {manifest.model, manifests.FILE_NAME, RECORD, *(manifest.golden.file for _ in (1,) if manifest.golden)}
    left |= {str(parent / name) for name in (found.companions if found else ())}
    index, _ = package.build_index(original.folder, manifest)
    for entry in index.files:
        if entry.path not in left:
            target = stage / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original.folder / entry.path, target)
            target.chmod(0o755 if entry.executable else 0o644)
    return bool(manifest.files)


def _document(original: Original, model: Path, found: model_files.Tensors) -> tomlkit.TOMLDocument:
    if original.folder is not None:
        return tomlkit.parse((original.folder / manifests.FILE_NAME).read_text())
    outputs = tuple(spec for spec in found.outputs if spec.name in original.output_names)
    size_mb = -(-sum((model.parent / name).stat().st_size for name in (model.name, *found.companions)) // 1_000_000)
    text = scaffold.manifest_text(
        name="model",
        engine="onnx",
        model=model.name,
        inputs=found.inputs,
        outputs=outputs,
        golden=True,
        memory_mb=max(_MEMORY_FLOOR_MB, 4 * size_mb),
    )
    document = tomlkit.parse(text)
    labels = {spec.name: spec.labels for spec in original.outputs}
    for table in document["outputs"]:
        if labels.get(table["name"]):
            table["labels"] = list(labels[table["name"]])
    return document


def _change(document: tomlkit.TOMLDocument, report: Conversion, files: tuple[str, ...]) -> None:
    """The manifest's fields that a conversion changes; everything else, comments included, stays."""
    document["name"] = report.name
    document["engine"] = report.engine
    document["model"] = model_name(report.engine)
    if files:
        document["files"] = list(dict.fromkeys([*_kept_globs(document), *files]))
    tolerance = report.tolerance
    assert tolerance is not None  # a report that passed has one
    golden: Any = document.setdefault("golden", tomlkit.table())
    golden["file"] = scaffold.GOLDEN_FILE
    golden["absolute"] = tolerance.absolute
    golden["relative"] = tolerance.relative
    golden["min_pass"] = tolerance.min_pass
    golden.pop("argmax", None)
    if tolerance.argmax:
        golden["argmax"] = tolerance.argmax
    if report.precision == "int8-dynamic" and "batching" in document:
        batching: Any = document["batching"]
        batching["max_rows"] = 1  # a row's answer depends on the rows that are scored with it
    options: Any = document.get("options", {})
    for key in [key for key in options if key not in _KEPT_OPTIONS]:
        del options[key]
    tags: Any = document.setdefault("tags", tomlkit.table())
    tags.update(provenance(report))


def model_name(engine: str) -> str:
    """The model file's name in the new folder."""
    return "model.onnx" if engine == "onnx" else "model.xml"


def _kept_globs(document: tomlkit.TOMLDocument) -> list[str]:
    """The manifest's globs without those that named only the old model's files."""
    found: Any = document.get("files", [])
    return [str(one) for one in found if not str(one).endswith((".onnx", ".xml", ".bin", ".onnx.data"))]


def provenance(report: Conversion) -> dict[str, str]:
    """The tags by which a version tells what it was made of; a registry finds it by them."""
    versions = " ".join(f"{name}-{version}" for name, version in sorted(report.versions.items()))
    return {
        "converted-from": f"{report.origin.of}:{report.origin.digest}",
        "conversion": f"{report.engine}-{report.precision}",
        "converted-with": versions,
    }


def _record(report: Conversion) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "from": report.origin,
        "to": report.engine,
        "precision": report.precision,
        "method": report.method,
        "versions": report.versions,
        "calibration": report.calibration,
        "gate": report.verdict,
        "size": {"before": report.before.size, "after": report.after.size},
        "accuracy": {"before": report.before.accuracy, "after": report.after.accuracy},
    }
