"""A real hub with a real browser in front of it: uvicorn, the whole app, its broker, and a seeded or an empty fleet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from console import seed
from skerry_hub.app import Hub, create_app
from skerry_hub.settings import Settings
from skerry_modules import messages
from skerry_modules.messages import ModulePhase, ModuleState
from support.processes import free_port, wait_until

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@dataclass
class Served:
    """A hub that serves."""

    url: str
    hub: Hub


@contextmanager
def serve(folder: Path, *, seeded: bool) -> Iterator[Served]:
    port = free_port()
    app = create_app(Settings(data=str(folder), port=port, broker_port=0))
    hub: Hub = app.state.hub
    hub.open()
    if seeded:
        seed.seed(hub.db.engine, time.time_ns() // 1_000_000)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="error", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), what="the hub")
        assert server.started, hub.failure
        yield Served(f"http://127.0.0.1:{port}", hub)
    finally:
        hub.bus.close()  # ends the live connections that a browser may still hold
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the hub does not stop"


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Sixty devices; tests that share it only read."""
    with serve(tmp_path_factory.mktemp("seeded"), seeded=True) as served:
        yield served


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A hub on its first day."""
    with serve(tmp_path_factory.mktemp("empty"), seeded=False) as served:
        yield served


@pytest.fixture(scope="session")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Sixty devices that tests may change; each takes other devices or models."""
    with serve(tmp_path_factory.mktemp("acting"), seeded=True) as served:
        yield served


@dataclass
class Speaker:
    """What devices say, given to the hub's real ingest as the link would."""

    hub: Hub
    _seq: dict[tuple[str, int], int] = field(default_factory=dict)

    def say(self, device: str, kind: str, body: Any) -> None:
        stream = messages.STREAM_OF[kind]
        seq = self._seq[device, stream] = self._seq.get((device, stream), 0) + 1
        up = messages.Up(
            v=messages.FORMAT,
            epoch=b"test",
            stream=int(stream),
            seq=seq,
            base=1,
            at=time.time_ns() // 1_000_000,
            body=body,
        )
        assert self.hub.streaming.ingest.offer(device, kind, messages.encode(up))

    def module(self, device: str, module: str, version: int, phase: ModulePhase, *, revision: int, **more: Any) -> None:
        """The device's whole state: this one module version."""
        state = ModuleState(
            name=module,
            version=version,
            digest=seed.digest(f"{module}{version}"),
            phase=phase,
            revision=revision,
            since=time.time_ns() // 1_000_000,
            **more,
        )
        self.say(device, "state", messages.State(device=device, boot="b", revision=revision, modules=(state,)))

    def event(self, device: str, code: str, message: str) -> None:
        self.say(device, "event", messages.Event(severity=messages.Severity.ERROR, code=code, message=message))


@pytest.fixture
def speaker(acting: Served) -> Speaker:
    return Speaker(acting.hub)


@dataclass
class Watched:
    """A browser page that notes what must not happen."""

    page: Any
    faults: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def check(self) -> None:
        assert not self.faults, self.faults
        assert not self.foreign, self.foreign


Open = Callable[..., Watched]


@pytest.fixture
def watched(browser: Any) -> Iterator[Open]:
    """Open pages that record console errors, policy violations, exceptions and requests to other hosts."""
    contexts: list[Any] = []
    pages: list[Watched] = []

    def open_page(
        url: str, *, viewport: dict[str, int] | None = None, scheme: str = "light", strict: bool = True
    ) -> Watched:
        context = browser.new_context(viewport=viewport or DESKTOP, color_scheme=scheme)
        contexts.append(context)
        context.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " e => console.error('policy: ' + e.violatedDirective + ' ' + e.blockedURI))"
        )
        page = context.new_page()
        found = Watched(page)
        if strict:
            pages.append(found)
        page.on("console", lambda line: found.faults.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: found.faults.append(str(error)))
        origin = "/".join(url.split("/")[:3])
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((origin, "data:", "blob:")) else found.foreign.append(request.url)
            ),
        )
        page.set_default_timeout(40_000)
        page.goto(url, wait_until="domcontentloaded")
        return found

    yield open_page
    for found in pages:
        found.check()
    for context in contexts:
        context.close()
