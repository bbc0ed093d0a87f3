"""The write path's own short cuts: each must do what the plain way does, on both databases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from skerry_hub import devices
from skerry_hub.bus import Bus
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.ingest import Ingest
from skerry_hub.ingest.lanes import Lanes
from skerry_hub.ingest.rows import Batch, Item
from skerry_modules import messages

Wait = Callable[..., None]
METRIC = int(messages.Stream.METRIC)
COMMITTED = {("dev-1", b"old".hex()): [(METRIC, 3, 1)]}
"""What the database holds of the spools before a batch."""


def window(number: int, **other: Any) -> messages.Telemetry:
    fields: dict[str, Any] = {"module": "m", "version": 1, "digest": "d", "endpoint": f"e{number % 3}"}
    fields |= {"start": number, "end": number + 10, "requests": number, "p50_us": 1.5, "p99_us": 2.0}
    fields["latency_us"] = messages.Distribution(counts=(0, number + 1))
    return messages.Telemetry(**(fields | other))


def telemetry(device: str, seq: int, body: Any, *, base: int = 1, epoch: bytes = b"old", **other: int) -> Item:
    version, stream = other.get("v", messages.FORMAT), other.get("stream", METRIC)
    up = messages.Up(version, epoch, stream, seq, base, 5, body)
    return Item(device, "telemetry", messages.encode(up), other.get("at", 1000 + seq))


sound = st.builds(
    telemetry,
    st.sampled_from(["dev-1", "dev-2", "nobody"]),
    st.integers(0, 7),
    st.builds(window, st.integers(0, 9)),
    base=st.integers(0, 5),
    epoch=st.sampled_from([b"old", b"new", b"", b"x" * 33]),
)
odd = st.one_of(
    st.builds(telemetry, st.just("dev-1"), st.integers(1, 6), st.sampled_from([{}, {"module": 3}, 7, None])),
    st.builds(telemetry, st.just("dev-1"), st.integers(1, 6), st.just(window(1)), v=st.just(2)),
    st.builds(telemetry, st.just("dev-1"), st.integers(1, 6), st.just(window(1)), stream=st.sampled_from([1, 99])),
    st.builds(telemetry, st.just("dev-1"), st.integers(1, 6), st.just(window(1, module="m" * 300_000))),
    st.builds(Item, st.just("dev-1"), st.just("telemetry"), st.binary(max_size=9), st.just(1)),
    st.builds(Item, st.just("dev-2"), st.just(""), st.just(b"code.of\nits text"), st.just(2)),
    st.builds(
        Item,
        st.just("dev-1"),
        st.just("presence"),
        st.booleans().map(lambda on: messages.encode(messages.Presence(online=on))),
        st.just(3),
    ),
)


@st.composite
def streams(draw: st.DrawFn) -> list[Item]:
    """A device's windows in their order, with anything else between them."""
    seq, items = 3, list[Item]()
    for thing in draw(st.lists(st.one_of(st.none(), st.none(), odd, sound), max_size=12)):
        if thing is None:
            seq += 1
            base = draw(st.sampled_from([1, 1, 1, 0, -1, seq, seq + 1]))
            items.append(telemetry("dev-1", seq, window(seq), base=base))
            seq -= not 1 <= base <= seq
        else:
            items.append(thing)
    return items


def cut(items: list[Item], places: list[int]) -> list[list[Item]]:
    ends = [0, *sorted(places), len(items)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]


def taken(batches: list[list[Item]], feed: Callable[[Batch, list[Item]], None]) -> list[dict[str, Any]]:
    """All that comes of batches that follow each other, each of them committed."""
    lanes = Lanes(lambda device, epoch: COMMITTED.get((device, epoch), ()))
    found = []
    for items in batches:
        batch = Batch(lanes, {"dev-1": "", "dev-2": ""}.get)
        feed(batch, items)
        batch.close()
        found.append({name: value for name, value in vars(batch).items() if not name.startswith("_")})
    return found


def one_by_one(batch: Batch, items: list[Item]) -> None:
    for item in items:
        batch.add(item)


@settings(max_examples=300)
@given(streams(), st.lists(st.integers(0, 12), max_size=2))
def test_the_loops_short_way_takes_and_refuses_what_the_plain_way_does(items: list[Item], places: list[int]) -> None:
    batches = cut(items, places)
    assert taken(batches, Batch.add_all) == taken(batches, one_by_one)


@given(streams(), st.integers(0, 12))
def test_a_batch_cut_in_two_takes_the_same_rows_and_ends_with_the_same_marks(items: list[Item], place: int) -> None:
    (whole,) = taken([items], Batch.add_all)
    first, second = taken(cut(items, [place]), Batch.add_all)
    assert first["telemetry"] + second["telemetry"] == whole["telemetry"]
    ends = {row[:3]: row[3:5] for row in first["marks"] + second["marks"]}
    assert ends == {row[:3]: row[3:5] for row in whole["marks"]}  # mark and lost


def test_the_short_way_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the property above would compare the plain way with itself."""
    plain: list[Item] = []
    add = Batch.add

    def noting(batch: Batch, item: Item) -> None:
        plain.append(item)
        add(batch, item)

    monkeypatch.setattr(Batch, "add", noting)
    items = [telemetry("dev-2", seq, window(seq)) for seq in range(1, 100)]
    first, second = taken([items[:50], items[50:]], Batch.add_all)
    assert len(first["telemetry"]) + len(second["telemetry"]) == 99
    assert plain == items[:1]  # the first of its spool


def opened(url: str, count: int = 2) -> Database:
    db = Database(url)
    db.migrate()
    with db.session() as session:
        for number in range(1, count + 1):
            devices.register(session, f"dev-{number}", profile="generic-x86_64", tags={}, actor="t", now=now_ms())
    return db


def write(db: Database, items: list[Item]) -> Ingest:
    """One batch: all is offered before the writer starts."""
    ingest = Ingest(db, Bus(), lambda _topic, _payload: True)
    for item in items:
        assert ingest.offer(item.device, item.kind, item.payload)
    ingest.start()
    ingest.stop()
    return ingest


def rows(db: Database, statement: str) -> list[tuple[Any, ...]]:
    with db.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def test_every_row_is_there_as_it_was_sent_however_many_come_at_once(database_url: str) -> None:
    db = opened(database_url)
    seq, sent = 0, list[int]()
    for count in (1, 7, 8, 63, 64, 65, 201):
        numbers = range(seq + 1, seq + count + 1)
        seq += count
        ingest = write(db, [telemetry("dev-1", number, window(number)) for number in numbers])
        assert ingest.counters.batches == 1
        sent += numbers
    found = rows(db, "SELECT device, module, version, endpoint, start_ms, end_ms, requests, body FROM telemetry")
    kept = sorted((*row[:7], bytes(row[7])) for row in found)
    assert kept == sorted(("dev-1", "m", 1, f"e{n % 3}", n, n + 10, n, messages.encode(window(n))) for n in sent)
    assert rows(db, "SELECT device, mark FROM stream_mark") == [("dev-1", seq)]
    db.close()


def test_marks_of_many_devices_are_written_and_moved_together(database_url: str) -> None:
    db = opened(database_url, 75)
    names = [f"dev-{number}" for number in range(1, 76)]
    for seq in (1, 2):
        write(db, [telemetry(name, seq, window(seq)) for name in names])
    assert sorted(rows(db, "SELECT device, mark FROM stream_mark")) == sorted((name, 2) for name in names)
    assert rows(db, "SELECT COUNT(*) FROM telemetry") == [(150,)]
    db.close()


def test_a_row_that_sqlite_refuses_leaves_nothing_of_its_statement_behind(tmp_path: Path) -> None:
    """NaN is NULL to SQLite, and the column takes none: the statement ends in its middle, with rows before it."""
    db = opened(f"sqlite:///{tmp_path / 'hub.db'}")
    bodies = [window(number, p50_us=math.nan if number == 70 else 1.0) for number in range(1, 131)]
    ingest = write(db, [telemetry("dev-1", number, body) for number, body in enumerate(bodies, start=1)])
    kept = [row[0] for row in rows(db, "SELECT start_ms FROM telemetry ORDER BY id")]
    assert kept == [number for number in range(1, 131) if number != 70]
    assert rows(db, "SELECT mark FROM stream_mark") == [(130,)]
    assert ingest.counters.refused["message.malformed"] == 1
    assert ingest.counters.batches < 20  # found by halves, not one by one
    db.close()


def test_a_device_that_is_removed_is_refused_at_once_and_begins_anew_when_it_comes_back(
    database_url: str, eventually: Wait
) -> None:
    db = opened(database_url, 1)
    ingest = Ingest(db, Bus(), lambda _topic, _payload: True)
    ingest.start()

    def send(seq: int) -> None:
        ingest.offer("dev-1", "telemetry", telemetry("dev-1", seq, window(seq)).payload)

    def sent() -> list[int]:
        return sorted(row[0] for row in rows(db, "SELECT requests FROM telemetry"))

    send(1)
    eventually(lambda: sent() == [1], what="the first window")
    with db.session() as session:
        devices.remove(session, "dev-1", actor="t", now=now_ms())
    ingest.forget_devices()
    send(2)
    eventually(lambda: ingest.counters.refused["device.unknown"] == 1, what="the refusal")
    with db.session() as session:
        devices.register(session, "dev-1", profile="generic-x86_64", tags={}, actor="t", now=now_ms())
    ingest.forget_devices()
    send(1)  # to this hub it is a new device: the mark of the old one must not call it a duplicate
    eventually(lambda: sent() == [1, 1], what="the window sent anew")
    ingest.stop()
    assert ingest.counters.duplicates == 0
    db.close()
