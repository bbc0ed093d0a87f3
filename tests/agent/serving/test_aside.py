"""A worker that scores in shadow yields to those that answer, and is back when it is asked itself."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.serving import aside

from .conftest import Start
from .harness import Running
from .models import Module, linear_module, python_module
from .test_endpoints import parts_of, split
from .test_faults import settled

ASIDE = os.SCHED_IDLE if aside.may_return() else os.SCHED_BATCH


def policies(pid: int) -> set[int]:
    return {os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


def processors(pid: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]


def stands(plane: Running, module: Module) -> set[int]:
    return policies(plane.do(lambda: plane.plane.versions[module.digest].facts["pid"]))


def compared(plane: Running, module: Module) -> int:
    return sum(part.agreement.rows for part in parts_of(plane, module).values())


def test_a_shadow_steps_aside_and_comes_back_when_it_is_to_answer(start: Start, tmp_path: Path) -> None:
    plane = start()
    live, copy = (linear_module(tmp_path / str(version), version=version) for version in (1, 2))
    for module in (live, copy):
        plane.load(module)
    split(plane, (live, 100.0), shadow=(copy,))
    plane.score("e", np.ones((1, 4)))
    settled(lambda: compared(plane, copy))
    settled(lambda: stands(plane, copy) == {ASIDE})
    assert stands(plane, live) == {os.SCHED_OTHER}
    split(plane, (copy, 100.0), shadow=(live,))
    assert plane.score("e", np.ones((1, 4))).json["model_version"] == "2"
    settled(lambda: stands(plane, copy) == {os.SCHED_OTHER})
    settled(lambda: compared(plane, live))
    assert stands(plane, live) == {os.SCHED_OTHER}  # it answered just now, and may again
    split(plane, (copy, 100.0), shadow=(copy,))  # one that does both does not wait behind others
    for _ in range(3):
        assert plane.score("e", np.ones((1, 4))).status == 200
    settled(lambda: compared(plane, copy))
    assert stands(plane, copy) == {os.SCHED_OTHER}


def test_what_waits_is_dropped_when_a_shadow_is_to_answer(start: Start, tmp_path: Path) -> None:
    """A client does not wait behind copies."""
    plane = start()
    live = linear_module(tmp_path / "1", version=1)
    text = "import time\ndef run(inputs):\n    time.sleep(0.2)\n    return {'y': inputs['x'].sum(axis=-1)}\n"
    slow = python_module(tmp_path / "2", text, name="linear", version=2)
    for module in (live, slow):
        plane.load(module)
    split(plane, (live, 100.0), shadow=(slow,))
    for _ in range(20):
        plane.score("e", np.ones((1, 4)))
    settled(lambda: stands(plane, slow) == {ASIDE})
    split(plane, (slow, 100.0))
    assert plane.score("e", np.ones((1, 4))).status == 200
    part = parts_of(plane, slow)["e", "shadow"]
    assert part.agreement.dropped >= 15
    assert part.errors == part.agreement.failed == 0


def test_a_copy_that_is_late_gets_its_time_once_more_and_one_that_hangs_is_ended(start: Start, tmp_path: Path) -> None:
    """In the idle class a copy may be late for want of a core: that is no hang. One that hangs is one all the same."""
    plane = start()
    live = linear_module(tmp_path / "1", version=1)
    text = (
        "import time\ndef run(inputs):\n    time.sleep(float(inputs['x'][0, 0]))\n"
        "    return {'y': inputs['x'].sum(axis=-1)}\n"
    )
    copy = python_module(tmp_path / "2", text, name="linear", version=2, request_timeout_s=1)
    for module in (live, copy):
        plane.load(module)
    split(plane, (live, 100.0), shadow=(copy,))
    plane.score("e", np.full((1, 4), 1.5))
    settled(lambda: stands(plane, copy) == {ASIDE})
    settled(lambda: stands(plane, copy) == {os.SCHED_OTHER})
    settled(lambda: plane.score("e", np.full((1, 4), 0.01)).status == 200 and stands(plane, copy) == {ASIDE})
    assert plane.exits == []
    part = parts_of(plane, copy)["e", "shadow"]
    assert part.agreement.dropped >= 1  # late: nobody waits for it, and it says nothing of the model
    assert part.errors == part.agreement.failed == 0
    settled(lambda: plane.score("e", np.full((1, 4), 600.0)).status == 200 and plane.exits)  # some find it busy
    assert plane.exits[0][1] == "hang"


def test_all_threads_step_aside_and_come_back() -> None:
    script = "import sys, threading; threading.Thread(target=sys.stdin.read).start(); print(1, flush=True)"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 2
        everywhere = os.sched_getaffinity(process.pid)
        aside.step_aside(process.pid, {max(everywhere)})
        assert policies(process.pid) == {ASIDE}
        assert processors(process.pid) == [{max(everywhere)}] * 2
        aside.come_back(process.pid, everywhere)
        assert policies(process.pid) == {os.SCHED_OTHER}
        assert processors(process.pid) == [everywhere] * 2
        process.communicate()
    aside.step_aside(process.pid, everywhere)  # gone: nothing happens


@given(st.sets(st.integers(0, 63), min_size=1), st.integers(1, 8), st.integers(0, 1000))
def test_every_processor_has_its_turn(allowed: set[int], count: int, turn: int) -> None:
    found = [aside.place(allowed, count, turn + more) for more in range(len(allowed))]
    assert {len(one) for one in found} == {min(count, len(allowed))}
    assert set().union(*found) == allowed


def test_a_process_that_may_not_come_back_from_the_idle_class_does_not_enter_it() -> None:
    """Without privileges, and with no RLIMIT_NICE."""
    if os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_NICE)[0] != 0:
        pytest.skip("this user may lower niceness, and cannot become one who may not")
    script = """
import os, resource
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
if os.geteuid() == 0:
    os.setgroups([])
    os.setuid(65534)
print(aside.may_return())
aside.step_aside(os.getpid(), os.sched_getaffinity(0))
print(os.sched_getscheduler(0) == os.SCHED_BATCH)
aside.come_back(os.getpid(), os.sched_getaffinity(0))
print(os.sched_getscheduler(0) == os.SCHED_OTHER)
"""
    script = "from skerry_agent.serving import aside\n" + script  # root may read what nobody may not
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout.split(), done.stderr) == (["False", "True", "True"], "")
