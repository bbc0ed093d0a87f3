"""Fixtures for the whole suite: what the machine lends, real and started on demand."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from support import processes
from support.requirements import need

# pynq and pip reach for distutils. Whoever imports the standard library's first keeps setuptools from taking its
# place later, and tests run in random order: so setuptools comes first, always.
with contextlib.suppress(ImportError, AssertionError):
    import setuptools  # noqa: F401

# A runner that starts its jobs in the background leaves Ctrl-C ignored, and every child inherits that. What the tests
# start is what a person starts in a terminal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile("skerry", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("skerry")

_numbers = itertools.count(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marker that names a need of the machine skips, or fails, before the test starts."""
    for name in ("mosquitto", "postgres", "chromium", "pynq"):
        if item.get_closest_marker(name):
            need(name)


@pytest.fixture(scope="session")
def mosquitto_program() -> str:
    return need("mosquitto")


@pytest.fixture
def mosquitto(mosquitto_program: str, tmp_path: Path) -> Iterator[int]:
    """The port of a real Mosquitto with an anonymous listener on 127.0.0.1."""
    with processes.mosquitto(mosquitto_program, tmp_path) as port:
        yield port


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real PostgreSQL server, without a database name."""
    with processes.postgres(need("postgres")) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of a new, empty PostgreSQL database (SQLAlchemy form, psycopg 3)."""
    import psycopg

    name = f"skerry_{next(_numbers)}"
    admin = postgres_server.replace("+psycopg", "") + "/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    yield f"{postgres_server}/{name}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once on SQLite and once on PostgreSQL: the same tests hold on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hub.sqlite3'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def free_port() -> Callable[[], int]:
    return processes.free_port


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless Chromium, driven by Playwright; nothing is downloaded.

    One per module: while it runs, Playwright keeps an event loop in this thread, in which ``asyncio.run`` fails.
    """
    program = need("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
        started = playwright.chromium.launch(
            executable_path=program, headless=True, args=["--no-sandbox", "--disable-sync", "--no-first-run", *flags]
        )
        yield started
        started.close()
