"""The scoring address: listens on TCP and a Unix socket, answers what needs no worker, hands the rest to the plane."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import stat
import time
from pathlib import Path
from typing import Protocol

import msgspec

from skerry_agent.engines._host import installed
from skerry_agent.serving import oip
from skerry_agent.serving.exchange import Exchange
from skerry_agent.serving.heads import Form, Heads
from skerry_agent.serving.http import HttpConnection
from skerry_agent.serving.item import Item
from skerry_agent.serving.repository import Repository
from skerry_agent.serving.settings import ServingSettings
from skerry_agent.serving.version import Version
from skerry_modules.errors import InputError, ResourceError, SkerryError

log = logging.getLogger(__name__)


class Router(Protocol):
    """What the front asks of the plane."""

    def is_ready(self) -> bool: ...

    def find(self, model: str, version: str) -> tuple[Version, ...]:
        """The versions behind a name that have served or do; raises SkerryError ``module.unknown``."""
        ...

    def choose(self, model: str, version: str, key: bytes = b"") -> Version:
        """The version for one request; raises SkerryError ``module.unknown`` or ``scoring.not_ready``."""
        ...

    def lone(self, model: str, version: str) -> tuple[Version | None, bool]:
        """The one version that answers every request for this, and whether others follow; None: there is not one."""
        ...

    def follow(self, model: str, item: Item) -> None:
        """Have copies of the request scored by the shadows behind a name."""
        ...

    @property
    def repository(self) -> Repository: ...


class HttpFront:
    """Implements ``serving.http.Front``."""

    def __init__(self, settings: ServingSettings, router: Router) -> None:
        self.settings = settings
        self.connections: set[HttpConnection] = set()
        self.heads = Heads()
        self.buffered = 0
        self.port = 0
        self._router = router
        self._servers: list[asyncio.Server] = []
        self._socket: Path | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._agent = installed("skerry")

    # -- listening

    async def start(self) -> None:
        """Listen.

        Raises:
            ResourceError: ``resource.port_in_use``.
        """
        try:
            if self.settings.http:
                await self._listen_tcp(self.settings.http)
            if self.settings.socket:
                await self._listen_unix(Path(self.settings.socket))
        except BaseException:
            await self.stop(0)
            raise
        self._sweep()

    async def _listen_tcp(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: HttpConnection(self), host.strip("[]") or None, int(port), reuse_address=True, backlog=512
            )
        except (OSError, ValueError) as error:
            raise ResourceError(
                "resource.port_in_use",
                f"cannot listen on {address} for scoring: {error}; free it, or set serving.http to another",
            ) from error
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    async def _listen_unix(self, path: Path) -> None:
        problem = f"cannot listen on the socket {path} for scoring"
        try:
            _clear_way(path, problem)
            server = await asyncio.get_running_loop().create_unix_server(lambda: HttpConnection(self), str(path))
        except OSError as error:
            raise ResourceError("resource.port_in_use", f"{problem}: {error}; set serving.socket to another") from error
        self._servers.append(server)
        self._socket = path

    async def stop(self, grace_s: float = 2.0) -> None:
        """Take no more connections, let answers go out, close."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.close_soon()
        end = time.monotonic() + grace_s
        while self.connections and time.monotonic() < end:  # noqa: ASYNC110 - connections end by themselves
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()
        for server in self._servers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await server.wait_closed()
        self._servers.clear()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.sweep(now)
        self._sweeper = asyncio.get_running_loop().call_later(self.settings.sweep_s, self._sweep)

    # -- answering

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or later."""
        try:
            target = oip.target(exchange.path)
            if target.verb == "infer" and exchange.method == b"POST":
                self._infer(exchange, target)
            elif target.verb in ("load", "unload") and exchange.method == b"POST":
                task = asyncio.get_running_loop().create_task(self._control(exchange, target))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                exchange.reply(200, "", -1, self._look_up(exchange, target))
        except Exception as error:
            _fail(exchange, error)

    async def _control(self, exchange: Exchange, target: oip.Target) -> None:
        repository = self._router.repository
        work = repository.load if target.verb == "load" else repository.unload
        try:
            await work(target.model, target.version, exchange.body)
        except Exception as error:
            _fail(exchange, error)
        else:
            exchange.reply(200, "", -1, b"{}")

    def _infer(self, exchange: Exchange, target: oip.Target) -> None:
        version = self._router.choose(target.model, target.version, exchange.key)
        exchange.endpoint = target.model.encode()
        if not target.version:
            self._router.follow(target.model, exchange)
        asked = exchange.timeout_s or oip.timeout_s(exchange.body, exchange.json)
        timeout_s = asked or version.manifest.resources.request_timeout_s
        if exchange.low:
            exchange.low = False
            version.room.take(exchange, timeout_s)
            return
        ticket = version.submit(exchange, timeout_s, pinned=bool(target.version))
        if ticket is not None:
            if exchange.kills:  # the worker that it killed was serving it by itself
                ticket.kills, ticket.alone = exchange.kills, True
            exchange.cancel = lambda: version.forget(ticket)

    def offer(self, connection: HttpConnection, form: Form) -> None:
        """A client has asked for nothing else for a while: let the worker serve it, if all goes to that one."""
        target = oip.target(form.path)
        if target.verb != "infer":
            return
        with contextlib.suppress(SkerryError):  # it is gone since
            version, shadowed = self._router.lone(target.model, target.version)
            if version is not None and connection.is_alone_at(version, version.taken):
                follow = functools.partial(self._router.follow, target.model) if shadowed else None
                version.lender.offer(connection, form, target.model.encode(), follow)

    def _look_up(self, exchange: Exchange, target: oip.Target) -> bytes:
        if not target.verb:
            path = exchange.path.decode("latin-1")[:200]
            raise InputError("request.not_found", f"cannot find {path}: the Open Inference Protocol starts at /v2")
        allowed = oip.METHOD_OF[target.verb]
        if exchange.method != allowed and (allowed != b"GET" or exchange.method != b"HEAD"):
            exchange.allow = b"Allow: %b\r\n" % allowed
            raise InputError(
                "request.method_not_allowed", f"cannot {exchange.method.decode()} this address; use {allowed.decode()}"
            )
        match target.verb:
            case "server":
                return oip.server_metadata(self._agent)
            case "live":
                return b'{"live":true}'
            case "ready":
                if not self._router.is_ready():
                    raise ResourceError("scoring.not_ready", "cannot score yet: a version is not ready; ask again soon")
                return b'{"ready":true}'
            case "index":
                return msgspec.json.encode(self._router.repository.index(exchange.body))
            case "model":
                versions = self._router.find(target.model, target.version)
                numbers = sorted(version.number for version in versions)
                return oip.model_metadata(target.model, numbers, versions[0].manifest)
        if not any(version.ready for version in self._router.find(target.model, target.version)):
            raise ResourceError("scoring.not_ready", f"cannot score with {target.model} yet: its worker is starting")
        return msgspec.json.encode({"name": target.model, "ready": True})


def _fail(exchange: Exchange, error: Exception) -> None:
    if isinstance(error, SkerryError):
        exchange.reply(oip.status_of(error), error.code, -1, oip.error_body(error.message))
        return
    log.error("cannot answer %r", exchange.path, exc_info=error)
    text = f"cannot answer: {type(error).__name__}: {error}; please report it"
    exchange.reply(500, "internal.bug", -1, oip.error_body(text))


def _clear_way(path: Path, problem: str) -> None:
    """Make the folder, and remove the socket of an agent that was killed; never one in use, or another's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ResourceError("resource.port_in_use", f"{problem}: another file stands there; move it")
        if _answers(path):
            raise ResourceError("resource.port_in_use", f"{problem}: another process does; stop it")
        path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
