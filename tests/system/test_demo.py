"""The demo as people run it: one command, the whole loop, and a summary that says whether every claim held."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.processes import wait_until

DEMO = [sys.executable, "-m", "skerry_simulators.cli", "demo"]


def processes_with(text: str) -> list[int]:
    """Processes whose command line names ``text``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(folder.name))
    return found


@pytest.mark.timeout(400)
def test_once_shows_every_claim_and_leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("d")
    run = subprocess.run(
        [*DEMO, "--once", "--json", "--port", "0", "--data", str(data)], capture_output=True, check=False, timeout=380
    )
    assert run.returncode == 0, run.stderr.decode()[-6000:]
    summary = json.loads(run.stdout)  # one object, and nothing else on stdout
    assert summary["ok"]
    assert [claim["name"] for claim in summary["claims"] if not claim["ok"]] == []
    agents = {agent["device"]: agent for agent in summary["agents"]}
    expected = {"gate-1": "onnx", "gate-2": "onnx"}
    expected |= {"line-1": "openvino"} if find_spec("openvino") else {}
    expected |= {"board-1": "pynq"} if find_spec("pynq") else {}
    assert {device: agent["engine"] for device, agent in agents.items()} == expected
    assert len(agents) + len(summary["left_out"]) == 4
    assert all(agent["serves"][0].endswith(":2") for agent in agents.values())
    for tally in summary["requests"]:
        assert tally["failed"] == 0
        assert tally["answered"]["1"] >= 100 <= tally["answered"]["2"]
        assert set(tally["answered"]) == {"1", "2"}  # the broken version never answered anyone
    broken = [rollout for rollout in summary["rollouts"] if rollout["version"] == 3]
    assert [rollout["state"] for rollout in broken] == ["rolled-back"]
    steps = {one["device"]: (one["step"], one["reason"]) for one in broken[0]["devices"]}
    assert steps == {"gate-1": ("rolled-back", "install.golden_failed"), "gate-2": ("skipped", "")}
    wait_until(lambda: not processes_with(str(data)), what="every child to be gone")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "TERM", "KILL"])
def test_whatever_ends_it_no_child_stays(tmp_path_factory: pytest.TempPathFactory, by: signal.Signals) -> None:
    data = tmp_path_factory.mktemp("d")
    with (data.parent / f"{by.name}.log").open("wb") as log:
        demo = subprocess.Popen([*DEMO, "--port", "0", "--data", str(data)], stdout=log, stderr=log)
    try:
        wait_until(lambda: len(processes_with(str(data))) >= 3, what="hub and training to run", seconds=60)
    finally:
        demo.send_signal(by)
    try:
        code = demo.wait(40)
    finally:
        demo.kill()  # of one that would not end, nothing may stay beside the tests that follow
    assert code == (-signal.SIGKILL if by == signal.SIGKILL else 0)
    wait_until(lambda: not processes_with(str(data)), what="every child to be gone", seconds=40)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    run = subprocess.run([*DEMO, "--data", str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "it is not empty" in run.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
