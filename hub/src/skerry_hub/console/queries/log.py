"""What happened: events of devices, the audit log, captured samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Select, and_, func, select
from sqlmodel import Session, col

from skerry_hub.console.queries.paging import PAGE_ROWS, Page, clamp
from skerry_hub.tables import Audit, EventRow, SampleRow


def latest_events(session: Session, limit: int, device: str = "") -> list[EventRow]:
    """The newest events, of all devices or of one."""
    statement = select(EventRow)
    if device:
        statement = statement.where(col(EventRow.device) == device)
    statement = statement.order_by(col(EventRow.received_at).desc(), col(EventRow.id).desc()).limit(limit)
    return list(session.execute(statement).scalars())


def events(
    session: Session, *, severity: str = "", device: str = "", code: str = "", number: int = 1
) -> Page[EventRow]:
    conditions = [
        column == value
        for column, value in (
            (col(EventRow.severity), severity),
            (col(EventRow.device), device),
            (col(EventRow.code), code),
        )
        if value
    ]
    statement = select(EventRow).where(and_(True, *conditions))
    order = (col(EventRow.received_at).desc(), col(EventRow.id).desc())
    return _page(session, statement, order, number)


def why(row: Audit) -> str:
    """The reason that was given, or what the hub noted itself."""
    return row.reason or str(msgspec.json.decode(row.data or "{}").get("message", ""))


def address(row: Audit) -> str:
    """The page of what an entry is about; empty where it has none, or is gone by the entry itself. Pure."""
    kind, _, deed = row.action.partition(".")
    if deed in ("delete", "remove"):
        return ""
    match kind:
        case "rollout":
            return f"/rollouts/{row.subject.removeprefix('rollout:')}"
        case "device" | "endpoint":
            return f"/{kind}s/{row.subject}"
        case "batch":
            return f"/batches/{row.subject}"
        case "model":
            return f"/models/{row.subject}"
        case "version" if ":" in row.subject:
            name, _, number = row.subject.rpartition(":")
            return f"/models/{name}/versions/{number}"
    return ""


def audit(session: Session, *, subject: str = "", actor: str = "", number: int = 1) -> Page[Audit]:
    conditions = []
    if subject:
        conditions.append(col(Audit.subject).contains(subject, autoescape=True))
    if actor:
        conditions.append(col(Audit.actor) == actor)
    statement = select(Audit).where(and_(True, *conditions))
    return _page(session, statement, (col(Audit.at).desc(), col(Audit.id).desc()), number)


def actors(session: Session) -> list[str]:
    return list(session.execute(select(col(Audit.actor)).distinct().order_by(col(Audit.actor))).scalars())


def _page(session: Session, statement: Select[Any], order: tuple[Any, ...], number: int) -> Page[Any]:
    total = session.execute(select(func.count()).select_from(statement.subquery())).scalar_one()
    number = clamp(number, total)
    rows = session.execute(statement.order_by(*order).limit(PAGE_ROWS).offset((number - 1) * PAGE_ROWS)).scalars()
    return Page(rows=list(rows), number=number, total=total)


@dataclass(frozen=True)
class SampleGroup:
    """How many rows of one version were kept, and why."""

    module: str
    version: int
    reason: str
    count: int
    newest: int
    waiting: int  # received, not yet in a Parquet file


def sample_groups(session: Session) -> list[SampleGroup]:
    statement = (
        select(
            col(SampleRow.module),
            col(SampleRow.version),
            col(SampleRow.reason),
            func.count(),
            func.max(col(SampleRow.at)),
            func.count(col(SampleRow.body)),
        )
        .group_by(col(SampleRow.module), col(SampleRow.version), col(SampleRow.reason))
        .order_by(col(SampleRow.module), col(SampleRow.version).desc(), col(SampleRow.reason))
    )
    return [SampleGroup(*row) for row in session.execute(statement)]


@dataclass(frozen=True)
class SampleLine:
    """One captured row, without its tensors."""

    id: str
    device: str
    module: str
    version: int
    at: int
    received_at: int
    reason: str
    probability: float
    file: str


def samples(session: Session, *, module: str = "", reason: str = "", number: int = 1) -> Page[SampleLine]:
    conditions = [
        column == value for column, value in ((col(SampleRow.module), module), (col(SampleRow.reason), reason)) if value
    ]
    where = and_(True, *conditions)
    total = session.execute(select(func.count()).select_from(SampleRow).where(where)).scalar_one()
    number = clamp(number, total)
    columns = [getattr(SampleRow, name) for name in SampleLine.__dataclass_fields__]
    statement = (
        select(*columns)
        .where(where)
        .order_by(col(SampleRow.received_at).desc(), col(SampleRow.id))
        .limit(PAGE_ROWS)
        .offset((number - 1) * PAGE_ROWS)
    )
    return Page(rows=[SampleLine(*row) for row in session.execute(statement)], number=number, total=total)


@dataclass(frozen=True)
class SampleFile:
    """A Parquet file in the object store."""

    key: str
    module: str
    version: int
    rows: int
    first: int
    last: int


def sample_files(session: Session, limit: int = 20) -> list[SampleFile]:
    """The newest Parquet files."""
    statement = (
        select(
            col(SampleRow.file),
            func.min(col(SampleRow.module)),
            func.min(col(SampleRow.version)),
            func.count(),
            func.min(col(SampleRow.at)),
            func.max(col(SampleRow.at)).label("last"),
        )
        .where(col(SampleRow.file) != "")
        .group_by(col(SampleRow.file))
        .order_by(func.max(col(SampleRow.at)).desc())
        .limit(limit)
    )
    return [SampleFile(*row) for row in session.execute(statement)]
