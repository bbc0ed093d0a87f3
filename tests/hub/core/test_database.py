"""The database: its history equals its tables, its transactions hold, its troubles speak our errors. On both kinds."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy
from sqlmodel import SQLModel, select

from skerry_hub import migrations
from skerry_hub.db import Database
from skerry_hub.tables import Model
from skerry_modules.errors import InputError, ResourceError


class _PowerCutError(Exception):
    """Something happens in the middle of a transaction."""


def test_the_history_ends_in_the_tables(database: Database) -> None:
    with database.engine.begin() as connection:
        assert migrations.differences(connection) == []


def test_the_check_of_the_history_sees_a_difference(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP INDEX event_by_time"))
        connection.execute(sqlalchemy.text("ALTER TABLE device ADD COLUMN colour VARCHAR"))
        found = migrations.differences(connection)
    assert {change[0] for change in found} == {"add_index", "remove_column"}


def test_the_history_goes_back_to_nothing_and_forth_again(database: Database) -> None:
    with database.engine.begin() as connection:
        migrations.downgrade(connection, "base")
        left = set(sqlalchemy.inspect(connection).get_table_names())
        assert left <= {"alembic_version"}
        migrations.upgrade(connection)
        assert set(sqlalchemy.inspect(connection).get_table_names()) >= set(SQLModel.metadata.tables)


def test_a_migration_that_fails_leaves_what_was(database: Database) -> None:
    with contextlib.suppress(_PowerCutError), database.engine.begin() as connection:
        migrations.downgrade(connection, "base")
        raise _PowerCutError
    with database.engine.begin() as connection:
        assert migrations.differences(connection) == []


def test_many_hubs_may_migrate_at_once(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(6)]
    gate, failures = threading.Barrier(6), []

    def one(database: Database) -> None:
        gate.wait()
        try:
            database.migrate()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with databases[0].engine.begin() as connection:
        assert migrations.differences(connection) == []
    for database in databases:
        database.close()


def test_a_transaction_is_kept_whole_or_not_at_all(database: Database) -> None:
    with contextlib.suppress(_PowerCutError), database.session() as session:
        session.add(Model(name="gone", created_at=1))
        session.flush()
        raise _PowerCutError
    with database.session() as session:
        session.add(Model(name="kept", created_at=1))
    with database.read() as session:
        session.add(Model(name="read-only", created_at=1))
        session.flush()
    with database.read() as session:
        assert list(session.exec(select(Model.name))) == ["kept"]


def test_reading_first_and_writing_later_never_meets_a_lock(database: Database) -> None:
    """On SQLite a plain BEGIN would fail here at once with "database is locked", whatever the busy timeout."""
    with database.session() as session:
        session.add(Model(name="counter", created_at=1))
    gate = threading.Barrier(8)

    def add() -> None:
        gate.wait()
        for _ in range(5):
            with database.session() as session:
                row = session.exec(select(Model).where(Model.name == "counter").with_for_update()).one()
                row.last_version += 1
                session.add(row)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.exec(select(Model.last_version)).one() == 40


def test_reading_does_not_wait_for_a_writer(database: Database) -> None:
    with database.session() as writer:
        writer.add(Model(name="unseen", created_at=1))
        writer.flush()
        with database.read() as reader:
            assert list(reader.exec(select(Model.name))) == []


def test_sqlite_keeps_commits_through_a_power_cut_and_holds_references(sqlite: Database) -> None:
    with sqlite.engine.begin() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_references_hold(database: Database) -> None:
    insert = sqlalchemy.text("INSERT INTO device_tag (device, key, value) VALUES ('nobody', 'a', 'b')")
    with pytest.raises(sqlalchemy.exc.IntegrityError), database.session() as session:
        session.execute(insert)


def test_the_clock_is_the_databases_own(database: Database) -> None:
    with database.read() as session:
        first, second = database.now_ms(session), database.now_ms(session)
    assert first <= second
    assert first > 1_700_000_000_000


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mysql://root@localhost/x", "cannot use a mysql database: the hub runs on sqlite:///path or postgresql://"),
        ("://", "cannot read the database URL"),
    ],
)
def test_an_unknown_kind_of_database_is_refused(url: str, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        Database(url)
    assert caught.value.code == "settings.invalid"


def test_a_database_that_is_away_is_named_without_its_password(free_port: object) -> None:
    database = Database(f"postgresql://skerry:hunter2@127.0.0.1:{free_port()}/hub")  # type: ignore[operator]
    with pytest.raises(ResourceError, match="cannot reach the database") as caught:
        database.migrate()
    assert caught.value.code == "resource.database_unreachable"
    assert "hunter2" not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_lock_that_is_never_freed_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    database = Database(str(path), busy_s=0.1)
    database.migrate()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ResourceError, match="database is locked; stop the other"), database.session() as session:
        session.connection()
    other.close()
    database.close()
