"""The spool on disk: what was appended goes out once, in order, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.rules.spool import SpoolSettings
from skerry_agent.spool import Record, Spool
from skerry_modules import messages
from skerry_modules.errors import ResourceError
from skerry_modules.messages import Ack, Event, Health, Severity, State, Stream


def event(number: int) -> Record:
    body = Event(severity=Severity.INFO, code="test", message=str(number))
    return Record("event", messages.encode(body), number, journal=True)


def health(number: int, size: int = 0) -> Record:
    return Record("health", messages.encode(Health(boot="b" * size, uptime_s=number)), number)


def state(revision: int) -> Record:
    return Record("state", messages.encode(State(device="d", boot="b", revision=revision)), 0, coalesce=True)


def drain(spool: Spool, now: float = 1.0, *, ack: bool = True) -> list[messages.Up[object]]:
    """What a hub that acknowledges everything gets."""
    found: list[messages.Up[object]] = []
    while outgoing := spool.read(spool.policy.due(now)):
        ups = [messages.decode(one.kind, one.payload) for one in outgoing]
        found += ups
        marks: dict[int, int] = {}
        for up in ups:
            marks[up.stream] = max(marks.get(up.stream, 0), up.seq)
        if not ack:
            return found
        spool.acked(Ack(1, spool.epoch, marks), now)
    return found


def opened(path: Path, **limits: int) -> Spool:
    return Spool(path, SpoolSettings(**limits), journal=5)  # type: ignore[arg-type]


def test_urgent_first_in_order_and_gone_when_acknowledged(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    assert spool.append([health(1), event(1), health(2), event(2)]) == 4
    assert spool.read(spool.policy.due(0.0)) == []
    spool.linked(True, 0.0)
    ups = drain(spool)
    assert [(up.stream, up.seq, up.at) for up in ups] == [(0, 1, 1), (0, 2, 2), (4, 1, 1), (4, 2, 2)]
    assert spool.policy.records == 0
    spool.close()
    again = opened(tmp_path / "s.db")
    assert again.policy.records == 0
    again.append([event(3)])
    again.linked(True, 0.0)
    assert [up.seq for up in drain(again)] == [3]  # numbers go on: they are never given twice
    again.close()


def test_without_an_acknowledgement_it_goes_again_also_after_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    spool.append([event(1)])
    spool.linked(True, 0.0)
    assert len(drain(spool, ack=False)) == 1
    assert drain(spool, 2.0, ack=False) == []
    assert len(drain(spool, 50.0, ack=False)) == 1
    spool.close()
    spool = opened(tmp_path / "s.db")
    spool.linked(True, 0.0)
    assert len(drain(spool)) == 1
    spool.close()


def test_a_newer_state_takes_the_place_of_an_unsent_one_only(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    for revision in (1, 2, 3):
        spool.append([state(revision)])
    spool.linked(True, 0.0)
    (sent,) = drain(spool, ack=False)
    assert sent.body.revision == 3  # type: ignore[attr-defined]
    spool.append([state(4)])
    spool.acked(Ack(1, spool.epoch, {1: 1}), 1.0)
    assert [up.body.revision for up in drain(spool)] == [4]  # type: ignore[attr-defined]
    spool.close()


def test_over_the_budget_the_least_urgent_goes_and_the_base_tells(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db", max_bytes=20_000)
    spool.append([event(number) for number in range(5)])
    spool.append([health(number, 500) for number in range(100)])
    assert spool.policy.bytes <= 20_000
    spool.linked(True, 0.0)
    ups = drain(spool)
    assert [up.at for up in ups if up.stream == Stream.ALARM] == [0, 1, 2, 3, 4]
    metrics = [up for up in ups if up.stream == Stream.METRIC]
    assert metrics[-1].at == 99
    assert metrics[0].seq == metrics[0].base > 1
    assert [up.seq for up in metrics] == list(range(metrics[0].base, 101))
    assert spool.facts()["dropped"] == {"metric": metrics[0].base - 1}
    spool.close()


def test_marks_ahead_of_us_begin_a_new_epoch_and_nothing_is_lost(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    spool.append([event(1), event(2)])
    spool.linked(True, 0.0)
    before = spool.epoch
    spool.acked(Ack(1, before, {0: 900}), 1.0)  # a backup was restored: the hub knows numbers that we do not
    assert spool.epoch != before
    spool.append([event(3)])
    assert [up.at for up in drain(spool)][-1] == 3
    spool.acked(Ack(1, before, {0: 900}), 2.0)  # of the epoch before: no effect
    assert spool.policy.next_seq(0) < 900
    spool.close()


def test_a_damaged_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    spool = opened(path)
    spool.append([event(1)])
    spool.close()
    data = bytearray(path.read_bytes())
    data[:4096] = os.urandom(4096)
    path.write_bytes(data)
    again = opened(path)
    assert again.damaged
    assert (tmp_path / "s.db.damaged").exists()
    assert again.append([event(2)]) == 1
    again.close()


def test_a_database_that_is_damaged_while_it_is_open_is_set_aside_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    spool = opened(path)
    spool.append([health(number, 2000) for number in range(200)])
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool._db.execute("PRAGMA cache_size = 0")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))

    def write() -> None:
        for number in range(300):
            spool.append([event(number)])

    with pytest.raises(ResourceError) as caught:
        write()
    assert caught.value.code == "resource.spool_damaged"
    assert spool.append([event(1)]) == 1
    spool.linked(True, 0.0)
    assert [up.at for up in drain(spool)] == [1]
    spool.close()


def test_a_refused_write_keeps_what_was_there_and_the_next_one_works(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    spool.append([event(1)])
    pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count = {pages}")  # what a full disk looks like to SQLite
    with pytest.raises(ResourceError, match="cannot write to the spool") as caught:
        spool.append([health(number, 4000) for number in range(50)])
    assert caught.value.code == "resource.no_space"
    assert spool.policy.records == 1
    spool._db.execute("PRAGMA max_page_count = 100000")
    spool.append([event(2)])
    spool.linked(True, 0.0)
    assert [up.at for up in drain(spool)] == [1, 2]
    spool.close()


def test_acknowledged_records_stay_acknowledged_through_a_refused_write(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    spool.append([event(1), event(2)])
    spool.linked(True, 0.0)
    assert len(drain(spool)) == 2
    pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(3):
        with pytest.raises(ResourceError):
            spool.append([health(number, 4000) for number in range(50)])
        assert spool.policy.records == 0
        assert drain(spool, 1000.0) == [], "the hub has these already"
    spool.close()


def test_the_journal_keeps_the_last_events_after_they_were_acknowledged(tmp_path: Path) -> None:
    spool = opened(tmp_path / "s.db")
    spool.append([event(number) for number in range(8)])
    spool.linked(True, 0.0)
    drain(spool)
    assert [entry.event.message for entry in spool.journal(10)] == ["3", "4", "5", "6", "7"]
    assert [entry.at for entry in spool.journal(2)] == [6, 7]
    spool.close()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from agent.shell.test_spool import event, health, opened
spool = opened(Path(sys.argv[1]))
number = spool.policy.next_seq(0)
while True:
    spool.append([event(number), health(number)])
    print(number, flush=True)
    number += 1
"""


def test_kill_9_loses_and_doubles_nothing_that_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    tests = str(Path(__file__).parents[2])
    promised = 0
    for round_number in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), tests], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(10 + round_number * 7):
            promised = int(writer.stdout.readline())
        time.sleep(0.003 * round_number)
        writer.send_signal(signal.SIGKILL)
        promised = int((writer.stdout.read().split() or [promised])[-1])
        writer.wait()
        writer.stdout.close()
    spool = opened(path)
    spool.linked(True, 0.0)
    ups = drain(spool)
    for stream in (Stream.ALARM, Stream.METRIC):
        numbers = [up.seq for up in ups if up.stream == stream]
        assert numbers == list(range(1, len(numbers) + 1))
        assert promised <= len(numbers) <= promised + 1
        assert [up.at for up in ups if up.stream == stream] == numbers
    spool.close()


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 4), st.integers(0, 900)),
            st.tuples(st.just("send"), st.integers(0, 3), st.just(0)),
            st.tuples(st.just("restart"), st.just(0), st.just(0)),
        ),
        max_size=40,
    )
)
def test_a_hub_takes_each_kept_record_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """``send``: the hub hears all but acknowledges only every so many."""
    path = tmp_path_factory.mktemp("spool") / "s.db"
    limits = {"max_bytes": 8_000}
    spool = opened(path, **limits)
    spool.linked(True, 0.0)
    marks: dict[int, int] = {}
    taken: dict[int, list[int]] = {}
    appended, now = 0, 0.0

    def hear(share: int) -> None:
        for up in drain(spool, now, ack=False):
            if up.seq == max(marks.get(up.stream, 0) + 1, up.base):
                marks[up.stream] = up.seq
                taken.setdefault(up.stream, []).append(up.at)
        if share == 0:
            spool.acked(Ack(1, spool.epoch, dict(marks)), now)

    for what, one, two in steps:
        now += 20.0
        if what == "append":
            appended += 1
            spool.append([event(appended) if one == 0 else health(appended, two)])
        elif what == "send":
            hear(one)
        else:
            spool.close()
            spool = opened(path, **limits)
            spool.linked(True, now)
    for _ in range(200):
        now += 400.0
        if not spool.policy.records:
            break
        hear(0)
    assert spool.policy.records == 0
    for numbers in taken.values():
        assert numbers == sorted(set(numbers))
    spool.close()
