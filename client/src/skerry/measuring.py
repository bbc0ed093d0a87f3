"""Measuring a module on this machine: by ``skerry-agent profile`` in a process of its own, since the agent measures.

The client never imports the agent; where that is not installed, the error says what to install.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from skerry_modules.errors import CODES, InputError, PeerError, ResourceError, SkerryError
from skerry_modules.measurement import ModuleProfile, from_builtins

PROGRAM: Final = "skerry-agent"
_ERROR: Final = re.compile(rf"{PROGRAM}: (?P<message>.*) \[(?P<code>[a-z_]+\.[a-z_]+)\]")
_PROGRESS: Final = re.compile(r"\s*(?P<percent>\d+)% (?P<text>.*)")
Progress = Callable[[float, str], None]


def measure_here(folder: Path, options: Sequence[str], progress: Progress) -> ModuleProfile:
    """Measure the module in ``folder`` on this machine.

    Args:
        folder: with its ``module.toml``.
        options: of ``skerry-agent profile``.
        progress: told the share done and what is measured.

    Raises:
        SkerryError: what the agent's command said; ``resource.missing_dependency`` where there is none.
    """
    command = [*_program(), "profile", str(folder), "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            if found := _PROGRESS.fullmatch(line.rstrip("\n")):
                progress(int(found["percent"]) / 100, found["text"])
            else:
                said.append(line.rstrip("\n"))
        written = process.stdout.read()
        code = process.wait()
    if code:
        raise _error(code, said)
    try:
        return from_builtins(msgspec.json.decode(written))
    except msgspec.DecodeError as error:
        raise PeerError(
            "message.malformed", f"cannot read what {PROGRAM} printed: {error}; is it of this version?"
        ) from error


def _program() -> list[str]:
    """The command beside this Python first: it is of the same version."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.is_file() else shutil.which(PROGRAM)
    if not found:
        raise ResourceError(
            "resource.missing_dependency",
            f"cannot measure here: {PROGRAM} is not installed; pip install 'skerry[agent,onnx,openvino]'",
        )
    return [found]


def _error(code: int, said: Sequence[str]) -> SkerryError:
    for line in reversed(said):
        found = _ERROR.fullmatch(line)
        if found and found["code"] in CODES:
            return (InputError if code == 2 else ResourceError)(found["code"], found["message"])
    last = said[-1] if said else "nothing"
    return PeerError("measure.failed", f"cannot measure here: {PROGRAM} ended with {code} and said: {last}"[:1000])
