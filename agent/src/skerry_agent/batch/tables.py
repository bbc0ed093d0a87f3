"""Reads what is to be scored, part by part: CSV, a folder of files, one ``.npz``/``.npy``/``.json``; Parquet elsewhere.

Parts are cut by position alone, so that the same input always gives the same parts: what was scored before a kill need
not be read as rows again. A row that cannot be read is an error of its own and stops nothing.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

import numpy as np

from skerry_agent.batch import columns
from skerry_agent.batch.rows import Block, Model, Part, RowError
from skerry_modules import npz
from skerry_modules.arrays import Array, as_declared
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.messages import Tensor
from skerry_modules.tensors import DATATYPES, TensorSpec

FILES_PER_PART: Final = 64
SUFFIXES: Final = (".npz", ".npy", ".json")


class Table(Protocol):
    """An input, cut into parts."""

    units: int
    unit: str  # "rows" or "files"
    parts: int
    kept: dict[str, Any]  # column: its type for Parquet, None for text
    print: str  # of the input's content: another one is another job

    def read(self, done: set[int]) -> Iterator[Part]:
        """The parts that are not done, in order."""
        ...


def open_table(
    path: Path,
    model: Model,
    *,
    part_rows: int,
    chosen: Sequence[str],
    kept: Sequence[str],
    header: bool | None = None,
) -> Table:
    """The reader for a path. ``header``: whether a table's first line names its columns; None: it tells by itself.

    Raises:
        InputError: ``request.invalid``, ``scoring.unknown_input``.
        ResourceError: ``resource.missing_dependency``: Parquet without pyarrow.
    """
    if not path.exists():
        raise InputError("request.invalid", f"cannot score {path}: there is no such file or folder")
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        if chosen or kept:
            raise InputError("request.invalid", "cannot use --columns or --keep on arrays: they are for tables")
        return FolderTable(path, model)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return CsvTable(path, model, part_rows, chosen, kept, header=header)
    if path.suffix.lower() in (".parquet", ".pq"):
        from skerry_agent.batch.parquet import ParquetTable

        return ParquetTable(path, model, part_rows, chosen, kept)
    raise InputError(
        "request.invalid", f"cannot score {path.name}: it is no folder, .parquet, .csv, .csv.gz, {', '.join(SUFFIXES)}"
    )


def file_print(path: Path) -> str:
    """Size and time of a file; reading a large one whole to know it again would cost minutes."""
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


# -- CSV ---------------------------------------------------------------------------------------------------------------


class CsvTable:
    """A CSV file, plain or gzipped. A first line that is not all numbers names the columns; else they are ``0``, …"""

    unit = "rows"

    def __init__(
        self,
        path: Path,
        model: Model,
        part_rows: int,
        chosen: Sequence[str],
        kept: Sequence[str],
        *,
        header: bool | None = None,
    ) -> None:
        self._path = path
        self._model = model
        self._part_rows = part_rows
        try:
            with self._open() as stream:
                reader = csv.reader(stream)
                first = next(reader, [])
                self._header = any(not _is_number(cell) for cell in first) if header is None else header
                rows = sum(1 for line in reader if line) + (bool(first) and not self._header)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
            raise InputError("request.invalid", f"cannot read {path}: {error}") from error
        self._names = [cell.strip() for cell in first] if self._header else [str(n) for n in range(len(first))]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._of = columns.assign(self._names, model, chosen=chosen, kept=kept)
        self.kept: dict[str, Any] = dict.fromkeys(kept)
        self.units = rows
        self.parts = -(-rows // part_rows)
        self.print = file_print(path)

    def _open(self) -> TextIO:
        if self._path.suffix.lower() == ".gz":
            return gzip.open(self._path, "rt", newline="", encoding="utf-8-sig")
        return self._path.open(newline="", encoding="utf-8-sig")

    def read(self, done: set[int]) -> Iterator[Part]:
        with self._open() as stream:
            lines = (line for line in csv.reader(stream) if line)
            if self._header:
                next(lines)
            for number in range(self.parts):
                first = number * self._part_rows
                size = min(self._part_rows, self.units - first)
                if number in done:
                    for _ in range(size):
                        next(lines, None)
                    continue
                yield self._part(number, first, [line for _, line in zip(range(size), lines, strict=False)])

    def _part(self, number: int, first: int, lines: list[list[str]]) -> Part:
        rows = list(range(first, first + len(lines)))
        errors: list[RowError] = []
        try:
            inputs = self._arrays(lines)
        except (ValueError, IndexError, OverflowError, InputError):  # find the rows that are wrong
            good: list[int] = []
            for place, line in enumerate(lines):
                try:
                    self._arrays([line])
                    good.append(place)
                except (ValueError, IndexError, OverflowError, InputError) as error:
                    errors.append(RowError(row=rows[place], code="scoring.bad_data", reason=self._why(line, error)))
            rows, lines = [rows[place] for place in good], [lines[place] for place in good]
            inputs = self._arrays(lines) if lines else {}
        kept = {name: [line[self._places[name]] for line in lines] for name in self.kept}
        blocks = [Block(rows, inputs, kept)] if rows else []
        return Part(number, blocks, errors, len(rows) + len(errors))

    def _arrays(self, lines: list[list[str]]) -> dict[str, Array]:
        if any(len(line) != len(self._names) for line in lines):
            raise IndexError
        return {spec.name: self._array(spec, lines) for spec in self._model.inputs}

    def _array(self, spec: TensorSpec, lines: list[list[str]]) -> Array:
        names = self._of[spec.name]
        width = self._model.width(spec)
        places = [self._places[name] for name in names]
        if len(places) == 1 and width != 1:  # a list in one cell
            values = np.array([json.loads(line[places[0]]) for line in lines])
            return as_declared(values.reshape(len(lines), *_inner(spec, values.shape[1:])), spec)
        cells = np.array([[line[place] for place in places] for line in lines], dtype=str)
        return _from_text(cells, spec).reshape(len(lines), *spec.shape[1:])

    def _why(self, line: list[str], error: Exception) -> str:
        if len(line) != len(self._names):
            return f"cannot read the row: it has {len(line)} cells, the table has {len(self._names)} columns"
        return f"cannot read the row: {error}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _from_text(cells: Array, spec: TensorSpec) -> Array:
    if spec.datatype == "BYTES":
        return cells.astype(object)
    dtype = np.dtype(DATATYPES[spec.datatype])
    if dtype.kind == "b":
        return cells.astype(np.int64).astype(bool)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return cells.astype(dtype)
    whole = cells.astype(np.uint64 if spec.datatype == "UINT64" else np.int64)
    return as_declared(whole, spec)


def _inner(spec: TensorSpec, found: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one row: as declared, or as it came where the declaration leaves it open."""
    return found if -1 in spec.shape[1:] else spec.shape[1:]


# -- arrays in files ---------------------------------------------------------------------------------------------------


class FolderTable:
    """A folder of ``.npz``, ``.npy`` and ``.json`` files (at any depth, hidden ones left out), or one such file."""

    unit = "files"

    def __init__(self, path: Path, model: Model) -> None:
        self._model = model
        self._root = path if path.is_dir() else path.parent
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        self._files = [
            file
            for file in found
            if file.suffix.lower() in SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(self._root).parts)
        ]
        if not self._files:
            raise InputError("request.invalid", f"cannot find a file to score in {path}: none of {', '.join(SUFFIXES)}")
        self.kept: dict[str, Any] = {}
        self.units = len(self._files)
        self.parts = -(-self.units // FILES_PER_PART)
        told = "\n".join(f"{self._name(file)}:{file_print(file)}" for file in self._files)
        self.print = hashlib.sha256(told.encode()).hexdigest()

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()

    def read(self, done: set[int]) -> Iterator[Part]:
        for number in range(self.parts):
            if number not in done:
                files = self._files[number * FILES_PER_PART : (number + 1) * FILES_PER_PART]
                yield self._part(number, files)

    def _part(self, number: int, files: list[Path]) -> Part:
        blocks: list[Block] = []
        errors: list[RowError] = []
        for file in files:
            name = self._name(file)
            try:
                arrays = self._arrays(file)
                rows = {len(array) for array in arrays.values()}
                if len(rows) != 1:
                    raise InputError("scoring.wrong_shape", f"cannot use it: its inputs have {sorted(rows)} rows")
            except SkerryError as error:
                errors.append(RowError(row=-1, file=name, code=error.code, reason=error.message))
                continue
            blocks.append(Block(list(range(rows.pop())), arrays, {}, name))
        return Part(number, blocks, errors, len(files))

    def _arrays(self, file: Path) -> dict[str, Array]:
        specs = self._model.inputs
        values: dict[str, Any]
        if file.suffix.lower() == ".json":
            try:
                given = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise InputError("request.invalid", f"cannot read {file.name} as JSON: {error}") from error
            values = given if isinstance(given, dict) else {specs[0].name: given}
        else:
            values = {name: _array_of(tensor) for name, tensor in npz.read(file).items()}
            if file.suffix.lower() == ".npy":
                values = {specs[0].name: next(iter(values.values()))}
        return {spec.name: _rows_of(_pick(values, spec, file.name), spec) for spec in specs}


def _array_of(tensor: Tensor) -> Array:
    return np.frombuffer(tensor.data, np.dtype(DATATYPES[tensor.datatype])).reshape(tensor.shape)


def _pick(values: dict[str, Any], spec: TensorSpec, source: str) -> Any:
    for key in (spec.name, f"input.{spec.name}"):
        if key in values:
            return values[key]
    have = ", ".join(sorted(values)) or "nothing"
    raise InputError("scoring.unknown_input", f"cannot find input {spec.name!r} in {source}: it holds {have}")


def _rows_of(value: Any, spec: TensorSpec) -> Array:
    """A batch as it is; a single row gets the dimension that it lacks."""
    array = as_declared(value, spec)
    if array.ndim == len(spec.shape) - 1:
        array = array[np.newaxis]
    if array.ndim != len(spec.shape) or not spec.accepts((spec.shape[0], *array.shape[1:])):
        raise InputError(
            "scoring.wrong_shape",
            f"cannot use input {spec.name!r} of shape {list(array.shape)}: the model takes {list(spec.shape)}",
        )
    return array
