"""The README's commands, as they stand, on the addresses that they name: run like a reader would run them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import answers, wait_until

ROOT = Path(__file__).parents[2]
PORTS = {"skerry-hub serve": 8420, "skerry-agent run": 8090}


def commands() -> list[str]:
    """The ``console`` blocks, in order. The first one, which installs, has been done by whoever runs this."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks[0].splitlines() == ["$ make setup", "$ . .venv/bin/activate"]
    return [line.removeprefix("$ ") for block in blocks[1:] for line in block.splitlines()]


@pytest.fixture
def terminal(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder and an environment of a reader with nothing but the virtual environment on the PATH."""
    folder = tmp_path / "reader"
    folder.mkdir()
    home = tmp_path / "home"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CONFIG_HOME": str(home / "config"),
    }
    trained = tmp_path / "trained"
    train = [sys.executable, ROOT / "modules/examples/digits/train.py", "--out", trained, "--quality", "good"]
    subprocess.run(train, check=True, capture_output=True)
    shutil.copy(trained / "model.onnx", folder / "model.onnx")
    return folder, environment


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("default-ports")
def test_a_reader_gets_from_a_model_to_a_rollout(terminal: tuple[Path, dict[str, str]]) -> None:
    folder, environment = terminal
    for port in PORTS.values():
        if answers(port):
            line = f"port {port} of the README's commands is taken on this machine: stop what listens there"
            pytest.fail(line) if os.environ.get("SKERRY_REQUIRE_ALL") == "1" else pytest.skip(line)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for line in commands():
            port = next((port for start, port in PORTS.items() if line.startswith(start)), None)
            if port is None:
                done = subprocess.run(
                    ["bash", "-ec", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                continue
            with (folder / f"{port}.log").open("wb") as log:
                process = subprocess.Popen(
                    ["bash", "-c", f"exec {line}"], cwd=folder, env=environment, stdout=log, stderr=log
                )
            running.append(process)
            wait_until(
                lambda port=port, process=process: answers(port) or process.poll() is not None,
                seconds=60,
                what=f"{line} to answer on port {port}",
            )
            assert process.poll() is None, (folder / f"{port}.log").read_text()
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGINT)
        codes = [process.wait(30) for process in running]
    assert codes == [0, 0], "hub and agent end well on Ctrl-C"
