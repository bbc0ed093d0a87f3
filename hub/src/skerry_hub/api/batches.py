"""Batch jobs: upload an input, begin, watch, cancel, fetch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from sqlmodel import Session
from starlette.requests import ClientDisconnect

from skerry_hub import batches, registry
from skerry_hub.api.common import Actor, Body, HubOf, Page, Pages, after_number
from skerry_hub.batch import inputs as batch_inputs
from skerry_hub.batches import HUB, NewBatch, Share
from skerry_hub.clock import now_ms
from skerry_hub.rules.batch import JobState
from skerry_hub.tables import BatchPart, BatchRow, ModelVersion
from skerry_modules.batches import MAX_LIST_BYTES, PIECE_BYTES
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest

router = APIRouter(tags=["batches"])

Id = Annotated[int, Path(description="The job's number", ge=1, lt=1 << 31, examples=[7])]
Digest = Annotated[str, Path(description="SHA-256 of the content", pattern=r"^[0-9a-f]{64}$")]
Names = Annotated[list[str], Field(max_length=1000)]


class BatchView(BaseModel):
    id: int
    module: str = Field(examples=["digits"])
    version: int = Field(examples=[3])
    endpoint: str = Field(description="By which the version was named; empty: by its module")
    target: str = Field(description="`hub`, or a tag query", examples=["site=lab"])
    source: str = Field(description="`upload`, or `device`: each device scores an input of its own")
    input: str = Field(description="The upload's name, or the path on the devices")
    columns: list[str]
    keep: list[str] = Field(description="Columns that go beside the scores")
    devices: list[str]
    rows: int = Field(description="Rows of one request at most")
    part_rows: int
    state: str = Field(description="`queued`, `running`, `done`, `failed` or `cancelled`")
    progress: float = Field(description="0 to 1")
    unit: str = Field(description="`rows` or `files`; empty: not known yet")
    units: int = Field(description="Of the whole input; 0: not known yet")
    scored: int = Field(description="Rows that were scored so far")
    errors: int = Field(description="Rows that could not be scored")
    parts: dict[str, int] = Field(description="How many parts are in each state", examples=[{"done": 3, "running": 1}])
    code: str = Field(description="Why it failed", examples=["scoring.unknown_input"])
    message: str = Field(description="Why it failed, or what it waits for")
    result_size: int = Field(description="Bytes of the Parquet file; 0: there is none")
    errors_size: int = Field(description="Bytes of the file of row errors; 0: there is none")
    created_by: str
    reason: str
    created_at: int = Field(description="Milliseconds since 1970")
    started_at: int
    updated_at: int
    ended_at: int = Field(description="0 while it goes on")


class ShareView(BaseModel):
    device: str = Field(description="`hub`: the hub itself")
    online: bool
    serves: bool = Field(description="Whether the version serves there now")
    parts: int = Field(description="Parts that it has or had")
    done: int
    failed: int
    running: int
    scored: int = Field(description="Rows")
    errors: int = Field(description="Rows")
    progress: float = Field(description="Of the part that it has now, 0 to 1")
    code: str = Field(description="What last went wrong there", examples=["resource.no_space"])
    message: str
    at: int = Field(description="When something last changed there")


class BatchDetail(BatchView):
    shares: list[ShareView] = Field(description="What each device did and does")


class PartView(BaseModel):
    number: int
    state: str = Field(description="`queued`, `running`, `done`, `failed` or `cancelled`")
    device: str = Field(description="Who has it, or had it last; `hub`: the hub itself")
    given: list[str] = Field(description="All devices that it was ever given to")
    attempts: int
    failures: int
    first: int = Field(description="Number of its first row")
    units: int = Field(description="Rows or files")
    progress: float
    scored: int
    errors: int
    code: str
    message: str
    given_at: int
    ended_at: int


class Digests(Body):
    digests: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(max_length=10_000)


class NewBatchBody(Body):
    model: str = Field(
        max_length=200,
        description="`NAME:VERSION`, an endpoint, or a module (its newest version)",
        examples=["digits:3"],
    )
    target: str = Field(max_length=1000, description="A tag query, or `hub`", examples=["site=lab"])
    upload: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="Digest of the uploaded list of files")
    path: str = Field("", max_length=1000, description="Instead of an upload: a file or folder on each device")
    input: str = Field("", max_length=1000, description="The upload's name, for people")
    columns: Names = Field([], description="The input's columns in order; empty: by name")
    keep: Names = Field([], description="Columns that go beside the scores")
    rows: int = Field(1024, ge=1, le=1_000_000, description="Rows of one request at most")
    part_rows: int = Field(2000, ge=1, le=10_000_000, description="Rows that a kill may cost")
    reason: str = Field("", max_length=1000)


class Reason(Body):
    reason: str = Field("", max_length=1000)


@router.post("/batches/uploads/missing")
def missing_pieces(hub: HubOf, body: Digests) -> Digests:
    """Which of these pieces the hub does not have yet: the others need not be sent."""
    return Digests(digests=[one for one in dict.fromkeys(body.digests) if not hub.objects.exists(one)])


@router.put("/batches/uploads/{digest}", status_code=204)
async def put_piece(hub: HubOf, request: Request, digest: Digest) -> None:
    """One piece of an input (4 MiB), or the list of its files, by its SHA-256. Sending it again does no harm."""
    async with hub.uploads:
        data = await _body(request, hub.settings.upload_idle_s)
        await asyncio.to_thread(hub.objects.put_stream, data, expected=digest)


async def _body(request: Request, idle_s: float) -> bytes:
    blocks: list[bytes] = []
    size = 0
    stream = request.stream()
    try:
        while True:
            block = await asyncio.wait_for(anext(stream), idle_s)
            size += len(block)
            if size > MAX_LIST_BYTES:
                raise InputError(
                    "request.too_large",
                    f"cannot take a piece of more than {MAX_LIST_BYTES} bytes: cut it into pieces of {PIECE_BYTES}",
                )
            blocks.append(block)
    except StopAsyncIteration:
        return b"".join(blocks)
    except (TimeoutError, ClientDisconnect):
        raise InputError("request.invalid", "cannot take the piece: it came too slowly, or not whole") from None


@router.post("/batches", status_code=201)
def start_batch(hub: HubOf, actor: Actor, body: NewBatchBody) -> BatchDetail:
    """Begin a job. What can be known to be wrong is refused here, and then nothing is begun."""
    wish = msgspec.convert(body.model_dump(), NewBatch)
    with hub.db.read() as session:
        row = batches.checked(session, wish)
        version = registry.get_version(session, row.module, row.version)
        manifest = msgspec.json.decode(version.manifest, type=Manifest)
    _check(hub, wish, version, manifest)
    with hub.db.session() as session:
        row = batches.create(session, wish, batches.checked(session, wish), actor=actor, now=now_ms())
        view = _detail(session, row)
    hub.bus.publish("batches")
    return view


def _check(hub: HubOf, wish: NewBatch, version: ModelVersion, manifest: Manifest) -> None:
    if wish.target == HUB:
        from skerry_hub.batch.here import check_environment, find_program

        find_program()
        check_environment(hub.objects, version)
    if wish.upload:
        upload = batch_inputs.read_list(hub.objects, wish.upload)
        batch_inputs.check(hub.objects, upload, manifest, wish.columns, wish.keep)


@router.get("/batches")
def list_batches(
    hub: HubOf,
    paging: Pages,
    state: Annotated[str, Query(max_length=20, description="One state only")] = "",
    module: Annotated[str, Query(max_length=100)] = "",
) -> Page[BatchView]:
    """Jobs, newest first."""
    if state and state not in list(JobState):
        raise InputError("request.invalid", f"cannot find the state {state!r}: one of {', '.join(JobState)}")
    with hub.db.read() as session:
        rows = batches.find(session, state=state, module=module, before=after_number(paging), limit=paging.limit + 1)
        return paging.page(rows, lambda shown: _views(session, shown), lambda row: [row.id])


@router.get("/batches/{batch}")
def get_batch(hub: HubOf, batch: Id) -> BatchDetail:
    """One job, and what each device does of it."""
    with hub.db.read() as session:
        return _detail(session, batches.get(session, batch))


@router.get("/batches/{batch}/parts")
def list_batch_parts(hub: HubOf, paging: Pages, batch: Id) -> Page[PartView]:
    """A job's parts by number."""
    with hub.db.read() as session:
        batches.get(session, batch)
        # The cursor is the number after the last one shown, so that part 0 has one too.
        after = after_number(paging) - 1
        rows = batches.parts_of(session, batch, after=after, limit=paging.limit + 1)
        return paging.page(rows, _part_views, lambda row: [row.number + 1])


@router.post("/batches/{batch}/cancel")
def cancel_batch(hub: HubOf, actor: Actor, batch: Id, body: Reason) -> BatchDetail:
    """End a job before its time. Devices are told; what was scored is not kept."""
    with hub.db.session() as session:
        row = batches.cancel(session, batch, actor=actor, reason=body.reason, now=now_ms())
        session.flush()
        view = _detail(session, row)
    hub.bus.publish("batches", f"batch:{batch}")
    return view


@router.get(
    "/batches/{batch}/result",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}}}}
    },
)
def download_batch(hub: HubOf, batch: Id) -> FileResponse:
    """The scores, as Parquet. Takes `Range`, so that a broken download goes on."""
    return _file(hub, batch, "result", "application/vnd.apache.parquet", "scores.parquet")


@router.get(
    "/batches/{batch}/errors",
    response_class=FileResponse,
    responses={200: {"content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}}}},
)
def download_batch_errors(hub: HubOf, batch: Id) -> FileResponse:
    """The rows that could not be scored, one JSON object per line: `row`, `file`, `device`, `code`, `reason`."""
    return _file(hub, batch, "errors_file", "application/jsonl", "errors.jsonl")


def _file(hub: HubOf, batch: int, column: str, kind: str, name: str) -> FileResponse:
    with hub.db.read() as session:
        row = batches.get(session, batch)
    key = getattr(row, column)
    if not key:
        why = "has no such file" if row.ended_at else f"is {row.state} still"
        raise InputError("batch.wrong_state", f"cannot fetch {name} of the batch job {batch}: it {why}")
    path = hub.objects.key_path(key)
    if not path.is_file():
        raise InputError("request.not_found", f"cannot find {name} of the batch job {batch}: it is not in the store")
    headers = {"X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type=kind, filename=f"batch-{batch}-{name}", headers=headers)


def _views(session: Session, rows: Sequence[BatchRow]) -> list[BatchView]:
    counts = batches.counts(session, [row.id for row in rows if row.id is not None])
    return [BatchView(**_columns(row), parts=counts[row.id or 0]) for row in rows]


def _detail(session: Session, row: BatchRow) -> BatchDetail:
    counts = batches.counts(session, [row.id or 0])[row.id or 0]
    shares = [_share(one) for one in batches.shares_of(session, row)]
    return BatchDetail(**_columns(row), parts=counts, shares=shares)


def _columns(row: BatchRow) -> dict[str, Any]:
    facts = batches.facts(row)
    return {name: facts[name] for name in BatchView.model_fields if name != "parts"}


def _share(one: Share) -> ShareView:
    return ShareView(**msgspec.structs.asdict(one))


def _part_views(rows: Sequence[BatchPart]) -> list[PartView]:
    plain = [name for name in PartView.model_fields if name != "given"]
    return [
        PartView(**{name: getattr(row, name) for name in plain}, given=list(batches.names_of(row.given)))
        for row in rows
    ]
