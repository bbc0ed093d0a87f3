"""Zygotes begun before the agent is: importing a runtime takes as long as importing the agent, and both can be at once.

The agent notes which engines its versions use; the next start reads that and lets these engines import while it imports
itself, so that the first answer after a power cut comes sooner. The note is a hint and trusted for nothing: it can only
name engines of ours, and a process that nobody asks for is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

FILE_NAME: Final = "engines.json"
NOTE_BYTES: Final = 4096
ENGINES: Final = ("onnx", "openvino", "pynq", "python")

# One thread per worker unless a manifest says otherwise; and malloc arenas by thread would only hold memory back.
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
}


class Begun(NamedTuple):
    """A zygote that imports its engine, and our end of its control socket."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def end(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()


_waiting: dict[str, Begun] = {}


def launch(engine: str, environment: str = "") -> Begun:
    """Start a zygote. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with theirs:
        process = subprocess.Popen(
            _command(engine, environment, theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
        )
    return Begun(process, ours)


def _command(engine: str, environment: str, control: int) -> list[str]:
    if not environment:
        return [sys.executable, "-m", "skerry_agent.serving.zygote", engine, str(control)]
    # Isolated (-I): what PYTHONPATH or the user's folder hold is not in the lock. Unbuffered, as above.
    boot = Path(__file__).with_name("environment_boot.py")
    python = Path(environment) / "bin" / "python"
    return [str(python), "-I", "-u", str(boot), engine, str(control), *filter(None, sys.path)]


def begin(folder: Path) -> None:
    """Start the zygotes that the agent used when it ran last."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with (folder / FILE_NAME).open("rb") as stream:
            found = json.loads(stream.read(NOTE_BYTES))
        for engine in ENGINES:
            if isinstance(found, list) and engine in found and engine not in _waiting:
                _waiting[engine] = launch(engine)


def take(engine: str, environment: str) -> Begun | None:
    """The zygote begun for these, if there is one; it is the caller's from now on."""
    return None if environment else _waiting.pop(engine, None)


def end_rest() -> None:
    """End those that nobody took."""
    while _waiting:
        _waiting.popitem()[1].end()


def note(folder: Path, engines: Iterable[str]) -> None:
    """Remember for the next start; a power cut in between costs that start its head, nothing else."""
    new = folder / f".{FILE_NAME}.new"
    with contextlib.suppress(OSError):
        new.write_text(json.dumps(sorted(set(engines) & set(ENGINES))))
        new.replace(folder / FILE_NAME)
