"""A broker as a child process that lives exactly as long as the hub wants: started, watched, started again, stopped.

The child dies with the hub, also when the hub is killed by SIGKILL: a small launcher asks the kernel for a signal at
the parent's death (PR_SET_PDEATHSIG) before it becomes the broker. The kernel counts the *thread* that started the
child as its parent, so one thread starts it, watches it, and lives until :meth:`Child.stop`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from skerry_modules.errors import ResourceError

log = logging.getLogger(__name__)

START_S: Final = 15.0
"""How long a broker may take until it answers."""
STOP_S: Final = 5.0
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0
LOG_MAX_BYTES: Final = 5_000_000

# Run by a fresh interpreter: prctl(PR_SET_PDEATHSIG, SIGKILL); was the parent gone before that? then leave; descriptors
# as many as allowed (a broker holds one per device); become the broker.
_LAUNCH: Final = """
import ctypes, os, resource, sys
with __import__("contextlib").suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
with __import__("contextlib").suppress(ValueError, OSError):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port(host: str) -> int:
    """A port that was free a moment ago."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Refuse early and clearly what the broker could only say in its log.

    Raises:
        ResourceError: ``resource.port_in_use``.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                "resource.port_in_use",
                f"cannot start the broker on {host}:{port}: {error.strerror}; choose another --broker-port, or 0",
            ) from error


class Child:
    """One broker process, which this machine reaches at ``host:port``; its output goes to ``log_path``."""

    def __init__(self, name: str, command: Sequence[str], host: str, port: int, log_path: Path) -> None:
        self.name = name
        self.restarts = 0
        self._command = list(command)
        self._address = (host, port)
        self._log_path = log_path
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._failed = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The process's id, 0 while there is none."""
        process = self._process
        return process.pid if process and process.poll() is None else 0

    def start(self) -> None:
        """Return when the broker answers.

        Raises:
            ResourceError: ``resource.broker_unreachable`` with the end of the broker's log.
        """
        self._stopping.clear()
        self._ready.clear()
        self._failed = ""
        self._thread = threading.Thread(target=self._supervise, name=f"broker-{self.name}", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_S + 1) or self._failed:
            self.stop()
            raise ResourceError(
                "resource.broker_unreachable",
                f"cannot start the {self.name} broker: {self._failed or 'it does not answer'}; see {self._log_path}",
            )

    def stop(self) -> None:
        """End the process and the thread that watches it; safe to call twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_S + START_S)
            self._thread = None

    def signal(self, number: int) -> None:
        """Send a signal to the running process; none where it is down, since it reads its files when it starts."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _supervise(self) -> None:
        backoff = BACKOFF_FIRST_S
        try:
            while not self._stopping.is_set():
                started = time.monotonic()
                with self._open_log() as output:
                    self._spawn(output)
                    self._watch()
                if self._stopping.is_set() or not self._ready.is_set():
                    return
                backoff = BACKOFF_FIRST_S if time.monotonic() - started > BACKOFF_MAX_S else backoff
                log.warning("the %s broker ended; starting it again in %.1f s", self.name, backoff)
                self._stopping.wait(backoff)
                backoff = min(BACKOFF_MAX_S, backoff * 2)
                self.restarts += 1
        except OSError as error:
            self._failed = str(error)
            self._ready.set()
        finally:
            self._end()

    def _open_log(self) -> IO[bytes]:
        if self._log_path.exists() and self._log_path.stat().st_size > LOG_MAX_BYTES:
            self._log_path.replace(self._log_path.with_suffix(".old.log"))
        return self._log_path.open("ab")

    def _spawn(self, output: IO[bytes]) -> None:
        command = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *self._command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,  # Ctrl-C is the hub's to handle: it stops the broker last
        )

    def _watch(self) -> None:
        """Wait for the first answer, then until the process ends or the hub stops it."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        answered = False
        while not self._stopping.is_set():
            if self._process.poll() is not None:
                if not answered and not self._ready.is_set():
                    self._failed = f"it ended with {self._process.returncode}: {self._tail()}"
                    self._ready.set()
                    self._stopping.set()
                return
            if not answered and self._answers():
                answered = True
                self._ready.set()
            if not answered and time.monotonic() > deadline:
                self._failed = self._failed or "it does not answer"
                self._end()
                if not self._ready.is_set():
                    self._stopping.set()
                    self._ready.set()
                return
            self._stopping.wait(0.2 if answered else 0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self._address, timeout=0.5):
            return True
        return False

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_path.read_text(errors="replace").strip().splitlines()
            return " / ".join(lines[-3:])
        return ""

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
