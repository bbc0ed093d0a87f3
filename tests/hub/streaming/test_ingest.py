"""The write path by itself: a hub killed between receiving and committing, samples into Parquet and back, pruning."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_hub import desired, devices, monitoring, samples
from skerry_hub.bus import Bus
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.ingest import Ingest, sql
from skerry_hub.objects import FolderStore
from skerry_hub.rules.marks import MAX_NUMBER, Verdict, take
from skerry_hub.tables import SampleRow
from skerry_modules import messages, trust
from skerry_modules.messages import Stream

Wait = Callable[..., None]
EPOCH = b"epoch-01"


def opened(url: str) -> Database:
    db = Database(url)
    db.migrate()
    db.info[desired.SIGNER] = trust.SigningKey.generate("hub")
    with db.session() as session:
        devices.register(session, "dev-1", profile="generic-x86_64", tags={}, actor="t", now=now_ms())
    return db


def envelope(kind: str, seq: int, body: object, base: int = 1) -> bytes:
    return messages.encode(
        messages.Up(messages.FORMAT, EPOCH, int(messages.STREAM_OF[kind]), seq, base, now_ms(), body)
    )


def sample(number: int, datatype: str = "FP32") -> messages.Sample:
    data = struct.pack("<4f", number, 1, 2, 3) if datatype == "FP32" else bytes([number])
    inputs = {"x": messages.Tensor(datatype=datatype, shape=(2, 2) if datatype == "FP32" else (1,), data=data)}
    outputs = {"y": messages.Tensor(datatype="INT64", shape=(1,), data=struct.pack("<q", number))} if number % 2 else {}
    return messages.Sample(
        id=f"s-{number:05}",
        module="digits",
        version=1,
        digest="d",
        at=number,
        inputs=inputs,
        outputs=outputs,
        reason="low-confidence",
        probability=0.1,
        config="c",
        endpoint="e",
    )


KILLED = """
import os, signal, sys, time
from skerry_hub.db import Database
from skerry_hub.bus import Bus
from skerry_hub.ingest import Ingest
from skerry_hub.ingest.sql import Writer
url, when = sys.argv[1], sys.argv[2]
ingest = Ingest(Database(url), Bus(), lambda topic, payload: print("acked", flush=True) or True)
if when == "before":
    whole = Writer.write
    def die(self, batch):
        whole(self, batch)                       # every row is written …
        os.kill(os.getpid(), signal.SIGKILL)     # … and nothing committed
    Writer.write = die
else:
    def die_after(*_):
        os.kill(os.getpid(), signal.SIGKILL)     # committed, and nobody told
    ingest._flush_acks = die_after
for line in sys.stdin:
    kind, payload = line.split()
    ingest.offer("dev-1", kind, bytes.fromhex(payload))
ingest.start()
time.sleep(30)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hub_killed_around_its_commit_loses_nothing_and_doubles_nothing(
    database_url: str, when: str, eventually: Wait
) -> None:
    db = opened(database_url)
    event = messages.Event(severity=messages.Severity.INFO, code="c", message="m")
    window = messages.Telemetry(module="m", version=1, digest="d", endpoint="m", start=1, end=2)
    sent = [("event", envelope("event", seq, event)) for seq in range(1, 6)]
    sent += [("telemetry", envelope("telemetry", seq, window)) for seq in range(1, 101)]
    hub = subprocess.run(
        [sys.executable, "-c", KILLED, db.url.render_as_string(hide_password=False), when],
        input="\n".join(f"{kind} {payload.hex()}" for kind, payload in sent),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert hub.returncode == -signal.SIGKILL, hub.stderr
    assert "acked" not in hub.stdout
    assert stored(db) == ((0, 0) if when == "before" else (5, 100))
    acks: list[messages.Ack] = []

    def publish(_topic: str, payload: bytes) -> bool:
        acks.append(messages.decode("ack", payload))
        return True

    ingest = Ingest(db, Bus(), publish)
    ingest.start()
    for kind, payload in sent:  # the device heard nothing: it sends again
        ingest.offer("dev-1", kind, payload)
    marks = {int(Stream.ALARM): 5, int(Stream.METRIC): 100}
    eventually(lambda: acks and acks[-1].marks == marks, what="the acknowledgement")
    ingest.stop()
    assert stored(db) == (5, 100)
    db.close()


def stored(db: Database) -> tuple[int, int]:
    """Events and windows in the database."""
    with db.read() as session:
        windows = session.connection().exec_driver_sql("SELECT COUNT(*) FROM telemetry").scalar_one()
        return len(monitoring.last_events(session)), windows


def test_a_database_that_is_away_is_waited_for(tmp_path: Path, eventually: Wait) -> None:
    import sqlite3

    db = opened(f"sqlite:///{tmp_path / 'hub.db'}")
    db.engine.dispose()
    acks: list[bytes] = []
    blocked = Database(f"sqlite:///{tmp_path / 'hub.db'}", busy_s=0.05)
    ingest = Ingest(blocked, Bus(), lambda _t, payload: acks.append(payload) is None)
    other = sqlite3.connect(tmp_path / "hub.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ingest.start()
    event = messages.Event(severity=messages.Severity.INFO, code="c", message="m")
    ingest.offer("dev-1", "event", envelope("event", 1, event))
    with pytest.raises(AssertionError):
        eventually(lambda: acks, seconds=0.7)
    other.execute("ROLLBACK")
    other.close()
    eventually(lambda: acks, what="the acknowledgement")
    ingest.stop()
    blocked.close()
    db.close()


def test_the_statements_name_the_tables_columns() -> None:
    from sqlmodel import SQLModel

    for table, columns in sql.COLUMNS.items():
        real = [column.name for column in SQLModel.metadata.tables[table].columns]
        assert [name for name in real if name != "id" or table == "sample"] == list(columns), table


def test_the_short_way_of_the_write_path_is_the_rules_own() -> None:
    """``ingest.rows`` takes the next number without a call: the rule says the same."""
    for mark in (0, 1, 41, MAX_NUMBER - 1):
        for base in (1, mark, mark + 1):
            if 1 <= base <= mark + 1 <= MAX_NUMBER:
                assert take(mark, mark + 1, base) == (Verdict.TAKE, mark + 1, 0)


def test_samples_become_parquet_and_come_back_as_they_were(database_url: str, tmp_path: Path) -> None:
    db = opened(database_url)
    store = FolderStore(tmp_path / "store")
    ingest = Ingest(db, Bus(), lambda _t, _p: True)
    ingest.start()
    originals = [sample(number) for number in range(20)]
    odd = sample(20, "BYTES")  # another datatype under the same name
    for seq, one in enumerate([*originals, odd, originals[3]], start=1):  # the last: the same id once more
        ingest.offer("dev-1", "sample", envelope("sample", seq, one))
    ingest.stop()
    store.put_key("samples/digits/1/2026-01-01/orphan.parquet", b"left by a hub that died before its commit")
    assert samples.compact(db, store) == 21
    keys = list(store.keys("samples/"))
    assert len(keys) == 1
    with db.read() as session:
        rows = session.exec(__import__("sqlmodel").select(SampleRow)).all()
        assert {row.file for row in rows} == set(keys)
        assert all(row.body is None for row in rows)
    back = samples.load(db, store, [one.id for one in [*originals, odd]])
    assert [back[one.id].sample for one in originals] == originals
    assert back[odd.id].sample == odd
    assert samples.compact(db, store) == 0
    assert list(store.keys("samples/")) == keys
    assert samples.export(db, store, tmp_path / "out", module="digits") == 21
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 1
    db.close()


def test_a_crash_between_file_and_rows_leaves_each_sample_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = opened(f"sqlite:///{tmp_path / 'hub.db'}")
    store = FolderStore(tmp_path / "store")
    ingest = Ingest(db, Bus(), lambda _t, _p: True)
    ingest.start()
    for number in range(3):
        ingest.offer("dev-1", "sample", envelope("sample", number + 1, sample(number)))
    ingest.stop()
    whole = store.put_key

    def dies(key: str, source: bytes) -> int:
        whole(key, source)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "put_key", dies)
    with pytest.raises(KeyboardInterrupt):
        samples.compact(db, store)
    monkeypatch.undo()
    assert len(samples.load(db, store, [f"s-{n:05}" for n in range(3)])) == 3
    assert samples.compact(db, store) == 3
    assert len(list(store.keys("samples/"))) == 1
    db.close()


def test_traffic_merges_windows_exactly(tmp_path: Path) -> None:
    from skerry_modules.histogram import Histogram

    db = opened(f"sqlite:///{tmp_path / 'hub.db'}")
    ingest = Ingest(db, Bus(), lambda _t, _p: True)
    ingest.start()
    whole = Histogram()
    for seq in range(1, 4):
        part = Histogram()
        for value in range(seq * 100, seq * 100 + 50):
            part.add(value)
            whole.add(value)
        window = messages.Telemetry(
            module="m",
            version=1,
            digest="d",
            endpoint="m",
            start=seq,
            end=seq + 1,
            requests=50,
            errors=1,
            latency_us=part.to_wire(),
        )
        ingest.offer("dev-1", "telemetry", envelope("telemetry", seq, window))
    ingest.stop()
    with db.read() as session:
        seen = monitoring.traffic(session, module="m")
        assert (seen.requests, seen.errors, seen.p50_us) == (150, 3, whole.quantile(0.5))
        assert monitoring.fleet_counts(session).devices == 1
    db.close()
