"""A worker that scores in shadow yields to those that answer, and is back when it is asked itself."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.serving import aside

from .conftest import Start
from .harness import Running
from .models import Module, linear_module
from .test_endpoints import parts_of, split
from .test_faults import settled

BASE = os.getpriority(os.PRIO_PROCESS, 0)


def niceness(plane: Running, module: Module) -> set[int]:
    pid = plane.do(lambda: plane.plane.versions[module.digest].facts["pid"])
    return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


@pytest.mark.skipif(not aside.may_return(), reason="this process may not lower its niceness: give it CAP_SYS_NICE")
def test_a_shadow_steps_aside_and_comes_back_when_it_is_to_answer(start: Start, tmp_path: Path) -> None:
    plane = start()
    live, copy = (linear_module(tmp_path / str(version), version=version) for version in (1, 2))
    for module in (live, copy):
        plane.load(module)
    split(plane, (live, 100.0), shadow=(copy,))
    plane.score("e", np.ones((1, 4)))
    settled(lambda: any(part.agreement.rows for part in parts_of(plane, copy).values()))
    assert niceness(plane, copy) == {min(19, BASE + aside.BY)}
    assert niceness(plane, live) == {BASE}
    split(plane, (copy, 100.0), shadow=(live,))
    assert plane.score("e", np.ones((1, 4))).json["model_version"] == "2"
    assert niceness(plane, copy) == {BASE}
    plane.score("e", np.ones((1, 4)))
    settled(lambda: any(part.agreement.rows for part in parts_of(plane, live).values()))
    split(plane, (copy, 100.0), shadow=(copy,))  # one that does both does not wait behind others
    for _ in range(3):
        assert plane.score("e", np.ones((1, 4))).status == 200
    assert niceness(plane, copy) == {BASE}


def test_all_threads_step_aside_and_come_back() -> None:
    if not aside.may_return():
        pytest.skip("this process may not lower its niceness: give it CAP_SYS_NICE")
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    one = aside.Aside()
    try:
        one.shadows()
        assert os.getpriority(os.PRIO_PROCESS, other.native_id or 0) == min(19, BASE + aside.BY)
        one.answers()
        assert os.getpriority(os.PRIO_PROCESS, other.native_id or 0) == BASE
        one.shadows()  # an answer was asked for just now
        assert os.getpriority(os.PRIO_PROCESS, 0) == BASE
    finally:
        one.answers()
        over.set()
        other.join()


def test_a_process_that_may_not_come_back_stays() -> None:
    """Without privileges, and with no RLIMIT_NICE."""
    if os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_NICE)[0] != 0:
        pytest.skip("this user may lower niceness, and cannot become one who may not")
    script = """
import os, resource
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
if os.geteuid() == 0:
    os.setgroups([])
    os.setuid(65534)
from skerry_agent.serving import aside
before = os.getpriority(os.PRIO_PROCESS, 0)
one = aside.Aside()
one.shadows()
print(aside.may_return(), os.getpriority(os.PRIO_PROCESS, 0) == before)
"""
    script = "from skerry_agent.serving import aside\n" + script  # root may read what nobody may not
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False True", "")
