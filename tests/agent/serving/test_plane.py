"""Versions and routes: golden tests, swaps without a dropped request, splits, unloading, what is observed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from skerry_agent.serving.settings import ServingSettings
from skerry_modules.errors import SkerryError
from skerry_modules.histogram import Baseline
from skerry_modules.messages import Tensor

from .conftest import Start
from .harness import Running
from .models import Module, linear_module, python_module
from .test_faults import settled

X = np.random.default_rng(5).normal(size=(50, 4)).astype("f4")
ADD = "def run(inputs):\n    return {{'y': inputs['x'].sum(axis=1) + {0}}}\n"
GOLDEN = '[golden]\nfile = "golden.npz"\n'


def adder(folder: Path, version: int, **resources: Any) -> Module:
    return python_module(folder / f"v{version}", ADD.format(version * 1000), name="adder", version=version, **resources)


def with_golden(module: Module, wrong: int = 0) -> Module:
    """Expected outputs by numpy, some of them wrong."""
    expected = X.sum(axis=1) + module.version * 1000
    expected[:wrong] += 100
    np.savez(module.folder / "golden.npz", **{"input.x": X, "output.y": expected})
    return module


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (3, False)])
def test_golden(start: Start, tmp_path: Path, wrong: int, passed: bool) -> None:
    plane = start()
    module = with_golden(python_module(tmp_path / "m", ADD.format(1000), tail=GOLDEN), wrong)
    plane.load(module)
    report = plane.call(plane.plane.golden(module.digest, module.folder, module.manifest))
    assert (report.passed, report.cases, report.failed) == (passed, 50, wrong)
    assert plane.do(lambda: plane.plane.take_counters(module.digest)).requests == 0  # nobody's traffic
    plane.call(plane.plane.warm(module.digest, module.manifest))


def test_golden_with_a_file_that_is_no_golden_file(start: Start, tmp_path: Path) -> None:
    plane = start()
    module = python_module(tmp_path / "m", ADD.format(0), tail=GOLDEN)
    (module.folder / "golden.npz").write_bytes(b"PK\x03\x04 nothing")
    plane.load(module)
    with pytest.raises(SkerryError) as caught:
        plane.call(plane.plane.golden(module.digest, module.folder, module.manifest))
    assert caught.value.code == "install.golden_failed"
    assert plane.plane._versions[module.digest].ready  # the worker lives


def test_a_golden_test_that_kills_or_never_ends(start: Start, tmp_path: Path) -> None:
    plane = start()
    crash = with_golden(python_module(tmp_path / "c", "import ctypes\ndef run(i): ctypes.string_at(0)", tail=GOLDEN))
    plane.load(crash)
    with pytest.raises(SkerryError, match="signal 11") as caught:
        plane.call(plane.plane.golden(crash.digest, crash.folder, crash.manifest))
    assert caught.value.code == "install.golden_failed"

    hang = with_golden(python_module(tmp_path / "h", "def run(i):\n    while True: pass", tail=GOLDEN, name="hang"))
    plane.load(hang)

    async def impatient() -> None:
        import asyncio

        async with asyncio.timeout(0.5):
            await plane.plane.golden(hang.digest, hang.folder, hang.manifest)

    with pytest.raises(TimeoutError):
        plane.call(impatient())
    settled(lambda: (hang.digest, "hang", True) in plane.exits)


def test_a_warm_up_that_fails(start: Start, tmp_path: Path) -> None:
    plane = start()
    module = python_module(tmp_path / "m", "def run(i): raise ValueError('cold')")
    plane.load(module)
    with pytest.raises(SkerryError, match="cold") as caught:
        plane.call(plane.plane.warm(module.digest, module.manifest))
    assert caught.value.code == "install.warm_failed"


def test_loading_twice_is_loading_once_and_loading_anew_after_unload(start: Start, tmp_path: Path) -> None:
    plane = start()
    module = adder(tmp_path, 1)
    facts = plane.load(module)
    assert plane.load(module) == facts
    assert facts["load_ms"] > 0
    assert psutil.pid_exists(facts["pid"])
    plane.unload(module)
    plane.unload(module)
    settled(lambda: not psutil.pid_exists(facts["pid"]))
    assert plane.load(module)["pid"] != facts["pid"]


def test_swaps_and_crashes_drop_nothing(start: Start, tmp_path: Path) -> None:
    """Every answer is right for the version that it names, whatever happens meanwhile."""
    plane = start()
    plane.serve(adder(tmp_path, 1))
    bad: list[Any] = []
    seen: set[int] = set()
    count = [0]
    running = True

    def client() -> None:
        while running:
            answer = plane.score("adder", [[1, 2, 3, 4]])
            count[0] += 1
            if answer.status != 200:
                bad.append(answer)
                continue
            version = int(answer.json["model_version"])
            seen.add(version)
            if answer.json["outputs"][0]["data"] != [10.0 + 1000 * version]:
                bad.append(answer)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    old = adder(tmp_path, 1)
    for version in range(2, 7):
        new = adder(tmp_path, version)
        plane.serve(new)
        plane.unload(old)
        if version % 2:
            os.kill(plane.plane.pids()[-1], signal.SIGSEGV)
        time.sleep(0.1)
        old = new
    running = False
    for thread in threads:
        thread.join()
    assert bad == []
    assert seen == set(range(1, 7))
    assert count[0] > 100
    assert [one[1] for one in plane.exits] == ["signal 11", "signal 11"]


def test_unload_waits_for_requests_in_flight(start: Start, tmp_path: Path) -> None:
    plane = start()
    script = "import time\ndef run(i):\n    time.sleep(0.4)\n    return {'y': i['x'].sum(axis=1)}"
    module = plane.serve(python_module(tmp_path / "slow", script))
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(plane.score("script", [[1, 1, 1, 1]]).status)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    settled(lambda: plane.do(lambda: len(plane.plane._versions[module.digest]._dispatch)) == 3)
    plane.route("script")
    plane.unload(module)
    for thread in threads:
        thread.join()
    assert statuses == [200] * 3
    assert plane.score("script", [[1, 1, 1, 1]]).status == 503
    assert plane.plane.pids() == []


def test_a_split_and_a_version_by_its_number(start: Start, tmp_path: Path) -> None:
    plane = start()
    one, two, three = (adder(tmp_path, version) for version in (1, 2, 3))
    for module in (one, two, three):
        plane.load(module)
    plane.route("adder", (one, 80.0), (two, 20.0))
    versions = [plane.score("adder", [[0, 0, 0, 0]]).json["model_version"] for _ in range(200)]
    assert 5 <= versions.count("2") <= 85
    assert set(versions) == {"1", "2"}
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}]}
    for version, status in ((1, 200), (2, 200), (3, 404)):  # 3 was never routed: it is not proven
        assert plane.ask("POST", f"/v2/models/adder/versions/{version}/infer", body).status == status
    assert plane.ask("GET", "/v2/models/adder").json["versions"] == ["1", "2"]
    plane.route("adder", (three, 100.0))
    assert plane.score("adder", [[0, 0, 0, 0]]).json["model_version"] == "3"
    assert plane.ask("POST", "/v2/models/adder/versions/2/infer", body).status == 200  # still warm
    plane.route("other", (one, 100.0))
    assert plane.score("other", [[0, 0, 0, 0]]).json["model_name"] == "other"
    with pytest.raises(SkerryError):
        plane.route("adder", (adder(tmp_path, 9), 100.0))


def test_distributions_by_the_modules_baseline(start: Start, tmp_path: Path) -> None:
    plane = start(observe_one_in=1)
    module = linear_module(tmp_path / "m", tail='[baseline]\nfile = "baseline.json"\n')
    (module.folder / "baseline.json").write_bytes(
        Baseline.from_arrays({"x": X}, {"y": np.random.default_rng(1).random((50, 3)).astype("f4")}).to_json()
    )
    plane.serve(module)
    found: dict[str, int] = {}

    def counted() -> bool:
        # A worker that has spent its share of time on counting passes requests by: so they go on until it counts.
        for row in X[:10]:
            assert plane.score("linear", [row]).status == 200
        counters = plane.do(lambda: plane.plane.take_counters(module.digest))
        for name, wire in {**counters.inputs, **counters.outputs}.items():
            found[name] = found.get(name, 0) + sum(wire.counts) + wire.above + wire.below
        return bool(found) and min(found.values()) >= 1 and sum(found.values()) >= 50

    settled(counted)
    assert set(found) == {"x[0]", "x[1]", "x[2]", "x[3]", "y[0]", "y[1]", "y[2]"}


def test_samples_follow_the_capture_policy_row_by_row(start: Start, tmp_path: Path) -> None:
    plane = start()
    tail = "[capture]\nrate = 0.0\nlow_confidence = 0.5\nmax_per_minute = 4\n"
    module = plane.serve(linear_module(tmp_path / "m", scale=0.001, tail=tail))  # scores are about a third
    assert plane.score("linear", X[:3]).status == 200
    settled(lambda: len(plane.samples) == 3)
    assert {sample.reason for sample in plane.samples} == {"low_confidence"}
    assert len({sample.id for sample in plane.samples}) == 3
    for sample, row in zip(plane.samples, X, strict=False):
        assert sample.inputs["x"] == Tensor(datatype="FP32", shape=(1, 4), data=row.tobytes())
        assert sample.outputs["y"].shape == (1, 3)
        assert (sample.module, sample.version, sample.digest) == ("linear", 1, module.digest)
        assert (sample.probability, sample.endpoint) == (1.0, "linear")
    assert plane.score("linear", X[:10]).status == 200
    time.sleep(0.2)
    assert len(plane.samples) == 4  # the cap per minute


def test_the_hubs_capture_rate_overrides_the_manifests(start: Start, tmp_path: Path) -> None:
    plane = start()
    plane.serve(linear_module(tmp_path / "m"))
    plane.score("linear", X[:1])
    plane.do(lambda: plane.plane.set_capture_rate(1.0))
    plane.score("linear", X[:2])
    settled(lambda: len(plane.samples) == 2)
    os.kill(plane.plane.pids()[1], signal.SIGKILL)  # and the next worker knows it
    plane.score("linear", X[:1])
    settled(lambda: len(plane.samples) == 3)
    assert {(sample.reason, sample.probability) for sample in plane.samples} == {("random", 1.0)}


def test_workers_have_their_limits(start: Start, tmp_path: Path) -> None:
    from skerry_modules.profiles import Limits

    plane = start()
    module = adder(tmp_path, 1)
    limits = Limits(memory_mb=100, disk_mb=10, niceness=5, cpu_affinity=(0,))
    facts = plane.call(plane.plane.load(module.digest, module.folder, module.manifest, 1, limits))
    worker = psutil.Process(facts["pid"])
    assert worker.nice() == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
    assert worker.cpu_affinity() == [0]
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "500"
    soft, hard = worker.rlimit(psutil.RLIMIT_DATA)
    assert soft == hard > 100_000_000
    assert worker.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    inherited = [path for path in Path(f"/proc/{worker.pid}/fd").iterdir() if int(path.name) > 2]
    assert len(inherited) <= 2  # its socket, and what lists this


def test_a_stop_that_reaches_all_processes_is_the_agents_to_handle(start: Start, tmp_path: Path) -> None:
    plane = start()
    plane.serve(adder(tmp_path, 1))
    for number in (signal.SIGTERM, signal.SIGINT):
        for pid in plane.plane.pids():
            os.kill(pid, number)
    time.sleep(0.1)
    assert plane.score("adder", [[0, 0, 0, 0]]).status == 200
    assert plane.exits == []


AGENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from agent.serving.models import LIMITS, linear_module
from skerry_agent.serving.plane import Plane, run
from skerry_agent.serving.settings import ServingSettings

async def main():
    plane = Plane(ServingSettings(http="127.0.0.1:0"))
    await plane.start()
    module = linear_module(Path(sys.argv[1]) / "m")
    await plane.load(module.digest, module.folder, module.manifest, 1, LIMITS)
    print(*plane.pids(), flush=True)
    await asyncio.sleep(600)

run(main())
"""


def test_an_agent_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[2])
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path), tests], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    with agent.stdout:
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        assert len(pids) == 2
        agent.kill()
        agent.wait()
        settled(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_agent_process_does_without_numpy(tmp_path: Path) -> None:
    script = "import sys; import skerry_agent.serving.plane, skerry_modules.npz; print('numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"


def test_stopping_answers_those_who_wait(tmp_path: Path) -> None:
    plane = Running(ServingSettings(http="127.0.0.1:0"))
    try:
        plane.serve(python_module(tmp_path / "m", "import time\ndef run(i):\n    time.sleep(30)"))
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(plane.score("script", [[1, 1, 1, 1]]))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        settled(lambda: plane.do(lambda: len(next(iter(plane.plane._versions.values()))._dispatch)) == 2)
        plane.call(plane.plane.unload(next(iter(plane.plane._versions)), drain_s=0.0))
        for thread in threads:
            thread.join()
        assert {(answer.status, answer.code) for answer in answers} == {(503, "scoring.not_ready")}
    finally:
        plane.close()
