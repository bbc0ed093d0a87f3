"""The embedded broker (amqtt) in a child process: for trials where no Mosquitto is at hand.

It is slow (a few thousand messages a second), loses un-acknowledged messages on a reconnect and speaks 3.1.1 only;
the protocol stands all of that. Its credentials are a file that it reads again when the file changes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from skerry_hub import broker as brokers
from skerry_hub.broker.child import Child, check_port, free_port
from skerry_hub.devices import hash_password


class EmbeddedBroker:
    """An amqtt process on ``host:port`` (0: any free one) with its credentials in ``folder``."""

    name = "embedded"
    managed = True

    def __init__(self, *, folder: Path, host: str = "127.0.0.1", port: int = 0, public_url: str = "") -> None:
        self.username = brokers.HUB_USER
        self.password = brokers.new_password()
        self._own_hash = hash_password(self.password)  # one salt for good: a new one would put the hub out
        self._folder, self._host, self._port = folder, host, port
        self._public_url = public_url
        self._credentials: dict[str, str] = {}
        self._child: Child | None = None

    @property
    def hub_url(self) -> str:
        host = "127.0.0.1" if self._host in ("0.0.0.0", "") else self._host  # noqa: S104 - compared, not bound
        return f"mqtt://{host}:{self._port}"

    @property
    def public_url(self) -> str:
        return self._public_url or f"mqtt://{brokers.reachable_host(self._host)}:{self._port}"

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
        self._write_credentials()
        strict = ["-W", "error"] if "error" in sys.warnoptions else []
        command = [sys.executable, *strict, "-m", "skerry_hub.broker.embedded_child"]
        command += [self._host, str(self._port), str((self._folder / "credentials.json").absolute())]
        self._child = Child(self.name, command, self._host, self._port, self._folder / "embedded.log")
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
            self._write_credentials()

    def _write_credentials(self) -> None:
        users = {**self._credentials, self.username: self._own_hash}
        brokers.write_private(self._folder / "credentials.json", msgspec.json.encode(users).decode())
