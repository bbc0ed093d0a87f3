"""Fixtures of the hub's core: databases, stores, keys, settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry_hub import desired
from skerry_hub.db import Database
from skerry_hub.objects import FolderStore
from skerry_hub.settings import Settings
from skerry_modules import trust


@pytest.fixture
def key() -> trust.SigningKey:
    """A publisher's."""
    return trust.SigningKey.generate("alice")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Migrated, with a hub's key to sign with; on both databases."""
    made = Database(database_url)
    made.info[desired.SIGNER] = trust.SigningKey.generate("hub")
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """As ``database``, where the database's kind is of no matter."""
    made = Database(f"sqlite:///{tmp_path / 'plain.db'}")
    made.info[desired.SIGNER] = trust.SigningKey.generate("hub")
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def objects(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A hub whose broker is away: what needs none must work without."""
    return Settings(data=str(tmp_path / "data"), broker="mqtt://127.0.0.1:9", port=0)
