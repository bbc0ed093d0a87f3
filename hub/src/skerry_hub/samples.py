"""Captured samples as Parquet files in the object store, and back.

A sample arrives as a row with its body. :func:`compact` moves bodies into files by module, version and day:
``samples/<module>/<version>/<day>/<name>.parquet``. A row stays, without its body, and names its file.

Crash-safe, each sample in exactly one place: the file is whole and on disk first; then one transaction points the rows
at it and drops their bodies. A hub that dies in between leaves a file that no row names, which the next
:func:`compact` removes before it does anything else. One hub compacts at a time (it holds the database's lease).

A file has a column per tensor, ``input.<name>`` and ``output.<name>``: the flat values (row-major), with the shape in
``….shape``. A tensor whose datatype changes within a file, or whose bytes do not fit its shape, is kept as it came:
struct of datatype, shape and data. Every row keeps its own id, and the probability with which it was captured.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import bindparam, text

from skerry_modules import messages
from skerry_modules.errors import InputError
from skerry_modules.tensors import DATATYPES, ITEM_BYTES

if TYPE_CHECKING:
    from skerry_hub.db import Database
    from skerry_hub.objects import ObjectStore

PREFIX: Final = "samples/"
FORMAT: Final = 1
_body = msgspec.msgpack.Decoder(messages.Sample)
_LABELS: Final = ("id", "device", "digest", "at", "received_at", "reason", "probability", "config", "endpoint")


class CompactSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When and how much."""

    min_rows: int = 200  # fewer wait for company …
    max_age_s: float = 300.0  # … but no longer than this
    file_rows: int = 10_000
    file_bytes: int = 64 * 1024 * 1024


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """One sample with what the hub knows of it."""

    device: str
    received_at: int
    sample: messages.Sample


def compact(db: Database, objects: ObjectStore, settings: CompactSettings | None = None, *, now: int = 0) -> int:
    """Move bodies of due samples into files; returns the rows moved.

    Args:
        now: ms since 1970; 0: everything is due.
    """
    settings = settings or CompactSettings()
    remove_orphans(db, objects)
    moved = 0
    for module, version, day in _due(db, settings, now):
        while rows := _load(db, module, version, day, settings):
            moved += _move(db, objects, (module, version, day), rows)
    return moved


def remove_orphans(db: Database, objects: ObjectStore) -> int:
    """Delete files that no row names: left by a hub that died before its commit."""
    with db.engine.connect().execution_options(skerry_read=True) as connection:
        named = {str(row[0]) for row in connection.execute(text("SELECT DISTINCT file FROM sample WHERE file <> ''"))}
    orphans = [key for key in objects.keys(PREFIX) if key not in named]
    return sum(objects.delete_key(key) for key in orphans)


def _due(db: Database, settings: CompactSettings, now: int) -> list[tuple[str, int, str]]:
    """Groups (module, version, day) that have enough rows, or old ones."""
    day_ms = 86_400_000
    statement = text(
        "SELECT module, version, received_at / :day AS day, COUNT(*), MIN(received_at) FROM sample "
        "WHERE body IS NOT NULL GROUP BY module, version, received_at / :day ORDER BY 1, 2, 3"
    ).bindparams(day=day_ms)
    with db.engine.connect().execution_options(skerry_read=True) as connection:
        groups = connection.execute(statement).all()
    return [
        (str(module), int(version), _day(int(day)))
        for module, version, day, count, oldest in groups
        if not now or count >= settings.min_rows or now - int(oldest) >= settings.max_age_s * 1000
    ]


def _day(number: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=number)).isoformat()


def _load(db: Database, module: str, version: int, day: str, settings: CompactSettings) -> list[Any]:
    first = (datetime.date.fromisoformat(day) - datetime.date(1970, 1, 1)).days * 86_400_000
    statement = text(
        "SELECT id, device, received_at, body FROM sample WHERE module = :module AND version = :version "
        "AND received_at >= :first AND received_at < :last AND body IS NOT NULL ORDER BY received_at, id LIMIT :rows"
    )
    parameters = {
        "module": module,
        "version": version,
        "first": first,
        "last": first + 86_400_000,
        "rows": settings.file_rows,
    }
    rows: list[Any] = []
    size = 0
    with db.engine.connect().execution_options(skerry_read=True) as connection:
        for row in connection.execute(statement, parameters):
            rows.append(row)
            size += len(row[3])
            if size >= settings.file_bytes:
                break
    return rows


def _move(db: Database, objects: ObjectStore, group: tuple[str, int, str], rows: list[Any]) -> int:
    module, version, day = group
    captured = [
        Captured(device=str(device), received_at=int(at), sample=_body.decode(bytes(body)))
        for _id, device, at, body in rows
    ]
    name = hashlib.sha256("\n".join(str(row[0]) for row in rows).encode()).hexdigest()[:20]
    key = f"{PREFIX}{module}/{version}/{day}/{name}.parquet"
    objects.put_key(key, encode(captured, module, version))
    statement = text("UPDATE sample SET file = :file, body = NULL WHERE id = :sample AND body IS NOT NULL")
    with db.engine.begin() as connection:
        connection.execute(statement, [{"file": key, "sample": str(row[0])} for row in rows])
    return len(rows)


# -- files -------------------------------------------------------------------------------------------------------------


def encode(captured: list[Captured], module: str, version: int) -> bytes:
    """One Parquet file of samples of one module version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "id": pa.array([one.sample.id for one in captured], pa.string()),
        "device": pa.array([one.device for one in captured], pa.string()),
        "digest": pa.array([one.sample.digest for one in captured], pa.string()),
        "at": pa.array([one.sample.at for one in captured], pa.int64()),
        "received_at": pa.array([one.received_at for one in captured], pa.int64()),
        "reason": pa.array([one.sample.reason for one in captured], pa.string()),
        "probability": pa.array([one.sample.probability for one in captured], pa.float64()),
        "config": pa.array([one.sample.config for one in captured], pa.string()),
        "endpoint": pa.array([one.sample.endpoint for one in captured], pa.string()),
    }
    datatypes: dict[str, str] = {}
    for side, of in (("input", "inputs"), ("output", "outputs")):
        names = sorted({name for one in captured for name in getattr(one.sample, of)})
        for name in names:
            _tensor_columns(
                columns, datatypes, f"{side}.{name}", [getattr(one.sample, of).get(name) for one in captured]
            )
    about = {"format": FORMAT, "module": module, "version": version, "datatypes": datatypes}
    table = pa.table(columns).replace_schema_metadata({"skerry": msgspec.json.encode(about)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _tensor_columns(
    columns: dict[str, Any], datatypes: dict[str, str], name: str, tensors: list[messages.Tensor | None]
) -> None:
    import pyarrow as pa

    kinds = {tensor.datatype for tensor in tensors if tensor is not None}
    kind = kinds.pop() if len(kinds) == 1 else ""
    if kind in ITEM_BYTES and all(tensor is None or _fits(tensor) for tensor in tensors):
        datatypes[name] = kind
        columns[name] = pa.array([None if one is None else _values(one) for one in tensors], pa.list_(_arrow(kind)))
        shapes = [None if one is None else list(one.shape) for one in tensors]
        columns[f"{name}.shape"] = pa.array(shapes, pa.list_(pa.int64()))
        return
    raw = pa.struct([("datatype", pa.string()), ("shape", pa.list_(pa.int64())), ("data", pa.binary())])
    rows = [
        None if one is None else {"datatype": one.datatype, "shape": list(one.shape), "data": one.data}
        for one in tensors
    ]
    columns[name] = pa.array(rows, raw)


def _fits(tensor: messages.Tensor) -> bool:
    if any(size < 0 for size in tensor.shape):
        return False
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.datatype] == len(tensor.data)


def _values(tensor: messages.Tensor) -> Any:
    import numpy as np

    return np.frombuffer(tensor.data, np.dtype(DATATYPES[tensor.datatype]))


def _arrow(datatype: str) -> Any:
    import numpy as np
    import pyarrow as pa

    return pa.from_numpy_dtype(np.dtype(DATATYPES[datatype]))


def decode(file: Any) -> Iterator[Captured]:
    """The samples of one file (a path or an open binary file), as they were captured."""
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    about = msgspec.json.decode(table.schema.metadata[b"skerry"])
    datatypes: dict[str, str] = about["datatypes"]
    tensors = [name for name in table.column_names if name.startswith(("input.", "output.")) and name not in _LABELS]
    tensors = [name for name in tensors if not name.endswith(".shape") or name.removesuffix(".shape") not in datatypes]
    for start in range(0, table.num_rows, 256):
        part = table.slice(start, 256)
        labels = {name: part.column(name).to_pylist() for name in _LABELS}
        sides = {name: _tensors(part, name, datatypes.get(name, "")) for name in tensors}
        for index in range(part.num_rows):
            row = {name: values[index] for name, values in labels.items()}
            device, received_at = row.pop("device"), row.pop("received_at")
            sample = messages.Sample(
                **row,
                module=about["module"],
                version=about["version"],
                inputs=_side(sides, "input.", index),
                outputs=_side(sides, "output.", index),
            )
            yield Captured(device=device, received_at=received_at, sample=sample)


def _side(sides: dict[str, list[messages.Tensor | None]], prefix: str, index: int) -> dict[str, messages.Tensor]:
    found = {name.removeprefix(prefix): values[index] for name, values in sides.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _tensors(table: Any, name: str, datatype: str) -> list[messages.Tensor | None]:
    import numpy as np

    column = table.column(name)
    if not datatype:
        return [
            None if one is None else messages.Tensor(**{**one, "shape": tuple(one["shape"])})
            for one in column.to_pylist()
        ]
    shapes = table.column(f"{name}.shape").to_pylist()
    dtype = np.dtype(DATATYPES[datatype])
    made: list[messages.Tensor | None] = []
    for value, shape in zip(column, shapes, strict=True):
        if not value.is_valid:
            made.append(None)
            continue
        data = np.asarray(value.values.to_numpy(zero_copy_only=False), dtype).tobytes()
        made.append(messages.Tensor(datatype=datatype, shape=tuple(shape), data=data))
    return made


# -- reading back ------------------------------------------------------------------------------------------------------


def load(db: Database, objects: ObjectStore, ids: Iterable[str]) -> dict[str, Captured]:
    """Samples by id, from rows or from files, whichever holds them now. Unknown ids are left out."""
    wanted = list(dict.fromkeys(ids))
    statement = text("SELECT id, device, received_at, body, file FROM sample WHERE id IN :ids")
    with db.engine.connect().execution_options(skerry_read=True) as connection:
        rows = connection.execute(statement.bindparams(bindparam("ids", expanding=True)), {"ids": wanted}).all()
    found: dict[str, Captured] = {}
    files: dict[str, set[str]] = {}
    for sample, device, received_at, body, file in rows:
        if body is None:
            files.setdefault(str(file), set()).add(str(sample))
        else:
            decoded = _body.decode(bytes(body))
            found[str(sample)] = Captured(device=str(device), received_at=int(received_at), sample=decoded)
    for key, inside in files.items():
        with objects.open_key(key) as file:
            found.update({one.sample.id: one for one in decode(file) if one.sample.id in inside})
    return found


def export(db: Database, objects: ObjectStore, target: Path, *, module: str, version: int | None = None) -> int:
    """Write every sample of a module, wherever it is kept, as Parquet files under ``target``; returns the rows.

    Raises:
        InputError: ``module.unknown``: there is no sample of it.
    """
    compact(db, objects)
    chosen = " AND version = :version" if version is not None else ""
    statement = text(
        f"SELECT file, COUNT(*) FROM sample WHERE module = :module{chosen} GROUP BY file"  # noqa: S608 - our text
    )
    parameters = {"module": module, **({"version": version} if version is not None else {})}
    with db.engine.connect().execution_options(skerry_read=True) as connection:
        files = [(str(row[0]), int(row[1])) for row in connection.execute(statement, parameters) if row[0]]
    if not files:
        raise InputError("module.unknown", f"cannot export samples of {module!r}: none was captured")
    for key, _count in files:
        place = target / key.removeprefix(PREFIX)
        place.parent.mkdir(parents=True, exist_ok=True)
        with objects.open_key(key) as source:
            place.write_bytes(source.read())
    return sum(count for _key, count in files)
