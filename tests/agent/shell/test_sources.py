"""Sources: values of every kind, a watched folder, a replay and an MQTT topic, over real files, broker and workers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.shell.daemon import Daemon, module_folder
from agent.shell.hub import FakeHub
from skerry_agent.events import Events
from skerry_agent.sources import Feeder, Row
from skerry_agent.sources.folder import Folder
from skerry_agent.sources.replay import Replay
from skerry_agent.sources.values import from_csv, from_json, to_json
from skerry_modules.errors import InputError, ResourceError
from skerry_modules.messages import Event, Tensor
from skerry_modules.tensors import DATATYPES, TensorSpec
from support.processes import wait_until

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))


# -- values

NUMBERS = [name for name in DATATYPES if name not in ("BYTES", "BOOL")]


@given(
    datatype=st.sampled_from(NUMBERS),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_json_makes_the_bytes_that_numpy_makes(datatype: str, shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 100, shape).astype(DATATYPES[datatype])
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, *shape[1:]))
    tensor = from_json(array.tolist(), spec)
    assert tensor.data == array.tobytes()
    assert tensor.shape == tuple(shape)
    assert to_json(tensor) == array.tolist()


def test_text_and_truth_values() -> None:
    words = from_json([["a", "ä"], ["", "b"]], TensorSpec(name="w", datatype="BYTES", shape=(-1, 2)))
    assert to_json(words) == [["a", "ä"], ["", "b"]]
    truth = from_json([True, False], TensorSpec(name="t", datatype="BOOL", shape=(-1,)))
    assert to_json(truth) == [True, False]


@pytest.mark.parametrize(
    ("value", "spec", "code"),
    [
        ([[1, 2], [3]], X, "scoring.wrong_shape"),
        ([[1, 2, 3]], X, "scoring.wrong_shape"),
        ([[["a", "b"]]], X, "scoring.wrong_shape"),
        ([["a", "b"]], X, "scoring.bad_data"),
        ([[None, 1]], X, "scoring.bad_data"),
        ([[1, {}]], X, "scoring.bad_data"),
        ([], X, "scoring.wrong_shape"),
        ({}, X, "scoring.wrong_shape"),
        ([[300, 1]], TensorSpec(name="x", datatype="UINT8", shape=(-1, 2)), "scoring.bad_data"),
        ([[1.5, 1]], TensorSpec(name="x", datatype="INT8", shape=(-1, 2)), "scoring.bad_data"),
    ],
)
def test_what_does_not_fit_is_refused(value: Any, spec: TensorSpec, code: str) -> None:
    with pytest.raises(InputError) as caught:
        from_json(value, spec)
    assert caught.value.code == code


def test_a_hundred_thousand_brackets_do_no_harm() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InputError, match="nested too deep"):
        from_json(value, X)
    while isinstance(value, list):  # taken apart by hand: freeing it at once would recurse
        value = value.pop()


def test_one_row_gets_its_batch_dimension() -> None:
    assert from_json([1.0, 2.0], X).shape == (1, 2)


def test_csv_by_order_and_by_name() -> None:
    assert to_json(from_csv("a,b\n1,2\n3,4\n", (X,), "f")["x"]) == [[1.0, 2.0], [3.0, 4.0]]
    two = (
        TensorSpec(name="t", datatype="FP32", shape=(-1, 1)),
        TensorSpec(name="p", datatype="INT32", shape=(-1, 1)),
    )
    found = from_csv("p,t\n1,2.5\n3,4.5\n", two, "f")
    assert to_json(found["t"]) == [[2.5], [4.5]]
    assert to_json(found["p"]) == [[1], [3]]
    with pytest.raises(InputError, match="every cell must be a number"):
        from_csv("1,2\n3,x\n", (X,), "f")


# -- feeder and sources, with a plane that answers as told


class Plane:
    """Doubles; raises what it is told to first."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.seen: list[Any] = []

    async def infer_tensors(
        self, _endpoint: str, inputs: dict[str, Tensor], *, timeout_s: float | None = None
    ) -> dict[str, Tensor]:
        if self.errors:
            raise self.errors.pop(0)
        self.seen.append(to_json(inputs["x"]))
        return {"y": inputs["x"]}


def feeder(source: Any, plane: Plane, told: list[Event], ready: Callable[[], bool] = lambda: True) -> Feeder:
    events = Events(told.append, 0.0, time.monotonic)
    results: list[dict[str, Any]] = []
    return Feeder(
        "test",
        "m",
        lambda: (source, results.append),
        plane,  # type: ignore[arg-type]
        specs_of=lambda _: (X,) if ready() else None,
        events=events,
    )


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


def test_a_replay_waits_for_a_version_and_misses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry_agent.sources._PAUSE_S", 0.01)
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.savez(tmp_path / "d.npz", **{"input.x": rows, "label": np.zeros(5)})
    plane = Plane(ResourceError("scoring.not_ready", "no"), ResourceError("scoring.overloaded", "full"))
    asks = 0

    def ready() -> bool:
        nonlocal asks
        asks += 1
        return asks > 3

    told: list[Event] = []
    source = Replay(tmp_path / "d.npz", rate=0, batch=2, loop=False, max_mb=1)
    made = feeder(source, plane, told, ready)
    asyncio.run(made.run())
    assert plane.seen == [rows[0:2].tolist(), rows[2:4].tolist(), rows[4:5].tolist()]
    assert (made.scored, made.failed) == (3, 0)
    assert not told


def test_a_folder_scores_each_file_once_and_keeps_bad_ones_apart(tmp_path: Path) -> None:
    rows = np.ones((3, 2), np.float32)
    np.savez(tmp_path / "a.npz", x=rows)
    np.save(tmp_path / "b.npy", rows)
    (tmp_path / "c.json").write_text('{"x": [[1, 2]]}')
    (tmp_path / "d.csv").write_text("5,6\n")
    (tmp_path / "bad.json").write_text('{"x": [[1, 2')
    (tmp_path / "bomb.json").write_text("[" * 100_000)
    (tmp_path / "wrong.json").write_text('{"z": 1}')
    (tmp_path / "big.csv").write_text("1,2\n" * 300_000)
    (tmp_path / "note.txt").write_text("not an input")
    (tmp_path / ".hidden.json").write_text("{}")
    plane, told = Plane(), list[Event]()
    source = Folder(tmp_path, every_s=0.02, keep_files=3, max_mb=1)
    made = feeder(source, plane, told)

    async def scenario() -> None:
        task = asyncio.create_task(made.run())
        await until(lambda: made.scored == 4 and made.failed == 4)
        (tmp_path / "e.json").write_text('{"x": [7, 8]}')
        await until(lambda: made.scored == 5)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(scenario())
    assert sorted(str(one) for one in plane.seen) == sorted(
        str(one) for one in [rows.tolist(), rows.tolist(), [[1.0, 2.0]], [[5.0, 6.0]], [[7.0, 8.0]]]
    )
    assert len(list((tmp_path / "done").iterdir())) == 3  # the newest that are kept
    reasons = {path.name: path.read_text().split(":")[0] for path in (tmp_path / "bad").glob("*.reason.txt")}
    assert reasons == {
        "bad.json.reason.txt": "scoring.invalid_json",
        "bomb.json.reason.txt": "scoring.invalid_json",
        "wrong.json.reason.txt": "scoring.unknown_input",
        "big.csv.reason.txt": "request.too_large",
    }
    assert {event.code for event in told} == set(reasons.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.json", "bad", "done", "note.txt"]


def test_a_source_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    made = Feeder(
        "r",
        "m",
        lambda: (Replay(tmp_path / "none.npz", rate=1, batch=1, loop=True, max_mb=1), None),
        Plane(),  # type: ignore[arg-type]
        specs_of=lambda _: None,
        events=Events(lambda _: None, 1.0, time.monotonic),
    )
    with pytest.raises(InputError, match=r"cannot read none\.npz"):
        asyncio.run(made.run())
    assert "none.npz" in made.last_error


def test_a_reading_that_cannot_wait_is_let_go_and_counted() -> None:
    class Once:
        async def rows(self) -> Any:
            yield Row("r", lambda _: {}, wait=False)

        def close(self) -> None: ...

    made = feeder(Once(), Plane(), [], ready=lambda: False)
    asyncio.run(made.run())
    assert (made.scored, made.let_go) == (0, 1)


# -- all of them in the real daemon


@pytest.mark.mosquitto
def test_every_kind_of_source_in_the_real_daemon(
    hub: FakeHub, daemon: Callable[..., Daemon], mosquitto: int, tmp_path: Path
) -> None:
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.savez(tmp_path / "replay.npz", x=rows, label=np.zeros(20))
    inbox = tmp_path / "inbox"
    agent = daemon(
        f"""
[[sources]]
kind = "replay"
module = "double"
path = "{tmp_path}/replay.npz"
rate = 100
results_file = "{tmp_path}/results.jsonl"
[[sources]]
kind = "folder"
module = "double"
path = "{inbox}"
every_s = 0.05
[[sources]]
kind = "mqtt"
module = "double"
topic = "sensors/json"
broker = "mqtt://127.0.0.1:{mosquitto}"
results_topic = "results/json"
[[sources]]
kind = "mqtt"
name = "raw"
module = "double"
topic = "sensors/raw"
input = "x"
datatype = "FP32"
shape = [1, 2]
[[sources]]
kind = "replay"
name = "missing"
module = "double"
path = "{tmp_path}/not-there.npz"
"""
    )
    hub.raw("sensors/json", b'{"x": [[9, 9]]}')  # before any version is ready: let go
    (inbox / "early.json").write_text('{"x": [[1, 2]]}')
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    hub.wait_phase(1, "Healthy")

    def facts() -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in agent.status()["sources"]}

    wait_until(lambda: facts()["replay:double"]["scored"] >= 25, what="the replay to go round")
    wait_until(lambda: facts()["folder:double"]["scored"] == 1, what="the file")
    assert (inbox / "done" / "early.json").exists()
    answers: list[bytes] = []
    hub._client.message_callback_add("results/json", lambda _c, _d, message: answers.append(message.payload))
    hub._client.subscribe("results/json")
    wait_until(lambda: hub.raw("sensors/json", b'{"x": [[1, 4]]}') or answers, what="an answer on the results topic")
    assert json.loads(answers[0])["outputs"] == {"y": [[2.0, 8.0]]}
    wait_until(
        lambda: hub.raw("sensors/raw", np.array([1, 2], "<f4").tobytes()) or facts()["raw"]["scored"], what="raw"
    )
    hub.raw("sensors/raw", b"odd")
    hub.raw("sensors/json", b"\xff\xfe")
    wait_until(lambda: facts()["raw"]["failed"] and facts()["mqtt:double"]["failed"], what="bad readings")
    assert "not-there.npz" in facts()["missing"]["last_error"]
    line = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert line["outputs"] == {"y": [[0.0, 2.0]]}
    shown = agent.command("status").stdout
    assert "replay:double" in shown
    assert "not-there.npz" in shown
