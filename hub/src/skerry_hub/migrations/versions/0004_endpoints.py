"""Endpoints with the devices that have them, and the role in which a version did what telemetry says."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "endpoint",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("shadow", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("changed_by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "endpoint_device",
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "device"),
    )
    with op.batch_alter_table("endpoint_device", schema=None) as batch_op:
        batch_op.create_index("endpoint_device_by_device", ["device"], unique=False)
    with op.batch_alter_table("telemetry", schema=None) as batch_op:
        batch_op.add_column(sa.Column("role", sa.String(), server_default="live", nullable=False))
        batch_op.create_index("telemetry_by_endpoint", ["endpoint", "end_ms"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("telemetry", schema=None) as batch_op:
        batch_op.drop_index("telemetry_by_endpoint")
        batch_op.drop_column("role")
    with op.batch_alter_table("endpoint_device", schema=None) as batch_op:
        batch_op.drop_index("endpoint_device_by_device")
    op.drop_table("endpoint_device")
    op.drop_table("endpoint")
