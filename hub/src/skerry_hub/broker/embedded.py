"""The embedded broker (amqtt) in a child process: for trials where no Mosquitto is at hand.

It is slow (a few thousand messages a second), loses un-acknowledged messages on a reconnect and speaks 3.1.1 only;
the protocol stands all of that. Its credentials are a file that it reads again when the file changes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import msgspec

from skerry_hub import broker as brokers
from skerry_hub.broker.managed import ManagedBroker


class EmbeddedBroker(ManagedBroker):
    """An amqtt process."""

    name = "embedded"

    def _command(self) -> list[str]:
        strict = ["-W", "error"] if "error" in sys.warnoptions else []
        command = [sys.executable, *strict, "-m", "skerry_hub.broker.embedded_child"]
        return [*command, self._host, str(self._port), str((self._folder / "credentials.json").absolute())]

    def _write_users(self, users: Mapping[str, str]) -> None:
        brokers.write_private(self._folder / "credentials.json", msgspec.json.encode(users).decode())
