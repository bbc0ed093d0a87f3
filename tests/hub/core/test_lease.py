"""One hub per database: refused with a name, taken over from the dead, lost with an end. On both databases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from sqlmodel import col, select, update

from skerry_hub import lease
from skerry_hub.db import Database
from skerry_hub.lease import Lease
from skerry_hub.tables import HubLease
from skerry_modules.errors import ResourceError
from support.processes import stop, wait_until

HOLD = """
import sys, threading
from skerry_hub.db import Database
from skerry_hub.lease import Lease
Lease(Database(sys.argv[1]), "http://127.0.0.1:8420", seconds=600, on_lost=lambda: None).acquire()
print("held", flush=True)
threading.Event().wait()
"""


def a_lease(database: Database, *, seconds: float = 600, lost: threading.Event | None = None) -> Lease:
    return Lease(database, "http://127.0.0.1:1", seconds=seconds, on_lost=(lost or threading.Event()).set)


@pytest.fixture
def other_hub(database: Database, database_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real process that holds the database."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, database_url], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    stop(process, by=signal.SIGKILL)
    process.stdout.close()


def test_a_second_hub_is_refused_with_the_first_ones_name(
    database: Database, other_hub: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(ResourceError) as caught:
        a_lease(database).acquire()
    assert caught.value.code == "resource.database_in_use"
    assert caught.value.data["pid"] == str(other_hub.pid)
    assert caught.value.data["address"] == "http://127.0.0.1:8420"
    assert f"the hub at http://127.0.0.1:8420 (process {other_hub.pid} on " in caught.value.message
    assert "Stop that hub, or choose another --data or --database" in caught.value.message


def test_a_hub_killed_on_this_machine_is_followed_at_once(
    database: Database, other_hub: subprocess.Popen[bytes]
) -> None:
    os.kill(other_hub.pid, signal.SIGKILL)
    wait_until(lambda: lease.is_dead(_holder(database)), what="the other hub to be dead")  # a zombie counts
    mine = a_lease(database)
    mine.acquire()
    assert _holder(database) == mine.holder
    mine.release()
    assert _holder(database) == ""


def test_a_stopped_process_is_not_dead(database: Database, other_hub: subprocess.Popen[bytes]) -> None:
    os.kill(other_hub.pid, signal.SIGSTOP)
    with pytest.raises(ResourceError, match="cannot start on the database"):
        a_lease(database).acquire()


def test_a_lease_from_elsewhere_runs_out(database: Database) -> None:
    """Nobody here can tell whether a process on another machine lives: only time can."""
    far = "elsewhere/boot/1/17/99/abcd"
    with database.session() as session:
        soon = database.now_ms(session) + 700
        session.add(HubLease(id=lease.ROW, holder=far, address="http://far:1", expires_at=soon))
    assert not lease.is_dead(far)
    with pytest.raises(ResourceError, match="process 17 on elsewhere"):
        a_lease(database).acquire()

    def taken() -> bool:
        try:
            mine.acquire()
        except ResourceError:
            return False
        return True

    mine = a_lease(database)
    wait_until(taken, what="the lease to run out")
    with database.read() as session:
        assert database.now_ms(session) >= soon, "not a moment before"
    mine.release()


def test_it_is_renewed_while_the_hub_lives(database: Database) -> None:
    mine = a_lease(database, seconds=0.6)
    mine.acquire()
    first = _expiry(database)
    wait_until(lambda: _expiry(database) > first, what="a renewal")
    with pytest.raises(ResourceError):
        a_lease(database).acquire()
    mine.release()


def test_of_many_that_start_at_once_one_gets_it(database: Database) -> None:
    gate, results = threading.Barrier(8), []

    def start() -> None:
        mine = a_lease(database)
        gate.wait()
        try:
            mine.acquire()
        except ResourceError:
            results.append(None)
        else:
            results.append(mine)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [result for result in results if result]
    winner.release()


def test_a_hub_whose_lease_was_taken_is_told(database: Database) -> None:
    lost = threading.Event()
    mine = a_lease(database, seconds=0.3, lost=lost)
    mine.acquire()
    with database.session() as session:
        session.exec(update(HubLease).where(col(HubLease.id) == lease.ROW).values(holder="another/b/1/2/3/x"))
    assert lost.wait(20)
    mine.release()
    assert _holder(database) == "another/b/1/2/3/x", "what is another's is not released"


def test_a_number_that_another_process_got_is_dead() -> None:
    mine = f"{lease.machine()}/{os.getpid()}/{lease.started(os.getpid())}/ab"
    assert not lease.is_dead(mine)
    assert lease.is_dead(f"{lease.machine()}/{os.getpid()}/1/ab"), "the same number, another start"
    assert not lease.is_dead(f"otherhost/{mine.partition('/')[2]}")
    assert not lease.is_dead("nonsense")
    assert not lease.is_dead("")


def _holder(database: Database) -> str:
    with database.read() as session:
        row = session.exec(select(HubLease)).one_or_none()
        return row.holder if row else ""


def _expiry(database: Database) -> int:
    with database.read() as session:
        return session.exec(select(HubLease.expires_at)).one()
