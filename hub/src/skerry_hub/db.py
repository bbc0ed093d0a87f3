"""The hub's database: SQLite by default, PostgreSQL by URL, one code path for both.

Rules:

* :meth:`Database.session` is a transaction that may write. On SQLite its first statement takes the write lock (BEGIN
  IMMEDIATE): a transaction that reads first and writes later would otherwise fail with "database is locked" whenever
  another one wrote in between, and no waiting helps it.
* :meth:`Database.read` is a transaction that must not write; on SQLite it never waits for a writer (WAL).
* SQLite runs with ``synchronous=FULL``: the hub acknowledges what devices sent after its commit, and the device then
  forgets it, so a commit must survive a power cut. NORMAL would lose the last commits in WAL mode.

Not handled here: what the rows mean (the services), and who may open the database (:mod:`skerry_hub.lease`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, OperationalError
from sqlmodel import Session, SQLModel

from skerry_modules.errors import InputError, ResourceError

IN_MAX: Final = 1000
"""Values named in one statement: SQLite takes 32,766 at most, and long lists are slow to make."""

T = TypeVar("T")

MIGRATION_LOCK: Final = 0x5CE881  # an advisory lock's number on PostgreSQL: any constant that is ours alone


class Database:
    """One database by URL.

    Args:
        url: ``sqlite:///path``, a bare path, or ``postgresql://user:password@host/name``.
        busy_s: how long SQLite waits for another writer.
        pool: connections kept open to PostgreSQL.

    Raises:
        InputError: ``settings.invalid``: the URL is no database that the hub knows.
        ResourceError: ``resource.missing_dependency``: no driver for PostgreSQL is installed.
    """

    def __init__(self, url: str, *, busy_s: float = 10.0, pool: int = 10) -> None:
        self.url = _parse(url)
        self.dialect = self.url.get_backend_name()
        self.info: dict[str, Any] = {}  # what every session carries, such as the hub's signer
        if self.dialect == "sqlite":
            self.engine = _sqlite(self.url, busy_s)
        else:
            self.engine = _postgresql(self.url, pool)
        self._readers = self.engine.execution_options(skerry_read=True)

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction that may write: committed at the end, rolled back on any exception."""
        with _speaking_our_errors(self), Session(self.engine, expire_on_commit=False, info=dict(self.info)) as session:
            yield session
            session.commit()

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; nothing that it changes is kept."""
        with (
            _speaking_our_errors(self),
            Session(self._readers, expire_on_commit=False, info=dict(self.info)) as session,
        ):
            yield session

    def migrate(self) -> None:
        """Bring the tables up to date. Two hubs that start at once do not get in each other's way."""
        from skerry_hub.migrations import upgrade

        if self.dialect == "sqlite" and self.url.database and self.url.database != ":memory:":
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        with _speaking_our_errors(self), self.engine.begin() as connection:
            if self.dialect == "postgresql":
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:n)"), {"n": MIGRATION_LOCK})
            upgrade(connection)

    def now_ms(self, connection: Connection | Session) -> int:
        """The database's own clock, so that hubs on machines with different clocks agree on a lease."""
        if self.dialect == "postgresql":
            statement = sqlalchemy.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            return int(connection.execute(statement).scalar_one())
        return time.time_ns() // 1_000_000

    def close(self) -> None:
        self.engine.dispose()

    def __str__(self) -> str:
        return self.url.set(drivername=self.dialect).render_as_string(hide_password=True)


def add_missing(session: Session, table: type[SQLModel], **values: Any) -> bool:
    """Insert a row unless one with its key is there, and say whether it was: of two at once, one did."""
    target = SQLModel.metadata.tables[str(table.__tablename__)]
    statement = _insert_of(session)(target).values(**values).on_conflict_do_nothing().returning(*target.primary_key)
    return session.connection().execute(statement).first() is not None  # drivers disagree on the row count


def add_all_missing(session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert those of the rows whose keys are not there."""
    target = SQLModel.metadata.tables[str(table.__tablename__)]
    session.connection().execute(_insert_of(session)(target).on_conflict_do_nothing(), rows)


def upsert(session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert whole rows, or put them in place of those with their key: one statement for all of them."""
    if not rows:
        return
    target = SQLModel.metadata.tables[str(table.__tablename__)]
    statement = _insert_of(session)(target)
    keys = {column.name for column in target.primary_key}
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    session.connection().execute(statement.on_conflict_do_update(index_elements=sorted(keys), set_=changed), rows)


def _insert_of(session: Session) -> Any:
    """The dialect's own INSERT, which knows conflicts."""
    if session.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert  # not needed, and slow to import, on SQLite
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    return insert


def chunked(values: Sequence[T], size: int = IN_MAX) -> Iterator[Sequence[T]]:
    """Parts of a sequence that a statement can name one by one."""
    return (values[start : start + size] for start in range(0, len(values), size))


def _parse(url: str) -> URL:
    if "://" not in url:
        url = f"sqlite:///{url}"
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InputError(
            "settings.invalid", "cannot read the database URL: use sqlite:///path or postgresql://…"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "postgresql" or parsed.drivername == "postgres":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        return parsed.set(drivername="sqlite+pysqlite")
    raise InputError(
        "settings.invalid", f"cannot use a {backend} database: the hub runs on sqlite:///path or postgresql://…"
    )


def _sqlite(url: URL, busy_s: float) -> Engine:
    # autocommit=True in the driver, so that the BEGIN is ours and of the kind that we chose.
    engine = sqlalchemy.create_engine(
        url, connect_args={"timeout": busy_s, "check_same_thread": False, "isolation_level": None}, pool_size=10
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        _write_ahead(cursor, busy_s)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("skerry_read")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(cursor: Any, busy_s: float) -> None:
    """Switch a new database to WAL. SQLite does not wait here while another hub switches it: so we do."""
    end = time.monotonic() + busy_s
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.01)


def _postgresql(url: URL, pool: int) -> Engine:
    try:
        return sqlalchemy.create_engine(url, pool_size=pool, max_overflow=pool, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ResourceError(
            "resource.missing_dependency",
            "cannot use PostgreSQL: install its driver with pip install 'skerry[postgres]'",
        ) from error


@contextlib.contextmanager
def _speaking_our_errors(database: Database) -> Iterator[None]:
    """The adapter's boundary: a database that is away is a ResourceError, a value that it cannot hold an InputError."""
    try:
        yield
    except OperationalError as error:
        problem = _first_line(error)
        held = "database is locked" in problem
        advice = "stop the other program that writes to it" if held else "check that it runs and that the URL is right"
        raise ResourceError(
            "resource.database_unreachable", f"cannot reach the database {database}: {problem}; {advice}"
        ) from error
    except DataError as error:  # such as a NUL in a text, which PostgreSQL does not take and SQLite does
        raise InputError(
            "request.invalid", f"cannot use a value of this request: {_first_line(error)}; leave it out or change it"
        ) from error


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).strip().splitlines() or ["unknown"])[0]
