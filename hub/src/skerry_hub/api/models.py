"""Models and their versions: register, find, download, tag, delete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlmodel import Session
from starlette.requests import ClientDisconnect

from skerry_hub import environments, queries, registration, registry
from skerry_hub.api.common import Actor, Body, HubOf, Page, Pages, after_text, after_version
from skerry_hub.app import Hub
from skerry_hub.clock import now_ms
from skerry_hub.registration import Provenance
from skerry_hub.tables import Model, ModelVersion
from skerry_modules import package
from skerry_modules.errors import InputError
from skerry_modules.index import Limits

router = APIRouter(tags=["models"])

Name = Annotated[str, Path(description="The model's name", examples=["digits"], max_length=100)]
Number = Annotated[int, Path(description="The version's number", ge=1, lt=1 << 31, examples=[3])]
Reason = Annotated[str, Query(max_length=1000, description="Why, for the audit log")]


class FileView(BaseModel):
    path: str = Field(examples=["model.onnx"])
    sha256: str
    size: int = Field(description="Bytes")


class VersionView(BaseModel):
    name: str = Field(examples=["digits"])
    version: int = Field(examples=[3])
    digest: str = Field(description="SHA-256 of the module's index")
    size: int = Field(description="Bytes of all files")
    engine: str = Field(examples=["onnx"])
    tags: dict[str, str] = Field(examples=[{"stage": "candidate"}])
    signer: str = Field(description="Id of the publisher's key")
    git_commit: str
    git_branch: str
    git_remote: str
    git_dirty: bool
    created_by: str
    reason: str
    created_at: int = Field(description="Milliseconds since 1970")


class VersionDetail(VersionView):
    manifest: dict[str, Any]
    facts: dict[str, Any] = Field(description="What was read from the model file: operators, opset")
    files: list[FileView]
    environment: str = Field(description="`NAME:VERSION` of its environment; empty: none", examples=["vision:3"])
    holders: dict[str, list[str]] = Field(description="Devices (and rollouts) that need it, by why; empty: deletable")


class ModelView(BaseModel):
    name: str
    description: str
    last_version: int = Field(description="The highest number ever given; 0: none yet")
    created_at: int
    latest: VersionView | None = Field(None, description="The newest version that is there")


class NewModel(Body):
    name: str = Field(examples=["digits"])
    description: str = Field("", max_length=2000)


class Tags(Body):
    tags: dict[str, str] = Field(description="Replace all tags that were there", examples=[{"stage": "production"}])


@router.get("/models")
def list_models(hub: HubOf, paging: Pages) -> Page[ModelView]:
    """All models by name, each with its newest version."""
    with hub.db.read() as session:
        rows = registry.find_models(session, after=after_text(paging), limit=paging.limit + 1)
        return paging.page(rows, lambda shown: _model_views(session, shown), lambda row: [row.name])


@router.post("/models", status_code=201)
def create_model(hub: HubOf, actor: Actor, body: NewModel) -> ModelView:
    """Add a model before its first version, or describe it. Registering a version does this by itself."""
    with hub.db.session() as session:
        row = registry.create_model(session, body.name, description=body.description, actor=actor, now=now_ms())
        session.flush()
        view = _model_views(session, [row])[0]
    hub.bus.publish("models")
    return view


@router.get("/models/{name}")
def get_model(hub: HubOf, name: Name) -> ModelView:
    """One model."""
    with hub.db.read() as session:
        return _model_views(session, [registry.get_model(session, name)])[0]


@router.delete("/models/{name}", status_code=204)
def delete_model(hub: HubOf, actor: Actor, name: Name, reason: Reason = "") -> None:
    """Forget a model with all its versions; refused with `module.in_use` while a device holds one of them."""
    with hub.db.session() as session:
        registry.delete_model(session, name, actor=actor, now=now_ms(), reason=reason)
    hub.bus.publish("models")


@router.get("/models/{name}/versions")
def list_versions(
    hub: HubOf, paging: Pages, name: Name, tag: Annotated[list[str] | None, Query()] = None
) -> Page[VersionView]:
    """The versions of one model, newest first."""
    with hub.db.read() as session:
        registry.get_model(session, name)
    return find_versions(hub, paging, tag, name)


@router.get("/versions")
def find_versions(
    hub: HubOf,
    paging: Pages,
    tag: Annotated[
        list[str] | None, Query(description="`TagName=TagValue`, repeated or comma-separated; all must match")
    ] = None,
    model: Annotated[str, Query(max_length=100, description="Only versions of this model")] = "",
) -> Page[VersionView]:
    """Versions by tag, across models."""
    query = queries.parse(tag) if tag else None
    with hub.db.read() as session:
        rows = registry.find_versions(session, query, model=model, after=after_version(paging), limit=paging.limit + 1)
        return paging.page(rows, lambda shown: version_views(session, shown), lambda row: [row.name, row.version])


@router.post(
    "/models/{name}/versions",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The package, as `skerry modules pack` writes it",
            "content": {package.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def register_version(  # noqa: PLR0917 - FastAPI passes by name
    hub: HubOf,
    actor: Actor,
    request: Request,
    name: Name,
    reason: Annotated[str, Query(max_length=1000, description="Why this version is made")] = "",
    git_commit: Annotated[str, Query(max_length=100)] = "",
    git_branch: Annotated[str, Query(max_length=300)] = "",
    git_remote: Annotated[str, Query(max_length=1000)] = "",
    git_dirty: Annotated[bool, Query(description="The working tree had changes that are in no commit")] = False,
    tag: Annotated[list[str] | None, Query(description="`TagName=TagValue`, repeated")] = None,
    x_skerry_reason: Annotated[str | None, Header(max_length=1000)] = None,
) -> VersionDetail:
    """Register a signed package as the next version.

    The signature must be by a key that was added under `/keys`. The model's inputs and outputs are checked against the
    manifest. Numbers are consecutive; a refused package takes none. The same content again is `module.exists`, with
    the version that it is in `data.version`.
    """
    provenance = Provenance(
        actor=actor,
        reason=reason or x_skerry_reason or "",
        git_commit=git_commit,
        git_branch=git_branch,
        git_remote=git_remote,
        git_dirty=git_dirty,
        tags=queries.parse_tags(tag or ()),
    )
    declared = request.headers.get("content-length", "")
    body = UploadedBody(request.stream(), hub.settings.package_max_bytes, hub.settings.upload_idle_s)
    limits = Limits(
        max_files=hub.settings.package_max_files,
        max_file_bytes=hub.settings.package_max_bytes,
        max_total_bytes=hub.settings.package_max_bytes,
    )
    try:
        body.check(int(declared) if declared.isdigit() else 0)
        async with hub.uploads:
            view = await run_in_threadpool(_register, hub, name, body, provenance, limits)
    except ClientDisconnect:
        raise InputError(
            "request.invalid", "cannot register the package: its upload broke off; send it again"
        ) from None
    finally:
        # What a refused package still sends is read away: an early answer could be lost with the connection.
        with contextlib.suppress(ClientDisconnect, InputError):
            await body.drain()
    hub.bus.publish("models")
    return view


@router.get("/models/{name}/versions/{version}")
def get_version(hub: HubOf, name: Name, version: Number) -> VersionDetail:
    """One version with its manifest, files, and who needs it."""
    with hub.db.read() as session:
        return version_detail(session, registry.get_version(session, name, version))


@router.delete("/models/{name}/versions/{version}", status_code=204)
def delete_version(hub: HubOf, actor: Actor, name: Name, version: Number, reason: Reason = "") -> None:
    """Forget a version; refused with `module.in_use` while a device has it as desired, current or last-good."""
    with hub.db.session() as session:
        registry.delete_version(session, name, version, actor=actor, now=now_ms(), reason=reason)
    hub.bus.publish("models")


@router.put("/models/{name}/versions/{version}/tags")
def tag_version(hub: HubOf, actor: Actor, name: Name, version: Number, body: Tags) -> VersionView:
    """Replace a version's tags."""
    with hub.db.session() as session:
        registry.set_tags(session, name, version, body.tags, actor=actor, now=now_ms())
        session.flush()
        view = version_views(session, [registry.get_version(session, name, version)])[0]
    hub.bus.publish("models")
    return view


@router.get(
    "/models/{name}/versions/{version}/package",
    response_class=StreamingResponse,
    responses={200: {"content": {package.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
)
def download_package(hub: HubOf, name: Name, version: Number) -> StreamingResponse:
    """The package, byte for byte as it was registered."""
    with hub.db.read() as session:
        size, blocks = registry.package_of(session, hub.objects, name, version)
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f'attachment; filename="{name}-{version}{package.SUFFIX}"',
    }
    return StreamingResponse(blocks, media_type=package.MEDIA_TYPE, headers=headers)


@router.get(
    "/models/{name}/versions/{version}/files/{path:path}",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def download_file(hub: HubOf, name: Name, version: Number, path: str) -> StreamingResponse:
    """One file of a version."""
    with hub.db.read() as session:
        row = registry.file_of(session, name, version, path)
    file = hub.objects.open(row.sha256)
    headers = {
        "Content-Length": str(row.size),
        "ETag": f'"{row.sha256}"',
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
    }

    def blocks() -> Any:
        with file:
            while block := file.read(package.BLOCK_BYTES):
                yield block

    return StreamingResponse(blocks(), media_type="application/octet-stream", headers=headers)


class UploadedBody:
    """A request's body as a file to read from in a worker thread, at the pace of the reader.

    ``read`` may be called from one other thread only; the event loop must go on running meanwhile.
    """

    def __init__(self, stream: AsyncIterator[bytes], limit: int, idle_s: float) -> None:
        self._stream, self._limit, self._idle_s = stream, limit, idle_s
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(b"")
        self._taken = 0
        self._ended = False

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, at least one unless the body has ended."""
        if not self._buffer and not self._ended:
            self._buffer = memoryview(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result())
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return bytes(taken)

    def check(self, size: int) -> None:
        """Refuse a body of this size, declared or come, if it is over the limit.

        Raises:
            InputError: ``request.too_large``.
        """
        if size > self._limit:
            raise InputError(
                "request.too_large",
                f"cannot take a package of more than {self._limit} bytes: make it smaller, "
                "or raise SKERRY_HUB_PACKAGE_MAX_BYTES",
                limit=self._limit,
            )

    async def drain(self) -> None:
        """Read away what is left, as far as the limit goes."""
        while not self._ended:
            await self._next()

    async def _next(self) -> bytes:
        """Some of the body, as much as has come up to a block's size: each hop between threads costs the same."""
        pieces: list[bytes] = []
        size = 0
        while size < package.BLOCK_BYTES and not self._ended:
            try:
                piece = await asyncio.wait_for(anext(self._stream), self._idle_s)
            except StopAsyncIteration:
                self._ended = True
            except TimeoutError:
                self._ended = True
                raise InputError(
                    "request.invalid", f"cannot take the package: nothing came for {self._idle_s:g} s; send it again"
                ) from None
            else:
                pieces.append(piece)
                size += len(piece)
                self._taken += len(piece)
                self.check(self._taken)
        return b"".join(pieces)


def version_views(session: Session, rows: Sequence[ModelVersion]) -> list[VersionView]:
    """Versions as the API shows them."""
    tags = registry.tags_of(session, rows)
    return [VersionView(**_columns(row), tags=tags[row.name, row.version]) for row in rows]


def version_detail(session: Session, row: ModelVersion) -> VersionDetail:
    files = registry.files_of(session, row.name, row.version)
    return VersionDetail(
        **_columns(row),
        tags=registry.tags_of(session, [row])[row.name, row.version],
        manifest=msgspec.json.decode(row.manifest),
        facts=msgspec.json.decode(row.facts),
        files=[FileView(path=file.path, sha256=file.sha256, size=file.size) for file in files],
        environment=environments.used_by(session, row.name, row.version),
        holders=registry.holders(session, row.name, row.version),
    )


def _columns(row: ModelVersion) -> dict[str, Any]:
    return {field: getattr(row, field) for field in VersionView.model_fields if field != "tags"}


def _model_views(session: Session, rows: Sequence[Model]) -> list[ModelView]:
    latest = registry.latest_versions(session, [row.name for row in rows])
    views = {view.name: view for view in version_views(session, list(latest.values()))}
    return [
        ModelView(
            name=row.name,
            description=row.description,
            last_version=row.last_version,
            created_at=row.created_at,
            latest=views.get(row.name),
        )
        for row in rows
    ]


def _register(hub: Hub, name: str, body: UploadedBody, provenance: Provenance, limits: Limits) -> VersionDetail:
    row = registration.register(hub.db, hub.objects, name, body, provenance, limits=limits, now=now_ms())  # type: ignore[arg-type]
    with hub.db.read() as session:
        return version_detail(session, row)
