"""The agent's end of one worker: its socket and the pipe that catches what the model prints."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from skerry_agent.serving import orders
from skerry_agent.serving.frames import Frame, Reader
from skerry_agent.serving.nursery import Nursery
from skerry_agent.serving.vigil import Vigil

log = logging.getLogger("skerry_agent.model")

_LOG_READ: Final = 64 * 1024
_LINE_BYTES: Final = 1000
_LOG_LINES_PER_S: Final = 100
"""A model that prints more is not followed line by line: a device's log is not its to fill."""
_JOIN_BYTES: Final = 64 * 1024


class WorkerLink(asyncio.Protocol):
    """One worker process, from the request to fork it to its end."""

    def __init__(self, nursery: Nursery, name: str, log_lines: int, awake_s: float = 0.0) -> None:
        self.serial = 0
        self.scored = False  # it has answered a request
        self.served = False  # it has loaded its model
        self.exited = False  # the zygote has told its end
        self.killed_for = ""  # why we killed it
        self.title = ""  # what the process called itself when it ended
        self.tail: deque[str] = deque(maxlen=log_lines)
        self._nursery = nursery
        self._name = name
        self._reader = Reader()
        self._pending: list[bytes] = []
        self._vigil = Vigil(awake_s)
        self._transport: asyncio.Transport | None = None
        self._side: socket.socket | None = None
        self._log_fd = -1
        self._log_budget = float(_LOG_LINES_PER_S)
        self._log_time = 0.0
        self._on_frame: Callable[[WorkerLink, Frame], None] | None = None
        self._on_lost: Callable[[WorkerLink], None] | None = None
        self._on_exit: Callable[[WorkerLink, int], None] | None = None

    @classmethod
    async def open(
        cls,
        nursery: Nursery,
        order: orders.Spawn,
        name: str,
        log_lines: int,
        *,
        on_frame: Callable[[WorkerLink, Frame], None],
        on_lost: Callable[[WorkerLink], None],
        on_exit: Callable[[WorkerLink, int], None],
        awake_s: float = 0.0,
    ) -> WorkerLink:
        """Fork a worker and connect to it. ``awake_s``: see ``serving.vigil``.

        Raises:
            ResourceError: the engine or its zygote cannot be started.
        """
        await nursery.ready()
        self = cls(nursery, name, log_lines, awake_s)
        self._on_frame, self._on_lost, self._on_exit = on_frame, on_lost, on_exit
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._side, side = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log_fd, log_write = os.pipe()
        try:
            self.serial = nursery.spawn(order, [theirs.fileno(), side.fileno(), log_write], self._ended)
        except BaseException:
            ours.close()
            self._side.close()
            os.close(self._log_fd)
            raise
        finally:
            theirs.close()
            side.close()
            os.close(log_write)
        loop = asyncio.get_running_loop()
        os.set_blocking(self._log_fd, False)
        loop.add_reader(self._log_fd, self._read_log)
        ours.setblocking(False)
        await loop.create_unix_connection(lambda: self, sock=ours)
        return self

    def _ended(self, _serial: int, status: int, title: str = "") -> None:
        self.exited = True
        self.title = title
        if self._on_exit is not None:
            self._on_exit(self, status)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or transport is not None
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        on_frame = self._on_frame
        assert on_frame is not None
        found = self._reader.feed(data)
        for frame in found:
            on_frame(self, frame)
        self._vigil.keep(len(found))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._side is not None:
            self._side.close()
        self._read_log()
        if self._on_lost is not None:
            self._on_lost(self)

    def send(self, head: bytes, body: bytes) -> None:
        """Write a frame; a dead worker's is dropped here and taken up again when its end is heard."""
        if self._pending:
            self._flush()
        if self._transport is None:
            return
        if len(body) <= _JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def send_soon(self, head: bytes, body: bytes) -> None:
        """As :meth:`send`, together with what else comes in this turn of the event loop: one system call for all."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending += (head, body)

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if pending and self._transport is not None:
            self._transport.writelines(pending)

    def hand_over(self, descriptors: list[int]) -> None:
        """Give the worker copies of descriptors, which the order that is sent next speaks of. Raises OSError."""
        assert self._side is not None
        socket.send_fds(self._side, [b"\0"], descriptors)

    def stand(self, *, aside: bool, processors: int) -> None:
        """Have the process yield to all others on so many processors, or be as they are again."""
        self._nursery.stand(self.serial, aside=aside, processors=processors)

    def close(self) -> None:
        """End of file for the worker, which then ends by itself; nothing more is heard of it."""
        self._on_frame = _ignore
        self._on_lost = None
        if self._transport is not None:
            self._transport.close()
        self.close_log()

    def close_log(self) -> None:
        if self._log_fd >= 0:
            self._read_log()
        if self._log_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._log_fd)
            os.close(self._log_fd)
            self._log_fd = -1

    def _read_log(self) -> None:
        if self._log_fd < 0:
            return
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._log_fd, _LOG_READ)
            if not data:
                asyncio.get_running_loop().remove_reader(self._log_fd)
                os.close(self._log_fd)
                self._log_fd = -1
        now = asyncio.get_running_loop().time()
        self._log_budget = min(_LOG_LINES_PER_S, self._log_budget + (now - self._log_time) * _LOG_LINES_PER_S)
        self._log_time = now
        for raw in data.splitlines():
            line = raw[:_LINE_BYTES].decode(errors="replace")
            self.tail.append(line)
            if self._log_budget >= 1:
                self._log_budget -= 1
                log.info("%s: %s", self._name, line)


def _ignore(_link: WorkerLink, _frame: Frame) -> None:
    pass
