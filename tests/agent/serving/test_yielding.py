"""Requests of low priority: behind all others, never starved, never counted, and told how live traffic fares."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Start
from .harness import Answer, Running, json_request
from .models import python_module

LOW = {"X-Skerry-Priority": "low"}
# x[0, 0] is told back; x[0, 1] is how long it takes; the file shows the order in which requests were scored.
SCRIPT = """
import time
def run(inputs):
    x = inputs["x"]
    with open({order!r}, "a") as file:
        file.write(f"{{int(x[0, 0])}}\\n")
    time.sleep(float(x[0, 1]))
    return {{"y": x[:, 0]}}
"""


class Asked:
    """A request in a thread of its own."""

    def __init__(self, plane: Running, number: int, seconds: float, headers: dict[str, str] | None = None) -> None:
        self.answer: Answer | None = None
        self._arguments = (plane, number, seconds, headers)
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        plane, number, seconds, headers = self._arguments
        self.answer = ask(plane, number, seconds, headers)

    def join(self) -> Answer:
        self._thread.join(20)
        assert self.answer is not None
        return self.answer


def ask(plane: Running, number: int, seconds: float = 0.0, headers: dict[str, str] | None = None) -> Answer:
    array = np.array([[number, seconds, 0, 0]], dtype="f4")
    return plane.ask("POST", "/v2/models/script/infer", json_request({"x": array}), headers)


def waiting(plane: Running) -> int:
    """Requests of low priority in the room."""
    return plane.do(lambda: sum(len(v.room.waiting) for v in plane.plane._versions.values()))


def until(check: Any) -> None:
    end = time.monotonic() + 10
    while not check():
        assert time.monotonic() < end
        time.sleep(0.005)


def serve(start: Start, folder: Path, **settings: Any) -> tuple[Running, Path]:
    order = folder / "order"
    plane = start(**settings)
    plane.serve(python_module(folder / "script", SCRIPT.format(order=str(order))))
    order.touch()
    return plane, order


def test_live_requests_that_come_later_go_first(start: Start, tmp_path: Path) -> None:
    plane, order = serve(start, tmp_path, low_wait_s=60.0)
    first = Asked(plane, 1, 1.0)
    until(order.read_text)
    low = [Asked(plane, number, 0.0, LOW) for number in (8, 9)]
    until(lambda: waiting(plane) == 2)
    live = [Asked(plane, number, 0.05) for number in (2, 3)]
    answers = [one.join() for one in (first, *low, *live)]
    assert [answer.status for answer in answers] == [200] * 5
    scored = [int(line) for line in order.read_text().split()]
    assert sorted(scored[:3]) == [1, 2, 3]
    assert sorted(scored[3:]) == [8, 9]


def test_a_batch_moves_on_under_a_load_that_never_pauses(start: Start, tmp_path: Path) -> None:
    plane, _ = serve(start, tmp_path, low_wait_s=0.05)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            assert ask(plane, 1, 0.01).status == 200

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        answers = [ask(plane, 9, 0.0, LOW) for _ in range(3)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [answer.status for answer in answers] == [200] * 3
    found = re.fullmatch(
        r"requests=(\d+), p99-us=(\d+), calm=(\d+), calm-p99-us=(\d+), took-us=(\d+)", told(answers[-1])
    )
    assert found is not None, answers[-1].headers
    requests, p99, calm, calm_p99, took = map(int, found.groups())
    assert requests > 0
    assert took > 0
    assert 0 < calm <= requests
    assert p99 >= 10_000
    assert calm_p99 >= 10_000


def told(answer: Answer) -> str:
    return answer.headers["x-skerry-live"]


def test_alone_it_is_scored_at_once_and_not_counted(start: Start, tmp_path: Path) -> None:
    plane, _ = serve(start, tmp_path, low_wait_s=60.0)
    digest = next(iter(plane.plane._versions))
    low = ask(plane, 4, 0.0, LOW)
    assert json.loads(low.body)["outputs"][0]["data"] == [4.0]
    assert told(low).startswith("requests=0, p99-us=0, calm=0, calm-p99-us=0, took-us=")
    bad = plane.ask("POST", "/v2/models/script/infer", {"inputs": []}, LOW)
    assert (bad.status, bad.code) == (400, "scoring.unknown_input")
    live = ask(plane, 5)
    assert "x-skerry-live" not in live.headers
    counters = plane.do(lambda: plane.plane.take_counters(digest))
    assert (counters.requests, counters.errors, counters.rejected) == (1, 0, 0)
    assert told(ask(plane, 6, 0.0, LOW)).startswith("requests=1, ")


def test_the_room_is_bounded(start: Start, tmp_path: Path) -> None:
    plane, order = serve(start, tmp_path, low_wait_s=60.0, low_requests=1)
    first = Asked(plane, 1, 0.5)
    until(order.read_text)
    low = Asked(plane, 2, 0.0, LOW)
    until(lambda: waiting(plane) == 1)
    refused = ask(plane, 3, 0.0, LOW)
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "scoring.overloaded", "1")
    assert [first.join().status, low.join().status] == [200, 200]


def test_a_client_that_leaves_is_not_scored_for(start: Start, tmp_path: Path) -> None:
    plane, order = serve(start, tmp_path, low_wait_s=60.0)
    first = Asked(plane, 1, 0.5)
    until(order.read_text)
    body = json.dumps(json_request({"x": np.array([[7, 0, 0, 0]], dtype="f4")})).encode()
    with plane.raw() as sock:
        sock.sendall(b"POST /v2/models/script/infer HTTP/1.1\r\nHost: x\r\nX-Skerry-Priority: low\r\n")
        sock.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: waiting(plane) == 1)
    until(lambda: waiting(plane) == 0)
    first.join()
    assert ask(plane, 2, 0.0, LOW).status == 200
    assert order.read_text().split() == ["1", "2"]


def test_one_that_leaves_while_it_is_scored_holds_nobody_up(start: Start, tmp_path: Path) -> None:
    plane, order = serve(start, tmp_path, low_wait_s=60.0)
    body = json.dumps(json_request({"x": np.array([[7, 0.3, 0, 0]], dtype="f4")})).encode()
    with plane.raw() as sock:
        sock.sendall(b"POST /v2/models/script/infer HTTP/1.1\r\nHost: x\r\nX-Skerry-Priority: low\r\n")
        sock.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        until(order.read_text)
    assert ask(plane, 2, 0.0, LOW).status == 200


@pytest.mark.parametrize("headers", [LOW, {"X-Skerry-Priority": "LOW"}])
def test_an_unload_answers_those_that_wait(headers: dict[str, str], start: Start, tmp_path: Path) -> None:
    plane, order = serve(start, tmp_path, low_wait_s=60.0)
    first = Asked(plane, 1, 0.5)
    until(order.read_text)
    low = Asked(plane, 2, 0.0, headers)
    until(lambda: waiting(plane) == 1)
    digest = next(iter(plane.plane._versions))
    plane.call(plane.plane.unload(digest))
    assert first.join().status == 200
    late = low.join()
    assert (late.status, late.code) in ((200, ""), (503, "scoring.not_ready"))
    assert not plane.plane._versions
