"""Batch jobs as people watch them: the list, one job's parts by state, and what each device did and does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, and_, case, func, select
from sqlmodel import Session, col

from skerry_hub import batches
from skerry_hub.batches import HUB, Share
from skerry_hub.console.queries.paging import PAGE_ROWS, Page, clamp
from skerry_hub.rules.batch import ACTIVE, PartState, Place, waiting
from skerry_hub.tables import BatchPart, BatchRow

ORDER = (PartState.DONE, PartState.RUNNING, PartState.FAILED, PartState.CANCELLED, PartState.QUEUED)
"""As the bars show them."""
MAX_CELLS = 1_000
MIN_SHARE = 0.02
"""Below this share done, how long the rest takes is anybody's guess."""


@dataclass
class BatchLine:
    """A job with its parts counted by state."""

    row: BatchRow
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def segments(self) -> list[tuple[str, int]]:
        return [(str(state), self.parts[state]) for state in ORDER if self.parts.get(state)]

    @property
    def active(self) -> bool:
        return self.row.state in ACTIVE


def lines(session: Session, *, state: str = "", module: str = "", number: int = 1) -> Page[BatchLine]:
    """Those at work first, then the newest."""
    conditions: list[ColumnElement[bool]] = []
    if state == "active":
        conditions.append(col(BatchRow.state).in_(ACTIVE))
    elif state:
        conditions.append(col(BatchRow.state) == state)
    if module:
        conditions.append(col(BatchRow.module) == module)
    where = and_(True, *conditions)
    total = session.execute(select(func.count()).select_from(BatchRow).where(where)).scalar_one()
    number = clamp(number, total)
    statement = (
        select(BatchRow)
        .where(where)
        .order_by(case((col(BatchRow.state).in_(ACTIVE), 0), else_=1), col(BatchRow.id).desc())
        .limit(PAGE_ROWS)
        .offset((number - 1) * PAGE_ROWS)
    )
    rows = list(session.execute(statement).scalars())
    counts = batches.counts(session, [row.id or 0 for row in rows])
    return Page([BatchLine(row, counts[row.id or 0]) for row in rows], number, total)


@dataclass(frozen=True)
class BatchPage:
    """One job. ``cells``: (number, state, device, code, share done) of its parts; ``left_s``: seconds, 0: unknown."""

    line: BatchLine
    cells: list[tuple[int, str, str, str, float]]
    shares: Page[Share]
    waiting: str
    left_s: float
    rate: float  # rows per second since it began


def one(session: Session, number: int, *, now: int, shares: int = 1) -> BatchPage:
    """One job, with one page of its devices.

    Raises:
        InputError: ``batch.unknown``.
    """
    row = batches.get(session, number)
    line = BatchLine(row, batches.counts(session, [number])[number])
    found = sorted(batches.shares_of(session, row), key=lambda share: (not share.running, not share.failed))
    places = {share.device: Place(device=share.device, online=share.online, serves=share.serves) for share in found}
    return BatchPage(
        line=line,
        cells=_cells(session, number),
        shares=_page(found, shares),
        waiting=waiting(places) if line.active and row.target != HUB else "",
        left_s=left_s(row, now),
        rate=_rate(row, now),
    )


def _page(found: Sequence[Share], number: int) -> Page[Share]:
    number = clamp(number, len(found))
    return Page(list(found[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]), number, len(found))


def _cells(session: Session, number: int) -> list[tuple[int, str, str, str, float]]:
    columns = (BatchPart.number, BatchPart.state, BatchPart.device, BatchPart.code, BatchPart.progress)
    statement = (
        select(*(col(column) for column in columns))
        .where(col(BatchPart.batch) == number)
        .order_by(col(BatchPart.number))
        .limit(MAX_CELLS)
    )
    return [(part, state, device, code, share) for part, state, device, code, share in session.execute(statement)]


def left_s(row: BatchRow, now: int) -> float:
    """How long the rest takes at the pace so far, in seconds; 0 where that cannot be said. Pure."""
    if row.state not in ACTIVE or not row.started_at or row.progress < MIN_SHARE:
        return 0.0
    return max(0.0, (now - row.started_at) / 1000 * (1 - row.progress) / row.progress)


def _rate(row: BatchRow, now: int) -> float:
    took = (row.ended_at or now) - row.started_at
    return 1000 * row.scored / took if row.started_at and took > 0 else 0.0
