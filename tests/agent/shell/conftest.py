"""Fixtures of the agent's shell: a hub over a real broker, and real daemons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.shell.daemon import Daemon
from agent.shell.hub import FakeHub

PUBLISHER = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.fixture
def hub(mosquitto: int) -> Iterator[FakeHub]:
    made = FakeHub(mosquitto, "device-1")
    yield made
    made.close()


@pytest.fixture
def daemon(hub: FakeHub, mosquitto: int, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes and starts agents of the hub; all are stopped at the end."""
    made: list[Daemon] = []

    def make(extra: str = "", *, port: int | None = mosquitto, start: bool = True, **limits: int) -> Daemon:
        found = Daemon(
            tmp_path / f"agent-{len(made)}", port, hub.key.public.text(), hub.publisher.public.text(), extra, **limits
        )
        made.append(found)
        return found.start() if start else found

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def daemon_alone(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """An agent without a hub."""
    made: list[Daemon] = []

    def make(*, start: bool = True) -> Daemon:
        found = Daemon(tmp_path / f"agent-{len(made)}", None, "", PUBLISHER)
        made.append(found)
        return found.start() if start else found

    yield make
    for one in made:
        one.stop()
