"""Rollouts: start, preview, watch, pause, resume, abort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from skerry_hub import rollouts
from skerry_hub.api.common import Actor, Body, HubOf, Page, Pages, after_number
from skerry_hub.rules import rollout as rules
from skerry_hub.rules.rollout import DeviceStep, RolloutState
from skerry_hub.tables import Rollout, RolloutDevice
from skerry_modules.errors import InputError

router = APIRouter(tags=["rollouts"])

Id = Annotated[int, Path(description="The rollout's number", examples=[1], ge=1, lt=1 << 31)]

_LIMIT_S = 366 * 86400


class Wave(Body):
    """How many devices, all waves before included: a count, or a percentage of the target."""

    count: int = Field(0, ge=0, le=10_000_000, examples=[1])
    percent: float = Field(0.0, ge=0, le=100)


class PlanBody(Body):
    """How to go."""

    waves: list[Wave] = Field(
        [Wave(count=1), Wave(percent=100.0)],
        max_length=100,
        description="Counts or percentages of all devices so far; the last one is 100 percent",
    )
    soak_s: float = Field(60.0, ge=0, le=_LIMIT_S, description="Seconds under live traffic before a device is proven")
    wave_pause_s: float = Field(0.0, ge=0, le=_LIMIT_S, description="Seconds between two waves")
    failure_threshold: float = Field(
        0.0, ge=0, le=1, description="The share of a wave's devices that may fail; above it the rollout turns back"
    )
    device_timeout_s: float = Field(
        3600.0,
        gt=0,
        le=_LIMIT_S,
        description="Seconds that an online device has to prove the version, soak not counted",
    )
    offline_timeout_s: float = Field(
        86400.0, gt=0, le=_LIMIT_S, description="Seconds that the rollout waits for a device that is away"
    )
    on_failure: str = Field("rollback", description="`rollback`, or `stop`: proven devices keep the version")

    def rule(self) -> rules.Plan:
        return msgspec.convert(self.model_dump(), rules.Plan)


class Question(Body):
    """What a rollout would be."""

    module: str = Field(examples=["digits"], max_length=100)
    version: int = Field(ge=1, lt=1 << 31, examples=[2])
    target: str = Field(
        description="`TagName=TagValue`, comma-separated; `*` is every device", examples=["site=lab"], max_length=2000
    )
    plan: PlanBody = PlanBody()


class NewRollout(Question):
    reason: str = Field("", max_length=1000, description="For the audit log")


class CandidateView(BaseModel):
    device: str
    online: bool
    wave: int = Field(description="From 0; −1: it cannot run the version")
    previous: int | None = Field(description="The version to go back to")
    obstacles: list[dict[str, str]] = Field(description="Code and sentence of each reason why it cannot")


class PreviewView(BaseModel):
    """What a rollout would do now; nothing was sent."""

    module: str
    version: int
    target: str
    waves: list[int] = Field(description="Devices in each wave", examples=[[1, 11]])
    unschedulable: int
    candidates: list[CandidateView]


class DeviceProgressView(BaseModel):
    device: str
    wave: int
    step: DeviceStep
    previous: int | None
    reason: str = Field(description="A stable code, or empty", examples=["install.golden_failed"])
    message: str
    assigned_at: int
    finished_at: int


class RolloutView(BaseModel):
    id: int
    module: str
    version: int
    target: str
    state: RolloutState
    wave: int = Field(description="The wave under way, from 0")
    waves: int
    plan: PlanBody
    counts: dict[str, int] = Field(description="Devices by step", examples=[{"succeeded": 11, "assigned": 1}])
    message: str
    created_by: str
    reason: str
    created_at: int
    finished_at: int = Field(description="Milliseconds since 1970; 0: still under way")


class RolloutDetails(RolloutView):
    devices: list[DeviceProgressView]


class Order(Body):
    reason: str = Field("", max_length=1000, description="For the audit log")


class AbortOrder(Order):
    rollback: bool = Field(True, description="Proven devices go back too; unproven ones always do")


@router.post("/rollouts", status_code=201)
def start_rollout(hub: HubOf, actor: Actor, body: NewRollout) -> RolloutDetails:
    """Start a rollout. Devices that cannot run the version are told with the reason, before anything is sent."""
    number = hub.rollouts.create(
        module=body.module,
        version=body.version,
        target=body.target,
        plan=body.plan.rule(),
        actor=actor,
        reason=body.reason,
    )
    return _details(hub, number)


@router.post("/rollouts/preview")
def preview_rollout(hub: HubOf, body: Question) -> PreviewView:
    """What a rollout would do: which devices in which wave, and which cannot run it and why."""
    preview = hub.rollouts.preview(module=body.module, version=body.version, target=body.target, plan=body.plan.rule())
    return PreviewView(
        module=preview.module,
        version=preview.version,
        target=preview.target,
        waves=list(preview.waves),
        unschedulable=preview.unschedulable,
        candidates=[
            CandidateView(
                device=one.device,
                online=one.online,
                wave=one.wave,
                previous=one.previous,
                obstacles=[{"code": code, "message": message} for code, message in one.obstacles],
            )
            for one in preview.candidates
        ],
    )


@router.get("/rollouts")
def list_rollouts(
    hub: HubOf,
    paging: Pages,
    state: Annotated[list[RolloutState] | None, Query(description="Only these states")] = None,
    module: Annotated[str | None, Query(description="Only of this model")] = None,
) -> Page[RolloutView]:
    """Rollouts, newest first."""
    statement = select(Rollout).order_by(col(Rollout.id).desc()).limit(paging.limit + 1)
    if before := after_number(paging):
        statement = statement.where(col(Rollout.id) < before)
    if state:
        statement = statement.where(col(Rollout.state).in_(state))
    if module:
        statement = statement.where(col(Rollout.module) == module)
    with hub.db.read() as session:
        rows = session.exec(statement).all()
        return paging.page(rows, lambda shown: rollout_views(session, shown), lambda row: [row.id])


@router.get("/rollouts/{number}")
def get_rollout(hub: HubOf, number: Id) -> RolloutDetails:
    """One rollout with the progress of every device."""
    return _details(hub, number)


@router.post("/rollouts/{number}/pause")
def pause_rollout(hub: HubOf, actor: Actor, number: Id, body: Order | None = None) -> RolloutDetails:
    """Start nothing new. What is under way goes on and is judged."""
    hub.rollouts.pause(number, actor=actor, reason=body.reason if body else "")
    return _details(hub, number)


@router.post("/rollouts/{number}/resume")
def resume_rollout(hub: HubOf, actor: Actor, number: Id, body: Order | None = None) -> RolloutDetails:
    """Go on with a paused rollout."""
    hub.rollouts.resume(number, actor=actor, reason=body.reason if body else "")
    return _details(hub, number)


@router.post("/rollouts/{number}/abort")
def abort_rollout(hub: HubOf, actor: Actor, number: Id, body: AbortOrder | None = None) -> RolloutDetails:
    """Stop for good. Devices go back to what they had: the unproven ones always, the proven ones by choice."""
    order = body or AbortOrder(reason="", rollback=True)
    hub.rollouts.abort(number, actor=actor, reason=order.reason, rollback=order.rollback)
    return _details(hub, number)


def rollout_views(session: Session, rows: Sequence[Rollout]) -> list[RolloutView]:
    """Rollouts as lists show them."""
    ids = [row.id for row in rows if row.id is not None]
    counts, waves = rollouts.counts(session, ids), rollouts.waves(session, ids)
    return [RolloutView(**_fields(row, counts[row.id or 0], waves[row.id or 0])) for row in rows]


def _details(hub: HubOf, number: int) -> RolloutDetails:
    with hub.db.read() as session:
        row = session.get(Rollout, number)
        if row is None:
            raise InputError("rollout.unknown", f"cannot find rollout {number}: see `skerry rollouts list`")
        progress = session.exec(
            select(RolloutDevice)
            .where(col(RolloutDevice.rollout) == number)
            .order_by(col(RolloutDevice.wave), col(RolloutDevice.device))
        ).all()
        devices = [
            DeviceProgressView(**{field: getattr(one, field) for field in DeviceProgressView.model_fields})
            for one in progress
        ]
        return RolloutDetails(**rollout_views(session, [row])[0].model_dump(), devices=devices)


def _fields(row: Rollout, counts: dict[str, int], waves: int) -> dict[str, Any]:
    plain = set(RolloutView.model_fields) - {"plan", "counts", "waves"}
    plan = msgspec.to_builtins(msgspec.json.decode(row.plan, type=rules.Plan))
    return {field: getattr(row, field) for field in plain} | {"plan": plan, "counts": counts, "waves": waves}
