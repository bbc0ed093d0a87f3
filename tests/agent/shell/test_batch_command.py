"""``skerry-agent batch`` against a real daemon, which is killed in the middle and started again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from agent.shell.daemon import Daemon, module_folder
from agent.shell.hub import FakeHub
from support.processes import wait_until


@pytest.mark.mosquitto
def test_a_batch_outlives_a_kill_of_the_agent(hub: FakeHub, daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    sock = tmp_path / "s.sock"
    agent = daemon(start=False)
    agent.config.write_text(agent.config.read_text().replace("[reporting]", f'socket = "{sock}"\n[reporting]'))
    agent.start()
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    hub.wait_phase(1, "Healthy")
    rows = np.arange(120_000, dtype=np.float32).reshape(-1, 2)
    np.savetxt(tmp_path / "in.csv", rows, fmt="%d", delimiter=",")
    out = tmp_path / "out.parquet"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "skerry_agent.cli", "batch", "double", str(tmp_path / "in.csv")),
            *("--output", str(out), "--url", f"unix:{sock}", "--rows", "64", "--json"),
        ],
        stdout=subprocess.PIPE,
    )
    journal = tmp_path / "out.parquet.batch" / "journal.jsonl"
    wait_until(lambda: journal.exists() and len(journal.read_text().splitlines()) >= 2, what="the first parts")
    agent.kill()
    assert process.poll() is None, "it was done before the kill"
    agent.start()
    told, _ = process.communicate(timeout=80)
    assert process.returncode == 0
    summary = json.loads(told)
    assert (summary["rows"], summary["errors"], summary["version"]) == (60_000, 0, "1")
    found = pq.read_table(out)
    assert found["row"].to_pylist() == list(range(60_000))
    assert np.array_equal(np.array(found["y"].to_pylist(), dtype=np.float32), rows * 2)
    # and by the configuration alone: the running agent says where it serves
    np.save(tmp_path / "few.npy", rows[:300])
    done = agent.command("batch", "double", str(tmp_path / "few.npy"), "--output", str(tmp_path / "two.csv"))
    assert done.returncode == 0, done.stderr
    assert "300 rows scored by double 1" in done.stdout
