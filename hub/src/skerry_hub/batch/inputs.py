"""What is to be scored: uploads in the store, checked before a job begins, and cut into parts.

A table becomes parts of gzipped CSV with a line of names, whatever it was: a device then needs nothing to read
Parquet. A folder becomes zips of its files. Columns that are only kept go into no part that is sent: they stand in
Parquet beside it and meet the scores again when those are merged.

Cutting is repeatable: the same upload gives the same parts, so that a hub that is killed meanwhile does it again.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from skerry_hub.objects import ObjectStore
from skerry_modules import columns
from skerry_modules.batches import ARRAYS, MAX_LIST_BYTES, TABLES, InputFile, InputList
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.manifest import Manifest, is_plain
from skerry_modules.tensors import TensorSpec

FILES_PER_PART: Final = 64
PART_CELLS: Final = 2_000_000
"""Cells of one part at most: what a device downloads and sends at once stays a matter of megabytes."""
PARTS_PER_DEVICE: Final = 4
"""At least so many where there are rows enough: the slower devices then get fewer."""
PART_ROWS_FACTOR: Final = 50
_LEVEL: Final = 4
"""Of gzip. On measured tables of floats 6 takes three times as long for 6 % fewer bytes."""


class MadePart(msgspec.Struct, frozen=True, kw_only=True):
    """A part that was cut: objects in the store, the number of its first row, how many rows or files it has."""

    input: str
    input_size: int
    kept: str
    first: int
    units: int


class Joined(io.RawIOBase):
    """A file of an upload: its pieces one after the other, read where asked."""

    def __init__(self, objects: ObjectStore, pieces: Sequence[str]) -> None:
        super().__init__()
        self._objects = objects
        self._pieces: list[tuple[int, int, str]] = []  # start, end, digest
        at = 0
        for digest in pieces:
            end = at + objects.size(digest)
            self._pieces.append((at, end, digest))
            at = end
        self.size, self._at = at, 0
        self._open: tuple[str, BinaryIO] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        piece = next((one for one in self._pieces if one[0] <= self._at < one[1]), None)
        if piece is None or not len(view):
            return 0
        start, end, digest = piece
        if self._open is None or self._open[0] != digest:
            self._forget()
            self._open = (digest, self._objects.open(digest))
        file = self._open[1]
        file.seek(self._at - start)
        data = file.read(min(len(view), end - self._at))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _forget(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        self._forget()
        super().close()


# -- checking ----------------------------------------------------------------------------------------------------------


def read_list(objects: ObjectStore, digest: str) -> InputList:
    """The list of an upload, if all that it names is in the store.

    Raises:
        InputError: ``batch.input``.
    """
    try:
        if objects.size(digest) > MAX_LIST_BYTES:
            raise _bad(f"its list is over the limit of {MAX_LIST_BYTES} bytes")
        with objects.open(digest) as file:
            found = msgspec.json.decode(file.read(), type=InputList)
    except (OSError, SkerryError, msgspec.DecodeError) as error:
        raise _bad(f"its list {digest[:12]} cannot be read: {error}") from error
    if not found.files or found.kind not in ("table", "files") or (found.kind == "table" and len(found.files) != 1):
        raise _bad("it names no files, or not what its kind asks for")
    if found.kind == "files" and len({file.path for file in found.files}) != len(found.files):
        raise _bad("it names a file twice")
    for one in found.files:
        if not is_plain(one.path):
            raise _bad(f"{one.path[:80]!r} is not a plain path")
        missing = [piece for piece in one.pieces if not objects.exists(piece)]
        if missing or sum(objects.size(piece) for piece in one.pieces) != one.size:
            raise _bad(f"{one.path} is not all there; upload it again")
    return found


def check(
    objects: ObjectStore, upload: InputList, manifest: Manifest, chosen: Sequence[str], kept: Sequence[str]
) -> None:
    """Whether the model could score the upload, as far as its head tells.

    Raises:
        InputError: ``batch.input``, ``scoring.wrong_shape``, ``scoring.unknown_input`` (a missing column).
    """
    columns.check_rows(manifest.name, manifest.inputs)
    if upload.kind == "files":
        if chosen or kept:
            raise InputError("request.invalid", "cannot use columns to name or keep with arrays: they are for tables")
        if not any(PurePosixPath(one.path).suffix.lower() in ARRAYS for one in upload.files):
            raise _bad(f"none of its files is one of {', '.join(ARRAYS)}")
        return
    if any("," in name for name in (*chosen, *kept)):
        raise InputError("request.invalid", "cannot use a column whose name has a comma; rename it in the table")
    taken = {"row", "file", "device", *(spec.name for spec in manifest.outputs)} & set(kept)
    if taken or len(set(kept)) != len(kept):
        told = ", ".join(sorted(taken)) or "a name that is given twice"
        raise InputError("request.invalid", f"cannot keep {told}: the result has a column of this name; rename it")
    names, rows = _head(objects, upload)
    columns.assign(names, manifest.inputs, chosen=chosen, kept=kept)
    if rows == 0:
        raise _bad(f"{upload.files[0].path} has no rows")


def _head(objects: ObjectStore, upload: InputList) -> tuple[list[str], int]:
    """The names of a table's columns, and its rows (−1: not counted)."""
    one = upload.files[0]
    suffix = PurePosixPath(one.path).suffix.lower()
    if suffix not in TABLES:
        raise _bad(f"{one.path} is none of {', '.join(TABLES)}")
    with _reading(one.path), _opened(objects, upload) as file:
        if suffix != ".csv":
            import pyarrow.parquet as pq

            found = pq.ParquetFile(file)
            return list(found.schema_arrow.names), int(found.metadata.num_rows)
        lines = _csv(file)
        first = next(lines, [])
        names, header = _names(first)
        return names, -1 if not header or next(lines, None) else 0


# -- cutting -----------------------------------------------------------------------------------------------------------


def unit_of(upload: InputList) -> str:
    return "rows" if upload.kind == "table" else "files"


class Cutting(msgspec.Struct, frozen=True, kw_only=True):
    """How to cut: the model's inputs and the columns of a job, what a kill may cost, and for how many devices."""

    inputs: tuple[TensorSpec, ...]
    chosen: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    part_rows: int = 2000
    devices: int = 1


def cut(objects: ObjectStore, upload: InputList, how: Cutting) -> tuple[int, Iterator[MadePart]]:
    """How many rows or files there are, and the parts, stored as they are made. Only the columns that the model takes
    are in them, in their order.

    Raises:
        InputError: ``batch.input``, ``scoring.unknown_input``.
        ResourceError: ``resource.no_space``.
    """
    if upload.kind == "files":
        files = sorted(upload.files, key=lambda one: one.path)
        files = [one for one in files if PurePosixPath(one.path).suffix.lower() in ARRAYS]
        return len(files), _cut_files(objects, files)
    with _reading(upload.files[0].path):
        table = _table(objects, upload)
    return table.rows, _cut_table(objects, upload, how, table)


def _cut_table(objects: ObjectStore, upload: InputList, how: Cutting, table: _Table) -> Iterator[MadePart]:
    names, rows, lines = table
    with _reading(upload.files[0].path):
        taken = columns.assign(names, how.inputs, chosen=how.chosen, kept=how.kept)
        used = {name for of in taken.values() for name in of}
        sent = [place for place, name in enumerate(names) if name in used]
        places = {name: names.index(name) for name in how.kept}
        size = _part_size(rows, len(sent), how.part_rows, how.devices)
        first = 0
        while chunk := list(itertools.islice(lines, size)):
            digest, length = _put_csv(objects, names, chunk, sent)
            beside = objects.put_bytes(_kept(objects, upload, places, chunk, first)) if places else ""
            yield MadePart(input=digest, input_size=length, kept=beside, first=first, units=len(chunk))
            first += len(chunk)


def _part_size(rows: int, width: int, part_rows: int, devices: int) -> int:
    """Rows of a part: enough parts for all devices, none smaller than what a kill may cost, none too large to send."""
    wanted = -(-rows // max(1, devices * PARTS_PER_DEVICE))
    most = min(part_rows * PART_ROWS_FACTOR, max(part_rows, PART_CELLS // max(1, width)))
    return max(1, min(max(wanted, part_rows), most))


class _Table(NamedTuple):
    """Names of the columns, number of rows, and all rows as text."""

    names: list[str]
    rows: int
    lines: Iterator[list[str]]


def _table(objects: ObjectStore, upload: InputList) -> _Table:
    if PurePosixPath(upload.files[0].path).suffix.lower() != ".csv":
        return _parquet(objects, upload)
    with _opened(objects, upload) as file:
        lines = _csv(file)
        names, header = _names(next(lines, []))
        rows = sum(1 for _ in lines) + (not header)
    return _Table(names, rows, _csv_rows(objects, upload, header))


def _csv_rows(objects: ObjectStore, upload: InputList, header: bool) -> Iterator[list[str]]:
    with _opened(objects, upload) as file:
        lines = _csv(file)
        if header:
            next(lines, None)
        yield from lines


def _csv(file: BinaryIO) -> Iterator[list[str]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    return (line for line in csv.reader(text) if line)


def _names(first: list[str]) -> tuple[list[str], bool]:
    """The columns' names, and whether the first line is a line of names: the same rule as on devices."""
    header = any(not _is_number(cell) for cell in first)
    return ([cell.strip() for cell in first] if header else [str(place) for place in range(len(first))]), header


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(objects: ObjectStore, upload: InputList) -> _Table:
    import pyarrow.parquet as pq

    with _opened(objects, upload) as file:
        found = pq.ParquetFile(file)
        names, rows = list(found.schema_arrow.names), int(found.metadata.num_rows)

    def lines() -> Iterator[list[str]]:
        with _opened(objects, upload) as again:
            for batch in pq.ParquetFile(again).iter_batches(batch_size=8192, use_threads=False):
                cells = [_text(column) for column in batch.columns]
                yield from (list(row) for row in zip(*cells, strict=True))

    return _Table(names, rows, lines())


def _text(column: Any) -> list[str]:
    """A column as CSV has it: numbers in the shortest form that reads back the same, lists as JSON."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_floating(kind):
        return [str(cell) for cell in column.to_numpy(zero_copy_only=False).astype(str)]
    if pa.types.is_boolean(kind):
        return ["" if cell is None else str(int(cell)) for cell in column.to_pylist()]
    found = column.to_pylist()
    return ["" if cell is None else _cell(cell) for cell in found]


def _cell(value: Any) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _put_csv(objects: ObjectStore, names: list[str], lines: list[list[str]], sent: list[int]) -> tuple[str, int]:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([names[place] for place in sent])
    ragged = [""] * (len(sent) + 1)  # has other cells than columns, so that it is an error of its own there too
    for line in lines:
        writer.writerow([line[place] for place in sent] if len(line) == len(names) else ragged)
    data = gzip.compress(text.getvalue().encode(), _LEVEL, mtime=0)
    return objects.put_bytes(data), len(data)


def _kept(objects: ObjectStore, upload: InputList, places: dict[str, int], lines: list[list[str]], first: int) -> bytes:
    """The kept columns of a part as Parquet: with the types that they had, where the table has types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    if PurePosixPath(upload.files[0].path).suffix.lower() == ".csv":
        cells = {name: [line[at] if at < len(line) else None for line in lines] for name, at in places.items()}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in cells.items()})
    else:
        table = _slice(objects, upload, list(places), first, len(lines))
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _slice(objects: ObjectStore, upload: InputList, kept: Sequence[str], first: int, rows: int) -> Any:
    """Rows of some columns of a Parquet file; only the row groups that hold them are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _opened(objects, upload) as file:
        found = pq.ParquetFile(file)
        groups: list[int] = []
        at, start = 0, first
        for group in range(found.metadata.num_row_groups):
            size = found.metadata.row_group(group).num_rows
            if at < first + rows and at + size > first:
                if not groups:
                    start = first - at
                groups.append(group)
            at += size
        table = found.read_row_groups(groups, columns=list(kept), use_threads=False)
    return pa.table({name: table.column(name) for name in kept}).slice(start, rows)


def _cut_files(objects: ObjectStore, files: Sequence[InputFile]) -> Iterator[MadePart]:
    for start in range(0, len(files), FILES_PER_PART):
        chosen = files[start : start + FILES_PER_PART]
        sink = io.BytesIO()
        with _reading(chosen[0].path), zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            for one in chosen:
                with archive.open(zipfile.ZipInfo(one.path), "w") as target, _file(objects, one.pieces) as source:
                    while block := source.read(1 << 20):
                        target.write(block)
        data = sink.getvalue()
        yield MadePart(input=objects.put_bytes(data), input_size=len(data), kept="", first=0, units=len(chosen))


# -- the whole, for the hub itself -------------------------------------------------------------------------------------


def lay_out(objects: ObjectStore, upload: InputList, folder: Path) -> Path:
    """The upload as files under ``folder``; returns what is to be scored. Safe to repeat.

    Raises:
        ResourceError: ``resource.no_space``.
    """
    for one in upload.files:
        target = folder / (one.path if upload.kind == "files" else PurePosixPath(one.path).name)
        if target.exists() and target.stat().st_size == one.size:
            continue  # its time must stay: the scorer knows its input by it
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.draft")
        with draft.open("wb") as file, _file(objects, one.pieces) as source:
            while block := source.read(1 << 20):
                file.write(block)
        draft.rename(target)
    return folder if upload.kind == "files" else folder / PurePosixPath(upload.files[0].path).name


@contextlib.contextmanager
def _opened(objects: ObjectStore, upload: InputList) -> Iterator[BinaryIO]:
    with _file(objects, upload.files[0].pieces) as file:
        yield file


@contextlib.contextmanager
def _file(objects: ObjectStore, pieces: Sequence[str]) -> Iterator[BinaryIO]:
    with Joined(objects, pieces) as joined:
        yield io.BufferedReader(joined, 1 << 16)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever a table can be wrong in becomes one error."""
    import pyarrow as pa

    try:
        yield
    except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise _bad(f"{name} cannot be read: {error}") from error


def _bad(problem: str) -> InputError:
    return InputError("batch.input", f"cannot score this upload: {problem}"[:2000])
