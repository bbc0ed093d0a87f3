"""µs per telemetry row on the hub's write path, decoding, marks and commit included, against raw ``executemany``.

A batch is as large as the hub makes one when messages come faster than it writes, and one durable commit, on both
sides alike.
"""

from __future__ import annotations

import gc
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._streaming import figure, middle
from skerry_hub.bus import Bus
from skerry_hub.db import Database
from skerry_hub.ingest import Ingest, IngestSettings
from skerry_hub.ingest.lanes import Lanes
from skerry_hub.ingest.rows import Batch, Item
from skerry_hub.ingest.sql import COLUMNS
from skerry_hub.server import spare_the_collector
from skerry_modules import messages

ROWS, ROUNDS, DEVICES = 40_000, 7, 100
BATCH = IngestSettings().batch_messages


def items() -> list[Item]:
    """Telemetry as devices send it: a window each, with a latency histogram of some forty bins."""
    made: list[Item] = []
    counts = (0,) * 24 + tuple(range(1, 17))
    for number in range(ROWS):
        body = messages.Telemetry(
            module="digits",
            version=3,
            digest="d" * 64,
            endpoint="digits",
            start=1_700_000_000_000 + number,
            end=1_700_000_010_000 + number,
            requests=136,
            p50_us=180.0,
            p99_us=900.0,
            latency_us=messages.Distribution(counts=counts, total=9e4, minimum=64.0, maximum=1024.0),
        )
        device = f"dev-{number % DEVICES:04}"
        seq = number // DEVICES + 1
        up = messages.Up(messages.FORMAT, b"bench-epoch", 4, seq, 1, 1_700_000_010_000, body)
        made.append(Item(device, "telemetry", messages.encode(up), 1_700_000_010_000))
    return made


def hub(folder: Path, batches: list[list[Item]]) -> float:
    """Seconds of the hub's own write path."""
    db = Database(f"sqlite:///{folder / 'hub.db'}")
    db.migrate()
    with db.session() as session:
        for number in range(DEVICES):
            session.connection().exec_driver_sql(
                "INSERT INTO device (id, profile, secret, description, online, boot, epoch, agent, facts,"
                " desired_revision, reported_revision, seen_at, presence_at, created_at)"
                " VALUES (?,'','','',0,'','','','{}',0,0,0,0,0)",
                (f"dev-{number:04}",),
            )
    ingest = Ingest(db, Bus(), lambda _topic, _payload: True)
    gc.collect()
    began = time.perf_counter()
    for batch in batches:
        ingest._commit(batch)
    took = time.perf_counter() - began
    with db.read() as session:
        stored = session.connection().exec_driver_sql("SELECT COUNT(*) FROM telemetry").scalar_one()
    assert stored == ROWS, f"{stored} rows were stored"
    db.close()
    return took


def raw(folder: Path, batches: list[list[tuple[Any, ...]]]) -> float:
    """Seconds of bare ``executemany`` of the same rows into the same table, one commit per batch."""
    path = folder / "raw.db"
    db = Database(f"sqlite:///{path}")
    db.migrate()
    db.close()
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    columns = COLUMNS["telemetry"]
    statement = f"INSERT INTO telemetry ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    gc.collect()
    began = time.perf_counter()
    for batch in batches:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, batch)
        connection.execute("COMMIT")
    took = time.perf_counter() - began
    connection.close()
    return took


def run() -> list[dict[str, Any]]:
    spare_the_collector()  # as the hub does when it starts to serve; both sides run under it
    made = items()
    batches = [made[start : start + BATCH] for start in range(0, ROWS, BATCH)]
    decoded = Batch(Lanes(lambda _device, _epoch: ()), lambda _device: "")
    decoded.add_all(made)
    rows = [decoded.telemetry[start : start + BATCH] for start in range(0, ROWS, BATCH)]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
            theirs.append(raw(Path(folder), rows))
            ours.append(hub(Path(folder), batches))
    # The medians of rounds that ran side by side: another load of the machine hits both alike.
    value, limit = middle(ours) / ROWS * 1e6, middle(theirs) / ROWS * 1e6
    return [figure("write-path", value, "µs/row", limit, 1.5, most=True)]
