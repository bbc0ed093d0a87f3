"""Models that crash, hang, leak, print and lie: each request gets its own right answer, and nobody else notices."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_modules.errors import SkerryError

from .conftest import Start
from .harness import Running, binary_request, json_request
from .models import Module, linear_module, python_module

SCRIPT = """
import ctypes, os, sys, time
kept = []

def run(inputs):
    x = inputs["x"]
    what = int(x[0, 0])
    if what == 1:
        ctypes.string_at(0)  # SIGSEGV
    if what == 2:
        while True:
            pass
    if what == 3:
        time.sleep(3600)
    if what == 4:
        kept.append(bytearray(40_000_000))  # a leak, 40 MB a request
    if what == 5:
        sys.stdout.write("o" * 200_000); sys.stderr.write("e" * 200_000); os.write(1, b"\\0\\1{}" * 50_000)
    if what == 6:
        raise ValueError("no such luck")
    if what == 7:
        return {"y": x}
    if what == 8:
        return {}
    if what == 9:
        bytearray(10_000_000_000)
    if what == 10:
        sys.exit(3)
    if what == 11:
        os._exit(9)
    if what == 12:
        x[:] = 0  # a script may write into its inputs
    if what == 13:
        os.close(int(os.readlink("/proc/self/fd/0") and 0)); print("closed")
    if what == 14 and os.path.exists(os.path.join(MODULE_FOLDER, "..", "poison")):
        os.remove(os.path.join(MODULE_FOLDER, "..", "poison"))
        ctypes.string_at(0)  # only the first time
    return {"y": x.sum(axis=1)}
"""


def ask(plane: Running, what: float, timeout: float = 30.0, **headers: str) -> Any:
    return plane.score("script", [[what, 1, 2, 3]], timeout, headers)


@pytest.fixture
def plane(start: Start, tmp_path: Path) -> Running:
    one = start()
    one.serve(python_module(tmp_path / "script", SCRIPT, request_timeout_s=30))
    return one


@pytest.fixture
def hasty(start: Start, tmp_path: Path) -> Running:
    """Requests may take 1.5 s."""
    one = start()
    one.serve(python_module(tmp_path / "script", SCRIPT, request_timeout_s=1.5))
    return one


def settled(check: Callable[[], Any], within: float = 10.0) -> Any:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if found := check():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize(
    ("what", "status", "code", "text"),
    [
        (6, 500, "scoring.failed", "ValueError: no such luck"),
        (7, 500, "scoring.failed", "shape [1, 4]"),
        (8, 500, "scoring.failed", "no output 'y'"),
        (10, 500, "scoring.failed", "SystemExit"),
    ],
)
def test_a_model_that_fails_politely(plane: Running, what: int, status: int, code: str, text: str) -> None:
    answer = ask(plane, what)
    assert (answer.status, answer.code) == (status, code)
    assert list(answer.json) == ["error"]
    assert text in answer.json["error"]
    assert ask(plane, 0).status == 200
    assert plane.exits == []


def test_what_a_model_fails_with_is_told_once_in_a_while_and_what_clients_do_wrong_is_not(plane: Running) -> None:
    notices: list[tuple[str, str, str]] = []
    plane.plane.on_notice = lambda *what: notices.append(what)
    assert plane.score("script", [[0.0, 1, 2]]).status == 400
    for _ in range(5):
        assert ask(plane, 6).status == 500
    _, code, text = settled(lambda: notices)[0]
    assert (code, text) == ("scoring.failed", "cannot score: run() raised ValueError: no such luck")
    assert len(notices) < 5


@pytest.mark.parametrize(("what", "reason"), [(1, "signal 11"), (11, "exit 9"), (9, "memory")])
def test_a_request_that_kills_two_workers_is_quarantined(plane: Running, what: int, reason: str) -> None:
    answer = ask(plane, what)
    assert (answer.status, answer.code) == (500, "scoring.quarantined")
    assert ask(plane, 0).status == 200
    settled(lambda: len(plane.exits) == 2)
    assert {one[1:] for one in plane.exits} == {(reason, True)}
    again = ask(plane, what)  # remembered: it kills nobody any more
    assert (again.status, again.code) == (500, "scoring.quarantined")
    assert len(plane.exits) == 2
    (sample,) = settled(lambda: plane.samples)
    assert sample.reason == "quarantined"
    assert np.frombuffer(sample.inputs["x"].data, "<f4").tolist() == [what, 1, 2, 3]


def test_a_crash_that_does_not_repeat_costs_nobody_an_answer(plane: Running, tmp_path: Path) -> None:
    (tmp_path / "poison").touch()
    answer = ask(plane, 14)
    assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [20.0])
    assert settled(lambda: [one[1] for one in plane.exits]) == ["signal 11"]


@pytest.mark.parametrize("what", [2, 3], ids=["spins", "sleeps"])
def test_a_hang_is_answered_at_its_deadline_and_others_after_it(hasty: Running, what: int) -> None:
    answers: dict[str, Any] = {}

    def late() -> None:
        time.sleep(0.9)
        answers["other"] = ask(hasty, 0, **{"X-Skerry-Timeout-Ms": "20000"})

    thread = threading.Thread(target=late)
    thread.start()
    began = time.monotonic()
    answer = ask(hasty, what)
    took = time.monotonic() - began
    thread.join()
    assert (answer.status, answer.code) == (503, "scoring.deadline")
    assert 1.4 <= took < 8  # its module allows 1.5 s
    assert answers["other"].status == 200  # it came later, so it had time left when the hang was ended
    assert settled(lambda: [one[1] for one in hasty.exits]) == ["hang"]
    assert ask(hasty, 0).status == 200
    assert len(hasty.exits) == 1


def test_a_client_may_ask_for_an_earlier_deadline(plane: Running) -> None:
    began = time.monotonic()
    answer = ask(plane, 3, **{"X-Skerry-Timeout-Ms": "200"})
    assert (answer.status, answer.code) == (503, "scoring.deadline")
    assert time.monotonic() - began < 15  # the module's own limit is twice that
    bad = ask(plane, 0, **{"X-Skerry-Timeout-Ms": "soon"})
    assert (bad.status, bad.code) == (400, "request.invalid")


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_a_deadline_may_stand_in_the_request_in_microseconds(plane: Running, binary: bool) -> None:
    """As Triton's schedule policy extension has it."""

    def send(timeout: Any, what: float) -> Any:
        arrays = {"x": np.array([[what, 1, 2, 3]], "f4")}
        if not binary:
            return plane.ask("POST", "/v2/models/script/infer", json_request(arrays, parameters={"timeout": timeout}))
        body, headers = binary_request(arrays, parameters={"timeout": timeout})
        return plane.ask("POST", "/v2/models/script/infer", body, headers)

    assert [send(timeout, 0).status for timeout in (0, 20_000_000)] == [200, 200]
    began = time.monotonic()
    answer = send(200_000, 3)
    assert (answer.status, answer.code) == (503, "scoring.deadline")
    assert time.monotonic() - began < 15  # the module's own limit is twice that
    for bad in (-1, "soon", 0.5, True):
        answer = send(bad, 0)
        assert (answer.status, answer.code) == (400, "request.invalid")
        assert "microseconds" in answer.json["error"]


def test_an_earlier_deadline_counts_whatever_deadlines_came_before(plane: Running) -> None:
    assert ask(plane, 0).status == 200  # its deadline, 30 s away, is still looked for
    thread = threading.Thread(target=ask, args=(plane, 3), kwargs={"X-Skerry-Timeout-Ms": "4000"})
    thread.start()
    began = time.monotonic()
    answer = ask(plane, 3, **{"X-Skerry-Timeout-Ms": "300"})
    took = time.monotonic() - began
    assert (answer.status, answer.code) == (503, "scoring.deadline")
    thread.join()
    assert took < time.monotonic() - began  # long before the other


def test_a_leak_is_stopped_at_the_manifests_memory_and_scoring_goes_on(plane: Running) -> None:
    statuses = [ask(plane, 4).status for _ in range(12)]  # 480 MB in all, 200 MB allowed
    assert statuses == [200] * 12
    assert "memory" in settled(lambda: {one[1] for one in plane.exits})


def test_what_a_model_prints_never_reaches_the_protocol(plane: Running) -> None:
    for _ in range(3):
        answer = ask(plane, 5)
        assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [11.0])
    assert plane.exits == []


def test_a_model_may_write_into_its_inputs_and_loses_only_standard_input(plane: Running) -> None:
    assert ask(plane, 12).json["outputs"][0]["data"] == [0.0]
    assert ask(plane, 13).status == 200


def test_other_modules_do_not_notice(hasty: Running, tmp_path: Path) -> None:
    hasty.serve(linear_module(tmp_path / "linear"))
    statuses: list[int] = []
    running = True

    def neighbour() -> None:
        while running:
            statuses.append(hasty.score("linear", np.ones((1, 4))).status)

    thread = threading.Thread(target=neighbour)
    thread.start()
    for what in (1, 6, 9, 5, 2):
        ask(hasty, what)
    running = False
    thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}
    assert {digest for digest, _, _ in hasty.exits} != {""}
    assert hasty.score("linear", np.ones((1, 4))).status == 200


def test_a_full_queue_answers_429_at_once(start: Start, tmp_path: Path) -> None:
    plane = start(queue_requests=2, window=1)
    module = plane.serve(python_module(tmp_path / "script", SCRIPT, request_timeout_s=3))
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(plane, 3))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(answer.code for answer in answers)
    assert codes == ["scoring.deadline"] * 3 + ["scoring.overloaded"] * 5
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["retry-after"] == "1"
    assert plane.do(lambda: plane.plane.take_counters(module.digest)).rejected == 5


@pytest.mark.parametrize("victim", ["worker", "zygote"])
def test_a_killed_process_comes_back_and_waiting_requests_are_scored(start: Start, tmp_path: Path, victim: str) -> None:
    plane = start()
    plane.serve(python_module(tmp_path / "script", SCRIPT, request_timeout_s=60))
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.extend(ask(plane, 0).status for _ in range(40))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for killed in range(3):
        settled(lambda: len(plane.plane.pids()) == 2)
        os.kill(plane.plane.pids()[1 if victim == "worker" else 0], signal.SIGKILL)
        settled(lambda killed=killed: len(plane.exits) > killed)
        settled(lambda: ask(plane, 0).status == 200)
    for thread in threads:
        thread.join()
    assert answers == [200] * 160
    assert len(plane.exits) == 3


def test_a_worker_that_cannot_start_again_is_tried_at_growing_intervals(plane: Running, tmp_path: Path) -> None:
    script = tmp_path / "script" / "main.py"
    script.write_text("raise RuntimeError('the disk lies')")
    os.kill(plane.plane.pids()[1], signal.SIGKILL)
    answer = ask(plane, 0, **{"X-Skerry-Timeout-Ms": "600"})
    assert (answer.status, answer.code) == (503, "scoring.deadline")
    for path in ("/v2/health/ready", "/v2/models/script/ready", "/v2/models/script/versions/1/ready"):
        assert plane.ask("GET", path).status == 503
    assert plane.ask("GET", "/v2/health/live").status == 200
    settled(lambda: "start: install.load_failed" in {one[1] for one in plane.exits})
    assert len(plane.exits) < 20
    script.write_text(SCRIPT)
    settled(lambda: ask(plane, 0).status == 200)
    assert plane.ask("GET", "/v2/health/ready").status == 200


def test_what_waits_for_a_version_that_keeps_dying_is_answered_by_the_one_that_takes_its_route(
    plane: Running, tmp_path: Path
) -> None:
    before = python_module(tmp_path / "before", SCRIPT, name="script", version=7, request_timeout_s=30)
    plane.load(before)
    (tmp_path / "script" / "main.py").write_text("raise RuntimeError('the disk lies')")
    os.kill(plane.plane.pids()[1], signal.SIGKILL)
    settled(lambda: "start: install.load_failed" in {one[1] for one in plane.exits})
    answers: dict[str, Any] = {}

    def waiting(path: str, timeout_ms: int) -> None:
        body = json_request({"x": np.asarray([[0, 1, 2, 3]], dtype="f4")})
        answers[path] = plane.ask("POST", path, body, {"X-Skerry-Timeout-Ms": str(timeout_ms)})

    free, pinned = "/v2/models/script/infer", "/v2/models/script/versions/1/infer"
    threads = [threading.Thread(target=waiting, args=one) for one in ((free, 20_000), (pinned, 1_500))]
    for thread in threads:
        thread.start()
    (held,) = [one for one in plane.plane._versions.values() if one.number == 1]
    settled(lambda: plane.do(lambda: len(held._dispatch.waiting)) == 2)
    plane.route("script", (before, 100.0))
    for thread in threads:
        thread.join()
    assert (answers[free].status, answers[free].json["model_version"]) == (200, "7")
    assert (answers[pinned].status, answers[pinned].code) == (503, "scoring.deadline")


def test_a_client_that_leaves_is_not_scored(start: Start, tmp_path: Path) -> None:
    plane = start(window=1)
    counter = tmp_path / "count"
    script = f"""
import time
def run(inputs):
    with open({str(counter)!r}, "a") as f: f.write("x")
    time.sleep(float(inputs["x"][0, 0]))
    return {{"y": inputs["x"].sum(axis=1)}}
"""
    plane.serve(python_module(tmp_path / "script", script))
    thread = threading.Thread(target=lambda: ask(plane, 0.5))
    thread.start()
    settled(counter.exists)
    leaver = plane.raw()
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[0,0,0,0]}]}'
    leaver.sendall(
        b"POST /v2/models/script/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    time.sleep(0.1)
    leaver.close()
    thread.join()
    assert ask(plane, 0).status == 200
    assert counter.read_text() == "xx"


# -- loading -----------------------------------------------------------------------------------------------------------


def load_error(plane: Running, module: Module) -> SkerryError:
    with pytest.raises(SkerryError) as caught:
        plane.load(module)
    assert plane.plane._versions == {}
    settled(lambda: plane.plane.pids() == [])  # nothing is left running
    return caught.value


@pytest.mark.parametrize(
    ("script", "code", "text"),
    [
        ("def init(:", "install.load_failed", "SyntaxError"),
        ("import nonesuch", "install.load_failed", "nonesuch"),
        ("x = 1", "install.load_failed", "defines no run"),
        ("raise SystemExit(4)", "install.load_failed", "SystemExit"),
        ("def init():\n    raise OSError('no sensor')\ndef run(x): ...", "install.load_failed", "no sensor"),
        ("import ctypes; ctypes.string_at(0)", "install.load_failed", "signal 11"),
        ("import os; print('last words'); os._exit(7)", "install.load_failed", "exit 7"),
        ("x = bytearray(400_000_000)", "install.load_failed", "200 MB"),
        ("import time; time.sleep(60)", "install.load_timeout", "within 0.5 s"),
    ],
    ids=["syntax", "import", "no run", "exit", "init", "segfault", "dies", "memory", "hangs"],
)
def test_a_module_that_cannot_load_says_why(start: Start, tmp_path: Path, script: str, code: str, text: str) -> None:
    plane = start()
    error = load_error(
        plane, python_module(tmp_path / "script", script, load_timeout_s=0.5 if "sleep" in script else 20)
    )
    assert error.code == code
    assert text in error.message
    assert plane.exits == []


def test_a_module_that_is_not_on_disk(start: Start, tmp_path: Path) -> None:
    module = linear_module(tmp_path / "linear")
    (tmp_path / "linear" / "model.onnx").unlink()
    assert load_error(start(), module).code == "install.load_failed"


def test_an_engine_that_cannot_be_imported_is_named(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = start()
    module = linear_module(tmp_path / "m", engine="pynq")
    monkeypatch.setenv("SKERRY_PYNQ_DEVICE", "a_board_that_nobody_made")
    for _ in range(2):
        error = load_error(plane, module)
        assert error.code == "unschedulable.engine"
        assert "cannot use the engine pynq" in error.message


def test_the_reason_of_a_crash_holds_the_models_last_words(start: Start, tmp_path: Path) -> None:
    script = "print('warming the tubes')\nraise KeyError('tube 7')"
    error = load_error(start(), python_module(tmp_path / "m", script))
    assert "KeyError: 'tube 7'" in error.message
    script = "import os\nprint('tube 7 is cold')\nos.abort()"
    error = load_error(start(), python_module(tmp_path / "n", script))
    assert "signal 6" in error.message
    assert "tube 7 is cold" in error.message
