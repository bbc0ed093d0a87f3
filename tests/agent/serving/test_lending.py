"""A client's connection that is lent to the worker: nobody can tell, whatever client, model or agent do."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry_modules.messages import Route

from .conftest import Start
from .harness import Answer, Running, json_request, read_answers
from .models import Module, linear_module, python_module
from .test_faults import SCRIPT, settled

AFTER = 8
"""Requests alike before a connection is lent."""


class Client:
    """One keep-alive connection."""

    def __init__(self, plane: Running, path: str = "", name: str = "script") -> None:
        if path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(20)
            self.sock.connect(path)
        else:
            self.sock = plane.raw()
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name = name

    def request(self, x: list[float], *lines: str) -> bytes:
        body = json.dumps(json_request({"x": np.array([x], "f4")})).encode()
        head = [f"POST /v2/models/{self.name}/infer HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}"]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body

    def ask(self, what: float, *lines: str) -> Answer:
        self.sock.sendall(self.request([what, 1, 2, 3], *lines))
        found = read_answers(self.sock, 1)
        if not found:
            raise ConnectionResetError("the agent closed the connection")
        return found[0]

    def close(self) -> None:
        self.sock.close()


def is_lent(plane: Running, module: Module) -> bool:
    return plane.do(lambda: plane.plane.versions[module.digest].lender.out)


def lent(plane: Running, module: Module, client: Client) -> Client:
    """The client, once its connection is lent."""

    def ask() -> bool:
        for _ in range(AFTER):
            assert client.ask(0).json["outputs"][0]["data"] == [6.0]
        return is_lent(plane, module)

    settled(ask)
    return client


@pytest.fixture(params=["asyncio-tcp", "uvloop-unix"])
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A kind of event loop, and of connection."""
    loop, kind = str(request.param).split("-")
    return loop, kind


@pytest.fixture
def plane(start: Start, way: tuple[str, str], tmp_path: Path) -> Running:
    factory: Any = None
    if way[0] == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    return start(factory, lend_after=AFTER, sweep_s=0.1, idle_timeout_s=30, socket=str(tmp_path / "s.sock"))


@pytest.fixture
def module(plane: Running, tmp_path: Path) -> Module:
    return plane.serve(python_module(tmp_path / "script", SCRIPT, request_timeout_s=1.5))


Connect = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Clients; closed at the end."""
    made: list[Client] = []

    def new(*what: Any, **more: Any) -> Client:
        made.append(Client(*what, **more))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture
def client(plane: Running, module: Module, way: tuple[str, str], tmp_path: Path, connect: Connect) -> Client:
    return lent(plane, module, connect(plane, str(tmp_path / "s.sock") if way[1] == "unix" else ""))


def test_every_request_is_counted_wherever_it_was_answered(plane: Running, module: Module, client: Client) -> None:
    plane.do(lambda: plane.plane.take_counters(module.digest))
    for number in range(50):
        assert client.ask(20 + number).json["outputs"][0]["data"] == [26.0 + number]
    assert is_lent(plane, module)
    assert plane.do(lambda: plane.plane.traffic(module.digest)) == (50, 0)
    assert client.ask(6).status == 500
    found = plane.do(lambda: plane.plane.take_counters(module.digest))
    (part,) = found.parts
    assert (part.endpoint, part.requests, part.errors) == ("script", 51, 1)
    assert sum(part.latency_us.counts) + part.latency_us.below == 51
    assert 0 < part.latency_us.minimum <= part.latency_us.maximum


def test_a_request_from_elsewhere_brings_it_back(plane: Running, module: Module, client: Client) -> None:
    assert plane.score("script", [[25, 1, 2, 3]]).json["outputs"][0]["data"] == [31.0]
    settled(lambda: not is_lent(plane, module))
    assert client.ask(0).status == 200


@pytest.mark.parametrize(
    ("send", "statuses"),
    [
        (lambda c: c.request([0, 1, 2]), [400]),
        (lambda c: c.request([0, 1, 2, 3], "X-Skerry-Timeout-Ms: 900"), [200]),
        (lambda c: c.request([0, 1, 2, 3]) * 3, [200] * 3),
        (lambda c: c.request([6, 1, 2, 3]) + c.request([0, 1, 2, 3]), [500, 200]),
        (lambda c: b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", [200]),
        (lambda c: b"GET /v2/models/other HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
        (lambda c: c.request([0, 1, 2, 3]).replace(b'{"inputs"', b'{"parameters": {"timeout": 1}, "inputs"', 1), [400]),
        (lambda c: b"no http at all\r\n\r\n", [400]),
        (lambda c: b"POST /v2/models/script/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", [413]),
        (lambda c: c.request([0, 1, 2, 3], "Connection: close"), [200]),
    ],
    ids=["bad", "deadline", "pipelined", "fails", "metadata", "unknown", "cut", "garbage", "large", "last"],
)
def test_what_is_not_plain_is_answered_as_ever(
    client: Client, send: Callable[[Client], bytes], statuses: list[int]
) -> None:
    client.sock.sendall(send(client))
    assert [one.status for one in read_answers(client.sock, len(statuses))] == statuses


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_request_may_come_in_any_pieces(plane: Running, module: Module, client: Client, data: st.DataObject) -> None:
    lent(plane, module, client)
    values = data.draw(st.lists(st.integers(20, 10**6), min_size=1, max_size=4))
    whole = b"".join(client.request([value, 1, 2, 3]) for value in values)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(whole) - 1), max_size=3)))
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        client.sock.sendall(whole[start:end])
        time.sleep(0.002)
    found = read_answers(client.sock, len(values))
    assert [one.json["outputs"][0]["data"] for one in found] == [[value + 6.0] for value in values]


def test_new_routes_hold_from_the_next_request_on(
    plane: Running, module: Module, client: Client, tmp_path: Path
) -> None:
    other = python_module(tmp_path / "next", SCRIPT, version=2)
    plane.load(other)
    for shares, number in ((other, "2"), (module, "1"), (other, "2")):
        plane.route("script", (shares, 100.0))
        for _ in range(2 * AFTER):
            assert client.ask(0).json["model_version"] == number
    plane.unload(module)
    assert client.ask(0).json["model_version"] == "2"


def test_a_version_that_is_unloaded_gives_it_back(plane: Running, module: Module, client: Client) -> None:
    plane.unload(module)
    assert client.ask(0).status in (404, 503)


def test_a_client_that_goes_quiet_is_the_agents_again(plane: Running, module: Module, client: Client) -> None:
    settled(lambda: not is_lent(plane, module))
    assert client.ask(0).status == 200


def test_a_client_that_leaves_is_gone(plane: Running, module: Module, client: Client) -> None:
    client.close()
    settled(lambda: not is_lent(plane, module))
    settled(lambda: not plane.do(lambda: plane.plane._front.connections))


def test_the_agents_end_closes_it(plane: Running, client: Client) -> None:
    threading.Thread(target=plane.close).start()
    statuses = set()
    with pytest.raises(ConnectionError):  # noqa: PT012 - which of them it is depends on the moment
        while True:
            statuses.add(client.ask(0).status)
    assert statuses <= {200, 503}
    plane.close = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize("what", [2, 3], ids=["spins", "sleeps"])
def test_a_hang_is_answered_at_its_deadline(plane: Running, module: Module, client: Client, what: int) -> None:
    began = time.monotonic()
    answer = client.ask(what)
    assert (answer.status, answer.code) == (503, "scoring.deadline")
    assert time.monotonic() - began > 1.4
    assert [one[1] for one in settled(lambda: plane.exits)] == ["hang"]
    assert client.ask(0).status == 200


def test_a_worker_that_stands_still_is_ended(plane: Running, module: Module, client: Client) -> None:
    (pid,) = plane.plane.pids()[1:]
    os.kill(pid, signal.SIGSTOP)
    assert client.ask(30).json["outputs"][0]["data"] == [36.0]
    assert [one[1] for one in plane.exits] == ["hang"]


@pytest.mark.parametrize(("what", "reason"), [(1, "signal 11"), (11, "exit 9"), (9, "memory")])
def test_a_request_that_kills_two_workers_is_quarantined(
    plane: Running, module: Module, client: Client, what: int, reason: str
) -> None:
    answer = client.ask(what)
    assert (answer.status, answer.code) == (500, "scoring.quarantined")
    assert [one[1] for one in settled(lambda: len(plane.exits) == 2 and plane.exits)] == [reason] * 2
    assert client.ask(0).status == 200


def test_a_crash_that_does_not_repeat_costs_no_answer(
    plane: Running, module: Module, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "poison").touch()
    assert client.ask(14).json["outputs"][0]["data"] == [20.0]
    assert settled(lambda: [one[1] for one in plane.exits]) == ["signal 11"]


def test_no_kill_from_outside_loses_an_answer_or_gives_it_twice(start: Start, tmp_path: Path, connect: Connect) -> None:
    """The worker is killed at random moments while a client asks as fast as it can."""
    plane = start(lend_after=AFTER)
    module = plane.serve(linear_module(tmp_path / "linear"))
    client = connect(plane, name="linear")
    asked = [client.request([float(one), 1, -1, 0.5]) for one in range(50)]
    expected = []
    for request in asked:
        client.sock.sendall(request)
        expected.append(read_answers(client.sock, 1)[0].body)
    ended, kills, loans = threading.Event(), 0, 0

    def kill() -> None:
        nonlocal kills, loans
        random = np.random.default_rng(3)
        while kills < 25:
            time.sleep(0.03 + float(random.random()) * 0.02)
            if not is_lent(plane, module):
                continue
            loans += 1
            (pid,) = [one for one in plane.plane.pids() if one != plane.plane.pids()[0]]
            os.kill(pid, signal.SIGKILL if kills % 2 else signal.SIGSEGV)
            settled(lambda pid=pid: pid not in plane.plane.pids())  # type: ignore[misc]
            kills += 1
        ended.set()

    thread = threading.Thread(target=kill)
    thread.start()
    count = 0
    while not ended.is_set():
        place = count % len(asked)
        client.sock.sendall(asked[place])
        (answer,) = read_answers(client.sock, 1)
        assert (answer.status, answer.body) == (200, expected[place])
        count += 1
    thread.join()
    assert loans == 25
    client.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.sock.recv(1)  # nothing was answered twice
    traffic = plane.do(lambda: plane.plane.traffic(module.digest))
    assert abs(traffic[0] - count - len(asked)) <= 25  # what a worker had answered and not counted when it was killed


def test_a_client_that_takes_no_answer_holds_nobody_up(start: Start, tmp_path: Path, connect: Connect) -> None:
    plane = start(lend_after=AFTER, write_timeout_s=1.0, sweep_s=0.1)
    wide = tmp_path / "wide"
    module = plane.serve(
        python_module(wide, 'import numpy\ndef run(inputs): return {"y": numpy.ones(int(inputs["x"][0, 0]), "f4")}')
    )
    slow = connect(plane)
    settled(lambda: [slow.ask(1) for _ in range(AFTER)] and is_lent(plane, module))
    slow.sock.sendall(slow.request([3_000_000, 0, 0, 0]))
    time.sleep(0.2)
    assert connect(plane).ask(2).json["outputs"][0]["shape"] == [2]
    (answer,) = read_answers(slow.sock, 1)  # it takes it after all, within its time
    assert answer.json["outputs"][0]["shape"] == [3_000_000]
    assert slow.ask(3).json["outputs"][0]["shape"] == [3]


def test_shadows_score_what_a_lent_client_asks(plane: Running, module: Module, client: Client, tmp_path: Path) -> None:
    shadow = python_module(tmp_path / "shadow", SCRIPT, version=2)
    plane.load(shadow)
    live, copies = Route(module="script", version=1), Route(module="script", version=2, percent=100.0)
    plane.do(lambda: plane.plane.set_routes("script", (live,), (module.digest,), (copies,), (shadow.digest,)))
    lent(plane, module, client)

    def rows() -> tuple[int, int]:
        (part,) = plane.do(lambda: plane.plane.take_counters(shadow.digest)).parts or (None,)
        return (part.agreement.rows, part.agreement.agreed) if part is not None else (0, 0)

    time.sleep(0.1)
    rows()
    for number in range(20):
        assert client.ask(20 + number).json["outputs"][0]["data"] == [26.0 + number]
        time.sleep(0.005)
    assert is_lent(plane, module)
    found = [0, 0]

    def all_of_them() -> bool:
        for place, count in enumerate(rows()):
            found[place] += count
        return found == [20, 20]

    settled(all_of_them)


@pytest.mark.parametrize(("deadline", "is_lent_then"), [(1400, False), (1500, True), (30000, True)])
def test_a_client_with_deadlines_of_its_own_is_not_lent(
    plane: Running, module: Module, connect: Connect, deadline: int, is_lent_then: bool
) -> None:
    one = connect(plane)
    for _ in range(4 * AFTER):
        assert one.ask(0, f"X-Skerry-Timeout-Ms: {deadline}").status == 200
    assert is_lent(plane, module) == is_lent_then


def test_it_can_be_switched_off(start: Start, tmp_path: Path, connect: Connect) -> None:
    plane = start(lend_after=0)
    module = plane.serve(python_module(tmp_path / "script", SCRIPT))
    client = connect(plane)
    for _ in range(100):
        assert client.ask(0).status == 200
    assert not is_lent(plane, module)
