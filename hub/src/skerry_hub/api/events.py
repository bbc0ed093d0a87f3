"""What devices told that is worth a person's eye, and who did what on the hub: both newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from skerry_hub.api.common import HubOf, Page, Pages, after_number
from skerry_hub.tables import Audit, EventRow

router = APIRouter(tags=["events"])


class EventView(BaseModel):
    id: int
    device: str
    at: int = Field(description="The device's clock, milliseconds since 1970")
    received_at: int = Field(description="The hub's clock, milliseconds since 1970")
    severity: str = Field(examples=["error"])
    code: str = Field(examples=["install.golden_failed"])
    message: str
    module: str
    version: int
    data: dict[str, Any]


class AuditView(BaseModel):
    id: int
    at: int
    actor: str = Field(examples=["local"])
    action: str = Field(examples=["version.register"])
    subject: str = Field(examples=["digits:3"])
    reason: str
    data: dict[str, Any]


@router.get("/events")
def list_events(
    hub: HubOf,
    paging: Pages,
    device: Annotated[str, Query(max_length=100)] = "",
    severity: Annotated[list[str] | None, Query(description="Only these, repeated")] = None,
) -> Page[EventView]:
    """Events of all devices, newest first."""
    with hub.db.read() as session:
        rows = events_of(
            session, device=device, severities=severity or (), before=after_number(paging), limit=paging.limit + 1
        )
        return paging.page(rows, event_views, lambda row: [row.id])


@router.get("/audit")
def list_audit(hub: HubOf, paging: Pages, subject: Annotated[str, Query(max_length=200)] = "") -> Page[AuditView]:
    """Who did what, when and why, newest first."""
    statement = select(Audit).order_by(col(Audit.id).desc()).limit(paging.limit + 1)
    if before := after_number(paging):
        statement = statement.where(col(Audit.id) < before)
    if subject:
        statement = statement.where(col(Audit.subject) == subject)
    with hub.db.read() as session:
        return paging.page(session.exec(statement).all(), _audit_views, lambda row: [row.id])


def events_of(
    session: Session, *, device: str = "", severities: Sequence[str] = (), before: int = 0, limit: int
) -> Sequence[EventRow]:
    """Events, newest received first."""
    statement = select(EventRow).order_by(col(EventRow.id).desc()).limit(limit)
    if device:
        statement = statement.where(col(EventRow.device) == device)
    if severities:
        statement = statement.where(col(EventRow.severity).in_(severities))
    if before:
        statement = statement.where(col(EventRow.id) < before)
    return session.exec(statement).all()


def event_views(rows: Sequence[EventRow]) -> list[EventView]:
    return [EventView(**{**row.model_dump(), "data": msgspec.json.decode(row.data)}) for row in rows]


def _audit_views(rows: Sequence[Audit]) -> list[AuditView]:
    return [AuditView(**{**row.model_dump(), "data": msgspec.json.decode(row.data)}) for row in rows]
