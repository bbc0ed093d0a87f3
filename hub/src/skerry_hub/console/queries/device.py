"""One device: what it is, what it runs, how it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlmodel import Session, col

from skerry_hub.console.series import Points, Series
from skerry_hub.rules.rollout import DeviceStep
from skerry_hub.tables import (
    Assignment,
    CommandRow,
    Device,
    DeviceModule,
    DeviceTag,
    Endpoint,
    EndpointDevice,
    HealthRow,
    ModuleProfileRow,
    Rollout,
    RolloutDevice,
    TelemetryRow,
)
from skerry_modules import messages
from skerry_modules.measurement import ModuleProfile

POINTS = 180
"""Points of a chart: what a phone's width can show."""


@dataclass(frozen=True)
class ModuleStatus:
    """A module version on the device, beside what the hub wants. ``wanted`` is the desired version, None for none."""

    row: DeviceModule
    wanted: int | None

    @property
    def is_wanted(self) -> bool:
        return self.wanted == self.row.version


@dataclass(frozen=True)
class Obstacle:
    """Something that was meant for the device and cannot run there: a rollout's version, or an endpoint."""

    module: str  # empty: of an endpoint
    version: int
    rollout: int  # 0: of an endpoint
    endpoint: str
    reason: str
    message: str
    at: int


@dataclass(frozen=True)
class DevicePage:
    row: Device
    facts: dict[str, Any]
    tags: list[tuple[str, str]]
    modules: list[ModuleStatus]
    waiting: list[Assignment]  # wanted, and not yet mentioned by the device
    health: messages.Health | None
    health_at: int
    obstacles: list[Obstacle]
    measured: list[tuple[ModuleProfileRow, ModuleProfile]]
    measuring: list[CommandRow]


def device(session: Session, name: str) -> DevicePage | None:
    row = session.get(Device, name)
    if row is None:
        return None
    tags = select(DeviceTag).where(col(DeviceTag.device) == name).order_by(col(DeviceTag.key))
    wanted = {
        found.module: found
        for found in session.execute(select(Assignment).where(col(Assignment.device) == name)).scalars()
    }
    modules = list(
        session.execute(
            select(DeviceModule)
            .where(col(DeviceModule.device) == name)
            .order_by(col(DeviceModule.module), col(DeviceModule.version).desc())
        ).scalars()
    )
    mentioned = {(module.module, module.version) for module in modules}
    at, health = _latest_health(session, name)
    return DevicePage(
        row=row,
        facts=msgspec.json.decode(row.facts or "{}"),
        tags=[(tag.key, tag.value) for tag in session.execute(tags).scalars()],
        modules=[
            ModuleStatus(module, wanted[module.module].version if module.module in wanted else None)
            for module in modules
        ],
        waiting=[found for key, found in wanted.items() if (key, found.version) not in mentioned],
        health=health,
        health_at=at,
        obstacles=_obstacles(session, name),
        measured=_measured(session, name),
        measuring=_measuring(session, name),
    )


def _obstacles(session: Session, name: str) -> list[Obstacle]:
    """What the newest rollout of each module, and each endpoint, could not bring here."""
    newest = (
        select(func.max(col(Rollout.id)))
        .join(RolloutDevice, col(RolloutDevice.rollout) == col(Rollout.id))
        .where(col(RolloutDevice.device) == name)
        .group_by(col(Rollout.module))
    )
    refused = (
        select(Rollout, RolloutDevice)
        .join(RolloutDevice, col(RolloutDevice.rollout) == col(Rollout.id))
        .where(
            col(RolloutDevice.device) == name,
            col(RolloutDevice.step) == DeviceStep.UNSCHEDULABLE,
            col(Rollout.id).in_(newest),
        )
        .order_by(col(Rollout.id).desc())
    )
    found = [
        Obstacle(row.module, row.version, row.id or 0, "", way.reason, way.message, row.created_at)
        for row, way in session.execute(refused)
    ]
    excluded = (
        select(Endpoint, EndpointDevice)
        .join(EndpointDevice, col(EndpointDevice.endpoint) == col(Endpoint.name))
        .where(col(EndpointDevice.device) == name, col(EndpointDevice.reason) != "")
        .order_by(col(Endpoint.name))
    )
    found += [
        Obstacle("", 0, 0, row.name, place.reason, place.message, row.changed_at)
        for row, place in session.execute(excluded)
    ]
    return found


def _measured(session: Session, name: str, limit: int = 8) -> list[tuple[ModuleProfileRow, ModuleProfile]]:
    """What versions were measured to need here, newest first."""
    statement = select(ModuleProfileRow).where(col(ModuleProfileRow.device) == name)
    rows = session.execute(statement.order_by(col(ModuleProfileRow.at).desc()).limit(limit)).scalars()
    return [(row, msgspec.json.decode(row.body, type=ModuleProfile)) for row in rows]


def _measuring(session: Session, name: str) -> list[CommandRow]:
    statement = select(CommandRow).where(
        col(CommandRow.device) == name, col(CommandRow.name) == "profile", col(CommandRow.ended_at) == 0
    )
    return list(session.execute(statement.order_by(col(CommandRow.created_at))).scalars())


def _latest_health(session: Session, name: str) -> tuple[int, messages.Health | None]:
    found = session.execute(
        select(col(HealthRow.at), col(HealthRow.body))
        .where(col(HealthRow.device) == name)
        .order_by(col(HealthRow.at).desc())
        .limit(1)
    ).first()
    if found is None:
        return 0, None
    try:
        return found[0], msgspec.msgpack.decode(found[1], type=messages.Health)
    except msgspec.DecodeError:
        return found[0], None


@dataclass(frozen=True)
class HealthPoints:
    """Means per bucket; None where the device did not say."""

    times: list[int]
    cpu: list[float | None]
    memory: list[float | None]
    memory_total: int
    disk: list[float | None]
    disk_total: int
    temperature: list[float | None]


def health(session: Session, name: str, now: int, span_ms: int) -> HealthPoints:
    """The device's health of the last ``span_ms``, in at most about 180 buckets."""
    width = max(1, span_ms // POINTS)
    bucket = (col(HealthRow.at) // width).label("bucket")
    statement = (
        select(
            bucket,
            func.avg(col(HealthRow.cpu_percent)),
            func.avg(col(HealthRow.memory_used)),
            func.max(col(HealthRow.memory_total)),
            func.avg(col(HealthRow.disk_used)),
            func.max(col(HealthRow.disk_total)),
            func.avg(col(HealthRow.temperature_c)),
        )
        .where(col(HealthRow.device) == name, col(HealthRow.at) > now - span_ms)
        .group_by(bucket)
        .order_by(bucket)
    )
    rows = [tuple(row) for row in session.execute(statement)]

    def column(place: int) -> list[float | None]:
        return [None if row[place] is None or row[place] < 0 else round(float(row[place]), 2) for row in rows]

    return HealthPoints(
        times=[int(row[0]) * width for row in rows],
        cpu=column(1),
        memory=column(2),
        memory_total=max((int(row[3] or 0) for row in rows), default=0),
        disk=column(4),
        disk_total=max((int(row[5] or 0) for row in rows), default=0),
        temperature=column(6),
    )


def telemetry(session: Session, name: str, now: int, span_ms: int) -> Points:
    """Requests and latency of the device's modules together, over the last ``span_ms``."""
    series = Series(max(1, span_ms // POINTS), POINTS)
    series.move(now)
    statement = select(
        col(TelemetryRow.start_ms),
        col(TelemetryRow.end_ms),
        col(TelemetryRow.requests),
        col(TelemetryRow.errors),
        col(TelemetryRow.body),
    ).where(
        col(TelemetryRow.device) == name, col(TelemetryRow.end_ms) > now - span_ms, col(TelemetryRow.role) == "live"
    )
    for start, end, requests, errors, body in session.execute(statement):
        series.add(start, end, requests, errors, body)
    return series.shown(now)
