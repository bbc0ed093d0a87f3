"""A process that has imported one engine and opened nothing, and forks workers from that state on request.

A fork shares the runtime's code and its imported modules: a worker is up in about 10 ms and 5 MB of its own, where a
start from nothing takes 120–230 ms and 25–50 MB. No session, Core or thread pool may exist here: threads do not
survive a fork. (Checked: OpenVINO and ONNX Runtime both work when forked after import.)

Run as ``python -m skerry_agent.serving.zygote ENGINE FD``; ``FD`` is a SEQPACKET socket to the agent. It ends when the
agent ends (PDEATHSIG and end of file), and its workers with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import msgspec

from skerry_agent import engines
from skerry_agent.parent import die_with_parent
from skerry_agent.serving import aside, orders, worker
from skerry_agent.serving.pages import give_back

MESSAGE_BYTES: Final = 64 * 1024
_OOM_SCORE: Final = "500"
"""A device that runs out of memory should lose a worker, which comes back, before anything else."""
_orders = msgspec.msgpack.Decoder(orders.ToZygote)


class Zygote:
    def __init__(self, engine: str, control: socket.socket) -> None:
        self._engine = engine
        self._control = control
        self._children: dict[int, int] = {}  # serial -> pid
        self._aside: dict[int, set[int]] = {}  # serial -> the processors of one that stands aside, before it did
        self._turn = 0
        self._parent = os.getppid()
        self._wake, self._waker = os.pipe()

    def run(self) -> None:
        die_with_parent(self._parent, f"skerry-{self._engine}")
        try:
            version = engines.preload(self._engine)
        except BaseException as error:  # what an engine's import raises is not ours to choose
            self._tell(orders.Broken(f"{type(error).__name__}: {error}"))
            return
        gc.collect()
        give_back()
        gc.freeze()  # the collector would otherwise touch, and so copy, every shared page in each worker
        self._watch_children()
        self._tell(orders.Ready(version))
        while self._step():
            pass

    def _watch_children(self) -> None:
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Ctrl-C and a service manager's stop reach every process at once, but only the agent knows what is in flight.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _tell(self, message: orders.FromZygote) -> None:
        with contextlib.suppress(OSError):
            self._control.send(msgspec.msgpack.encode(message))

    def _step(self) -> bool:
        control = self._control.fileno()
        ready, _, _ = select.select([control, self._wake], [], [])
        if self._wake in ready:
            os.read(self._wake, 4096)
            self._reap()
        if control not in ready:
            return True
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 3)
        except ConnectionResetError:  # the agent left without reading our last words
            return False
        if not data:
            return False
        match _orders.decode(data):
            case orders.Spawn() as order:
                self._spawn(order, *descriptors)
            case orders.Kill(serial=serial, signal=number):
                if pid := self._children.get(serial):
                    os.kill(pid, number)
            case orders.Stand(serial=serial, aside=yields, processors=processors):
                if pid := self._children.get(serial):
                    self._stand(serial, pid, processors if yields else 0)
        return True

    def _stand(self, serial: int, pid: int, processors: int) -> None:
        """Have a child step aside, on so many processors; 0: come back."""
        if processors:
            with contextlib.suppress(OSError):  # it ended just now
                held = self._aside.setdefault(serial, os.sched_getaffinity(pid))
                aside.step_aside(pid, aside.place(held, processors, self._turn))
                self._turn += 1
        elif serial in self._aside:
            aside.come_back(pid, self._aside.pop(serial))

    def _reap(self) -> None:
        for serial, pid in list(self._children.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            name = name_of(pid)  # a process keeps its name until it is waited for
            _, status = os.waitpid(pid, 0)
            del self._children[serial]
            self._aside.pop(serial, None)
            self._tell(orders.Exited(serial, os.waitstatus_to_exitcode(status), name))

    def _spawn(self, order: orders.Spawn, sock: int, side: int, log: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            os.write(log, f"skerry: cannot fork: {error}\n".encode())
            _close(sock, side, log)
            self._tell(orders.Exited(order.serial, 1))
            return
        if pid == 0:
            self._become_worker(order, sock, side, log)
        _close(sock, side, log)
        self._children[order.serial] = pid
        self._tell(orders.Born(order.serial, pid))

    def _become_worker(self, order: orders.Spawn, sock: int, side: int, log: int) -> None:
        status = 1
        try:
            zygote = os.getppid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._wake)
            os.close(self._waker)
            capture_output(log)
            die_with_parent(zygote, "skerry-worker")
            limit(order)
            reseed()
            worker.main(socket.socket(fileno=sock), socket.socket(fileno=side))
            status = 0
        except MemoryError as error:
            worker.die_of_memory(error)
        except (BrokenPipeError, ConnectionResetError):
            status = 0  # the agent is gone
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)  # never run the zygote's own exit handlers


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def name_of(pid: int) -> str:
    """What the process calls itself; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def capture_output(log: int) -> None:
    """What the model writes goes to the log, and it reads nothing."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115 - for the process's life
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115


def limit(order: orders.Spawn) -> None:
    """Memory, priority and processors; no core dumps, which would fill a small disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if order.data_mb > 0:
        allowed = data_bytes() + order.data_mb * 1_000_000
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    if order.niceness > 0:
        os.nice(order.niceness)
    if order.affinity:
        with contextlib.suppress(OSError, ValueError):  # the profile names processors that this board lacks
            os.sched_setaffinity(0, order.affinity)


def data_bytes() -> int:
    """What ``RLIMIT_DATA`` counts: here, what the zygote brought along."""
    with Path("/proc/self/status").open() as lines:
        for line in lines:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def reseed() -> None:
    """Forked processes would all draw the same numbers from numpy (Python's own generator reseeds itself)."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


def main() -> None:
    engine, descriptor = sys.argv[1:3]
    Zygote(engine, socket.socket(fileno=int(descriptor))).run()


if __name__ == "__main__":
    main()
