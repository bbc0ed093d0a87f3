"""The fleet's requests and latency of the last half hour, kept up to date from the telemetry table.

A cache and nothing more: it is filled from the database when it is first asked, follows the table by row id, and may
be thrown away at any time. It exists because the table has no index by time alone (the write path pays for each), and
a live page of a large fleet must not read a million rows.
"""

from __future__ import annotations

import threading
from typing import Final

from sqlalchemy import func, select
from sqlmodel import Session, col

from skerry_hub.console.series import Points, Series
from skerry_hub.tables import TelemetryRow

WIDTH_MS: Final = 5_000
SPAN_MS: Final = 1_800_000
MAX_ROWS: Final = 30_000
"""The most rows read at once, newest first: a large fleet's chart begins with what it has and grows from there."""


class Pulse:
    """Safe to ask from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series = Series(WIDTH_MS, SPAN_MS // WIDTH_MS)
        self._seen = 0

    def points(self, session: Session, now: int) -> Points:
        """The series up to ``now``."""
        with self._lock:
            self._series.move(now)
            self._follow(session, now)
            return self._series.shown(now)

    def _follow(self, session: Session, now: int) -> None:
        newest = session.execute(select(func.max(col(TelemetryRow.id)))).scalar() or 0
        if newest < self._seen:  # another database, or an emptied table
            self._series, self._seen = Series(WIDTH_MS, SPAN_MS // WIDTH_MS), 0
            self._series.move(now)
        if newest == self._seen:
            return
        statement = select(
            col(TelemetryRow.start_ms),
            col(TelemetryRow.end_ms),
            col(TelemetryRow.requests),
            col(TelemetryRow.errors),
            col(TelemetryRow.body),
        ).where(
            col(TelemetryRow.id) > max(self._seen, newest - MAX_ROWS),
            col(TelemetryRow.id) <= newest,
            col(TelemetryRow.role) == "live",
        )
        for start, end, requests, errors, body in session.execute(statement):
            self._series.add(start, end, requests, errors, body)
        self._seen = newest
