"""The spool: everything that leaves the device waits here, durable and bounded, until the hub has acknowledged it.

SQLite in WAL mode around the policy of :mod:`skerry_agent.rules.spool` (what to send, drop, forget).

* **synchronous = FULL.** In WAL mode NORMAL would let a power cut take the last commits. Here that is worse than a
  loss: a number that was sent, acknowledged and then forgotten by the disk would be given to another record, which
  the hub would drop as a duplicate. So each commit is flushed before its records may be sent, and many records
  share one commit: samples and metrics gather for ``gather_s``; alarms, states and results take the next one.
* Deletions ride on the next commit: a lost one only sends a record again, which the hub drops.
* The ``epoch`` is random, made with the database. Where the hub knows numbers that we never gave (a restored
  backup), a new epoch begins and what is left is numbered anew.
* A database that SQLite calls damaged is moved aside and a new one begun: a broken spool must not stop scoring.

The same transaction keeps the journal, the last events that ``skerry-agent events`` shows.

Everything here blocks and belongs to one thread; :class:`skerry_agent.outbox.Outbox` is its asynchronous front.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_agent.rules.spool import Acked, Sending, SpoolPolicy, SpoolSettings, kept
from skerry_modules import messages
from skerry_modules.errors import ResourceError
from skerry_modules.messages import STREAM_OF, Stream, Up

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streams (stream INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    stream INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, at INTEGER NOT NULL, size INTEGER NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (stream, seq)
);
CREATE TABLE IF NOT EXISTS journal (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, event BLOB NOT NULL
);
"""
_FORMAT: Final = 1
OVERHEAD_BYTES: Final = 64
"""What a record costs on disk besides its body, about."""


class Record(msgspec.Struct, frozen=True):
    """Something to keep: a spooled ``kind``, its encoded body, the wall clock in ms."""

    kind: str
    body: bytes
    at: int
    coalesce: bool = False
    journal: bool = False


class Outgoing(msgspec.Struct, frozen=True):
    """A record as it goes over the wire."""

    kind: str
    payload: bytes


class JournalEntry(msgspec.Struct, frozen=True):
    """One past event and when it came, ms since 1970."""

    at: int
    event: messages.Event


class Spool:
    """One device's spool. See the module's text for its promises.

    Args:
        path: the database file.
        settings: the policy's limits.
        journal: how many events to look back on.

    Raises:
        ResourceError: ``resource.no_space`` where not even an empty database can be made.
    """

    def __init__(self, path: Path, settings: SpoolSettings, *, journal: int = 500) -> None:
        self._path = path
        self._settings = settings
        self._journal = journal
        self._acks: dict[int, int] = {}
        self._linked = False
        self.untidy = 0  # records that were acknowledged and not deleted yet
        self.damaged = False  # whether a broken database was moved aside
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not path.exists() or isinstance(error, sqlite3.OperationalError):
                raise ResourceError(
                    "resource.no_space", f"cannot open the spool {path}: {error}; look at the disk's space and rights"
                ) from error
            self._set_aside()
            self._open()

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        run = self._db.execute
        for pragma in (
            "page_size = 4096",
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            "synchronous = FULL",
            "wal_autocheckpoint = 256",
            "journal_size_limit = 2097152",
            "cache_size = -512",
        ):
            run(f"PRAGMA {pragma}")
        if run("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("quick_check failed")
        self._db.executescript(_SCHEMA)
        run("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (_FORMAT,))
        run("INSERT OR IGNORE INTO meta VALUES ('epoch', ?)", (os.urandom(8),))
        (self.epoch,) = run("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        rows = run("SELECT stream, seq, size FROM records ORDER BY stream, seq")
        following = dict(run("SELECT stream, next FROM streams").fetchall())
        self.policy = SpoolPolicy(self._settings, kept(rows, following))

    def _begin_anew(self) -> None:
        self._set_aside()
        self._open()
        self._acks.clear()
        if self._linked:
            self.policy.connected(0.0)

    def _set_aside(self) -> None:
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self._db.close()
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self._path}{suffix}")
            if part.exists():
                part.replace(f"{self._path}.damaged{suffix}")  # the last one only: they must not pile up
        self.damaged = True

    # -- writing -----------------------------------------------------------------------------------------------------

    def append(self, records: Iterable[Record]) -> int:
        """Keep all of ``records`` in one durable transaction; how many found room.

        Raises:
            ResourceError: ``resource.no_space``: none was kept, and nothing that was kept before is lost.
        """
        stored = 0
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._delete_acked()
            for record in records:
                stored += self._append(record)
            self._db.execute("COMMIT")
            self._acks.clear()
            self.untidy = 0
        except sqlite3.OperationalError as error:
            self._recover()
            raise ResourceError(
                "resource.no_space", f"cannot write to the spool: {error}; free some disk space"
            ) from error
        except sqlite3.DatabaseError as error:
            self._begin_anew()
            raise ResourceError(
                "resource.spool_damaged",
                f"cannot write to the spool: {error}; it was set aside as {self._path.name}.damaged and begun anew",
            ) from error
        return stored

    def _append(self, record: Record) -> bool:
        stream = STREAM_OF[record.kind]
        size = len(record.body) + OVERHEAD_BYTES
        outcome = self.policy.append(stream, size, coalesce=record.coalesce)
        run = self._db.execute
        for victim, upto in outcome.dropped.items():
            run("DELETE FROM records WHERE stream = ? AND seq <= ?", (victim, upto))
        if record.journal and self._journal:
            run("INSERT INTO journal (at, event) VALUES (?, ?)", (record.at, record.body))
            run("DELETE FROM journal WHERE number <= (SELECT max(number) FROM journal) - ?", (self._journal,))
        if not outcome.seq:
            return False
        run(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?)",
            (stream, outcome.seq, record.kind, record.at, size, record.body),
        )
        # The next number is kept apart: it must survive the deletion of the last record.
        run("INSERT OR REPLACE INTO streams VALUES (?, ?)", (stream, self.policy.next_seq(stream)))
        return True

    def _recover(self) -> None:
        """After a failed transaction the policy is ahead of the database: begin again from what is on disk."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        dropped = self.policy.dropped
        rows = self._db.execute("SELECT stream, seq, size FROM records ORDER BY stream, seq")
        following = dict(self._db.execute("SELECT stream, next FROM streams").fetchall())
        self.policy = SpoolPolicy(self._settings, kept(rows, following))
        self.policy.dropped = dropped
        self.policy.acked(self._acks, 0.0)  # what the hub has acknowledged is still so
        if self._linked:
            self.policy.connected(0.0)

    # -- sending -----------------------------------------------------------------------------------------------------

    def linked(self, up: bool, now: float) -> None:
        """The link came up or went down."""
        self._linked = up
        if up:
            self.policy.connected(now)
        else:
            self.policy.disconnected()

    def read(self, sendings: Iterable[Sending]) -> list[Outgoing]:
        """The payloads of what the policy wants sent."""
        found = []
        for one in sendings:
            row = self._db.execute(
                "SELECT kind, at, body FROM records WHERE stream = ? AND seq = ?", (one.stream, one.seq)
            ).fetchone()
            if row is None:  # acknowledged or dropped since the policy named it
                continue
            kind, at, body = row
            up = Up(messages.FORMAT, self.epoch, one.stream, one.seq, one.base, at, msgspec.Raw(body))
            found.append(Outgoing(kind, messages.encode(up)))
        return found

    def acked(self, ack: messages.Ack, now: float) -> Acked:
        """The hub's marks came. Deletion waits for the next commit, or for :meth:`tidy`."""
        if ack.epoch != self.epoch:
            return Acked()
        before = self.policy.records
        outcome = self.policy.acked(ack.marks, now)
        self.untidy += before - self.policy.records
        for stream, upto in outcome.upto.items():
            self._acks[stream] = upto
        if outcome.torn:
            self._renew()
        return outcome

    def tidy(self) -> None:
        """Delete what was acknowledged and give free pages back, when nothing else commits."""
        if not self._acks:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._delete_acked()
            self._db.execute("COMMIT")
            self._acks.clear()
            self.untidy = 0
            self._db.execute("PRAGMA incremental_vacuum(256)")
        except sqlite3.Error:  # a full disk: the next commit tries again, and until then nothing is lost
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _delete_acked(self) -> None:
        for stream, upto in self._acks.items():
            self._db.execute("DELETE FROM records WHERE stream = ? AND seq <= ?", (stream, upto))

    def _renew(self) -> None:
        """A new epoch. Numbers go on from where they are: the hub takes ``base`` as the start of a new epoch."""
        self.epoch = os.urandom(8)
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (self.epoch,))
        self.policy.renewed()

    # -- looking -----------------------------------------------------------------------------------------------------

    def journal(self, limit: int) -> list[JournalEntry]:
        """The last events, oldest first."""
        return read_journal(self._db, limit)

    def facts(self) -> dict[str, Any]:
        """For status and health: records, bytes, and records and drops by stream name."""
        return {
            "records": self.policy.records,
            "bytes": self.policy.bytes,
            "streams": {one.name.lower(): self.policy.next_seq(one) - self.policy.base(one) for one in Stream},
            "dropped": {Stream(stream).name.lower(): count for stream, count in self.policy.dropped.items()},
            "epoch": self.epoch.hex(),
        }

    def close(self) -> None:
        self.tidy()
        self._db.close()


def read_journal(db: sqlite3.Connection, limit: int) -> list[JournalEntry]:
    """The last events of any spool's database, oldest first."""
    rows = db.execute("SELECT at, event FROM journal ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
    return [JournalEntry(at, msgspec.msgpack.decode(event, type=messages.Event)) for at, event in reversed(rows)]


def wall_ms() -> int:
    """The wall clock in ms since 1970: a label, never a judge of order."""
    return time.time_ns() // 1_000_000
