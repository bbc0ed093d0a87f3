"""How a batch is written: raw batched statements on the driver's own connection, on SQLite and on PostgreSQL.

The ORM would cost 10 to 20 times as much per row. Big tables go in by COPY on PostgreSQL, and on SQLite by statements
of many rows: one of 64 rows costs two thirds of ``executemany`` of the same rows, and it gives the interpreter's lock
away once and not 64 times, which is what counts while other threads want it. All else goes by ``executemany``.
The statements are spelled once; a test holds their columns to :mod:`skerry_hub.tables`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from skerry_hub.ingest.rows import Answered, Batch, Patch
from skerry_modules import measurement, messages

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "telemetry": (
        "device",
        "module",
        "version",
        "endpoint",
        "start_ms",
        "end_ms",
        "requests",
        "errors",
        "rejected",
        "p50_us",
        "p99_us",
        "body",
        "role",
    ),
    "health": (
        "device",
        "at",
        "cpu_percent",
        "memory_used",
        "memory_total",
        "disk_used",
        "disk_total",
        "temperature_c",
        "body",
    ),
    "event": ("device", "at", "received_at", "severity", "code", "message", "module", "version", "data"),
    "sample": (
        "id",
        "device",
        "module",
        "version",
        "digest",
        "at",
        "received_at",
        "reason",
        "probability",
        "body",
        "file",
    ),
    "stream_mark": ("device", "epoch", "stream", "mark", "lost", "at"),
    "device_module": (
        "device",
        "module",
        "version",
        "digest",
        "phase",
        "step",
        "role",
        "reason",
        "message",
        "since",
        "revision",
        "progress",
        "reported_at",
    ),
}

_KEYS: Final = {"stream_mark": ("device", "epoch", "stream"), "device_module": ("device", "module", "version")}
_PATCHED: Final = Patch.__struct_fields__
_ROWS_AT_ONCE: Final = (64, 8)
"""Rows of one statement on SQLite. 64 of the widest table's 13 columns are 832 parameters: any SQLite takes 999."""


class Writer:
    """Writes on one transaction's connection."""

    def __init__(self, connection: Connection) -> None:
        self._driver: Any = connection.connection.driver_connection
        self._postgres = connection.dialect.name == "postgresql"
        self._sign = "%s" if self._postgres else "?"

    def write(self, batch: Batch) -> None:
        """All of a batch; the caller commits."""
        self._append("telemetry", batch.telemetry)
        self._append("health", batch.health)
        self._append("event", batch.events)
        # An id that is there already is the same sample sent again under a new spool: the first one stays.
        self._many(self._insert("sample") + " ON CONFLICT (id) DO NOTHING", batch.samples)
        self._states(batch)
        self._results(batch.results)
        self._patches(batch)
        if self._postgres:
            self._many(self._upsert("stream_mark"), batch.marks)
        else:
            self._inserted("stream_mark", batch.marks, _on_conflict("stream_mark"))

    def events(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._append("event", rows)

    def _states(self, batch: Batch) -> None:
        """A state is a snapshot: what it does not name is gone from the device."""
        gone = [(device,) for device in batch.states]
        self._many(f"DELETE FROM device_module WHERE device = {self._sign}", gone)  # noqa: S608 - a parameter's sign
        rows: dict[tuple[str, str, int], tuple[Any, ...]] = {}
        for device, (state, at) in batch.states.items():
            for module in state.modules:
                rows[device, module.name, module.version] = _module_row(device, module, at)
        self._many(self._upsert("device_module"), list(rows.values()))

    def _results(self, results: Sequence[Answered]) -> None:
        """How commands go and ended. The hub's own end for want of an answer gives way to a late answer."""
        sign = self._sign
        changes = ", ".join(f"{name} = {sign}" for name in _ANSWER)
        self._many(
            f"UPDATE command SET {changes} WHERE id = {sign} AND device = {sign}"  # noqa: S608 - names are ours
            " AND (ended_at = 0 OR code = 'command.no_answer')",
            [(*_answer(one), one.result.command, one.device) for one in results],
        )
        # Which version it is, is what the hub asked for; that its files were those, the digest says.
        self._many(
            "INSERT INTO module_profile (name, version, device, profile, simulated, memory_mb, body, measured_by, at)"  # noqa: S608
            f" SELECT c.module, c.version, c.device, d.profile, {sign}, {sign}, {sign}, c.created_by, {sign}"
            " FROM command c JOIN device d ON d.id = c.device"
            " JOIN model_version v ON v.name = c.module AND v.version = c.version"
            f" WHERE c.id = {sign} AND c.device = {sign} AND c.name = 'profile' AND v.digest = {sign}"
            " ON CONFLICT (name, version, device, profile) DO UPDATE SET simulated = excluded.simulated,"
            " memory_mb = excluded.memory_mb, body = excluded.body, measured_by = excluded.measured_by,"
            " at = excluded.at",
            [
                (*_profile(one.profile, one.at), one.result.command, one.device, one.profile.digest)
                for one in results
                if one.profile is not None
            ],
        )

    def _patches(self, batch: Batch) -> None:
        sign = self._sign
        changes = ", ".join(f"{name} = COALESCE({sign}, {name})" for name in _PATCHED if name != "presence_at")
        # Presence is said again with every reconnect of either side: the time is that of the last change.
        changes += (
            f", presence_at = CASE WHEN CAST({sign} AS BOOLEAN) = online THEN presence_at"
            f" ELSE COALESCE(CAST({sign} AS BIGINT), presence_at) END"
        )
        names = [name for name in _PATCHED if name != "presence_at"] + ["online", "presence_at"]
        rows = [(*(getattr(patch, name) for name in names), device) for device, patch in sorted(batch.patches.items())]
        self._many(f"UPDATE device SET {changes} WHERE id = {self._sign}", rows)  # noqa: S608 - names are ours

    def _append(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        if not self._postgres:
            self._inserted(table, rows)
            return
        with (
            self._driver.cursor() as cursor,
            cursor.copy(f"COPY {table} ({', '.join(COLUMNS[table])}) FROM STDIN") as copy,
        ):
            for row in rows:
                copy.write_row(row)

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        cursor = self._driver.cursor()
        try:
            cursor.executemany(statement, rows)
        finally:
            cursor.close()

    def _inserted(self, table: str, rows: Sequence[tuple[Any, ...]], ending: str = "") -> None:
        """Insert into a table of SQLite, many rows at a time."""
        cursor = self._driver.cursor()
        try:
            done = 0
            for count in _ROWS_AT_ONCE:
                statement = _insert_of(table, count) + ending
                while len(rows) - done >= count:
                    cursor.execute(statement, list(chain.from_iterable(rows[done : done + count])))
                    done += count
            if done < len(rows):
                cursor.executemany(_insert_of(table, 1) + ending, rows[done:])
        finally:
            cursor.close()

    def _insert(self, table: str) -> str:
        columns = COLUMNS[table]
        return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join([self._sign] * len(columns))})"  # noqa: S608 - names are ours

    def _upsert(self, table: str) -> str:
        return self._insert(table) + _on_conflict(table)


@functools.cache
def _on_conflict(table: str) -> str:
    keys = _KEYS[table]
    changes = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[table] if name not in keys)
    return f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changes}"


@functools.cache
def _insert_of(table: str, rows: int) -> str:
    """SQLite's insert of so many rows. OR FAIL: the transaction is rolled back as a whole when anything fails, so
    SQLite need not keep what it takes to undo one statement by itself, which by default it does."""
    columns = COLUMNS[table]
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT OR FAIL INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * rows)}"  # noqa: S608 - names are ours


_ANSWER: Final = ("state", "progress", "code", "message", "data", "updated_at", "ended_at")


def _answer(one: Answered) -> tuple[Any, ...]:
    result = one.result
    ended = result.progress >= 1
    state = ("done" if result.ok else "failed") if ended else "running"
    data = "{}" if one.profile or not ended else msgspec.json.encode(result.data).decode()
    progress = 1.0 if ended else max(0.0, result.progress)
    return state, progress, result.code[:200], result.message[:4096], data, one.at, one.at if ended else 0


def _profile(profile: measurement.ModuleProfile, at: int) -> tuple[Any, ...]:
    return profile.simulated, profile.memory_mb, msgspec.json.encode(profile).decode(), at


def _module_row(device: str, module: messages.ModuleState, at: int) -> tuple[Any, ...]:
    return (
        device,
        module.name,
        module.version,
        module.digest,
        module.phase.value,
        module.step,
        module.role,
        module.reason,
        module.message,
        module.since,
        module.revision,
        module.progress,
        at,
    )


def marks_of(connection: Connection, device: str, epoch: str) -> Iterable[tuple[int, int, int]]:
    """(stream, mark, lost) of one spool."""
    sign = "%s" if connection.dialect.name == "postgresql" else "?"
    statement = f"SELECT stream, mark, lost FROM stream_mark WHERE device = {sign} AND epoch = {sign}"  # noqa: S608
    cursor = connection.connection.driver_connection.cursor()  # type: ignore[union-attr]
    try:
        cursor.execute(statement, (device, epoch))
        return [(int(row[0]), int(row[1]), int(row[2])) for row in cursor.fetchall()]
    finally:
        cursor.close()
