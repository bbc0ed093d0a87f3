"""Start real servers on free ports, wait until they answer, and stop them for certain."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOWEST_PORT = 11_000
"""Above what servers use by default, and above the ports that browsers refuse."""


def free_port() -> int:
    """A TCP port that was free a moment ago, and that no outgoing connection is given meanwhile."""
    while True:
        # Not by ``random``: that is seeded, and two runs side by side would want the same ports in the same order.
        port = LOWEST_PORT + secrets.randbelow(_first_ephemeral_port() - LOWEST_PORT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:  # not Linux
        return 32_768


def wait_until(check: Callable[[], object], *, seconds: float = 60.0, what: str = "the condition") -> None:
    """Poll until ``check()`` is true. The bound only ends a broken test; it measures nothing.

    A machine may be at ten times what it can do, and a server's start is seconds of work: bounds are long for that.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.5):
        return True
    return False


def stop(process: subprocess.Popen[bytes], *, by: int = signal.SIGTERM, seconds: float = 10.0) -> None:
    """End a process and reap it."""
    if process.poll() is None:
        process.send_signal(by)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


@contextlib.contextmanager
def mosquitto(program: str, folder: Path, *lines: str, port: int | None = None) -> Iterator[int]:
    """A real Mosquitto with an anonymous listener (and further configuration lines) on a port of its own."""
    port = port or free_port()
    config = folder / f"mosquitto-{port}.conf"
    head = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "set_tcp_nodelay true"]
    config.write_text("\n".join([*head, "max_queued_messages 0", "max_inflight_messages 1000", *lines]) + "\n")
    with (folder / f"mosquitto-{port}.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(port) or process.poll() is not None, what="Mosquitto to listen")
        assert process.poll() is None, (folder / f"mosquitto-{port}.log").read_text()
        yield port
    finally:
        stop(process)


@contextlib.contextmanager
def postgres(programs: str) -> Iterator[str]:
    """A real PostgreSQL cluster of its own; yields a URL without a database name (``…/{name}`` is for the caller).

    PostgreSQL refuses to run as root, so root lends it another user; and its folder is not under pytest's, which
    every new test run closes to other users again.
    """
    user: str | None = None
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
    folder = Path(tempfile.mkdtemp(prefix="skerry-postgres-"))
    folder.chmod(0o711)
    data = folder / "data"
    data.mkdir()
    if user:
        os.chown(data, pwd.getpwnam(user).pw_uid, -1)
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(data)}
    run = {"user": user, "env": environment, "cwd": "/"}
    process: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(
            [f"{programs}/initdb", "-D", str(data), "-U", "skerry", "--auth=trust", "--no-sync", "-E", "UTF8"],
            check=True,
            capture_output=True,
            **run,  # type: ignore[call-overload]
        )
        port = free_port()  # only now: the cluster takes seconds to make
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(data), "-c", "fsync=off", "-c", "full_page_writes=off"]
        with (folder / "postgres.log").open("wb") as log:
            process = subprocess.Popen(
                [f"{programs}/postgres", "-D", str(data), *options],
                stdout=log,
                stderr=log,
                **run,  # type: ignore[call-overload]
            )
        ready = [f"{programs}/pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
        started = process

        def is_ready() -> bool:
            assert started.poll() is None, (folder / "postgres.log").read_text()
            return subprocess.run(ready, check=False).returncode == 0

        wait_until(is_ready, seconds=90, what="PostgreSQL to be ready")
        yield f"postgresql+psycopg://skerry@127.0.0.1:{port}"
    finally:
        if process is not None:
            stop(process, by=signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)
