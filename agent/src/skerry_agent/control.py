"""The running agent's Unix socket for ``skerry-agent status`` and ``events``: one JSON line in, one JSON line out.

Only the agent's own user can open it (mode 0600). The socket is bound through the folder's descriptor, since a path
may be longer than the 108 bytes that the kernel takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_modules.errors import InputError, ResourceError, SkerryError

NAME: Final = "control.sock"
_MAX_BYTES: Final = 8 * 1024 * 1024

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class Control:
    """The server. ``handlers`` by operation name; each takes the request and returns JSON-able data."""

    def __init__(self, folder: Path, handlers: dict[str, Handler]) -> None:
        self._folder = folder
        self._handlers = handlers
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        sock = _bind(self._folder)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=64 * 1024)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(30):
                line = await reader.readline()
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # a client that went away, sent no line, or reads nothing: its own loss
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            handler = self._handlers[request.get("op", "")]
        except (msgspec.DecodeError, KeyError):
            known = ", ".join(self._handlers)
            return {
                "error": {"code": "request.invalid", "message": f"cannot understand the request: use one of {known}"}
            }
        try:
            return {"result": await handler(request)}
        except SkerryError as error:
            return {"error": {"code": error.code, "message": error.message}}

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        (self._folder / NAME).unlink(missing_ok=True)


def _bind(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with _short(folder) as path:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()  # left by a killed agent: the folder's lock says that none runs
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
    return sock


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)


def ask(folder: Path, op: str, **arguments: Any) -> Any:
    """The client: ask the agent that runs on ``folder``.

    Raises:
        ResourceError: ``resource.agent_unreachable``.
        InputError: what the agent answered.
    """
    try:
        with _short(folder) as path, socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(path)
            sock.sendall(msgspec.json.encode({"op": op, **arguments}) + b"\n")
            with sock.makefile("rb") as stream:
                answer = msgspec.json.decode(stream.readline(_MAX_BYTES), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ResourceError(
            "resource.agent_unreachable",
            f"cannot reach an agent on {folder}: {error}; start it with `skerry-agent run`, "
            "or name its configuration with --config",
        ) from error
    if problem := answer.get("error"):
        raise InputError(problem["code"], problem["message"])
    return answer["result"]
