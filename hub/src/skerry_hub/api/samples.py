"""What devices measured: health and telemetry by device, and captured samples with their Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlmodel import col, select

from skerry_hub import devices
from skerry_hub.api.common import HubOf, Page, Pages, Paging, after_number, after_text
from skerry_hub.api.devices import Id
from skerry_hub.objects import BLOCK_BYTES
from skerry_hub.tables import HealthRow, SampleRow, TelemetryRow
from skerry_modules import messages
from skerry_modules.errors import InputError

router = APIRouter(tags=["data"])

SAMPLES_PREFIX = "samples/"


class HealthView(BaseModel):
    id: int
    at: int = Field(description="The device's clock, milliseconds since 1970")
    health: dict[str, Any] = Field(description="As the device told it: percentages of all cores, bytes; −1: unknown")


class TelemetryView(BaseModel):
    id: int
    module: str
    version: int
    endpoint: str
    role: str = Field(description="live, or shadow: scored copies that nobody was answered with")
    start_ms: int
    end_ms: int
    requests: int
    errors: int
    rejected: int
    p50_us: float
    p99_us: float


class SampleView(BaseModel):
    id: str
    device: str
    module: str
    version: int
    digest: str
    at: int
    received_at: int
    reason: str = Field(examples=["low-confidence"])
    probability: float = Field(description="The chance with which the policy kept it")
    file: str = Field(description="The Parquet file that holds it; empty: not written yet")


class SampleFile(BaseModel):
    key: str = Field(examples=["samples/digits/2026-11-20/1.parquet"])
    size: int = Field(description="Bytes")


@router.get("/devices/{device}/health")
def list_health(hub: HubOf, paging: Pages, device: Id) -> Page[HealthView]:
    """The device's own health, newest first."""
    statement = select(HealthRow).where(col(HealthRow.device) == device)
    if before := after_number(paging):
        statement = statement.where(col(HealthRow.id) < before)
    with hub.db.read() as session:
        devices.get(session, device)
        rows = session.exec(statement.order_by(col(HealthRow.id).desc()).limit(paging.limit + 1)).all()
    return paging.page(rows, _health_views, lambda row: [row.id])


@router.get("/devices/{device}/telemetry")
def list_telemetry(
    hub: HubOf, paging: Pages, device: Id, module: Annotated[str, Query(max_length=100)] = ""
) -> Page[TelemetryView]:
    """What each module version did, window by window, newest first."""
    statement = select(TelemetryRow).where(col(TelemetryRow.device) == device)
    if module:
        statement = statement.where(col(TelemetryRow.module) == module)
    if before := after_number(paging):
        statement = statement.where(col(TelemetryRow.id) < before)
    with hub.db.read() as session:
        devices.get(session, device)
        rows = session.exec(statement.order_by(col(TelemetryRow.id).desc()).limit(paging.limit + 1)).all()
    return paging.page(rows, _telemetry_views, lambda row: [row.id])


@router.get("/samples")
def list_samples(
    hub: HubOf,
    paging: Pages,
    module: Annotated[str, Query(max_length=100)] = "",
    version: Annotated[int | None, Query(ge=1, lt=1 << 31)] = None,
    device: Annotated[str, Query(max_length=100)] = "",
) -> Page[SampleView]:
    """Captured samples, newest first."""
    statement = select(SampleRow)
    for column, value in (("module", module), ("device", device), ("version", version)):
        if value:
            statement = statement.where(col(getattr(SampleRow, column)) == value)
    received, id_ = col(SampleRow.received_at), col(SampleRow.id)
    if after := _after_sample(paging):
        statement = statement.where((received < after[0]) | ((received == after[0]) & (id_ < after[1])))
    with hub.db.read() as session:
        rows = session.exec(statement.order_by(received.desc(), id_.desc()).limit(paging.limit + 1)).all()
    return paging.page(rows, _sample_views, lambda row: [row.received_at, row.id])


@router.get("/samples/files")
def list_sample_files(
    hub: HubOf, paging: Pages, module: Annotated[str, Query(max_length=100)] = ""
) -> Page[SampleFile]:
    """The Parquet files that hold the samples, by key."""
    after = after_text(paging)
    prefix = f"{SAMPLES_PREFIX}{module}/" if module else SAMPLES_PREFIX
    keys = [key for key in hub.objects.keys(prefix) if key > after][: paging.limit + 1]
    return paging.page(
        keys,
        lambda shown: [SampleFile(key=key, size=hub.objects.key_path(key).stat().st_size) for key in shown],
        lambda key: [key],
    )


@router.get(
    "/samples/files/{key:path}",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}}}}
    },
)
def download_samples(hub: HubOf, key: str) -> StreamingResponse:
    """One Parquet file."""
    if not key.startswith(SAMPLES_PREFIX):
        raise InputError("request.not_found", f"cannot find the sample file {key[:200]!r}: see /api/v1/samples/files")
    file = hub.objects.open_key(key)

    def blocks() -> Iterator[bytes]:
        with file:
            while block := file.read(BLOCK_BYTES):
                yield block

    name = key.rpartition("/")[2].replace('"', "")
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(blocks(), media_type="application/vnd.apache.parquet", headers=headers)


def _health_views(rows: Sequence[HealthRow]) -> list[HealthView]:
    decode = msgspec.msgpack.Decoder(messages.Health).decode
    return [HealthView(id=row.id or 0, at=row.at, health=msgspec.structs.asdict(decode(row.body))) for row in rows]


def _telemetry_views(rows: Sequence[TelemetryRow]) -> list[TelemetryView]:
    return [TelemetryView(**{name: getattr(row, name) for name in TelemetryView.model_fields}) for row in rows]


def _sample_views(rows: Sequence[SampleRow]) -> list[SampleView]:
    return [SampleView(**{name: getattr(row, name) for name in SampleView.model_fields}) for row in rows]


def _after_sample(paging: Paging) -> tuple[int, str] | None:
    match paging.after:
        case []:
            return None
        case [int() as received, str() as sample] if 0 <= received < 1 << 63 and "\0" not in sample:
            return received, sample
    raise InputError("request.invalid", "cannot use the cursor: give back `next` of the page before as it is")
