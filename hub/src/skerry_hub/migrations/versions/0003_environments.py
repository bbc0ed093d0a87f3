"""Environments of python modules: names, versions with their locks, and who uses which."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "environment",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "environment_use",
        sa.Column("module", sa.String(), nullable=False),
        sa.Column("module_version", sa.Integer(), nullable=False),
        sa.Column("environment", sa.String(), nullable=False),
        sa.Column("environment_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("module", "module_version"),
    )
    with op.batch_alter_table("environment_use", schema=None) as batch_op:
        batch_op.create_index("environment_use_by_environment", ["environment", "environment_version"], unique=False)
    op.create_table(
        "environment_version",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("lock", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["environment.name"]),
        sa.PrimaryKeyConstraint("name", "version"),
    )
    with op.batch_alter_table("environment_version", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_environment_version_digest"), ["digest"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("environment_version", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_environment_version_digest"))
    op.drop_table("environment_version")
    with op.batch_alter_table("environment_use", schema=None) as batch_op:
        batch_op.drop_index("environment_use_by_environment")
    op.drop_table("environment_use")
    op.drop_table("environment")
