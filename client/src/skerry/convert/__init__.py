"""Convert a model, prove that it still says the same, and write it as a module.

>>> from skerry import convert
>>> convert.from_sklearn(estimator, "digits", samples=held_out, labels=truth)
>>> convert.convert("digits", "digits-int8", precision="int8-static", samples=["captured/"])

Every conversion is held to the original, sample by sample (:mod:`skerry.convert.gate`); what does not pass raises
:class:`GateFailed` and leaves nothing behind. The command is ``skerry modules convert``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from skerry.convert import converting, folder, originals
from skerry.convert import samples as sampling
from skerry.convert.originals import Original
from skerry.convert.report import Conversion, GateFailed, Options, Precision, Progress, Target
from skerry.convert.runtimes import Array
from skerry.convert.samples import Given, Samples

Source = Given | Sequence[str | Path] | str | Path
"""Samples: arrays by input name (or the only input's), or files and folders as ``--samples`` takes them."""

__all__ = ["Conversion", "GateFailed", "Options", "convert", "from_sklearn", "from_torch"]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: Target = "onnx",
    precision: Precision = "f32",
    name: str = "",
    samples: Source | None = None,
    labels: Array | None = None,
    calibration: Source | None = None,
    options: Options | None = None,
    progress: Progress = lambda *_: None,
) -> Conversion:
    """Convert a model file, a module's folder or a package, and write the new module's folder.

    Args:
        source: a module's folder or package, ``.onnx``, an estimator's pickle, or a ``.pt2`` of ``torch.export``.
        out: the folder to write; it must not exist, or be empty.
        to: the engine that devices run it on.
        precision: ``f32``; ``f16`` (OpenVINO: weights only); ``int8-static`` (with calibration); ``int8-dynamic``.
        name: the module's; by default the original's.
        samples: what to judge with, beside a module's own golden inputs.
        labels: the right answer of each sample, where ``samples`` are arrays.
        calibration: samples for static quantisation; by default every other one of ``samples``.
        options: the gate's bars and the rest.
        progress: told each step, and how far it is.

    Raises:
        GateFailed: ``convert.gate_failed``: the new model differs too much; its ``report`` says where.
        InputError: ``convert.unsupported``, ``convert.untrusted``, ``convert.samples``, ``manifest.*``.
        PeerError: ``package.*`` of a package that is damaged.
        ResourceError: ``resource.missing_dependency`` with what to install.
    """
    options = options or Options()

    def opened(work: Path) -> Original:
        return originals.open_path(Path(source), work, options, plain=_plain(to, precision))

    return _run(
        opened, out, to=to, precision=precision, name=name, samples=samples, labels=labels, calibration=calibration,
        options=options, progress=progress,
    )  # fmt: skip


def from_sklearn(
    estimator: Any,
    out: str | Path,
    *,
    samples: Source,
    input_name: str = originals.INPUT_NAME,
    to: Target = "onnx",
    precision: Precision = "f32",
    name: str = "",
    labels: Array | None = None,
    calibration: Source | None = None,
    options: Options | None = None,
    progress: Progress = lambda *_: None,
) -> Conversion:
    """Convert a fitted scikit-learn classifier or regressor that is in memory: no pickle is read.

    Args:
        estimator: one that takes a matrix of floats and has ``predict_proba`` or predicts numbers.
        samples: what to judge with: a matrix, or as for :func:`convert`.
        input_name: what the input shall be called.

    The rest, and what it raises, is as for :func:`convert`.
    """
    options = options or Options()

    def opened(work: Path) -> Original:
        return originals.from_estimator(estimator, work, plain=_plain(to, precision), input_name=input_name)

    return _run(
        opened, out, to=to, precision=precision, name=name, samples=samples, labels=labels, calibration=calibration,
        options=options, progress=progress,
    )  # fmt: skip


def from_torch(
    program: Any,
    out: str | Path,
    *,
    samples: Source,
    to: Target = "onnx",
    precision: Precision = "f32",
    name: str = "",
    labels: Array | None = None,
    calibration: Source | None = None,
    options: Options | None = None,
    progress: Progress = lambda *_: None,
) -> Conversion:
    """Convert what ``torch.export.export(model.eval(), inputs)`` gave. The rest is as for :func:`convert`."""
    options = options or Options()

    def opened(work: Path) -> Original:
        return originals.from_program(program, work)

    return _run(
        opened, out, to=to, precision=precision, name=name, samples=samples, labels=labels, calibration=calibration,
        options=options, progress=progress,
    )  # fmt: skip


def _run(
    opened: Callable[[Path], Original],
    out: str | Path,
    *,
    to: Target,
    precision: Precision,
    name: str,
    samples: Source | None,
    labels: Array | None,
    calibration: Source | None,
    options: Options,
    progress: Progress,
) -> Conversion:
    converting.check_request(to, precision, name, options)
    folder.check_free(Path(out))
    with tempfile.TemporaryDirectory(prefix="skerry-convert-") as temporary:
        work = Path(temporary)
        progress("open the original", 0, 1)
        original = opened(work)
        progress("open the original", 1, 1)
        return converting.run(
            original,
            Path(out),
            work,
            to=to,
            precision=precision,
            given=_samples(samples, original, options, labels),
            calibration=_samples(calibration, original, options, None),
            options=options,
            name=name,
            progress=progress,
        )


def _plain(to: Target, precision: Precision) -> bool:
    return to == "openvino" or precision != "f32"


def _samples(source: Source | None, original: Original, options: Options, labels: Array | None) -> Samples | None:
    if source is None:
        return None
    if isinstance(source, (str, Path)):
        return sampling.load([Path(source)], original.inputs, options.labels)
    if isinstance(source, Sequence) and all(isinstance(one, (str, Path)) for one in source):
        paths = [Path(str(one)) for one in source]
        return sampling.load(paths, original.inputs, options.labels) if paths else None
    return sampling.given(cast("Given", source), original.inputs, labels)
