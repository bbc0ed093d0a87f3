"""Commands to devices and what modules were measured to need: rows, ends, and what the scheduler makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlmodel import Session, select

from skerry_hub import commands, desired, devices, profiling, registry, scheduling
from skerry_hub.bus import Bus
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.ingest import Ingest
from skerry_hub.settings import Settings
from skerry_hub.tables import CommandRow, Device, EventRow, Model, ModelVersion, ModuleProfileRow
from skerry_modules import measurement, messages, trust
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.manifest import Manifest, Resources
from skerry_modules.measurement import Measurement, ModuleProfile, Recommendation, Setting
from skerry_modules.tensors import TensorSpec
from support.processes import wait_until

from .parts import in_process, packed

EPOCH = b"epoch-01"
PROFILE = "raspberry-pi-5"
SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))


def measured(memory_mb: int = 40, **more: Any) -> ModuleProfile:
    setting = Setting(engine="onnx", threads=1)
    one = Measurement(
        setting=setting,
        engine_version="1.31.1",
        runs=1000,
        rounds=5,
        p50_us=40.0,
        p90_us=50.0,
        p99_us=70.0,
        p99_low_us=65.0,
        max_us=90.0,
        spread=0.02,
        rows_per_s=20_000.0,
        cpu_percent=99.0,
        cpu_us_per_row=45.0,
        others_percent=2.0,
        first_load_ms=9.0,
        load_ms=4.0,
        peak_mb=60.0,
        steady_mb=9.0,
        limit_mb=24.0,
        golden="passed",
    )
    best = Recommendation(setting=setting, max_rows=1, memory_mb=memory_mb, confirmed=True, reasons=("it is",))
    fields: dict[str, Any] = {"device": "dev-1", "profile": PROFILE, "digest": "d" * 64, **more}
    return ModuleProfile(
        module="digits",
        version=1,
        machine="a machine",
        cores=4,
        at=1,
        took_s=4.0,
        niceness=19,
        inputs="golden",
        simulated=False,
        memory_mb=memory_mb,
        measurements=(one,),
        unmeasured=(),
        recommendation=best,
        **fields,
    )


@pytest.fixture
def fleet(database: Database) -> Database:
    """Two devices of one class, online, and version 1 of digits, which declares 256 MB."""
    with database.session() as session:
        session.add(Model(name="digits", last_version=1, created_at=1))
        session.flush()
        manifest = Manifest(format=1, name="digits", engine="onnx", model="m.onnx", inputs=(SPEC,), outputs=(SPEC,))
        add_version(session, "digits", 1, manifest)
        for name in ("dev-1", "dev-2"):
            devices.register(session, name, profile=PROFILE, tags={}, actor="t", now=1)
            session.flush()
            devices.get(session, name).online = True
    return database


def add_version(session: Session, name: str, version: int, manifest: Manifest) -> None:
    session.add(
        ModelVersion(
            name=name,
            version=version,
            digest="d" * 64,
            index_size=1,
            size=1,
            engine="onnx",
            manifest=msgspec.json.encode(manifest).decode(),
            facts="{}",
            signatures="[]",
            created_by="t",
            created_at=1,
        )
    )
    session.flush()


def command(database: Database, device: str = "dev-1", *, now: int | None = None, deadline_s: float = 10.0) -> str:
    with database.session() as session:
        at = now_ms() if now is None else now
        row, message = commands.create(
            session, device, "profile", {"a": 1}, deadline_s=deadline_s, module="digits", version=1, actor="t", now=at
        )
        assert (message.id, message.arguments, message.deadline_s) == (row.id, {"a": 1}, deadline_s)
        return row.id


def row_of(database: Database, command: str) -> CommandRow:
    with database.read() as session:
        return commands.get(session, command)


class Device1:
    """Offers what dev-1 says to a real ingest."""

    def __init__(self, database: Database) -> None:
        self.ingest = Ingest(database, Bus(), lambda _topic, _payload: True)
        self.ingest.start()
        self.seq = 0

    def say(self, result: messages.Result, device: str = "dev-1") -> None:
        self.seq += 1
        stream = int(messages.STREAM_OF["result"])
        up = messages.Up(messages.FORMAT, EPOCH, stream, self.seq, self.seq, now_ms(), result)
        committed = self.ingest.counters.committed
        assert self.ingest.offer(device, "result", messages.encode(up))
        wait_until(lambda: self.ingest.counters.committed > committed, what="the commit")


@pytest.fixture
def device(fleet: Database) -> Iterator[Device1]:
    made = Device1(fleet)
    yield made
    made.ingest.stop()


def done(command: str, profile: ModuleProfile) -> messages.Result:
    return messages.Result(command=command, name="profile", ok=True, data=measurement.to_builtins(profile))


def profiles_of(database: Database) -> list[ModuleProfileRow]:
    with database.read() as session:
        return list(session.exec(select(ModuleProfileRow)))


def test_a_devices_answer_ends_the_command_and_is_kept_with_the_version(fleet: Database, device: Device1) -> None:
    told = command(fleet)
    device.say(messages.Result(command=told, name="profile", ok=True, progress=0.4, message="onnx, 2 threads"))
    row = row_of(fleet, told)
    assert (row.state, row.progress, row.message, row.ended_at) == ("running", 0.4, "onnx, 2 threads", 0)
    device.say(done(told, measured(40)))
    row = row_of(fleet, told)
    assert (row.state, row.progress, row.code) == ("done", 1.0, "")
    assert row.ended_at > 0
    (kept,) = profiles_of(fleet)
    assert (kept.name, kept.version, kept.device, kept.profile, kept.memory_mb) == ("digits", 1, "dev-1", PROFILE, 40)
    assert msgspec.json.decode(kept.body, type=ModuleProfile) == measured(40)
    again = command(fleet)
    device.say(done(again, measured(50)))
    assert [row.memory_mb for row in profiles_of(fleet)] == [50], "the newest of each machine"
    with fleet.read() as session:
        told_events = [(event.code, "measurements" in event.data) for event in session.exec(select(EventRow))]
    assert told_events == [("command.done", False), ("command.done", False)]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"measurements": []}, "message.malformed"),
        ({"memory_mb": 0}, "message.malformed"),
        ({"memory_mb": "much"}, "message.malformed"),
        ({"format": 2}, "message.malformed"),
    ],
)
def test_a_profile_that_cannot_be_one_fails_the_command(
    fleet: Database, device: Device1, change: dict[str, Any], code: str
) -> None:
    told = command(fleet)
    data = {**measurement.to_builtins(measured()), **change}
    device.say(messages.Result(command=told, name="profile", ok=True, data=data))
    row = row_of(fleet, told)
    assert (row.state, row.code) == ("failed", code)
    assert profiles_of(fleet) == []


def test_only_the_device_that_was_told_may_answer_and_only_of_what_was_asked(fleet: Database, device: Device1) -> None:
    told = command(fleet)
    device.say(done(told, measured()), device="dev-2")
    assert row_of(fleet, told).state == "sent"
    assert profiles_of(fleet) == []
    device.say(done("made-up", measured()))
    assert profiles_of(fleet) == []
    device.say(done(told, measured(digest="e" * 64)))
    assert row_of(fleet, told).state == "done"
    assert profiles_of(fleet) == [], "it was measured on other content"


def test_a_failure_keeps_its_reason(fleet: Database, device: Device1) -> None:
    told = command(fleet)
    device.say(
        messages.Result(
            command=told, name="profile", ok=False, code="measure.not_installed", message="cannot profile …"
        )
    )
    row = row_of(fleet, told)
    assert (row.state, row.code, row.message) == ("failed", "measure.not_installed", "cannot profile …")
    device.say(done(told, measured()))
    assert row_of(fleet, told).state == "failed", "an end stays"


def test_no_answer_is_an_end_and_a_late_answer_replaces_it(fleet: Database, device: Device1) -> None:
    now = now_ms()
    told = command(fleet, now=now, deadline_s=10.0)
    assert commands.end_unanswered(fleet, now=now + 39_000) == 0
    assert commands.end_unanswered(fleet, now=now + 41_000) == 1
    row = row_of(fleet, told)
    assert (row.state, row.code, row.ended_at) == ("failed", "command.no_answer", now + 41_000)
    assert commands.end_unanswered(fleet, now=now + 99_000) == 0
    device.say(done(told, measured()))
    row = row_of(fleet, told)
    assert (row.state, row.code) == ("done", "")
    assert len(profiles_of(fleet)) == 1


def test_one_at_a_time_and_only_where_somebody_listens(fleet: Database) -> None:
    command(fleet)
    with pytest.raises(SkerryError, match=r"cannot tell dev-1 to profile: the command .* goes on there") as caught:
        command(fleet)
    assert caught.value.code == "command.busy"
    command(fleet, "dev-2")
    with fleet.session() as session:
        devices.get(session, "dev-2").online = False
    with pytest.raises(SkerryError, match="cannot tell dev-2 to profile: it is not connected") as caught:
        command(fleet, "dev-2")
    assert caught.value.code == "command.offline"


def obstacles(database: Database, name: str, version: int = 1) -> dict[str, list[str]]:
    with database.read() as session:
        found = scheduling.obstacles_of(
            session, list(session.exec(select(Device))), registry.get_version(session, name, version)
        )
    return {device: [each.message for each in reasons] for device, reasons in found.items()}


def keep(database: Database, name: str, device: str, memory_mb: int, profile: str = PROFILE) -> None:
    with database.session() as session:
        session.add(
            ModuleProfileRow(
                name=name,
                version=1,
                device=device,
                profile=profile,
                simulated=False,
                memory_mb=memory_mb,
                body="{}",
                measured_by="t",
                at=1,
            )
        )


def test_what_was_measured_counts_instead_of_what_is_declared(fleet: Database) -> None:
    from skerry_modules import profiles

    leaves = profiles.get(PROFILE).limits.memory_mb
    assert obstacles(fleet, "digits") == {"dev-1": [], "dev-2": []}
    keep(fleet, "digits", "", 999_999, profile="")
    keep(fleet, "digits", "other", 999_999, profile="intel-n100")
    assert obstacles(fleet, "digits") == {"dev-1": [], "dev-2": []}, "of another class, or of none"
    keep(fleet, "digits", "dev-1", leaves + 56)
    wanted = f"needs {leaves + 56} MB, profile leaves {leaves} MB"
    assert obstacles(fleet, "digits") == {"dev-1": [wanted], "dev-2": [wanted]}, "of its class, until it measures"
    keep(fleet, "digits", "dev-2", 30)
    assert obstacles(fleet, "digits") == {"dev-1": [wanted], "dev-2": []}


def test_a_module_that_declares_too_much_fits_by_what_it_needs_and_leaves_room_for_others(fleet: Database) -> None:
    from skerry_modules import profiles

    leaves = profiles.get(PROFILE).limits.memory_mb
    manifest = Manifest(
        format=1,
        name="big",
        engine="onnx",
        model="m.onnx",
        inputs=(SPEC,),
        outputs=(SPEC,),
        resources=Resources(memory_mb=leaves + 1),
    )
    with fleet.session() as session:
        session.add(Model(name="big", last_version=1, created_at=1))
        session.flush()
        add_version(session, "big", 1, manifest)
    assert obstacles(fleet, "big")["dev-1"] == [f"needs {leaves + 1} MB, profile leaves {leaves} MB"]
    keep(fleet, "big", "dev-1", leaves - 200)
    assert obstacles(fleet, "big")["dev-1"] == []
    with fleet.session() as session:
        desired.assign(session, "dev-1", "big", 1, now=2)
    with fleet.read() as session:
        signed = msgspec.msgpack.decode(desired.document(session, "dev-1") or b"", type=messages.Signed)
    (wanted,) = messages.decode_desired(signed.payload).modules
    assert wanted.memory_mb == leaves - 200, "so that the device counts the same"
    assert obstacles(fleet, "digits")["dev-1"] == ["needs 256 MB, profile leaves 200 MB"]
    keep(fleet, "digits", "dev-1", 199)
    assert obstacles(fleet, "digits")["dev-1"] == []


def test_profiles_go_with_their_version(fleet: Database) -> None:
    keep(fleet, "digits", "dev-1", 30)
    with fleet.session() as session:
        registry.delete_version(session, "digits", 1, actor="t", now=3)
    assert profiles_of(fleet) == []


def test_a_profile_from_elsewhere_must_be_of_the_same_content(fleet: Database) -> None:
    with fleet.session() as session:
        profiling.store(session, "digits", 1, measured(33, device="spoofed", profile=""), actor="eve", now=5)
    (kept,) = profiles_of(fleet)
    assert (kept.device, kept.profile, kept.memory_mb, kept.measured_by) == ("", "", 33, "eve")
    assert msgspec.json.decode(kept.body, type=ModuleProfile).device == ""
    for wrong, code in (({"digest": "e" * 64}, "request.invalid"), ({"profile": "toaster"}, "profile.unknown")):
        with pytest.raises(InputError) as caught, fleet.session() as session:
            profiling.store(session, "digits", 1, measured(**wrong), actor="t", now=5)
        assert caught.value.code == code


def test_the_api_keeps_lists_and_refuses(settings: Settings, key: trust.SigningKey, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with in_process(settings) as (_hub, client):
            await client.post("/api/v1/keys", json={"text": key.public.text()})
            made = await client.post("/api/v1/models/digits/versions", content=packed(tmp_path / "m", key))
            address = "/api/v1/models/digits/versions/1/profiles"
            assert (await client.get(address)).json() == {"items": []}
            body = measurement.to_builtins(measured(44, digest=made.json()["digest"]))
            answer = await client.post(address, json={"profile": body})
            assert answer.status_code == 201, answer.text
            (item,) = (await client.get(address)).json()["items"]
            assert (item["memory_mb"], item["profile"], item["body"]["measurements"][0]["runs"]) == (44, PROFILE, 1000)
            bad = await client.post(address, json={"profile": {"format": 1}})
            assert (bad.status_code, bad.json()["code"]) == (422, "request.invalid")
            assert (await client.get("/api/v1/models/digits/versions/9/profiles")).status_code == 404
            await client.post("/api/v1/devices", json={"id": "dev-1", "profile": PROFILE})
            away = await client.post(f"{address}/measure", json={"device": "dev-1"})
            assert (away.status_code, away.json()["code"]) == (409, "command.offline")
            other = await client.post(f"{address}/measure", json={"device": "dev-1", "engines": ["onnx"]})
            assert (other.status_code, other.json()["code"]) == (422, "request.invalid")
            assert (await client.get("/api/v1/commands/none")).status_code == 404

    asyncio.run(scenario())
