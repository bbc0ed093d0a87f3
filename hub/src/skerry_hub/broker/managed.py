"""What the brokers that the hub starts itself have in common: addresses, the hub's password, and a child process."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path

from skerry_hub import broker as brokers
from skerry_hub import passwords
from skerry_hub.broker.child import Child, check_port, free_port


class ManagedBroker(abc.ABC):
    """A broker process on ``host:port`` (0: any free one) with its files in ``folder``."""

    name: str
    managed = True

    def __init__(self, *, folder: Path, host: str = "127.0.0.1", port: int = 0, public_url: str = "") -> None:
        self.username = brokers.HUB_USER
        self.password = brokers.new_password()
        self._own_hash = passwords.hashed(self.password)  # one salt for good: a new one would put the hub out
        self._folder, self._host, self._port = folder, host, port
        self._public_url = public_url
        self._credentials: dict[str, str] = {}
        self._child: Child | None = None

    @property
    def hub_url(self) -> str:
        return brokers.url_of(brokers.own_host(self._host), self._port)

    @property
    def public_url(self) -> str:
        return self._public_url or brokers.url_of(brokers.reachable_host(self._host), self._port)

    @property
    def restarts(self) -> int:
        return self._child.restarts if self._child else 0

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    def start(self) -> str:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._port = self._port or free_port(self._host)
        check_port(self._host, self._port)
        self._write_users(self._users())
        log = self._folder / f"{self.name}.log"
        self._child = Child(self.name, self._command(), brokers.own_host(self._host), self._port, log)
        self._child.start()
        return self.hub_url

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    def set_credentials(self, credentials: Mapping[str, str]) -> None:
        if dict(credentials) == self._credentials:
            return
        self._credentials = dict(credentials)
        if self._child is not None:
            self._write_users(self._users())
            self._read_again(self._child)

    def _users(self) -> dict[str, str]:
        return {**self._credentials, self.username: self._own_hash}

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """The command line; writes what else the program reads when it starts."""

    @abc.abstractmethod
    def _write_users(self, users: Mapping[str, str]) -> None:
        """Write the password hashes by user where the program reads them."""

    def _read_again(self, child: Child) -> None:  # noqa: B027 - a program that looks by itself needs nothing
        """Let the running program read its users again."""
