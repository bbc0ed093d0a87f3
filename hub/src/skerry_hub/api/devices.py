"""Devices: register, find, tag, remove; what they should run, and what they said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from skerry_hub import audit, desired, devices, endpoints, queries, registry
from skerry_hub.api.common import Actor, Body, HubOf, Page, Pages, after_number, after_text
from skerry_hub.api.events import EventView, event_views, events_of
from skerry_hub.clock import now_ms
from skerry_hub.tables import Assignment, Device, DeviceModule
from skerry_modules.errors import InputError

router = APIRouter(tags=["devices"])

Id = Annotated[str, Path(description="The device's id", examples=["gate-7"], max_length=100)]


class ModuleView(BaseModel):
    """What a device reported of one module version."""

    module: str
    version: int
    digest: str
    phase: str = Field(description="Transitioning, Healthy, Unhealthy, Unschedulable or Failed", examples=["Healthy"])
    step: str
    role: str = Field(description="current, candidate, last-good, side (kept loaded for endpoints), or empty")
    reason: str = Field(description="A stable code, or empty", examples=["install.golden_failed"])
    message: str
    since: int
    revision: int = Field(description="The desired revision that it refers to")
    progress: float
    reported_at: int


class WantedView(BaseModel):
    """What the hub wants a device to run."""

    module: str
    version: int
    soak_s: float
    rollout: int | None
    at: int


class DeviceView(BaseModel):
    id: str = Field(examples=["gate-7"])
    profile: str = Field(examples=["raspberry-pi-5"])
    description: str
    tags: dict[str, str] = Field(examples=[{"site": "lab"}])
    online: bool
    agent: str = Field(description="The agent's version, as last said")
    boot: str
    desired_revision: int
    reported_revision: int
    seen_at: int = Field(description="Milliseconds since 1970; 0: never")
    created_at: int
    facts: dict[str, Any] = Field(description="What the device said of itself")
    modules: list[ModuleView]


class NewDevice(Body):
    id: str = Field(examples=["gate-7"])
    profile: str = Field(description="A firmware profile: see /profiles", examples=["generic-x86_64"])
    tags: dict[str, str] = Field({}, examples=[{"site": "lab"}])
    description: str = Field("", max_length=2000)


class RegisteredDevice(BaseModel):
    device: DeviceView
    config: str = Field(description="The agent's configuration (TOML) with its broker password: shown this once")


class DeviceTags(Body):
    tags: dict[str, str] = Field(examples=[{"site": "lab", "line": "2"}])


class Wish(Body):
    version: int = Field(ge=1, lt=1 << 31, examples=[3])
    soak_s: float = Field(0.0, ge=0, le=30 * 86400, description="Seconds under live traffic before it counts as proven")
    reason: str = Field("", max_length=1000)


class Wanted(BaseModel):
    revision: int = Field(description="The desired revision that carries the wish")
    wanted: list[WantedView]


class ModulesView(BaseModel):
    wanted: list[WantedView]
    reported: list[ModuleView]


@router.get("/devices")
def list_devices(
    hub: HubOf,
    paging: Pages,
    tag: Annotated[
        list[str] | None,
        Query(description="`TagName=TagValue`, repeated or comma-separated; `id` and `profile` count as tags"),
    ] = None,
) -> Page[DeviceView]:
    """Devices by id, those that match all tags."""
    query = queries.parse(tag) if tag else None
    with hub.db.read() as session:
        rows = devices.find(session, query, after=after_text(paging), limit=paging.limit + 1)
        return paging.page(rows, lambda shown: device_views(session, shown), lambda row: [row.id])


@router.post("/devices", status_code=201)
def register_device(hub: HubOf, actor: Actor, body: NewDevice) -> RegisteredDevice:
    """Register a device. The answer has its configuration with a password that is shown this once."""
    with hub.db.session() as session:
        password = devices.register(
            session,
            body.id,
            profile=body.profile,
            tags=body.tags,
            description=body.description,
            actor=actor,
            now=now_ms(),
        )
        session.flush()
        endpoints.settle(session, body.id, now=now_ms())
        return_value = _registered(hub, session, body.id, password)
    hub.refresh_credentials()
    hub.bus.publish("fleet")
    return return_value


@router.post("/devices/{device}/password")
def renew_password(hub: HubOf, actor: Actor, device: Id) -> RegisteredDevice:
    """A new configuration, with a new broker password and the keys of now; the old password ends."""
    with hub.db.session() as session:
        password = devices.renew_password(session, device, actor=actor, now=now_ms())
        if desired.document(session, device) is not None:
            desired.reissue(session, device, now=now_ms())  # signed with the key that the new configuration names
        session.flush()
        return_value = _registered(hub, session, device, password)
    hub.refresh_credentials()
    hub.publish_desired([device])
    return return_value


@router.get("/devices/{device}")
def get_device(hub: HubOf, device: Id) -> DeviceView:
    """One device."""
    with hub.db.read() as session:
        return device_views(session, [devices.get(session, device)])[0]


@router.delete("/devices/{device}", status_code=204)
def remove_device(
    hub: HubOf,
    actor: Actor,
    device: Id,
    reason: Annotated[str, Query(max_length=1000)] = "",
) -> None:
    """Forget a device: it can no longer connect. Its telemetry, samples and events stay.

    Refused with `device.in_use` while a rollout runs on it.
    """
    with hub.db.session() as session:
        devices.remove(session, device, actor=actor, now=now_ms(), reason=reason)
    hub.refresh_credentials()
    hub.publish_desired([device])  # there is none any more: what the broker retains is cleared
    hub.bus.publish("fleet", f"device:{device}")


@router.put("/devices/{device}/tags")
def tag_device(hub: HubOf, actor: Actor, device: Id, body: DeviceTags) -> DeviceView:
    """Replace a device's tags."""
    with hub.db.session() as session:
        devices.set_tags(session, device, body.tags, actor=actor, now=now_ms())
        session.flush()
        changed = endpoints.settle(session, device, now=now_ms())
        view = device_views(session, [devices.get(session, device)])[0]
    if changed:
        hub.publish_desired([device])
    hub.bus.publish("fleet", f"device:{device}")
    return view


@router.get("/devices/{device}/modules")
def list_modules(hub: HubOf, device: Id) -> ModulesView:
    """What the device should run, and what it reported."""
    with hub.db.read() as session:
        devices.get(session, device)
        return ModulesView(wanted=_wanted(session, device), reported=_module_views(session, [device])[device])


@router.put("/devices/{device}/modules/{name}")
def want_module(hub: HubOf, actor: Actor, device: Id, name: str, body: Wish) -> Wanted:
    """Want a version on one device, outside any rollout. Asked again, a device that gave up tries again.

    What its profile cannot run is refused with the reason, before anything is sent.
    """
    now = now_ms()
    with hub.db.session() as session:
        version = registry.get_version(session, name, body.version)
        obstacles = devices.compatibility_of(session, device, version)
        if obstacles:
            raise InputError(
                obstacles[0].code,
                f"cannot run {name}:{body.version} on {device}: {'; '.join(each.message for each in obstacles)}",
                obstacles=[{"code": each.code, "message": each.message} for each in obstacles],
            )
        revision = desired.assign(session, device, name, body.version, soak_s=body.soak_s, now=now)
        audit.record(
            session,
            actor=actor,
            action="device.assign",
            subject=device,
            reason=body.reason,
            now=now,
            module=name,
            version=body.version,
        )
        wanted = _wanted(session, device)
    hub.publish_desired([device])
    hub.bus.publish("fleet", f"device:{device}")
    return Wanted(revision=revision, wanted=wanted)


@router.delete("/devices/{device}/modules/{name}")
def unwant_module(
    hub: HubOf, actor: Actor, device: Id, name: str, reason: Annotated[str, Query(max_length=1000)] = ""
) -> Wanted:
    """Want no version of a module on one device any more."""
    now = now_ms()
    with hub.db.session() as session:
        revision = desired.unassign(session, device, name, now=now)
        audit.record(
            session, actor=actor, action="device.unassign", subject=device, reason=reason, now=now, module=name
        )
        session.flush()
        wanted = _wanted(session, device)
    hub.publish_desired([device])
    hub.bus.publish("fleet", f"device:{device}")
    return Wanted(revision=revision, wanted=wanted)


@router.get("/devices/{device}/events")
def list_device_events(hub: HubOf, paging: Pages, device: Id) -> Page[EventView]:
    """What the device told, newest first."""
    with hub.db.read() as session:
        devices.get(session, device)
        rows = events_of(session, device=device, before=after_number(paging), limit=paging.limit + 1)
        return paging.page(rows, event_views, lambda row: [row.id])


def device_views(session: Session, rows: Sequence[Device]) -> list[DeviceView]:
    """Devices as the API shows them."""
    ids = [row.id for row in rows]
    tags, modules = devices.tags_of(session, ids), _module_views(session, ids)
    plain = set(DeviceView.model_fields) - {"tags", "modules", "facts"}
    return [
        DeviceView(
            **{field: getattr(row, field) for field in plain},
            tags=tags[row.id],
            modules=modules[row.id],
            facts=msgspec.json.decode(row.facts),
        )
        for row in rows
    ]


def _registered(hub: HubOf, session: Session, device: str, password: str) -> RegisteredDevice:
    row = devices.get(session, device)
    return RegisteredDevice(device=device_views(session, [row])[0], config=hub.device_config(session, row, password))


def _module_views(session: Session, ids: Sequence[str]) -> dict[str, list[ModuleView]]:
    return {device: [_module_view(row) for row in rows] for device, rows in devices.modules_of(session, ids).items()}


def _module_view(row: DeviceModule) -> ModuleView:
    return ModuleView(**{field: getattr(row, field) for field in ModuleView.model_fields})


def _wanted(session: Session, device: str) -> list[WantedView]:
    rows = session.exec(select(Assignment).where(col(Assignment.device) == device).order_by(col(Assignment.module)))
    return [WantedView(**{field: getattr(row, field) for field in WantedView.model_fields}) for row in rows]
