"""Samples to calibrate and to judge with: ``.npz`` files, a module's golden inputs, or captured samples.

Captured samples are the Parquet files that ``skerry samples export`` brings from the hub: a column ``input.<name>`` of
flat values and one of shapes, a row per sample. Every row keeps a name (file and row, or the sample's id), so that a
sample that fails the gate can be found again.

Calibration and gate do not share rows where there are enough of both: a model is not judged by what it was fitted to.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from skerry_modules.errors import InputError, ResourceError
from skerry_modules.manifest import FILE_NAME, Manifest
from skerry_modules.tensors import DATATYPES, TensorSpec

Array = np.ndarray[Any, Any]
Given = Mapping[str, Array] | Array

FEW: Final = 100
"""Below so many, the gate's percentage is coarser than the bar that it is held to, and the report says so."""


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a model's inputs. ``labels`` is None where any of them has none; ``names`` says where each is from."""

    inputs: dict[str, Any]
    names: tuple[str, ...]
    source: str
    labels: Any = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> Samples:
        chosen = list(rows)
        return Samples(
            inputs={name: array[chosen] for name, array in self.inputs.items()},
            names=tuple(self.names[row] for row in chosen),
            source=self.source,
            labels=None if self.labels is None else self.labels[chosen],
        )

    def at_most(self, limit: int) -> Samples:
        """Evenly spaced rows, so that what changes over the file is still seen."""
        if len(self) <= limit:
            return self
        return self.take(np.linspace(0, len(self) - 1, limit).round().astype(int).tolist())

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for name, array in sorted(self.inputs.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def joined(parts: Sequence[Samples]) -> Samples:
    """One after the other; labelled only if all are."""
    labelled = all(part.labels is not None for part in parts)
    return Samples(
        inputs={name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs},
        names=tuple(name for part in parts for name in part.names),
        source=", ".join(dict.fromkeys(part.source for part in parts)),
        labels=np.concatenate([part.labels for part in parts]) if labelled else None,
    )


def halves(samples: Samples) -> tuple[Samples, Samples]:
    """Every other row: for calibration, for the gate."""
    return samples.take(range(0, len(samples), 2)), samples.take(range(1, len(samples), 2))


def load(paths: Sequence[Path], specs: tuple[TensorSpec, ...], labels: str) -> Samples:
    """All rows of all files.

    Args:
        paths: ``.npz`` files, ``.parquet`` files, or folders of either; a module's folder gives its golden inputs.
        specs: the model's inputs.
        labels: the array in an ``.npz`` with the right answer of each row, where there is one.

    Raises:
        InputError: ``convert.samples``: a file cannot be read or does not fit the model.
        ResourceError: ``resource.missing_dependency``: pyarrow, for Parquet.
    """
    parts = [part for path in paths for part in _load(path, specs, labels)]
    parts = [part for part in parts if len(part)]
    if not parts:
        raise _wrong(", ".join(map(str, paths)), "it holds no samples")
    return joined(parts)


def given(arrays: Given, specs: tuple[TensorSpec, ...], labels: Array | None = None) -> Samples:
    """Arrays by input name, or the only input's array.

    Raises:
        InputError: ``convert.samples``.
    """
    by_name = arrays if isinstance(arrays, Mapping) else {specs[0].name: np.asarray(arrays)}
    inputs = _fitted({name: np.asarray(array) for name, array in by_name.items()}, specs, "the samples")
    rows = len(next(iter(inputs.values())))
    if labels is not None and len(labels) != rows:
        raise _wrong("the samples", f"there are {len(labels)} labels for {rows} rows")
    return Samples(
        inputs=inputs,
        names=tuple(f"row {row}" for row in range(rows)),
        source="arrays",
        labels=None if labels is None else np.asarray(labels),
    )


def golden(folder: Path, manifest: Manifest) -> Samples | None:
    """A module's golden inputs, or None where it has no golden test."""
    if manifest.golden is None:
        return None
    (found,) = _npz(folder / manifest.golden.file, manifest.inputs, "")
    return msgspec.structs.replace(
        found,
        source="the golden inputs",
        names=tuple(f"golden case {row}" for row in range(len(found))),
    )


def golden_outputs(folder: Path, manifest: Manifest) -> dict[str, Array]:
    """The outputs that a module's golden test expects, for the rows of :func:`golden`; none without a golden test.

    Raises:
        InputError: ``convert.samples``.
    """
    if manifest.golden is None:
        return {}
    return {
        name.removeprefix("output."): array
        for name, array in _read_npz(folder / manifest.golden.file).items()
        if name.startswith("output.")
    }


def _load(path: Path, specs: tuple[TensorSpec, ...], labels: str) -> list[Samples]:
    if path.is_dir() and (path / FILE_NAME).is_file():
        from skerry_modules import package

        found = golden(path, package.read_folder(path))
        return [found] if found else []
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".npz", ".parquet"))
        if not files:
            raise _wrong(str(path), "there is no .npz and no .parquet file in it")
        return [part for file in files for part in _load(file, specs, labels)]
    if path.suffix == ".npz":
        return _npz(path, specs, labels)
    if path.suffix == ".parquet":
        return [_parquet(path, specs)]
    raise _wrong(str(path), "it is no .npz, .parquet or folder of them")


def _read_npz(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise _wrong(str(path), "there is no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise _wrong(str(path), f"{error}; write it with numpy.savez") from error


def _npz(path: Path, specs: tuple[TensorSpec, ...], labels: str) -> list[Samples]:
    arrays = _read_npz(path)
    inputs = _fitted({name.removeprefix("input."): array for name, array in arrays.items()}, specs, path.name)
    rows = len(next(iter(inputs.values())))
    truth = arrays.get(labels) if labels else None
    if truth is not None and len(truth) != rows:
        raise _wrong(path.name, f"{labels!r} has {len(truth)} rows, the inputs {rows}")
    names = tuple(f"{path.name} row {row}" for row in range(rows))
    return [Samples(inputs=inputs, names=names, source=path.name, labels=truth)]


_HINT: Final = "; arrays are named like the model's inputs (--input-name calls a scikit-learn estimator's otherwise)"


def _fitted(arrays: Mapping[str, Array], specs: tuple[TensorSpec, ...], source: str) -> dict[str, Array]:
    """The model's inputs, in its datatypes; all with the same number of rows."""
    inputs = {}
    for spec in specs:
        array = arrays.get(spec.name)
        if array is None:
            raise _wrong(source, f"it has no array {spec.name!r}, only {', '.join(arrays) or 'none'}{_HINT}")
        if array.ndim != len(spec.shape) or not all(
            want in (-1, size) for want, size in zip(spec.shape[1:], array.shape[1:], strict=True)
        ):
            raise _wrong(source, f"{spec.name!r} has the shape {list(array.shape)}, the model takes {list(spec.shape)}")
        inputs[spec.name] = array.astype(DATATYPES[spec.datatype], copy=False)
    if len({len(array) for array in inputs.values()}) != 1:
        raise _wrong(source, "its arrays have different numbers of rows")
    return inputs


def _parquet(path: Path, specs: tuple[TensorSpec, ...]) -> Samples:
    try:
        import pyarrow.parquet as pq
        from pyarrow import ArrowException
    except ImportError as error:
        raise ResourceError(
            "resource.missing_dependency",
            f"cannot read {path}: pyarrow is not installed here; `pip install 'skerry[convert]'`",
        ) from error
    try:
        table = pq.read_table(path)
    except (ArrowException, OSError) as error:
        raise _wrong(str(path), str(error)) from error
    columns = {spec.name: _column(table, spec, path) for spec in specs}
    ids = table.column("id").to_pylist() if "id" in table.column_names else range(table.num_rows)
    names: list[str] = []
    parts: dict[str, list[Array]] = {spec.name: [] for spec in specs}
    for row in range(table.num_rows):
        tensors = {name: column[row] for name, column in columns.items()}
        found = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        sizes = {len(tensor) for tensor in found.values()}
        if len(found) < len(specs) or len(sizes) != 1:
            continue  # captured of a version with other inputs
        (rows,) = sizes
        names += [f"sample {ids[row]}"] if rows == 1 else [f"sample {ids[row]} row {at}" for at in range(rows)]
        for name, tensor in found.items():
            parts[name].append(tensor)
    if not names:
        raise _wrong(str(path), "none of its samples fits the model's inputs")
    inputs = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return Samples(inputs=inputs, names=tuple(names), source=path.name)


def _column(table: Any, spec: TensorSpec, path: Path) -> list[Array | None]:
    """Each row's tensor with a leading row axis; None where the row has none, or one that this model does not take."""
    name = f"input.{spec.name}"
    if name not in table.column_names:
        raise _wrong(str(path), f"it has no column {name!r}: these are samples of another model")
    dtype = np.dtype(DATATYPES[spec.datatype])
    if f"{name}.shape" not in table.column_names:
        rows = table.column(name).to_pylist()
        return [None if row is None else _raw(row, spec, dtype) for row in rows]
    shapes = table.column(f"{name}.shape").to_pylist()
    values = [
        np.asarray(value.values.to_numpy(zero_copy_only=False)) if value.is_valid else None
        for value in table.column(name)
    ]
    return [
        None if value is None else _shaped(value.astype(dtype), tuple(shape), spec)
        for value, shape in zip(values, shapes, strict=True)
    ]


def _raw(row: dict[str, Any], spec: TensorSpec, dtype: np.dtype[Any]) -> Array | None:
    """A tensor that the hub kept as it came, since its datatype changed or its bytes did not fit."""
    data = bytes(row["data"])
    if row["datatype"] != spec.datatype or spec.datatype == "BYTES" or len(data) % dtype.itemsize:
        return None
    return _shaped(np.frombuffer(data, dtype), tuple(row["shape"]), spec)


def _shaped(flat: Array, shape: tuple[int, ...], spec: TensorSpec) -> Array | None:
    for full in (shape, (1, *shape)):  # captured with its row axis, or without
        fits = len(full) == len(spec.shape) and all(
            want in (-1, size) for want, size in zip(spec.shape[1:], full[1:], strict=True)
        )
        if fits and int(np.prod(full)) == flat.size:
            return flat.reshape(full)
    return None


def _wrong(source: str, problem: str) -> InputError:
    return InputError("convert.samples", f"cannot use the samples of {source}: {problem}")
