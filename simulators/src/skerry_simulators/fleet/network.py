"""One epoll over all connections of a fleet.

One address has 28,000 ephemeral ports: devices are spread over several ``127.0.0.x`` when the broker is on loopback.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import select
import socket
from typing import Final, Protocol

PER_ADDRESS: Final = 10_000
_READ_BYTES: Final = 256 * 1024


class Handler(Protocol):
    """What a connection tells its device."""

    def opened(self) -> None: ...

    def received(self, data: bytes) -> None: ...

    def closed(self) -> None: ...


class Connection:
    """A non-blocking socket with what it has not yet written."""

    def __init__(self, network: Network, sock: socket.socket, handler: Handler) -> None:
        self._network, self.sock, self.handler = network, sock, handler
        self.unsent = bytearray()
        self.open = False

    def send(self, data: bytes) -> None:
        """Write what goes now, keep the rest."""
        waiting = bool(self.unsent)
        self.unsent += data
        if not waiting and self.open:
            self.flush()

    def flush(self) -> None:
        try:
            sent = self.sock.send(self.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._network.close(self)
            return
        del self.unsent[:sent]
        self._network.watch(self)


class Network:
    """All connections. ``poll`` hands events to their handlers."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (socket.gethostbyname(host), port)
        self.bytes_in = 0
        self._poller = select.epoll()
        self._connections: dict[int, Connection] = {}

    @staticmethod
    def raise_limits(devices: int) -> None:
        """Allow a descriptor per device."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = devices + 512
        if soft < wanted:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
                return
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def connect(self, number: int, handler: Handler) -> Connection:
        """Begin to connect; ``handler.opened`` or ``handler.closed`` follows."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.address[0].startswith("127."):
            sock.bind((f"127.0.0.{1 + number // PER_ADDRESS}", 0))
        connection = Connection(self, sock, handler)
        result = sock.connect_ex(self.address)
        if result not in (0, errno.EINPROGRESS):
            sock.close()
            raise OSError(result, "cannot connect")
        self._connections[sock.fileno()] = connection
        self._poller.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return connection

    def watch(self, connection: Connection) -> None:
        """Ask for what the connection waits for."""
        events = select.EPOLLIN | (select.EPOLLOUT if connection.unsent or not connection.open else 0)
        with contextlib.suppress(OSError, ValueError):
            self._poller.modify(connection.sock.fileno(), events)

    def close(self, connection: Connection, *, tell: bool = True) -> None:
        number = connection.sock.fileno()
        if self._connections.pop(number, None) is None:
            return
        with contextlib.suppress(OSError):
            self._poller.unregister(number)
        connection.open = False
        connection.sock.close()
        if tell:
            connection.handler.closed()

    def poll(self, timeout_s: float) -> None:
        """One round of events."""
        for number, events in self._poller.poll(timeout_s, 1024):
            connection = self._connections.get(number)
            if connection is None:
                continue
            if events & (select.EPOLLHUP | select.EPOLLERR) and not events & select.EPOLLIN:
                self.close(connection)
                continue
            if events & select.EPOLLOUT:
                if not connection.open:
                    if connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        self.close(connection)
                        continue
                    connection.open = True
                    connection.handler.opened()
                if connection.open:
                    connection.flush()
            if events & select.EPOLLIN and connection.open:
                self._read(connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)
            return
        self.bytes_in += len(data)
        try:
            connection.handler.received(data)
        except (ValueError, UnicodeDecodeError):  # not MQTT
            self.close(connection)

    def shut(self) -> None:
        for connection in list(self._connections.values()):
            self.close(connection, tell=False)
        self._poller.close()
