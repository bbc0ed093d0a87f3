"""A believable fleet in a database: what the console's pages are looked at and tested with.

Sixty devices on three sites, three models, six rollouts (one in every state that people meet), an hour of health and
telemetry. Deterministic for a given ``now``.
"""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import Engine, insert
from sqlmodel import SQLModel

from console.seed import batches, endpoints, environments, fleet, measured, models, rollouts, series
from console.seed.models import digest
from skerry_hub import tables as t

__all__ = ["digest", "seed"]


def seed(engine: Engine, now: int, *, devices: int = 60, minutes: int = 60) -> None:
    """Create all tables and fill them. ``now`` is ms since 1970; ``minutes`` of series end there."""
    SQLModel.metadata.create_all(engine)
    rng = random.Random(7)
    everyone = fleet.devices(rng, now, devices)
    names = [row["id"] for row, _ in everyone]
    begun, progress = rollouts.rollouts(now, everyone)
    with engine.begin() as connection:

        def put(table: type[SQLModel], rows: list[dict[str, Any]]) -> None:
            if rows:
                connection.execute(insert(table), rows)

        put(t.Device, [row for row, _ in everyone])
        put(
            t.DeviceTag,
            [
                {"device": row["id"], "key": key, "value": value}
                for row, tags in everyone
                for key, value in tags.items()
            ],
        )
        for rows_by_table in (models.models(now), environments.rows(now), batches.rows(now, names)):
            for table, rows in rows_by_table.items():
                put(table, rows)
        put(t.DeviceModule, endpoints.loaded(rollouts.modules(now, everyone, progress)))
        put(t.Assignment, rollouts.assignments(now, everyone, progress))
        put(t.ModuleProfileRow, measured.profiles(now))
        put(t.Endpoint, endpoints.endpoints(now))
        put(t.EndpointDevice, endpoints.members(names))
        put(t.TelemetryRow, endpoints.telemetry(now, names[0]))
        put(t.Rollout, begun)
        put(t.RolloutDevice, progress)
        put(t.HealthRow, series.health(rng, now, everyone, minutes))
        put(t.TelemetryRow, series.telemetry(rng, now, everyone, minutes))
        put(t.EventRow, series.events(now, everyone))
        put(t.SampleRow, series.samples(rng, now, everyone))
        put(t.Audit, rollouts.audit(now, everyone, begun, progress))
