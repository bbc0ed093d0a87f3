"""How long the steps of a pipeline take, from the newest windows that devices sent."""

from __future__ import annotations

import contextlib

import msgspec
from sqlalchemy import select
from sqlmodel import Session, col

from skerry_hub.tables import TelemetryRow
from skerry_modules.errors import PeerError
from skerry_modules.histogram import Histogram
from skerry_modules.messages import Distribution

WINDOWS = 200
"""So many of the newest windows are looked at, of all devices."""


class _Window(msgspec.Struct):
    """What this page needs of a telemetry message."""

    steps: dict[str, Distribution] = {}


_decoder = msgspec.msgpack.Decoder(_Window)


def medians(session: Session, name: str, version: int, windows: int = WINDOWS) -> dict[str, float]:
    """Median microseconds of each step that was timed, by its name."""
    statement = (
        select(col(TelemetryRow.body))
        .where(col(TelemetryRow.module) == name, col(TelemetryRow.version) == version)
        .order_by(col(TelemetryRow.id).desc())
        .limit(windows)
    )
    merged: dict[str, Histogram] = {}
    for (body,) in session.execute(statement):
        for step, wire in _decoder.decode(body).steps.items():
            with contextlib.suppress(PeerError):  # edges of its own: no device of ours sends that
                merged.setdefault(step, Histogram()).merge(Histogram.from_wire(wire))
    return {step: times.quantile(0.5) for step, times in merged.items() if times.count}
