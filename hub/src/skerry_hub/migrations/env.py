"""Alembic's entry: runs on the connection that :func:`skerry_hub.migrations.upgrade` was given."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

from skerry_hub import tables  # noqa: F401  (fills SQLModel.metadata)

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite cannot alter columns in place
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
