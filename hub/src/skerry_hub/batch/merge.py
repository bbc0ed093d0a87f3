"""Results of parts into what people fetch: one Parquet file of scores and one JSONL file of rows without a score.

Columns: ``device`` (where each scored its own input), ``file`` (of folders), ``row`` (from 0, in the upload, the
device's input or the file), those kept, then the model's outputs: numbers, or lists of them. A part is read a frame at
a time, so that a large job costs the hub no more memory than a small one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from skerry_hub.batches import names_of
from skerry_hub.objects import ObjectStore
from skerry_hub.tables import BatchPart, BatchRow
from skerry_modules import columns
from skerry_modules.batches import ResultFrame, RowError, decode_frames
from skerry_modules.errors import PeerError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import DATATYPES, TensorSpec

RESULTS: Final = "batches/"
"""Where jobs' files stand in the object store: ``batches/<id>/``."""
GROUP_BYTES: Final = 32 * 1024 * 1024
"""Of rows that are written at once."""


class Merged(NamedTuple):
    """Keys in the object store with their sizes; ``errors`` is empty where every row was scored."""

    scores: str
    scores_size: int
    errors: str
    errors_size: int


class Counted(NamedTuple):
    rows: int
    errors: int


def count(file: BinaryIO, manifest: Manifest) -> Counted:
    """Read a whole result, and see that it is one of this model.

    Raises:
        PeerError: ``message.malformed``.
    """
    rows = errors = 0
    wanted = {spec.name for spec in manifest.outputs}
    for frame in decode_frames(file):
        if frame.rows and frame.outputs.keys() != wanted:
            raise PeerError("message.malformed", "cannot use a batch result: its outputs are not the model's")
        for spec in manifest.outputs if frame.rows else ():
            _values(frame, spec)
        rows += len(frame.rows)
        errors += len(frame.errors)
    return Counted(rows, errors)


def merge(objects: ObjectStore, row: BatchRow, parts: Sequence[BatchPart], manifest: Manifest, scratch: Path) -> Merged:
    """Write a job's two files from the parts that are done, in order. Safe to repeat.

    Args:
        scratch: a folder on the disk where they are written before they are stored.

    Raises:
        ResourceError: ``resource.no_space``.
    """
    import pyarrow.parquet as pq

    done = [part for part in parts if part.result]
    merger = _Merger(objects, row, manifest, _schema(objects, row, done, manifest))
    with tempfile.TemporaryDirectory(dir=scratch, prefix="merge-") as folder:
        scores, errors = Path(folder) / "scores", Path(folder) / "errors"
        with pq.ParquetWriter(scores, merger.schema, compression="zstd") as writer, errors.open("wb") as lines:
            for part in done:
                merger.write(part, writer, lines)
        return _stored(objects, row, scores, errors)


def _stored(objects: ObjectStore, row: BatchRow, scores: Path, errors: Path) -> Merged:
    key, beside = f"{RESULTS}{row.id}/scores.parquet", f"{RESULTS}{row.id}/errors.jsonl"
    with scores.open("rb") as file:
        size = objects.put_key(key, file)
    if not errors.stat().st_size:
        objects.delete_key(beside)
        return Merged(key, size, "", 0)
    with errors.open("rb") as file:
        return Merged(key, size, beside, objects.put_key(beside, file))


class _Merger:
    """Writes parts of one job. ``schema`` is what all its rows have."""

    def __init__(self, objects: ObjectStore, row: BatchRow, manifest: Manifest, schema: Any) -> None:
        self.schema = schema
        self._objects, self._row = objects, row
        self._outputs = {spec.name: spec for spec in manifest.outputs}
        self._keep = set(names_of(row.keep))

    def write(self, part: BatchPart, writer: Any, lines: BinaryIO) -> None:
        import pyarrow as pa

        kept = _kept(self._objects, part)
        size, waiting = 0, list[Any]()  # a row group for each frame would make a file of many small ones
        for frame in _frames(self._objects, part):
            if frame.rows:
                cells = [self._column(part, frame, field, kept) for field in self.schema]
                waiting.append(pa.Table.from_arrays(cells, schema=self.schema))
                size += waiting[-1].nbytes
            if size > GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                size, waiting = 0, []
            lines.writelines(msgspec.json.encode(self._told(part, error)) + b"\n" for error in frame.errors)
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())

    def _told(self, part: BatchPart, error: RowError) -> dict[str, Any]:
        found: dict[str, Any] = {"device": part.device} if self._row.source == "device" else {}
        found |= msgspec.to_builtins(error)
        if error.row >= 0 and not error.file:
            found["row"] = error.row + part.first
        return found

    def _column(self, part: BatchPart, frame: ResultFrame, field: Any, kept: Any) -> Any:
        import pyarrow as pa

        if field.name in self._outputs:
            return _output(frame, self._outputs[field.name], field)
        if field.name in self._keep:
            given = kept.column(field.name).take(list(frame.rows)) if kept is not None else frame.kept[field.name]
            return _fitted(given, field.type)
        if field.name == "row":
            return pa.array([number + part.first for number in frame.rows], field.type)
        return pa.array([frame.file if field.name == "file" else part.device] * len(frame.rows), field.type)


def _fitted(given: Any, kind: Any) -> Any:
    import pyarrow as pa

    if not isinstance(given, list):
        return given.combine_chunks().cast(kind) if isinstance(given, pa.ChunkedArray) else given.cast(kind)
    if pa.types.is_string(kind):
        return pa.array([None if one is None else str(one) for one in given], kind)
    return pa.array(given, kind)


def _output(frame: ResultFrame, spec: TensorSpec, field: Any) -> Any:
    import pyarrow as pa

    values = _values(frame, spec)
    flat = pa.array(values.reshape(-1).tolist() if values.dtype.kind == "O" else values.reshape(-1))
    if not pa.types.is_list(field.type):
        return flat.cast(field.type)
    import numpy as np

    width = values.size // len(frame.rows)
    offsets = pa.array(np.arange(0, values.size + 1, width) if width else np.zeros(len(frame.rows) + 1), pa.int32())
    return pa.ListArray.from_arrays(offsets, flat.cast(field.type.value_type))


def _values(frame: ResultFrame, spec: TensorSpec) -> Any:
    """One output of a frame, a row in front of each value.

    Raises:
        PeerError: ``message.malformed``.
    """
    from skerry_modules.arrays import from_piece
    from skerry_modules.oip import Piece

    tensor = frame.outputs[spec.name]
    try:
        found = from_piece(spec.name, Piece(tensor.datatype, tensor.shape, memoryview(tensor.data)))
    except SkerryError as error:
        raise PeerError("message.malformed", f"cannot use a batch result: {error.message}") from error
    rows = len(frame.rows)
    width = columns.width(spec)
    fits = tensor.datatype == spec.datatype and found.ndim and len(found) == rows
    if not fits or (width and found.size != rows * width):
        text = f"cannot use a batch result: output {spec.name!r} is {tensor.datatype} {list(tensor.shape)}"
        raise PeerError("message.malformed", text)
    return found


def _frames(objects: ObjectStore, part: BatchPart) -> Iterator[ResultFrame]:
    with objects.open(part.result) as file:
        yield from decode_frames(file)


def _kept(objects: ObjectStore, part: BatchPart) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(objects.path(part.kept)) if part.kept else None


def _schema(objects: ObjectStore, row: BatchRow, parts: Sequence[BatchPart], manifest: Manifest) -> Any:
    import numpy as np
    import pyarrow as pa

    fields = [pa.field("device", pa.string())] if row.source == "device" else []
    if row.unit == "files":
        fields.append(pa.field("file", pa.string()))
    fields.append(pa.field("row", pa.int64()))
    fields += [pa.field(name, kind) for name, kind in _kept_types(objects, row, parts).items()]
    for spec in manifest.outputs:
        one = pa.binary() if spec.datatype == "BYTES" else pa.from_numpy_dtype(np.dtype(DATATYPES[spec.datatype]))
        fields.append(pa.field(spec.name, one if columns.width(spec) == 1 else pa.list_(one)))
    return pa.schema(fields)


def _kept_types(objects: ObjectStore, row: BatchRow, parts: Sequence[BatchPart]) -> dict[str, Any]:
    """The types of the kept columns: the table's own, or what all values have in common, else text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, Any] = dict.fromkeys(names_of(row.keep))
    for part in parts if found else ():
        if part.kept:
            schema = pq.read_schema(objects.path(part.kept))
            return {name: schema.field(name).type for name in found}
        for frame in _frames(objects, part):
            for name, values in frame.kept.items():
                if name in found:
                    found[name] = _common(found[name], values)
    return {name: pa.string() if kind is None or pa.types.is_null(kind) else kind for name, kind in found.items()}


def _common(before: Any, values: list[Any]) -> Any:
    import pyarrow as pa

    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError, TypeError):
        return pa.string()
    if before is None or pa.types.is_null(before) or before.equals(kind):
        return kind
    if pa.types.is_null(kind):
        return before
    numbers = (pa.types.is_integer, pa.types.is_floating)
    return pa.float64() if all(any(of(one) for of in numbers) for one in (before, kind)) else pa.string()
