"""The command line, against a real running agent and without one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.shell.daemon import Daemon, module_folder
from agent.shell.hub import FakeHub
from skerry_agent.cli import main
from support.processes import wait_until


@pytest.mark.mosquitto
def test_status_score_and_events_of_a_running_agent(
    hub: FakeHub, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    sock = tmp_path / "s.sock"
    agent = daemon(start=False)
    agent.config.write_text(agent.config.read_text().replace("[reporting]", f'socket = "{sock}"\n[reporting]'))
    agent.start()
    hub.desire(hub.pack(module_folder(tmp_path / "m")).wanted(1))
    hub.wait_phase(1, "Healthy")
    shown = agent.command("status")
    assert shown.returncode == 0
    for word in ("device-1 (", "connected for", "double  1        Healthy", "engines ", "disk "):
        assert word in shown.stdout, shown.stdout
    facts = json.loads(agent.command("status", "--json").stdout)
    assert facts["modules"][0]["phase"] == "Healthy"
    assert facts["disk"]["limit_mb"] == 1000

    scored = agent.command("score", "double", "--data", "[[1, 2.5]]")
    assert scored.stdout.splitlines() == ["double v1", "y  FP32 [1, 2]  [2, 5]"]
    np.savez(tmp_path / "in.npz", x=np.array([[3, 4]], np.float32))
    answer = json.loads(agent.command("score", "double", "--input", str(tmp_path / "in.npz"), "--json").stdout)
    assert answer["outputs"][0]["data"] == [6.0, 8.0]
    by_socket = agent.command("score", "double", "--data", '{"x": [1, 1]}', "--url", f"unix:{sock}")
    assert "[2, 2]" in by_socket.stdout

    for arguments, code, words in (
        (("double", "--data", "[[1]]"), 2, "scoring.wrong_shape"),
        (("double", "--data", "[["), 2, "scoring.invalid_json"),
        (("double", "--module-version", "9", "--data", "[[1, 2]]"), 2, "module.unknown"),
        (("nothing", "--data", "[[1, 2]]"), 2, "module.unknown"),
        (("double", "--input", str(tmp_path / "none.npz")), 2, "none.npz"),
    ):
        failed = agent.command("score", *arguments)
        assert failed.returncode == code, failed
        assert words in failed.stderr
        assert "Traceback" not in failed.stderr

    hub.send("desired", b"junk")
    wait_until(lambda: "message.malformed" in agent.command("events").stdout, what="the event")
    agent.kill()
    stopped = agent.command("events", "--json")
    assert any(one["code"] == "message.malformed" for one in json.loads(stopped.stdout)), "also while it is stopped"
    failed = agent.command("status")
    assert failed.returncode == 1
    assert "resource.agent_unreachable" in failed.stderr


def test_events_of_a_stopped_agent_and_of_a_broken_spool(daemon_alone: Callable[..., Daemon]) -> None:
    agent = daemon_alone()
    assert agent.stop() == 0
    assert agent.command("events").stdout.strip() == "no events"
    (agent.state / "spool.db").write_bytes(b"no database at all" * 1000)
    failed = agent.command("events")
    assert failed.returncode == 1
    assert "cannot read the events in" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_errors_of_the_call_are_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKERRY_AGENT_DEVICE_ID", raising=False)
    assert main(["status"]) == 2
    assert "name it with --config" in capsys.readouterr().err
    (tmp_path / "agent.toml").write_text('[device]\nid = "d"\n')
    assert main(["run"]) == 2
    assert "field device.profile" in capsys.readouterr().err
    (tmp_path / "agent.toml").write_text(f'[device]\nid = "d"\nprofile = "no"\n[state]\nfolder = "{tmp_path}/s"\n')
    assert main(["run"]) == 2
    assert "profile.unknown" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["dance"])
    assert caught.value.code == 2


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["run"], ["status"], ["score"], ["events"], ["settings"]):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--help"])
        assert caught.value.code == 0
        assert len(capsys.readouterr().out) > 200


def test_the_version_names_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert "python 3." in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


def test_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"name": "spool.budget_mb", "default": 64, "unit": "MB"}.items() <= next(
        one for one in listed if one["name"] == "spool.budget_mb"
    ).items()
    assert main(["settings"]) == 0
    assert "state.folder  (default '/var/lib/skerry')" in capsys.readouterr().out


def test_help_imports_no_engine_and_no_network() -> None:
    code = "import sys; from skerry_agent.cli import _parser; _parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "numpy", "msgspec", "paho", "cryptography", "sqlite3"} & set(loaded)


def test_the_daemon_imports_nothing_heavy() -> None:
    code = "import sys, skerry_agent.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "onnx", "onnxruntime", "openvino", "fastapi", "pydantic", "sqlalchemy", "pandas", "pyarrow"}
    assert not (heavy | {"httpx", "typer", "rich", "tomlkit"}) & set(loaded)


def test_systemd_hears_ready_watchdog_and_stopping(tmp_path: Path, daemon_alone: Callable[..., Daemon]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            agent = daemon_alone()
            heard = {listener.recv(100) for _ in range(3)}
            agent.stop()
            while b"STOPPING=1" not in heard:
                heard.add(listener.recv(100))
        finally:
            del os.environ["NOTIFY_SOCKET"]
    assert heard == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"}


def test_a_port_that_is_taken_is_told(daemon_alone: Callable[..., Daemon]) -> None:
    agent = daemon_alone(start=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = agent.command("run", "--set", f"serving.http=127.0.0.1:{taken.getsockname()[1]}")
    assert refused.returncode == 1
    assert "resource.port_in_use" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_state_folder_that_cannot_be_made_is_told(daemon_alone: Callable[..., Daemon]) -> None:
    agent = daemon_alone(start=False)
    refused = agent.command("run", "--set", "state.folder=/proc/nothing")
    assert refused.returncode == 1
    assert "cannot make the state folder /proc/nothing" in refused.stderr
