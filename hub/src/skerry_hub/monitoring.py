"""Read queries over what devices sent: series for charts, merged latency, last events, counts of the fleet.

Distributions are merged exactly from the windows' bodies; the ``p50_us`` and ``p99_us`` columns are per window.
Not handled here: writing any of it (:mod:`skerry_hub.ingest`).
"""

from __future__ import annotations

import contextlib

import msgspec
from sqlalchemy import func
from sqlmodel import Session, col, select

from skerry_hub.tables import Device, DeviceModule, EndpointDevice, EventRow, HealthRow, TelemetryRow
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
        col(t.module) == module, col(t.end_ms) > since, col(t.role) == "live"
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


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """What one version did for an endpoint in one role, on all its devices together."""

    module: str
    version: int
    role: str
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    rate: float = 0.0  # requests per second of the time that was asked for
    p50_us: float = 0.0
    p99_us: float = 0.0
    agreement: messages.Agreement = messages.Agreement()


class _Window(msgspec.Struct):
    """What :func:`behind` needs of a ``messages.Telemetry``; the rest is skipped, which is cheaper."""

    module: str
    version: int
    end: int
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    latency_us: messages.Distribution = messages.Distribution()
    role: str = "live"
    agreement: messages.Agreement = messages.Agreement()


_windows = msgspec.msgpack.Decoder(_Window)


def behind(session: Session, endpoint: str, *, since: int, now: int, limit: int = 10_000) -> list[Behind]:
    """By version and role, from the newest ``limit`` windows of the endpoint's devices that ended after ``since``.

    Where there are more than ``limit``, the newest stand for all: rates are of the time that those cover.
    """
    devices = select(EndpointDevice.device).where(
        col(EndpointDevice.endpoint) == endpoint, col(EndpointDevice.reason) == ""
    )
    statement = (
        select(TelemetryRow.body)
        .where(col(TelemetryRow.endpoint) == endpoint, col(TelemetryRow.end_ms) > since)
        .where(col(TelemetryRow.device).in_(devices))
        .order_by(col(TelemetryRow.id).desc())
        .limit(limit)
    )
    newest = [_windows.decode(body) for body in session.exec(statement)]
    if len(newest) == limit:
        since = max(since, min(window.end for window in newest))
    windows: dict[tuple[str, int, str], list[_Window]] = {}
    for window in newest:
        windows.setdefault((window.module, window.version, window.role), []).append(window)
    return [_behind(key, found, max(now - since, 1)) for key, found in sorted(windows.items())]


def _behind(key: tuple[str, int, str], windows: list[_Window], span_ms: int) -> Behind:
    merged = Histogram()
    for window in windows:
        with contextlib.suppress(PeerError):  # edges of its own: its requests count all the same
            merged.merge(Histogram.from_wire(window.latency_us))
    found = [window.agreement for window in windows]
    requests = sum(window.requests for window in windows)
    return Behind(
        module=key[0],
        version=key[1],
        role=key[2],
        requests=requests,
        errors=sum(window.errors for window in windows),
        rejected=sum(window.rejected for window in windows),
        rate=1000 * requests / span_ms,
        p50_us=merged.quantile(0.5) if requests else 0.0,
        p99_us=merged.quantile(0.99) if requests else 0.0,
        agreement=messages.Agreement(
            rows=sum(one.rows for one in found),
            agreed=sum(one.agreed for one in found),
            within=sum(one.within for one in found),
            worst=max(one.worst for one in found),
            dropped=sum(one.dropped for one in found),
            failed=sum(one.failed for one in found),
        ),
    )


def ready(session: Session, endpoint: str) -> dict[tuple[str, int], int]:
    """On how many of the endpoint's devices each version is loaded and well, by what they reported."""
    statement = (
        select(DeviceModule.module, DeviceModule.version, func.count())
        .join(EndpointDevice, col(EndpointDevice.device) == col(DeviceModule.device))
        .where(col(EndpointDevice.endpoint) == endpoint, col(EndpointDevice.reason) == "")
        .where(col(DeviceModule.phase) == "Healthy", col(DeviceModule.role).in_(("current", "side")))
        .group_by(col(DeviceModule.module), col(DeviceModule.version))
    )
    return {(module, version): count for module, version, count in session.exec(statement)}


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
