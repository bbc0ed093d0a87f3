"""Environments: names, versions, locks, and the wheels that packing another module with them needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlmodel import Session

from skerry_hub import environments
from skerry_hub.api.common import HubOf, Page, Pages, after_text
from skerry_hub.tables import Environment, EnvironmentVersion
from skerry_modules import package
from skerry_modules.errors import InputError

router = APIRouter(tags=["environments"])

Name = Annotated[str, Path(description="The environment's name", examples=["vision"], max_length=100)]
Number = Annotated[int, Path(description="The version's number", ge=1, lt=1 << 31, examples=[3])]
Digest = Annotated[str, Path(description="The wheel's SHA-256", pattern="^[0-9a-f]{64}$")]


class EnvironmentVersionView(BaseModel):
    name: str = Field(examples=["vision"])
    version: int = Field(examples=[3])
    digest: str = Field(description="SHA-256 of the lock: what the environment is known by on devices")
    requirements: list[str] = Field(examples=[["scikit-learn==1.7.2"]])
    targets: list[str] = Field(description="The kinds of devices that it was locked for")
    size: int = Field(description="Bytes of all wheels")
    modules: list[str] = Field(description="The module versions that use it")
    created_by: str
    created_at: int = Field(description="Milliseconds since 1970")


class EnvironmentVersionDetail(EnvironmentVersionView):
    lock: dict[str, Any] = Field(description="For each kind of device, its wheels with SHA-256 and sizes")


class EnvironmentView(BaseModel):
    name: str
    last_version: int
    created_at: int
    versions: list[EnvironmentVersionView] = Field(description="Newest first")


@router.get("/environments")
def list_environments(hub: HubOf, paging: Pages) -> Page[EnvironmentView]:
    """All environments by name, each with its versions."""
    with hub.db.read() as session:
        rows = environments.find(session, after=after_text(paging), limit=paging.limit + 1)
        return paging.page(rows, lambda shown: _views(session, list(shown)), lambda row: [row.name])


@router.get("/environments/{name}")
def get_environment(hub: HubOf, name: Name) -> EnvironmentView:
    """One environment with its versions."""
    with hub.db.read() as session:
        return _views(session, [environments.get(session, name)])[0]


@router.get("/environments/{name}/versions/{version}")
def get_environment_version(hub: HubOf, name: Name, version: Number) -> EnvironmentVersionDetail:
    """One version with its lock."""
    with hub.db.read() as session:
        row = environments.get_version(session, name, version)
        view = _version(row, environments.modules_of(session, name))
    return EnvironmentVersionDetail(**view.model_dump(), lock=msgspec.json.decode(row.lock))


@router.get(
    "/environments/{name}/versions/{version}/wheels/{sha256}",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def download_wheel(hub: HubOf, name: Name, version: Number, sha256: Digest) -> StreamingResponse:
    """One wheel of an environment."""
    with hub.db.read() as session:
        lock = environments.lock_of(environments.get_version(session, name, version))
    wheel = next((wheel for wheel in lock.wheels().values() if wheel.sha256 == sha256), None)
    if wheel is None:
        raise InputError("request.not_found", f"cannot find the wheel {sha256[:12]} in {name}:{version}: see its lock")
    file = hub.objects.open(sha256)

    def blocks() -> Iterator[bytes]:
        with file:
            while block := file.read(package.BLOCK_BYTES):
                yield block

    headers = {
        "Content-Length": str(wheel.size),
        "ETag": f'"{sha256}"',
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(blocks(), media_type="application/octet-stream", headers=headers)


def _views(session: Session, rows: list[Environment]) -> list[EnvironmentView]:
    versions = environments.versions_of(session, [row.name for row in rows])
    return [
        EnvironmentView(
            name=row.name,
            last_version=row.last_version,
            created_at=row.created_at,
            versions=[_version(one, environments.modules_of(session, row.name)) for one in versions[row.name]],
        )
        for row in rows
    ]


def _version(row: EnvironmentVersion, modules: dict[int, list[str]]) -> EnvironmentVersionView:
    lock = environments.lock_of(row)
    return EnvironmentVersionView(
        name=row.name,
        version=row.version,
        digest=row.digest,
        requirements=list(lock.requirements),
        targets=[target.label for target in lock.targets],
        size=row.size,
        modules=modules.get(row.version, []),
        created_by=row.created_by,
        created_at=row.created_at,
    )
