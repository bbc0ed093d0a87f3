"""The database's history, by Alembic. Run inside the hub: there is no alembic.ini and no need for its command line.

To add a step after changing :mod:`skerry_hub.tables`: ``python -m skerry_hub.migrations "what changed"`` writes a
file under ``versions/`` for you to read and mend; a test holds the history to the tables on both databases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlmodel import SQLModel

from skerry_hub import tables  # noqa: F401  (fills SQLModel.metadata)


def config(connection: Connection | None = None) -> Config:
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the missing steps within the connection's transaction."""
    command.upgrade(config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    command.downgrade(config(connection), revision)


def differences(connection: Connection) -> list[Any]:
    """What the database has otherwise than the tables say; empty if the history is complete."""
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
    return list(compare_metadata(context, SQLModel.metadata))
