"""The broker between hub and devices: a managed Mosquitto, an embedded one for trials, or any other by URL.

The broker is a pipe, never a database: nothing that matters rests on its queues or its memory, and either managed one
may be killed at any time. ``auto`` takes Mosquitto where it is on PATH, else the embedded one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from skerry_hub.broker.rights import HUB_USER
from skerry_modules.errors import InputError, ResourceError


class BrokerSettings(Protocol):
    """What :func:`choose` reads of the hub's settings."""

    @property
    def host(self) -> str: ...

    @property
    def broker(self) -> str: ...

    @property
    def broker_host(self) -> str: ...

    @property
    def broker_port(self) -> int: ...

    @property
    def broker_public_url(self) -> str: ...

    @property
    def broker_username(self) -> str: ...

    @property
    def broker_password(self) -> str: ...

    @property
    def data_folder(self) -> Path: ...


class Broker(Protocol):
    """A broker to talk through. ``username`` and ``password`` are the hub's own at it."""

    name: str
    username: str
    password: str
    managed: bool
    """Whether the hub starts it and gives it the devices' credentials."""

    @property
    def restarts(self) -> int:
        """How often a managed broker ended and was started again."""
        ...

    @property
    def hub_url(self) -> str:
        """Where the hub connects; with its port known only after :meth:`start` where any free one was asked for."""
        ...

    @property
    def public_url(self) -> str:
        """Where devices connect."""
        ...

    def start(self) -> str:
        """Start it where it is managed; returns :attr:`hub_url`. Raises ``SkerryError`` ``resource.*``."""
        ...

    def stop(self) -> None: ...

    def set_credentials(self, credentials: Mapping[str, str]) -> None:
        """Let exactly these devices in: password hash (``$7$…``) by device id. Others are put out."""
        ...


class ExternalBroker:
    """Any MQTT 3.1.1 broker by URL. Users and rights are its operator's to set; ``rights.acl_text()`` shows them."""

    name = "external"
    managed = False

    def __init__(self, url: str, public_url: str, username: str, password: str) -> None:
        parse_url(url)
        self._url, self._public = url, public_url or url
        self.username, self.password = username, password

    @property
    def restarts(self) -> int:
        return 0

    @property
    def hub_url(self) -> str:
        return self._url

    @property
    def public_url(self) -> str:
        return self._public

    def start(self) -> str:
        return self._url

    def stop(self) -> None:
        """Nothing of ours to end."""

    def set_credentials(self, credentials: Mapping[str, str]) -> None:
        """Nothing: the broker's operator sets them there."""


def parse_url(url: str) -> tuple[str, int, bool]:
    """Host, port and whether TLS, of ``mqtt://host[:port]`` or ``mqtts://host[:port]``.

    Raises:
        InputError: ``request.invalid``.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise InputError("request.invalid", f"cannot use the broker {url!r}: use auto, mqtt://host:port or mqtts://…")
    tls = parts.scheme == "mqtts"
    return parts.hostname, port or (8883 if tls else 1883), tls


def find_mosquitto() -> str | None:
    """The program's path; Debian puts it where only root's PATH looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def choose(settings: BrokerSettings) -> Broker:
    """The broker that the settings name, not yet started.

    Raises:
        InputError: ``request.invalid``: not a broker that we know.
        ResourceError: ``resource.missing_dependency``: Mosquitto was asked for by name and is not here.
    """
    from skerry_hub.broker.embedded import EmbeddedBroker
    from skerry_hub.broker.mosquitto import MosquittoBroker

    kind = settings.broker.strip()
    program = find_mosquitto()
    shape: dict[str, Any] = {
        "folder": settings.data_folder / "broker",
        "host": settings.broker_host or settings.host,
        "port": settings.broker_port,
        "public_url": settings.broker_public_url,
    }
    if kind == "mosquitto" and program is None:
        raise ResourceError(
            "resource.missing_dependency",
            "cannot start Mosquitto: it is not on PATH; install it, or use --broker embedded",
        )
    if program is not None and kind in ("auto", "mosquitto"):
        return MosquittoBroker(program=program, **shape)
    if kind in ("auto", "embedded"):
        return EmbeddedBroker(**shape)
    return ExternalBroker(kind, settings.broker_public_url, settings.broker_username, settings.broker_password)


def new_password() -> str:
    return secrets.token_urlsafe(24)


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only: the broker may read it at any moment."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    aside.rename(path)


_WILDCARDS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound


def url_of(host: str, port: int) -> str:
    """``mqtt://host:port``, with the brackets that an IPv6 address needs."""
    return f"mqtt://[{host}]:{port}" if ":" in host else f"mqtt://{host}:{port}"


def own_host(host: str) -> str:
    """Where this machine reaches what listens on ``host``."""
    return {"::": "::1"}.get(host, "127.0.0.1") if host in _WILDCARDS else host


def reachable_host(host: str) -> str:
    """An address that others can use: a wildcard is replaced by this machine's outgoing address."""
    if host not in _WILDCARDS:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks the routing table
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


__all__ = ["HUB_USER", "Broker", "BrokerSettings", "ExternalBroker", "choose", "parse_url"]
