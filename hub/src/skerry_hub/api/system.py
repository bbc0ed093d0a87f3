"""The hub itself: its state, keys and profiles, what its error codes mean, and the stream of nudges."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import func
from sqlmodel import col, select

from skerry_hub import keys
from skerry_hub.api.common import Actor, Body, HubOf, Page, Pages, after_text
from skerry_hub.clock import now_ms
from skerry_hub.live import LiveResponse
from skerry_hub.rules.rollout import ACTIVE
from skerry_hub.tables import Device, Model, PublisherKey, Rollout
from skerry_modules import profiles
from skerry_modules.errors import CODES, InputError

router = APIRouter(tags=["hub"])


class MissingView(BaseModel):
    digest: str = Field(description="Its SHA-256")
    part_of: list[str] = Field(description="What it is: files of some versions", examples=[["model.onnx of digits:3"]])
    at: int = Field(description="When it was first missed; milliseconds since 1970")


class StatusView(BaseModel):
    version: str
    hub_key: str = Field(description="The key that signs desired documents: `ed25519:<base64> hub`")
    database: str = Field(description="Its URL without the password")
    broker: str = Field(description="The broker as devices reach it")
    broker_connected: bool
    devices: int
    devices_online: int
    models: int
    rollouts_active: int
    objects_missing: list[MissingView] = Field(
        description="Objects that devices asked for since the hub started and that its store does not have (100 at "
        "most): restore the store from a backup, or register the same files again"
    )


class KeyView(BaseModel):
    keyid: str
    text: str = Field(examples=["ed25519:MCowBQYDK2VwAyEA… alice"])
    added_by: str
    added_at: int


class NewKey(Body):
    text: str = Field(max_length=500, description="`ed25519:<base64> [name]`, as `skerry keys show` prints it")


class CodeView(BaseModel):
    code: str
    meaning: str


@router.get("/status")
def status(hub: HubOf) -> StatusView:
    """How the hub is."""
    missing = list(hub.streaming.delivery.missing.values()) if hub.streaming is not None else []
    with hub.db.read() as session:
        total = session.exec(select(func.count()).select_from(Device)).one()
        online = session.exec(select(func.count()).select_from(Device).where(col(Device.online))).one()
        models = session.exec(select(func.count()).select_from(Model)).one()
        rollouts = session.exec(select(func.count()).select_from(Rollout).where(col(Rollout.state).in_(ACTIVE))).one()
    return StatusView(
        version=installed_version("skerry"),
        hub_key=hub.key.public.text(),
        database=str(hub.db),
        broker=hub.broker.public_url,
        broker_connected=hub.connected,
        devices=total,
        devices_online=online,
        models=models,
        rollouts_active=rollouts,
        objects_missing=[MissingView(**msgspec.structs.asdict(one)) for one in missing[:100]],
    )


@router.get("/keys")
def list_keys(hub: HubOf, paging: Pages) -> Page[KeyView]:
    """Publishers whose packages the hub accepts and devices trust."""
    statement = select(PublisherKey).where(col(PublisherKey.keyid) > after_text(paging))
    with hub.db.read() as session:
        rows = session.exec(statement.order_by(col(PublisherKey.keyid)).limit(paging.limit + 1)).all()
    return paging.page(rows, lambda shown: [KeyView(**row.model_dump()) for row in shown], lambda row: [row.keyid])


@router.post("/keys", status_code=201)
def add_key(hub: HubOf, actor: Actor, body: NewKey) -> KeyView:
    """Accept a publisher's packages.

    Devices learn of a publisher with their configuration: those that were registered before need a new one.
    """
    with hub.db.session() as session:
        row = keys.add_publisher(session, body.text, actor=actor, now=now_ms())
        session.flush()
        return KeyView(**row.model_dump())


@router.delete("/keys/{keyid}", status_code=204)
def remove_key(hub: HubOf, actor: Actor, keyid: str) -> None:
    """Accept no more packages of a publisher. What is registered stays."""
    with hub.db.session() as session:
        keys.remove_publisher(session, keyid, actor=actor, now=now_ms())


@router.get("/profiles")
def list_profiles(hub: HubOf, paging: Pages) -> Page[dict[str, Any]]:
    """The firmware profiles that devices may have, with their vendors' facts."""
    after = after_text(paging)
    rows = [profile for name, profile in sorted(profiles.shipped().items()) if name > after]
    return paging.page(
        rows[: paging.limit + 1],
        lambda shown: [msgspec.to_builtins(profile) for profile in shown],
        lambda profile: [profile.name],
    )


@router.get("/errors")
def list_errors() -> list[CodeView]:
    """Every error code and what it means."""
    return [CodeView(code=code, meaning=meaning) for code, meaning in CODES.items()]


@router.get("/errors/{code}")
def explain_error(code: str) -> CodeView:
    """What one error code means: where the `type` of a problem points."""
    if code not in CODES:
        raise InputError(
            "request.not_found", f"cannot explain {code[:100]!r}: it is no code of this hub; see /api/v1/errors"
        )
    return CodeView(code=code, meaning=CODES[code])


@router.get("/stream", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def stream(
    hub: HubOf,
    topic: Annotated[
        list[str] | None, Query(description="Only these topics, repeated; a final * matches any end")
    ] = None,
) -> LiveResponse:
    """Server-sent events that say "look again": `event: <topic's kind>`, `data: <topic>`.

    Topics are `fleet`, `device:<id>`, `rollout:<id>`, `models`, `samples` and `events`. A nudge carries no data and
    nothing is lost by a miss: read the state that it names. A hub keeps so many of these open at once; then it is
    503 with `Retry-After`.
    """
    return LiveResponse(_nudges(hub, tuple(topic or ())), hub.seats)


async def _nudges(hub: HubOf, wanted: tuple[str, ...]) -> AsyncIterator[str]:
    # The reader looks at everything once it is connected: what happened before is not told.
    yield "retry: 1000\nevent: ready\ndata: ready\n\n"
    async for topics in hub.bus.listen(quiet_s=hub.settings.stream_keepalive_s):
        told = [topic for topic in sorted(topics) if not wanted or any(_fits(topic, pattern) for pattern in wanted)]
        if told:
            yield "".join(f"event: {topic.partition(':')[0]}\ndata: {topic}\n\n" for topic in told)
        elif not topics:
            yield ": quiet\n\n"


def _fits(topic: str, pattern: str) -> bool:
    return topic == pattern or (pattern.endswith("*") and topic.startswith(pattern[:-1]))
