"""The model as it came: what it takes and gives, how it scores by itself, and its ONNX, where all conversions start."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry import scaffold
from skerry.convert import onnx, runtimes, sklearn, torch
from skerry.convert.report import Options, Origin
from skerry_modules import index as indexes
from skerry_modules import model_files, package
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import DATATYPES, TensorSpec

INPUT_NAME: Final = "x"
"""What an estimator's matrix is called where nobody says."""
_TORCHSCRIPT: Final = (".pt", ".pth")


class Original(msgspec.Struct, frozen=True, kw_only=True):
    """What is converted. ``onnx`` is its ONNX, prepared; ``score`` is the model itself, not that ONNX."""

    origin: Origin
    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    score: runtimes.Score
    onnx: Path
    size: int
    tools: dict[str, str]
    folder: Path | None = None
    manifest: Manifest | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.outputs)


def open_path(source: Path, work: Path, options: Options, *, plain: bool) -> Original:
    """Any source by its file.

    Args:
        source: a module's folder or package, an ONNX file, an estimator's pickle, or an exported program (``.pt2``).
        work: an empty folder for what is made on the way.
        options: whether pickles are trusted.
        plain: an estimator shall use plain matrix operators, for OpenVINO or the quantiser.

    Raises:
        InputError: ``convert.unsupported``, ``convert.untrusted``, ``manifest.*``.
        PeerError: ``package.*``.
        ResourceError: ``resource.missing_dependency``.
    """
    if not source.exists():
        raise InputError("convert.unsupported", f"cannot convert {source}: there is no such file or folder")
    if source.is_dir():
        return _module(source, work)
    if source.suffix == package.SUFFIX:
        package.unpack(source, work / "module")
        return _module(work / "module", work)
    if source.suffix == ".onnx":
        return _onnx_file(source, work)
    if source.suffix in sklearn.SUFFIXES:
        origin = Origin(kind="scikit-learn", name=source.stem, digest=_sha256(source), of="file")
        estimator = sklearn.load(source, trust=options.trust_pickle)
        return from_estimator(estimator, work, plain=plain, origin=origin, input_name=options.input_name)
    if source.suffix == torch.SUFFIX:
        origin = Origin(kind="pytorch", name=source.stem, digest=_sha256(source), of="file")
        return from_program(torch.load(source, trust=options.trust_pickle), work, origin=origin)
    if source.suffix in _TORCHSCRIPT:
        raise InputError(
            "convert.unsupported",
            f"cannot convert {source.name}: weights or TorchScript; write torch.export.export(model, inputs) with "
            "torch.export.save to a .pt2, or export to ONNX",
        )
    if source.suffix == ".xml":
        raise _from_ir(source)
    raise InputError(
        "convert.unsupported",
        f"cannot convert {source.name}: give a module's folder or package, .onnx, .pkl, .joblib or .pt2",
    )


def from_estimator(
    estimator: Any, work: Path, *, plain: bool, origin: Origin | None = None, input_name: str = INPUT_NAME
) -> Original:
    """A fitted scikit-learn estimator. Raises as :func:`skerry.convert.sklearn.export`."""
    exported = work / "exported.onnx"
    output, score, classes = sklearn.export(estimator, exported, input_name=input_name, plain=plain)
    made = _prepared(exported, work, (output,))
    inputs, outputs = _tensors(made)
    return Original(
        origin=origin or _unfiled("scikit-learn", sklearn.name_of(estimator), made),
        engine=_engine("scikit-learn"),
        inputs=inputs,
        outputs=tuple(msgspec.structs.replace(spec, labels=classes) for spec in outputs),
        score=score,
        onnx=made,
        size=exported.stat().st_size,
        tools=versions("scikit-learn", "skl2onnx", "onnx", "onnxruntime"),
    )


def from_program(program: Any, work: Path, *, origin: Origin | None = None) -> Original:
    """An exported PyTorch program. Raises as :func:`skerry.convert.torch.export`."""
    exported = work / "exported.onnx"
    names, score = torch.export(program, exported)
    made = _prepared(exported, work, names)
    inputs, outputs = _tensors(made)
    return Original(
        origin=origin or _unfiled("pytorch", "program", made),
        engine=_engine("torch"),
        inputs=inputs,
        outputs=outputs,
        score=score,
        onnx=made,
        size=exported.stat().st_size,
        tools=versions("torch", "onnxscript", "onnx", "onnxruntime"),
    )


def _module(folder: Path, work: Path) -> Original:
    manifest = package.read_folder(folder)
    if manifest.engine not in ("onnx", "openvino"):
        raise InputError(
            "convert.unsupported",
            f"cannot convert the module {manifest.name}: its engine is {manifest.engine}, and only onnx and openvino "
            "modules hold one model that can be read; of a pipeline convert the steps' files one by one",
        )
    model = folder / manifest.model
    if model.suffix == ".xml":
        raise _from_ir(model)
    built, _ = package.build_index(folder, manifest)
    outputs = tuple(spec.name for spec in manifest.outputs)
    opener = runtimes.open_openvino if manifest.engine == "openvino" else runtimes.open_onnx
    tool = "openvino" if manifest.engine == "openvino" else "onnxruntime"
    return Original(
        origin=Origin(
            kind="onnx", name=manifest.name, digest=indexes.digest_of(indexes.index_bytes(built)), of="module"
        ),
        engine=_engine(tool),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        score=opener(model, outputs),
        onnx=_prepared(model, work, outputs),
        size=size_of(model),
        tools=versions("onnx", "onnxruntime"),
        folder=folder,
        manifest=manifest,
    )


def _onnx_file(source: Path, work: Path) -> Original:
    found = model_files.read(source)
    assert found is not None  # by its suffix
    outputs = tuple(spec for spec in found.outputs if spec.datatype in DATATYPES and spec.name not in found.unranked)
    names = tuple(spec.name for spec in outputs)
    if not names:
        raise InputError(
            "convert.unsupported", f"cannot convert {source.name}: none of its outputs is a tensor of known shape"
        )
    return Original(
        origin=Origin(kind="onnx", name=source.stem, digest=_sha256(source), of="file"),
        engine=_engine("onnxruntime"),
        inputs=found.inputs,
        outputs=outputs,
        score=runtimes.open_onnx(source, names),
        onnx=_prepared(source, work, names),
        size=size_of(source),
        tools=versions("onnx", "onnxruntime"),
    )


def size_of(model: Path) -> int:
    """Bytes of a model file and of what it cannot be loaded without."""
    found = model_files.read(model)
    beside = [model.parent / name for name in found.companions] if found else []
    return sum(path.stat().st_size for path in (model, *beside))


def _prepared(source: Path, work: Path, outputs: tuple[str, ...]) -> Path:
    target = work / "prepared.onnx"
    onnx.prepare(source, target, outputs)
    return target


def _tensors(model: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    found = model_files.read(model)
    assert found is not None  # by its suffix
    return found.inputs, found.outputs


def _from_ir(source: Path) -> InputError:
    return InputError(
        "convert.unsupported",
        f"cannot convert {source.name}: OpenVINO IR is where conversions end; convert the model that it was made of",
    )


def _unfiled(kind: str, name: str, model: Path) -> Origin:
    """A model from memory is known by the ONNX that it became."""
    return Origin(kind=kind, name=scaffold.slug(name), digest=_sha256(model), of="onnx")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions by name; those that are not installed under that name are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _engine(name: str) -> str:
    return f"{name} {versions(name).get(name, '')}".rstrip()
