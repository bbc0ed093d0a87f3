"""Measuring here goes through the agent's own command: what it says, well or not, comes back typed."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from client.conftest import Run, make_model
from skerry import measuring
from skerry_modules.errors import SkerryError

PYTHON = sys.executable


def fake_agent(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A ``skerry-agent`` that is found first: what the real one says is in the other tests and in tests/system."""
    folder.mkdir()
    program = folder / measuring.PROGRAM
    program.write_text(f"#!{PYTHON}\nimport sys\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


def test_a_folder_is_measured_here(tmp_path: Path, run: Run) -> None:
    run("init", tmp_path / "m", "--from", make_model(tmp_path / "model.onnx"), "--name", "relu")
    options = ("--engines", "onnx", "--threads", "1", "--batches", "1,4", "--seconds", "0.1")
    found = run("modules", "profile", tmp_path / "m", "--local", *options, "--json").json
    assert [one["setting"]["batch"] for one in found["measurements"]] == [1, 4]
    assert (found["module"], found["version"], found["device"]) == ("relu", 0, "")
    said = run("modules", "profile", tmp_path / "m", "--local", *options).out
    assert "recommended" in said
    assert "because" in said


def test_what_the_agent_refuses_comes_back_with_its_code(tmp_path: Path, run: Run) -> None:
    run("init", tmp_path / "m", "--from", make_model(tmp_path / "model.onnx"), "--name", "relu")
    refused = run("modules", "profile", tmp_path / "m", "--local", "--engines", "pynq", code=2)
    assert "cannot profile relu with pynq: model.onnx runs on onnx, openvino" in refused.err
    assert "[request.invalid]" in refused.err
    elsewhere = run("modules", "profile", tmp_path / "m", "--local", "--for-profile", "pynq-z2", code=2)
    assert "it is armv7l, this machine is" in elsewhere.err


@pytest.mark.parametrize("arguments", [(), ("--local", "--device", "d")])
def test_it_must_be_said_where(arguments: tuple[str, ...], run: Run) -> None:
    assert "say --device D, or --local" in run("modules", "profile", "relu:1", *arguments, code=2).err


def test_without_the_agent_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SkerryError, match=r"pip install 'skerry\[agent,onnx,openvino\]'") as caught:
        measuring.measure_here(tmp_path, [], lambda _share, _text: None)
    assert caught.value.code == "resource.missing_dependency"


def test_an_agent_that_breaks_or_prints_nonsense_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, str]] = []
    fake_agent(tmp_path / "a", monkeypatch, "print(' 25% onnx, 1 threads', file=sys.stderr); sys.exit('boom')")
    with pytest.raises(SkerryError, match="ended with 1 and said: boom") as caught:
        measuring.measure_here(tmp_path, [], lambda share, text: told.append((share, text)))
    assert caught.value.code == "measure.failed"
    assert told == [(0.25, "onnx, 1 threads")]
    for name, script in (("b", "print('{')"), ("c", "print('{}')")):
        fake_agent(tmp_path / name, monkeypatch, script)
        with pytest.raises(SkerryError) as caught:
            measuring.measure_here(tmp_path, [], lambda _share, _text: None)
        assert caught.value.code == "message.malformed"
