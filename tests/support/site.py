"""A real hub and real agents, each a process of its own: what the tests of the whole system stand on."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from skerry.client import Client
from skerry_agent import control
from skerry_modules import package, trust
from skerry_modules.errors import SkerryError
from support.processes import free_port, stop, wait_until


class Site:
    """A hub with its broker, and devices of the tag ``site=lab``; everything is below ``folder``.

    A hub that is started again has the addresses that it had.
    """

    HUB: ClassVar[tuple[str, ...]] = ()
    """Further options of ``skerry-hub serve``."""
    AGENT: ClassVar[tuple[str, ...]] = ()
    """Further settings of the agents, ``name=value``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client: Client
        self.url = ""
        self.hub: subprocess.Popen[bytes] | None = None
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.key = trust.SigningKey.generate("publisher")
        self._port, self._broker = free_port(), free_port()

    @contextlib.contextmanager
    def running(self, *devices: str) -> Iterator[Self]:
        """With all devices online."""
        try:
            self.start_hub()
            with Client(self.url, actor="tester") as self.client:
                self.client.trust_key(self.key.public.text())
                for device in devices:
                    made = self.client.add_device(device, profile="generic-x86_64", tags={"site": "lab"})
                    (self.folder / f"{device}.toml").write_text(made.config)
                    self.start_agent(device)
                for device in devices:
                    wait_until(lambda name=device: self.client.device(name).online, what=f"{device} to be online")  # type: ignore[misc]
                yield self
        finally:
            for agent in self.agents.values():
                stop(agent)
            if self.hub is not None:
                stop(self.hub)

    def start_hub(self) -> None:
        """Start it and wait until it serves and its broker is there."""
        command = [sys.executable, "-m", "skerry_hub.cli", "serve", "--data", str(self.folder / "hub"), *self.HUB]
        log = self.folder / "hub.log"
        before = len(log.read_text()) if log.exists() else 0
        with log.open("ab") as said:
            self.hub = hub = subprocess.Popen(
                [*command, "--port", str(self._port), "--broker-port", str(self._broker)], stdout=said, stderr=said
            )

        def answers() -> bool:
            assert hub.poll() is None, log.read_text()
            found = re.search(r"^Console\s+(\S+)$", log.read_text()[before:], re.MULTILINE)
            self.url = found[1] if found else ""
            with contextlib.suppress(SkerryError):
                if found:
                    with Client(self.url) as client:
                        return client.status().broker_connected
            return False

        wait_until(answers, what="the hub to serve")

    def state(self, device: str) -> Path:
        """The folder of a device's state."""
        return self.folder / f"state-{device}"

    def start_agent(self, device: str) -> None:
        """Start it and wait until it is connected to the hub's broker."""
        settings = ["serving.http=127.0.0.1:0", f"state.folder={self.state(device)}", *self.AGENT]
        command = [sys.executable, "-m", "skerry_agent.cli", "run", "--config", str(self.folder / f"{device}.toml")]
        with (self.folder / f"{device}.log").open("ab") as said:
            self.agents[device] = agent = subprocess.Popen(
                [*command, *(part for one in settings for part in ("--set", one))], stdout=said, stderr=said
            )

        def connected() -> bool:
            assert agent.poll() is None, (self.folder / f"{device}.log").read_text()
            return self.answers(device)

        wait_until(connected, what=f"the agent of {device}")

    def answers(self, device: str) -> bool:
        """Whether the agent answers and is connected to the broker."""
        with contextlib.suppress(SkerryError):
            return bool(self.status(device)["hub"]["connected"])
        return False

    def status(self, device: str) -> dict[str, Any]:
        """What the agent itself says. Raises SkerryError while it does not answer."""
        found: dict[str, Any] = control.ask(self.state(device), "status")
        return found

    def scoring(self, device: str) -> str:
        """The address that the device serves on."""
        return str(self.status(device)["scoring"].split(",")[0])

    def kill(self, device: str) -> None:
        stop(self.agents[device], by=signal.SIGKILL)

    def publish(self, folder: Path) -> int:
        """Pack, sign and register a module's folder; its version."""
        packed = package.write_package(folder, self.folder / f"{folder.name}.skerry", self.key)
        return self.client.register(packed.path).version

    def skerry(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """The command line against this hub."""
        command = [sys.executable, "-m", "skerry.cli.app", "--url", self.url, *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, check=False, text=True, timeout=100)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended
