"""Read queries over what devices sent: series for charts, merged latency, last events, counts of the fleet.

Distributions are merged exactly from the windows' bodies; the ``p50_us`` and ``p99_us`` columns are per window.
Not handled here: writing any of it (:mod:`skerry_hub.ingest`).
"""

from __future__ import annotations

import msgspec
from sqlalchemy import func
from sqlmodel import Session, col, select

from skerry_hub.tables import Device, DeviceModule, EventRow, HealthRow, TelemetryRow
from skerry_modules import messages
from skerry_modules.errors import PeerError
from skerry_modules.histogram import Histogram

_telemetry = msgspec.msgpack.Decoder(messages.Telemetry)
_health = msgspec.msgpack.Decoder(messages.Health)


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a module version did in a time: counts, and latency in µs (NaN where there was none)."""

    requests: int
    errors: int
    rejected: int
    p50_us: float
    p90_us: float
    p99_us: float


class FleetCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Devices in all and online; reported module versions by phase."""

    devices: int
    online: int
    phases: dict[str, int]


def traffic(
    session: Session, *, module: str, version: int | None = None, device: str = "", since: int = 0, limit: int = 10_000
) -> Traffic:
    """Counts and merged latency of the newest ``limit`` windows that ended after ``since`` (ms)."""
    t = TelemetryRow
    statement = select(t.body, t.requests, t.errors, t.rejected).where(
        col(TelemetryRow.module) == module, col(TelemetryRow.end_ms) > since
    )
    if version is not None:
        statement = statement.where(col(TelemetryRow.version) == version)
    if device:
        statement = statement.where(col(TelemetryRow.device) == device)
    merged = Histogram()
    requests = errors = rejected = 0
    for body, asked, failed, refused in session.exec(statement.order_by(col(TelemetryRow.id).desc()).limit(limit)):
        requests, errors, rejected = requests + asked, errors + failed, rejected + refused
        try:
            merged.merge(Histogram.from_wire(_telemetry.decode(body).latency_us))
        except (PeerError, msgspec.DecodeError, UnicodeDecodeError):
            continue  # a distribution that no device of ours sends: its requests count all the same
    p50, p90, p99 = (merged.quantile(share) for share in (0.5, 0.9, 0.99))
    return Traffic(requests=requests, errors=errors, rejected=rejected, p50_us=p50, p90_us=p90, p99_us=p99)


def health_series(
    session: Session, device: str, *, since: int = 0, limit: int = 500
) -> list[tuple[int, messages.Health]]:
    """(ms, health), oldest first: the newest ``limit`` after ``since``."""
    statement = select(HealthRow.at, HealthRow.body).where(col(HealthRow.device) == device, col(HealthRow.at) > since)
    rows = session.exec(statement.order_by(col(HealthRow.at).desc()).limit(limit)).all()
    return [(at, _health.decode(body)) for at, body in reversed(rows)]


def last_events(session: Session, *, device: str = "", limit: int = 50) -> list[EventRow]:
    """Newest first."""
    statement = select(EventRow)
    if device:
        statement = statement.where(col(EventRow.device) == device)
    return list(session.exec(statement.order_by(col(EventRow.id).desc()).limit(limit)))


def fleet_counts(session: Session) -> FleetCounts:
    """The fleet at a glance."""
    devices = session.exec(select(func.count()).select_from(Device)).one()
    online = session.exec(select(func.count()).select_from(Device).where(col(Device.online))).one()
    phases = session.exec(select(DeviceModule.phase, func.count()).group_by(col(DeviceModule.phase))).all()
    return FleetCounts(devices=devices, online=online, phases=dict(phases))
