"""Child processes that never outlive the demo: started with a log each, stopped in order, killed if need be."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

STOP_S: Final = 15.0
"""How long a child may take to stop before it is killed, seconds."""
TAIL_LINES: Final = 15
"""Lines of a log that a failure shows."""

_PR_SET_PDEATHSIG: Final = 1


class DemoFailure(Exception):  # noqa: N818 - it is the demo's outcome, told to people
    """The demo cannot go on. The text says what happened, with the end of the log that tells why."""


class Child:
    """One running program."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def check(self) -> None:
        """Raises DemoFailure if the program has ended."""
        if not self.running:
            raise DemoFailure(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")

    def said(self, pattern: str) -> str:
        """The first group of the first line of its log that matches; empty while none does."""
        with contextlib.suppress(OSError):
            found = re.search(pattern, self.log.read_text(errors="replace"), re.MULTILINE)
            return found[1] if found else ""
        return ""

    def tail(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            return "\n".join(f"  {self.name}| {line}" for line in lines)
        return ""


class Children:
    """All of them. Leaving the context stops every one, the last started first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._all: list[Child] = []
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def python(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start a Python module or script with this interpreter. Call it from the main thread only: a child is tied
        to the life of the thread that made it."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,  # Ctrl-C is for the demo, which stops its children in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no other thread runs Python between fork and exec here
            )
        child = Child(name, process, log)
        self._all.append(child)
        return child

    def check(self, *, ignoring: Sequence[Child] = ()) -> None:
        """Raises DemoFailure if one that should run has ended."""
        for child in self._all:
            if child not in ignoring:
                child.check()

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(child.tail() for child in self._all)

    def finish(self, child: Child, timeout_s: float) -> None:
        """Wait for one that ends by itself.

        Raises:
            DemoFailure: it failed, or took too long.
        """
        try:
            code = child.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DemoFailure(f"{child.name} did not end within {timeout_s:.0f} s:\n{child.tail()}") from error
        self._all.remove(child)
        if code:
            raise DemoFailure(f"{child.name} failed with {code}:\n{child.tail()}")

    def stop(self) -> None:
        """Ask each to stop, the last started first; kill what does not."""
        for child in reversed(self._all):
            if child.running:
                child.process.terminate()
                try:
                    child.process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
        self._all.clear()


def is_free(port: int) -> bool:
    """Whether nothing listens on a TCP port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with_parent() -> None:
    # Even if the demo is killed outright, nothing of it stays behind (Linux).
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
