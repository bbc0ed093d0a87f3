"""What versions were measured to need: measure on a device, keep what was measured elsewhere, read."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import Field

from skerry_hub import commands, profiling, registry
from skerry_hub.api.common import Actor, Body, HubOf
from skerry_hub.api.models import Name, Number
from skerry_hub.clock import now_ms
from skerry_hub.tables import CommandRow, ModuleProfileRow
from skerry_modules import measurement
from skerry_modules.errors import InputError, PeerError, ResourceError
from skerry_modules.manifest import Manifest

router = APIRouter(tags=["profiling"])


class ProfileView(Body):
    name: str = Field(examples=["digits"])
    version: int = Field(examples=[3])
    device: str = Field(description="The device that measured it; empty: a machine that is none")
    profile: str = Field(description="The firmware profile that it holds for; empty: none", examples=["raspberry-pi-5"])
    simulated: bool = Field(description="Measured on a simulated board: its times mean nothing")
    memory_mb: int = Field(description="What the version needs as its manifest stands: what the scheduler counts")
    measured_by: str
    at: int = Field(description="Milliseconds since 1970")
    body: dict[str, Any] = Field(description="Every measurement, and the recommendation with its reasons")


class ProfilesView(Body):
    items: list[ProfileView]


class MeasuredElsewhere(Body):
    profile: dict[str, Any] = Field(description="What `skerry-agent profile --json` printed")


class Measure(Body):
    device: str = Field(max_length=100)
    engines: list[str] = Field([], max_length=4, description="Empty: all that can load the model")
    threads: list[int] = Field([], max_length=16, description="Empty: 1, 2, 4, … up to the device's processors")
    batches: list[int] = Field([], max_length=16, description="Rows of one request; empty: 1, 8, 32")
    seconds: float = Field(1.0, gt=0, le=30, description="Scoring time of each setting")
    latency_ms: float = Field(1000.0, gt=0, description="What the p99 of a recommended batch may be")
    tolerance: float = Field(0.1, gt=0, le=1, description="How far from the best p99 a cheaper setting may be")
    deadline_s: float = Field(300.0, gt=0, le=3600, description="When the device must have ended")
    reason: str = Field("", max_length=1000)


class CommandView(Body):
    id: str
    device: str
    name: str = Field(examples=["profile"])
    module: str
    version: int
    state: str = Field(description="`sent`, `running`, `done` or `failed`")
    progress: float = Field(description="0 to 1")
    code: str = Field(description="Why it failed", examples=["measure.not_installed"])
    message: str
    data: dict[str, Any]
    created_by: str
    reason: str
    created_at: int
    deadline_at: int = Field(description="When the hub ends it, if the device has not")
    updated_at: int
    ended_at: int = Field(description="0 while it goes on")


@router.get("/models/{name}/versions/{version}/profiles")
def list_module_profiles(hub: HubOf, name: Name, version: Number) -> ProfilesView:
    """The newest profile of a version from each machine, newest first."""
    with hub.db.read() as session:
        registry.get_version(session, name, version)
        return ProfilesView(items=[_profile_view(row) for row in profiling.of_version(session, name, version)])


@router.post("/models/{name}/versions/{version}/profiles", status_code=201)
def add_module_profile(hub: HubOf, actor: Actor, name: Name, version: Number, body: MeasuredElsewhere) -> ProfileView:
    """Keep a profile that was measured on a machine that is no device. It must be of this version's content."""
    try:
        found = measurement.from_builtins(body.profile)
    except PeerError as error:
        raise InputError("request.invalid", error.message) from error
    with hub.db.session() as session:
        row = profiling.store(session, name, version, found, actor=actor, now=now_ms())
        session.flush()
        view = _profile_view(row)
    hub.bus.publish("models")
    return view


@router.post("/models/{name}/versions/{version}/profiles/measure", status_code=202)
def measure_module(hub: HubOf, actor: Actor, name: Name, version: Number, body: Measure) -> CommandView:
    """Have a device measure a version that is installed there. The command's row tells how it goes and ends."""
    wishes = body.model_dump(exclude={"device", "deadline_s", "reason"})
    with hub.db.session() as session:
        row = registry.get_version(session, name, version)
        _check_engines(msgspec.json.decode(row.manifest, type=Manifest), body.engines)
        made, message = commands.create(
            session,
            body.device,
            "profile",
            {"module": name, "version": version, "digest": row.digest, **wishes},
            deadline_s=body.deadline_s,
            module=name,
            version=version,
            actor=actor,
            reason=body.reason,
            now=now_ms(),
        )
        session.flush()
        view = command_view(made)
    if hub.streaming is None or not hub.streaming.send_command(body.device, message):
        text = f"cannot tell {body.device} to profile: the hub has no broker now; try again"
        with hub.db.session() as session:
            commands.fail(session, view.id, "resource.broker_unreachable", text, now=now_ms())
        raise ResourceError("resource.broker_unreachable", text)
    hub.bus.publish("models")
    return view


@router.get("/commands/{command}")
def get_command(hub: HubOf, command: str) -> CommandView:
    """How a command goes, or ended."""
    with hub.db.read() as session:
        return command_view(commands.get(session, command))


def command_view(row: CommandRow) -> CommandView:
    """A command as the API shows it."""
    plain = set(CommandView.model_fields) - {"data"}
    return CommandView(**{field: getattr(row, field) for field in plain}, data=msgspec.json.decode(row.data))


def _profile_view(row: ModuleProfileRow) -> ProfileView:
    plain = set(ProfileView.model_fields) - {"body"}
    return ProfileView(**{field: getattr(row, field) for field in plain}, body=msgspec.json.decode(row.body))


def _check_engines(manifest: Manifest, engines: list[str]) -> None:
    if engines and manifest.engine not in ("onnx", "openvino") and engines != [manifest.engine]:
        raise InputError("request.invalid", f"cannot profile {manifest.name} with other engines than {manifest.engine}")
