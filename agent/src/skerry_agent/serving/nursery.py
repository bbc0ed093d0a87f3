"""The agent's side of a zygote: starts it, asks it for workers, hears of their ends, starts it again if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Final

import msgspec

from skerry_agent.serving import headstart, orders
from skerry_modules.errors import ResourceError

log = logging.getLogger(__name__)
_told = msgspec.msgpack.Decoder(orders.FromZygote)
_MESSAGE_BYTES: Final = 64 * 1024

ExitHandler = Callable[[int, int, str], None]
"""(serial, status, name): a negative status is a signal; the name is the one that the process bore at its end."""


class Nursery:
    """Workers of one engine, in one environment. All methods run on the event loop.

    Args:
        engine: its name, or those of a pipeline joined by ``+``.
        timeout_s: how long the engine may take to import.
        environment: the folder of the environment that its workers run in; empty: the agent's own.
    """

    def __init__(self, engine: str, timeout_s: float, environment: str = "") -> None:
        self._engine = engine
        self._environment = environment
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready: asyncio.Future[str] | None = None
        self._handlers: dict[int, ExitHandler] = {}
        self._pids: dict[int, int] = {}
        self._serial = 0

    @property
    def pid(self) -> int:
        """The zygote's process id; 0 while there is none."""
        return self._process.pid if self._process else 0

    def pids(self) -> list[int]:
        """The zygote and its workers."""
        return [self.pid, *self._pids.values()]

    async def ready(self) -> str:
        """The engine's version, once the zygote runs.

        Raises:
            ResourceError: ``unschedulable.engine``: the engine cannot be imported; ``install.load_timeout``.
        """
        if self._ready is None:
            self._start()
        assert self._ready is not None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(self._ready)
        except TimeoutError:
            self.close()
            raise ResourceError(
                "install.load_timeout",
                f"cannot start the engine {self._engine}: it did not import within {self._timeout_s:g} s",
            ) from None

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        begun = headstart.take(self._engine, self._environment) or headstart.launch(self._engine, self._environment)
        self._process, self._control = begun
        self._ready = loop.create_future()
        loop.add_reader(self._control.fileno(), self._hear)

    def spawn(self, order: orders.Spawn, descriptors: list[int], on_exit: ExitHandler) -> int:
        """Ask for a worker; it gets copies of the descriptors that ``orders.Spawn`` names. Returns its serial."""
        self._serial += 1
        order.serial = self._serial
        self._handlers[self._serial] = on_exit
        assert self._control is not None
        try:
            socket.send_fds(self._control, [msgspec.msgpack.encode(order)], descriptors)
        except OSError as error:
            del self._handlers[self._serial]
            raise ResourceError(
                "install.load_failed", f"cannot start a worker of {self._engine}: {error}; it is tried again"
            ) from error
        return self._serial

    def kill(self, serial: int, number: int = signal.SIGKILL) -> None:
        self._order(serial, orders.Kill(serial, number))

    def stand(self, serial: int, *, aside: bool, processors: int) -> None:
        """Have a worker yield to all others, or be as they are again: see ``serving.aside``."""
        self._order(serial, orders.Stand(serial, aside, processors))

    def _order(self, serial: int, order: orders.ToZygote) -> None:
        if self._control is not None and serial in self._handlers:
            with contextlib.suppress(OSError):
                self._control.send(msgspec.msgpack.encode(order))

    def _hear(self) -> None:
        assert self._control is not None
        while self._control is not None:
            try:
                data = self._control.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self._told(_told.decode(data))

    def _told(self, message: orders.FromZygote) -> None:
        ready = self._ready
        match message:
            case orders.Ready(version=version):
                if ready is not None and not ready.done():
                    ready.set_result(version)
            case orders.Broken(message=text):
                if ready is not None and not ready.done():
                    ready.set_exception(
                        ResourceError(
                            "unschedulable.engine",
                            f"cannot use the engine {self._engine}: {text}; "
                            f"install skerry[{self._engine.replace('+', ',')}]",
                        )
                    )
                    ready.exception()  # heard, even if nobody waits any more
            case orders.Born(serial=serial, pid=pid):
                self._pids[serial] = pid
            case orders.Exited(serial=serial, status=status, name=name):
                self._pids.pop(serial, None)
                if handler := self._handlers.pop(serial, None):
                    handler(serial, status, name)

    def _lost(self) -> None:
        """The zygote is gone, and so are its workers (PDEATHSIG)."""
        ready = self._ready
        if ready is not None and not ready.done():
            ready.set_exception(
                ResourceError("install.load_failed", f"cannot start the engine {self._engine}: its process died")
            )
            ready.exception()
        elif ready is not None and not ready.cancelled() and ready.exception() is None:
            log.warning("the zygote of engine %s died; it is started again when needed", self._engine)
        self.close()

    def close(self) -> None:
        """End the zygote; its workers end with it."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._ready = None
        self._pids.clear()
        handlers, self._handlers = self._handlers, {}
        for serial, handler in handlers.items():
            handler(serial, -signal.SIGKILL, "")
