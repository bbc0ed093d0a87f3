"""Pipelines on a real plane: several engines in one worker, each step held to its word, and blamed by name."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent import engines
from skerry_agent.engines import combine
from skerry_modules import manifest as manifests
from skerry_modules.errors import SkerryError
from skerry_modules.histogram import Histogram
from skerry_modules.pipeline import Step
from skerry_modules.tensors import TensorSpec

from .conftest import Start
from .harness import Running, binary_request, json_request
from .models import Module, linear, linear_module, python_module
from .test_engines import reference
from .test_faults import settled

X = np.random.default_rng(5).normal(size=(40, 4)).astype("f4")
HALVE = "def run(inputs):\n    return {'x': inputs['x'] / 2}\n"


def tensor(table: str, name: str, columns: int, more: str = "") -> str:
    return f'[[{table}]]\nname = "{name}"\ndatatype = "FP32"\nshape = [-1, {columns}]\n{more}\n'


def script(name: str, source: str, model: str = "") -> str:
    head = (
        f'[[steps]]\nname = "{name}"\nengine = "python"\nmodel = "{model or name + ".py"}"\nfrom = {{x = "{source}"}}\n'
    )
    return head + tensor("steps.inputs", "x", 4) + tensor("steps.outputs", "x", 4)


def model(name: str, engine: str, source: str, options: str = "") -> str:
    head = f'[[steps]]\nname = "{name}"\nengine = "{engine}"\nmodel = "{name}.onnx"\nfrom = {{x = "{source}"}}\n'
    return head + options + tensor("steps.inputs", "x", 4) + tensor("steps.outputs", "y", 3)


def combiner(name: str, kind: str, *sources: str) -> str:
    named = ", ".join(f'{source.partition(".")[0]} = "{source}"' for source in sources)
    return f'[[steps]]\nname = "{name}"\ncombine = "{kind}"\nfrom = {{{named}}}\n' + tensor("steps.outputs", "y", 3)


def pipeline(
    folder: Path, *steps: str, result: str, columns: int = 3, tail: str = "", files: Any = None, **resources: Any
) -> Module:
    """A pipeline named ``chain`` from input ``x`` to output ``y``; ``files`` by name: a script, or a model's seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {}).items():
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            linear(folder / name, seed=content)
    text = 'format = 1\nname = "chain"\nengine = "pipeline"\n' + tensor("inputs", "x", 4)
    text += tensor("outputs", "y", columns, f'from = "{result}"') + "".join(steps) + tail
    needs = {"memory_mb": 300, **resources}
    text += "[resources]\n" + "".join(f"{key} = {value}\n" for key, value in needs.items())
    return Module(folder, manifests.parse(text))


def mixed(folder: Path, tail: str = "", **resources: Any) -> Module:
    """Halve, then one network on ONNX Runtime and another on OpenVINO, and their mean. Declared back to front."""
    return pipeline(
        folder,
        combiner("average", "mean", "one.y", "two.y"),
        model("two", "openvino", "halve.x"),
        model("one", "onnx", "halve.x", "[steps.options]\nthreads = 1\n"),
        script("halve", "input.x"),
        result="average.y",
        files={"halve.py": HALVE, "one.onnx": 1, "two.onnx": 2},
        tail=tail,
        **resources,
    )


def expected(folder: Path, x: Any) -> Any:
    """By numpy alone."""
    parts = []
    for name in ("one", "two"):
        alone = folder / f"reference-{name}"
        alone.mkdir(exist_ok=True)
        (alone / "model.onnx").write_bytes((folder / f"{name}.onnx").read_bytes())
        parts.append(reference(alone, x / 2))
    return (parts[0] + parts[1]) / 2


def scores(answer: Any) -> Any:
    assert answer.status == 200, answer.body
    (output,) = answer.json["outputs"]
    return np.array(output["data"], "f4").reshape(output["shape"])


def test_two_runtimes_a_script_and_a_combiner_in_one_worker(start: Start, tmp_path: Path) -> None:
    plane = start()
    module = mixed(tmp_path / "m", '[golden]\nfile = "golden.npz"\n[capture]\nrate = 1.0\nmax_per_minute = 5\n')
    want = expected(module.folder, X)
    np.savez(module.folder / "golden.npz", **{"input.x": X, "output.y": want})
    facts = plane.load(module)
    assert facts["engine"].startswith("onnx 1.")
    assert "openvino 20" in facts["engine"]
    report = plane.call(plane.plane.golden(module.digest, module.folder, module.manifest))
    assert (report.passed, report.cases) == (True, 40), report.message
    plane.call(plane.plane.warm(module.digest, module.manifest))
    plane.route("chain", (module, 100.0))
    np.testing.assert_allclose(scores(plane.score("chain", X)), want, rtol=1e-3, atol=1e-5)
    body, headers = binary_request({"x": X[:1]})
    np.testing.assert_allclose(
        scores(plane.ask("POST", "/v2/models/chain/infer", body, headers)), want[:1], rtol=1e-3, atol=1e-5
    )
    metadata = plane.ask("GET", "/v2/models/chain").json
    assert metadata["platform"] == "skerry_pipeline"
    assert [one["name"] for one in metadata["inputs"] + metadata["outputs"]] == ["x", "y"]
    sample = settled(lambda: plane.samples)[0]  # what happens between the steps is nobody's
    assert (set(sample.inputs), set(sample.outputs)) == ({"x"}, {"y"})


def test_what_each_step_takes_is_told(start: Start, tmp_path: Path) -> None:
    plane = start()
    slow = "import time\ndef run(inputs):\n    time.sleep(0.02)\n    return {'x': inputs['x'] / 2}\n"
    module = mixed(tmp_path / "m")
    (module.folder / "halve.py").write_text(slow)
    plane.load(module)
    plane.call(plane.plane.warm(module.digest, module.manifest))
    plane.route("chain", (module, 100.0))
    for n in range(5):
        plane.score("chain", X[n : n + 1])
    found: dict[str, list[Histogram]] = {}

    def told() -> bool:
        steps = plane.do(lambda: plane.plane.take_counters(module.digest)).steps
        for name, wire in steps.items():
            found.setdefault(name, []).append(Histogram.from_wire(wire))
        return sum(part.count for part in found.get("halve", ())) >= 5

    settled(told)
    counts = {name: sum(part.count for part in parts) for name, parts in found.items()}
    assert counts == dict.fromkeys(("halve", "one", "two", "average"), 5), "and not those of the warm-up"
    total = {name: sum(part.total for part in parts) for name, parts in found.items()}
    assert total["halve"] >= 5 * 20_000 > total["average"]


def test_a_step_that_falls_back_says_so(start: Start, tmp_path: Path) -> None:
    plane = start()
    module = pipeline(
        tmp_path / "m",
        model("net", "onnx", "input.x", '[steps.options]\nprovider = "CUDAExecutionProvider, CPUExecutionProvider"\n'),
        result="net.y",
        files={"net.onnx": 1},
    )
    notes = plane.load(module)["notes"]
    assert any(text.startswith("step 'net': ") and "CUDA" in text for _, text in notes), notes


def test_a_golden_test_is_over_the_whole(start: Start, tmp_path: Path) -> None:
    plane = start()
    module = mixed(tmp_path / "m", '[golden]\nfile = "golden.npz"\n')
    wrong = expected(module.folder, X)
    wrong[:7] += 0.2
    np.savez(module.folder / "golden.npz", **{"input.x": X, "output.y": wrong})
    plane.load(module)
    report = plane.call(plane.plane.golden(module.digest, module.folder, module.manifest))
    assert (report.passed, report.failed) == (False, 7)


def test_requests_that_wait_are_scored_together(start: Start, tmp_path: Path) -> None:
    plane = start()
    module = mixed(tmp_path / "m", "[batching]\nmax_rows = 8\n")
    assert plane.load(module)["batch_rows"] == 8, "the device has shown that rows do not depend on each other"
    plane.route("chain", (module, 100.0))
    got: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.__setitem__(n, scores(plane.score("chain", X[n : n + 1]))))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = expected(module.folder, X)
    np.testing.assert_allclose(np.concatenate([got[n] for n in range(12)]), want[:12], rtol=1e-3, atol=1e-5)


def test_workers_come_from_the_zygote_that_has_what_the_steps_need(start: Start, tmp_path: Path) -> None:
    plane = start()
    plain = plane.serve(linear_module(tmp_path / "plain"))
    shared = pipeline(
        tmp_path / "onnx",
        script("halve", "input.x"),
        model("one", "onnx", "halve.x"),
        result="one.y",
        files={"halve.py": HALVE, "one.onnx": 1},
    )
    plane.load(shared)
    assert [home for home, _ in plane.plane._nurseries] == ["onnx"]
    both = mixed(tmp_path / "both")
    plane.load(both)
    assert {home for home, _ in plane.plane._nurseries} == {"onnx", "onnx+openvino"}
    plane.unload(both)
    plane.unload(shared)
    assert {home for home, _ in plane.plane._nurseries} == {"onnx"}
    assert plane.score(plain.manifest.name, X[:1]).status == 200


def test_scripts_alone(start: Start, tmp_path: Path) -> None:
    """The same file twice: each step has its own globals."""
    text = "n = 0\ndef run(inputs):\n    global n\n    n += 1\n    return {'x': inputs['x'] + n}\n"
    plane = start()
    steps = (script("a", "input.x"), script("b", "a.x", "a.py"))
    module = plane.serve(pipeline(tmp_path / "m", *steps, result="b.x", columns=4, files={"a.py": text}))
    assert engines.zygote_of(module.manifest) == "python"
    first, second = (scores(plane.score("chain", X[:2])) for _ in range(2))
    np.testing.assert_allclose(first, X[:2] + 2, rtol=1e-6)
    np.testing.assert_allclose(second, X[:2] + 4, rtol=1e-6)


GREEDY = """
def run(inputs):
    x = inputs["x"]
    x *= 0
    return {"x": x}
"""


def test_a_script_that_writes_into_its_input_harms_no_other_step_and_no_sample(start: Start, tmp_path: Path) -> None:
    plane = start()
    module = plane.serve(
        pipeline(
            tmp_path / "m",
            script("greedy", "input.x"),
            script("plain", "greedy.x"),
            script("again", "plain.x", "greedy.py"),
            model("net", "onnx", "input.x"),
            model("after", "onnx", "plain.x"),
            model("last", "onnx", "again.x"),
            combiner("top", "max", "net.y", "after.y", "last.y"),
            result="top.y",
            files={"greedy.py": GREEDY, "plain.py": "def run(inputs):\n    return {'x': inputs['x'] + 1}\n"}
            | dict.fromkeys(("net.onnx", "after.onnx", "last.onnx"), 1),
            tail="[capture]\nrate = 1.0\n",
        )
    )
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "model.onnx").write_bytes((module.folder / "net.onnx").read_bytes())
    want = np.max([reference(alone, rows) for rows in (X[:2], X[:2] * 0 + 1, X[:2] * 0)], axis=0)
    np.testing.assert_allclose(scores(plane.score("chain", X[:2])), want, rtol=1e-3, atol=1e-5)
    body, headers = binary_request({"x": X[:2]})
    answer = plane.ask("POST", "/v2/models/chain/infer", body, headers)
    np.testing.assert_allclose(scores(answer), want, rtol=1e-3, atol=1e-5)
    settled(lambda: len(plane.samples) >= 4)
    kept = {sample.inputs["x"].data for sample in plane.samples}
    assert kept == {X[0].tobytes(), X[1].tobytes()}


def test_a_script_alone_that_writes_into_its_input_changes_no_sample(start: Start, tmp_path: Path) -> None:
    plane = start()
    text = "def run(inputs):\n    inputs['x'] *= 0\n    return {'y': inputs['x'].sum(axis=1)}\n"
    plane.serve(python_module(tmp_path / "m", text, tail="[capture]\nrate = 1.0\n"))
    assert plane.score("script", X[:1]).json["outputs"][0]["data"] == [0]
    (sample,) = settled(lambda: plane.samples)
    assert sample.inputs["x"].data == X[0].tobytes()


# -- steps that fail --------------------------------------------------------------------------------------------------

MISBEHAVE = """
import ctypes, os, time
def run(inputs):
    x = inputs["x"]
    what = int(x[0, 0])
    if what == 1: ctypes.string_at(0)
    if what == 2: time.sleep(3600)
    if what == 3: return {"x": x[:, :2]}
    if what == 4: raise ValueError("no such luck")
    if what == 5: return {"z": x}
    if what == 6: bytearray(10_000_000_000)
    if what == 7: os._exit(9)
    if what == 8: return {"x": x[:0]}
    return {"x": x}
"""


def fragile(folder: Path) -> Module:
    return pipeline(
        folder,
        script("first", "input.x", "plain.py"),
        script("middle", "first.x"),
        model("net", "onnx", "middle.x"),
        model("direct", "onnx", "first.x"),
        combiner("average", "mean", "net.y", "direct.y"),
        result="average.y",
        files={
            "plain.py": "def run(inputs):\n    return inputs\n",
            "middle.py": MISBEHAVE,
            "net.onnx": 1,
            "direct.onnx": 2,
        },
        request_timeout_s=2,
    )


@pytest.fixture(scope="module")
def polite(shared: Running, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """For failures that no worker dies of."""
    shared.serve(fragile(tmp_path_factory.mktemp("fragile")))
    return shared


@pytest.fixture
def plane(start: Start, tmp_path: Path) -> Running:
    one = start()
    one.serve(fragile(tmp_path / "m"))
    return one


def ask(plane: Running, what: float) -> Any:
    return plane.score("chain", [[what, 1, 2, 3]])


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (3, "step 'middle': output 'x' of run() has shape [1, 2]"),
        (4, "step 'middle': run() raised ValueError: no such luck"),
        (5, "step 'middle': run() returned no output 'x'"),
        (8, "step 'average': what is combined differs in shape: direct [1, 3], net [0, 3]"),
    ],
)
def test_a_step_that_fails_is_named(polite: Running, what: int, text: str) -> None:
    answer = ask(polite, what)
    assert (answer.status, answer.code) == (500, "scoring.failed")
    assert answer.json["error"].startswith(f"cannot score: {text}")
    assert ask(polite, 0).status == 200
    assert polite.exits == []


@pytest.mark.parametrize(("what", "reason"), [(1, "signal 11"), (7, "exit 9"), (6, "memory")])
def test_a_step_that_kills_its_worker_is_named(plane: Running, what: int, reason: str) -> None:
    answer = ask(plane, what)
    assert (answer.status, answer.code) == (500, "scoring.quarantined")
    settled(lambda: len(plane.exits) == 2)
    assert {why for _, why, _ in plane.exits} == {f"{reason} in step 'middle'"}
    assert ask(plane, 0).status == 200


def test_a_step_that_hangs_is_named(plane: Running) -> None:
    began = time.monotonic()
    answer = ask(plane, 2)
    assert (answer.status, answer.code) == (503, "scoring.deadline")
    assert time.monotonic() - began < 10
    settled(lambda: plane.exits)
    assert plane.exits[0][1] == "hang in step 'middle'"
    assert ask(plane, 0).status == 200


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            "raise RuntimeError('no weights')",
            "install.load_failed",
            "step 'middle': middle.py: RuntimeError: no weights",
        ),
        ("x = 1", "install.load_failed", "step 'middle': middle.py: it defines no run(inputs)"),
        ("import os\nos._exit(4)", "install.load_failed", "its worker ended (exit 4 in step 'middle')"),
    ],
)
def test_a_step_that_does_not_load_is_named(start: Start, tmp_path: Path, text: str, code: str, message: str) -> None:
    one = start()
    module = pipeline(
        tmp_path / "m",
        model("net", "onnx", "input.x"),
        script("middle", "input.x"),
        model("other", "onnx", "middle.x"),
        combiner("top", "max", "net.y", "other.y"),
        result="top.y",
        files={"middle.py": text, "net.onnx": 1, "other.onnx": 2},
    )
    with pytest.raises(SkerryError) as caught:
        one.load(module)
    assert caught.value.code == code
    assert message in caught.value.message


def test_a_step_that_is_no_model_is_named(start: Start, tmp_path: Path) -> None:
    one = start()
    module = mixed(tmp_path / "m")
    (module.folder / "two.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(SkerryError, match=r"cannot load step 'two': two\.onnx: OpenVINO says") as caught:
        one.load(module)
    assert caught.value.code == "install.load_failed"


def test_a_model_that_breaks_its_word_is_caught_before_the_next_step(tmp_path: Path) -> None:
    """A manifest may promise more than the model file says, where the model says nothing (-1)."""
    module = pipeline(tmp_path / "m", model("net", "onnx", "input.x"), result="net.y", files={"net.onnx": 1})
    loaded = engines.get("pipeline").load(module.folder, module.manifest, tmp_path / "cache")
    linear(tmp_path / "m" / "net.onnx", classes=5)
    wider = engines.get("pipeline").load(module.folder, module.manifest, tmp_path / "cache")
    assert loaded.run({"x": X})["y"].shape == (40, 3)
    with pytest.raises(SkerryError, match=r"step 'net': output 'y' has shape \[40, 5\], declared as \[-1, 3\]"):
        wider.run({"x": X})
    loaded.close()
    wider.close()


def test_the_wrong_input_is_the_callers_fault(polite: Running) -> None:
    answer = polite.ask("POST", "/v2/models/chain/infer", json_request({"x": np.zeros((1, 5), "f4")}))
    assert (answer.status, answer.code) == (400, "scoring.wrong_shape")


# -- combiners --------------------------------------------------------------------------------------------------------


def combined(kind: str, arrays: list[Any], weights: list[float] | None = None) -> Any:
    names = [f"i{n}" for n in range(len(arrays))]
    step = Step(
        name="c",
        combine=kind,  # type: ignore[arg-type]
        sources={name: f"{name}.t" for name in names},
        weights=dict(zip(names, weights or (), strict=False)),
        outputs=(TensorSpec(name="t", datatype="FP32", shape=(-1, 3)),),
    )
    return combine.combiner(step)(dict(zip(names, arrays, strict=True)))["t"]


ROWS = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6).map(lambda row: np.array(row, "f4").reshape(2, 3)),
    min_size=2,
    max_size=5,
)


@given(ROWS, st.lists(st.floats(0.01, 100), min_size=5, max_size=5))
def test_mean_weighted_and_max_are_numpys(arrays: list[Any], weights: list[float]) -> None:
    before = [array.copy() for array in arrays]
    wide = np.stack(arrays).astype("f8")
    share = weights[: len(arrays)]
    scale = np.abs(wide).max() * 1e-5 + 1e-6
    np.testing.assert_allclose(combined("mean", arrays), wide.mean(axis=0), atol=scale)
    np.testing.assert_allclose(combined("weighted", arrays, share), np.average(wide, 0, share), atol=scale)
    np.testing.assert_array_equal(combined("max", arrays), np.max(arrays, axis=0))
    for array, untouched in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, untouched)


@given(ROWS)
def test_a_vote_of_scores_is_a_share_of_votes(arrays: list[Any]) -> None:
    result = combined("vote", arrays)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.sum(axis=-1), 1, rtol=1e-6)
    for row in range(2):
        votes = np.bincount([array[row].argmax() for array in arrays], minlength=3)
        np.testing.assert_allclose(result[row] * len(arrays), votes, rtol=1e-6)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=6), st.booleans())
def test_a_vote_of_labels_is_the_commonest(lists: list[list[int]], text: bool) -> None:
    if text:
        arrays = [np.array([b"label %d" % value for value in values], object) for values in lists]
    else:
        arrays = [np.array(values, "i8") for values in lists]
    result = combined("vote", arrays)
    for place in range(4):
        found = [array[place] for array in arrays]
        most = max(found.count(value) for value in found)
        assert result[place] == min(value for value in found if found.count(value) == most)


def test_halves_are_added_up_in_full() -> None:
    arrays = [np.full((1, 3), 60_000, "f2"), np.full((1, 3), 60_000, "f2")]
    np.testing.assert_array_equal(combined("mean", arrays), arrays[0])
    assert combined("mean", arrays).dtype == np.float16
