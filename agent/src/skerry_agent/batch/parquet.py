"""Parquet in and out. The only file that imports pyarrow: the extra ``batch`` installs it, and without it CSV is left.

Does not handle: nested columns deeper than a list of numbers per row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent.batch import columns
from skerry_agent.batch.rows import Block, Model, Part, RowError, Segment
from skerry_modules.arrays import Array, as_declared
from skerry_modules.errors import InputError, ResourceError
from skerry_modules.tensors import DATATYPES, TensorSpec

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as missing:
    raise ResourceError(
        "resource.missing_dependency",
        "cannot read or write Parquet: pyarrow is not installed; pip install 'skerry[batch]', or use CSV in and "
        "CSV or JSONL out",
    ) from missing


class ParquetTable:
    """A Parquet file. See ``tables.Table``."""

    unit = "rows"

    def __init__(self, path: Path, model: Model, part_rows: int, chosen: Sequence[str], kept: Sequence[str]) -> None:
        self._path = path
        self._model = model
        self._part_rows = part_rows
        try:
            with pq.ParquetFile(path) as file:
                schema, self.units = file.schema_arrow, file.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            raise InputError("request.invalid", f"cannot read {path} as Parquet: {error}") from error
        self._of = columns.assign(schema.names, model, chosen=chosen, kept=kept)
        self.kept: dict[str, Any] = {name: schema.field(name).type for name in kept}
        self.parts = -(-self.units // part_rows)
        stat = path.stat()
        self.print = f"{stat.st_size}:{stat.st_mtime_ns}"

    def read(self, done: set[int]) -> Iterator[Part]:
        needed = list(dict.fromkeys([*(name for names in self._of.values() for name in names), *self.kept]))
        with pq.ParquetFile(self._path) as file:
            # A batch may end where a row group does: parts are cut from what is left of the one before.
            left = pa.table({})
            number = 0
            for batch in file.iter_batches(batch_size=self._part_rows, columns=needed, use_threads=False):
                table = pa.Table.from_batches([batch])
                left = pa.concat_tables([left, table]) if left.num_rows else table
                while left.num_rows >= self._part_rows or number * self._part_rows + left.num_rows >= self.units > 0:
                    if not left.num_rows:
                        break
                    part, left = left.slice(0, self._part_rows), left.slice(self._part_rows)
                    if number not in done:
                        yield self._part(number, part.combine_chunks())
                    number += 1

    def _part(self, number: int, table: Any) -> Part:
        first = number * self._part_rows
        good = np.ones(table.num_rows, dtype=bool)
        why: dict[int, str] = {}
        for spec in self._model.inputs:
            for place, reason in self._bad(spec, table).items():
                good[place] = False
                why.setdefault(place, reason)
        errors = [RowError(row=first + place, code="scoring.bad_data", reason=why[place]) for place in sorted(why)]
        chosen = table.filter(pa.array(good)) if why else table
        places = np.flatnonzero(good)
        if not len(places):
            return Part(number, [], errors, table.num_rows)
        inputs = {spec.name: self._array(spec, chosen) for spec in self._model.inputs}
        kept = {name: chosen.column(name).to_pylist() for name in self.kept}
        return Part(number, [Block((first + places).tolist(), inputs, kept)], errors, table.num_rows)

    def _bad(self, spec: TensorSpec, table: Any) -> dict[int, str]:
        """Rows without a value, or with a list of the wrong length."""
        found: dict[int, str] = {}
        width = self._model.width(spec)
        names = self._of[spec.name]
        for name in names:
            column = table.column(name)
            if _is_list(column.type):
                lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
                for place in np.flatnonzero(~(lengths == width) if width else np.isnan(lengths.astype("f8"))):
                    told = "nothing" if np.isnan(lengths[place]) else f"{int(lengths[place])} values"
                    found[int(place)] = (
                        f"cannot use column {name!r}: it holds {told}, the model takes {width or 'a list'}"
                    )
            elif column.null_count and DATATYPES[spec.datatype][1] != "f":
                for place in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
                    found[int(place)] = f"cannot use column {name!r}: it holds nothing"
        return found

    def _array(self, spec: TensorSpec, table: Any) -> Array:
        names, rows = self._of[spec.name], table.num_rows
        kinds = [table.column(name) for name in names]
        if len(kinds) == 1 and _is_list(kinds[0].type):
            flat = kinds[0].combine_chunks()
            while _is_list(flat.type):
                flat = flat.flatten()
            values = flat.to_numpy(zero_copy_only=False)
        else:
            values = np.column_stack([column.to_numpy() for column in kinds])
        if -1 in spec.shape[1:]:
            lengths = set(pc.list_value_length(kinds[0]).to_pylist()) if _is_list(kinds[0].type) else {1}
            if len(lengths) != 1:
                raise InputError(
                    "scoring.wrong_shape",
                    f"cannot score column {names[0]!r}: its lists have different lengths within one part; sort or pad",
                )
            return as_declared(values.reshape(rows, lengths.pop()), spec)
        return as_declared(values.reshape(rows, *spec.shape[1:]), spec)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def schema_of(model: Model, *, files: bool, kept: dict[str, Any]) -> Any:
    """The output's columns: ``file`` (for folders), ``row``, the kept ones, then the model's outputs."""
    fields = [pa.field("file", pa.string())] if files else []
    fields.append(pa.field("row", pa.int64()))
    fields += [pa.field(name, kind or pa.string()) for name, kind in kept.items()]
    for spec in model.outputs:
        one = pa.binary() if spec.datatype == "BYTES" else pa.from_numpy_dtype(np.dtype(DATATYPES[spec.datatype]))
        fields.append(pa.field(spec.name, one if model.width(spec) == 1 else pa.list_(one)))
    return pa.schema(fields)


def write_part(path: Path, schema: Any, segments: Sequence[Segment], model: Model) -> None:
    """One part's rows."""
    outputs = {spec.name: model.width(spec) for spec in model.outputs}
    arrays = [
        pa.chunked_array([_column(segment, field, outputs) for segment in segments], field.type) for field in schema
    ]
    with path.open("wb") as stream:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), stream, compression="zstd")
        stream.flush()
        os.fsync(stream.fileno())


def _column(segment: Segment, field: Any, outputs: dict[str, int]) -> Any:
    rows = len(segment.rows)
    if field.name in outputs:
        array = segment.outputs[field.name]
        flat = array.reshape(-1)
        values = pa.array(flat.tolist() if flat.dtype.kind == "O" else flat)
        if not pa.types.is_list(field.type):
            return values.cast(field.type)
        width = flat.size // rows
        offsets = pa.array(np.arange(0, flat.size + 1, width) if width else np.zeros(rows + 1), pa.int32())
        return pa.ListArray.from_arrays(offsets, values.cast(field.type.value_type))
    if field.name == "row":
        return pa.array(segment.rows, field.type)
    given = [segment.file] * rows if field.name == "file" else segment.kept[field.name]
    return pa.array(given, field.type)


def join(parts: Sequence[Path], path: Path, schema: Any) -> None:
    """All parts into one file, one after the other."""
    with path.open("wb") as stream:
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            for part in parts:
                writer.write_table(pq.read_table(part, schema=schema))
        stream.flush()
        os.fsync(stream.fileno())
