"""An agent's engines import while the agent does, as its last run noted; the note is trusted for nothing."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from skerry_agent.serving import headstart
from support.processes import wait_until

from .daemon import Daemon, module_folder
from .hub import FakeHub

PATHS = ("models/double", "models/double/versions/1/ready", "health/ready")


def zygotes(daemon: Daemon) -> list[psutil.Process]:
    assert daemon.process is not None
    return [
        child
        for child in psutil.Process(daemon.process.pid).children()
        if "skerry_agent.serving.zygote" in child.cmdline()
    ]


@pytest.mark.mosquitto
def test_a_restarted_agent_uses_the_zygote_begun_before_it(
    hub: FakeHub, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    one = daemon()
    hub.desire(hub.pack(module_folder(tmp_path / "v1", 3.0)).wanted(1))
    hub.wait_phase(1, "Healthy", 60)
    note = one.state / headstart.FILE_NAME
    wait_until(note.exists)
    assert json.loads(note.read_text()) == ["python"]
    for text in (note.read_text(), "not JSON", '["../evil", "nonsense", 7]', "[" * 5000):
        one.stop()
        note.write_text(text)
        one.start()
        wait_until(lambda: "double" in str(one.status()["loaded"]), what="the module to be loaded")
        wait_until(lambda: one.score([[1.0, 2.0]])[0] == 200)
        assert len(zygotes(one)) == 1, "exactly one: the one begun was taken, and no second was made"


@pytest.mark.mosquitto
def test_who_asks_a_restarting_agent_is_told_to_wait_and_never_that_there_is_no_such_model(
    hub: FakeHub, daemon: Callable[..., Daemon], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    one, port = daemon(), free_port()
    hub.desire(hub.pack(module_folder(tmp_path / "v1", 3.0)).wanted(1))
    hub.wait_phase(1, "Healthy", 60)
    one.stop()
    one.config.write_text(one.config.read_text().replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"'))
    ask = [httpx.Request("GET", f"http://127.0.0.1:{port}/v2/{path}") for path in PATHS]
    told: list[tuple[int, ...]] = []
    over = threading.Event()

    def look() -> None:
        with httpx.Client(timeout=5) as client:
            while not over.is_set():
                with contextlib.suppress(httpx.TransportError):
                    told.append(tuple(client.send(request).status_code for request in ask))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        one.start()
        wait_until(lambda: told and told[-1] == (200, 200, 200), what="all to be ready")
    finally:
        over.set()
        thread.join()
    assert told[0] == (503, 503, 503), "the address answers before the model is loaded"
    assert {status for one in told for status in one} == {200, 503}


def test_what_nobody_takes_is_ended(tmp_path: Path) -> None:
    (tmp_path / headstart.FILE_NAME).write_text('["python", "unheard-of"]')
    headstart.begin(tmp_path)
    assert headstart.take("unheard-of", "") is None
    assert headstart.take("python", "/some/environment") is None
    taken = headstart.take("python", "")
    assert taken is not None
    assert headstart.take("python", "") is None
    taken.end()
    headstart.begin(tmp_path)
    (left,) = headstart._waiting.values()
    headstart.end_rest()
    assert left.process.returncode is not None
    assert not headstart._waiting


def test_the_note_holds_only_engines_of_ours(tmp_path: Path) -> None:
    headstart.note(tmp_path, {"onnx", "onnx+python", "x"})
    assert json.loads((tmp_path / headstart.FILE_NAME).read_text()) == ["onnx"]
    headstart.note(tmp_path / "absent", {"onnx"})  # a disk that is full or gone costs the head start only
