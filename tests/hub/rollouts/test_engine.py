"""The rollout engine on a real database: from a request to signed documents, audit rows and an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import msgspec
import pytest
from sqlmodel import col, select

from skerry_hub import desired, rollouts
from skerry_hub.bus import Bus
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.rollouts import RolloutEngine
from skerry_hub.rules.rollout import Plan, RolloutState, Wave
from skerry_hub.tables import (
    Assignment,
    Audit,
    DesiredDocument,
    Device,
    DeviceModule,
    DeviceTag,
    Model,
    ModelVersion,
    Rollout,
    RolloutDevice,
)
from skerry_modules import messages, trust
from skerry_modules.compatibility import ModelFacts
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import TensorSpec

PLAN = Plan(waves=(Wave(count=1), Wave(percent=100.0)), soak_s=0.0)


class Fleet:
    """A database with devices and versions, an engine over it, and what the engine asked to publish."""

    def __init__(self, url: str) -> None:
        self.key = trust.SigningKey.generate("hub")
        self.database = Database(url)
        self.database.info[desired.SIGNER] = self.key
        self.database.migrate()
        self.bus = Bus()
        self.published: list[str] = []
        self.engine = RolloutEngine(self.database, self.bus, self.published.extend)

    def version(self, number: int, *, engine: str = "onnx", memory_mb: int = 64) -> None:
        spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
        manifest = Manifest(
            format=1,
            name="digits",
            engine=engine,
            model="m.onnx",
            inputs=(spec,),
            outputs=(spec,),  # type: ignore[arg-type]
        )
        manifest = msgspec.structs.replace(
            manifest, resources=msgspec.structs.replace(manifest.resources, memory_mb=memory_mb)
        )
        with self.database.session() as session:
            if session.get(Model, "digits") is None:
                session.add(Model(name="digits", created_at=0))
                session.flush()
            session.add(
                ModelVersion(
                    name="digits",
                    version=number,
                    digest=f"{number:064x}",
                    index_size=10,
                    size=100,
                    engine=engine,
                    manifest=msgspec.json.encode(manifest).decode(),
                    facts=msgspec.json.encode(ModelFacts()).decode(),
                    signatures="[]",
                    created_by="test",
                    created_at=0,
                )
            )

    def devices(self, *names: str, site: str = "lab", profile: str = "generic-x86_64", online: bool = True) -> None:
        with self.database.session() as session:
            for name in names:
                session.add(Device(id=name, profile=profile, online=online, created_at=0))
                session.flush()
                session.add(DeviceTag(device=name, key="site", value=site))

    def report(
        self, device: str, version: int, phase: str = "Healthy", reason: str = "", role: str = "current"
    ) -> None:
        """What ingest writes when a device reports under the newest revision it was given."""
        with self.database.session() as session:
            row = session.get(Device, device)
            assert row is not None
            row.online, row.reported_revision = True, row.desired_revision
            key = (device, "digits", version)
            state = session.get(DeviceModule, key) or DeviceModule(
                device=device, module="digits", version=version, digest="", phase="", reported_at=0
            )
            state.phase, state.reason = phase, reason
            state.role = role if phase == "Healthy" else ""
            session.add(row)
            session.add(state)

    def start(self, target: str = "site=lab", version: int = 1, plan: Plan = PLAN) -> int:
        return self.engine.create(module="digits", version=version, target=target, plan=plan, actor="ann", reason="why")

    def state(self, rollout: int) -> str:
        with self.database.read() as session:
            row = session.get(Rollout, rollout)
            assert row is not None
            return row.state

    def steps(self, rollout: int) -> dict[str, str]:
        with self.database.read() as session:
            rows = session.exec(select(RolloutDevice).where(col(RolloutDevice.rollout) == rollout)).all()
            return {row.device: row.step for row in rows}

    def wanted(self, device: str) -> messages.Desired:
        """The signed document as a device would read it."""
        with self.database.read() as session:
            row = session.get(DesiredDocument, device)
            assert row is not None
            signed = messages.decode("desired", row.payload)
        trusted = {self.key.public.keyid: self.key.public}
        trust.verify(trust.DESIRED_TYPE, signed.payload, signed.signatures, trusted)
        return messages.decode_desired(signed.payload)


@pytest.fixture
def fleet(database_url: str) -> Iterator[Fleet]:
    made = Fleet(database_url)
    yield made
    made.database.close()


def test_from_request_to_success(fleet: Fleet) -> None:
    fleet.version(1)
    fleet.devices("a", "b", "c")
    fleet.devices("elsewhere", site="shop")
    rollout = fleet.start()
    assert fleet.published == ["a"]
    assert [module.version for module in fleet.wanted("a").modules] == [1]
    fleet.report("a", 1)
    fleet.engine.step()
    assert sorted(fleet.published) == ["a", "b", "c"]
    fleet.report("b", 1)
    fleet.report("c", 1)
    fleet.engine.step()
    assert fleet.state(rollout) == RolloutState.SUCCEEDED
    with fleet.database.read() as session:
        actions = [row.action for row in session.exec(select(Audit).order_by(col(Audit.id)))]
        counted = rollouts.counts(session, [rollout])
    assert actions[0] == "rollout.create"
    assert actions[-1] == "rollout.succeeded"
    assert actions.count("rollout.wave") == 2
    assert counted == {rollout: {"succeeded": 3}}


def test_a_bad_canary_goes_back_to_what_it_had(fleet: Fleet) -> None:
    fleet.version(1)
    fleet.version(2)
    fleet.devices("a", "b")
    first = fleet.start(plan=Plan(waves=(Wave(percent=100.0),), soak_s=0.0))
    fleet.report("a", 1)
    fleet.report("b", 1)
    fleet.engine.step()
    assert fleet.state(first) == RolloutState.SUCCEEDED
    second = fleet.start(version=2)
    fleet.report("a", 2, "Failed", "install.golden_failed")
    fleet.engine.step()
    assert fleet.state(second) == RolloutState.ROLLING_BACK
    assert [module.version for module in fleet.wanted("a").modules] == [1]
    fleet.report("a", 1)
    fleet.engine.step()
    assert fleet.state(second) == RolloutState.ROLLED_BACK
    assert fleet.steps(second) == {"a": "rolled-back", "b": "skipped"}
    with fleet.database.read() as session:
        row = session.get(RolloutDevice, (second, "a"))
        assert row is not None
        assert row.reason == "install.golden_failed"


def test_a_device_that_gave_a_version_up_goes_back_to_the_one_that_it_serves(fleet: Fleet) -> None:
    """Version 2 passed its rollout and died too often later: the device is back at 1, where a bad 3 must leave it."""
    for number in (1, 2, 3):
        fleet.version(number)
    fleet.devices("a", "b")
    for number in (1, 2):
        rollout = fleet.start(version=number, plan=Plan(waves=(Wave(percent=100.0),), soak_s=0.0))
        fleet.report("a", number)
        fleet.report("b", number)
        fleet.engine.step()
        assert fleet.state(rollout) == RolloutState.SUCCEEDED
    fleet.report("a", 2, "Failed", "run.crash_loop")
    fleet.report("b", 1, "Healthy", role="last-good")
    third = fleet.start(version=3, plan=Plan(waves=(Wave(percent=100.0),), soak_s=0.0))
    for name in ("a", "b"):
        fleet.report(name, 3, "Failed", "install.golden_failed")
    fleet.engine.step()
    assert fleet.state(third) == RolloutState.ROLLING_BACK
    assert [module.version for module in fleet.wanted("a").modules] == [1]
    assert [module.version for module in fleet.wanted("b").modules] == [2]
    fleet.engine.step()
    assert fleet.state(third) == RolloutState.ROLLING_BACK
    fleet.report("a", 1)
    fleet.report("b", 2)
    fleet.engine.step()
    assert fleet.state(third) == RolloutState.ROLLED_BACK


def test_what_cannot_run_is_unschedulable_before_anything_is_sent(fleet: Fleet) -> None:
    fleet.version(1, engine="openvino")
    fleet.devices("n100", profile="intel-n100")
    fleet.devices("z2", profile="pynq-z2")
    preview = fleet.engine.preview(module="digits", version=1, target="*", plan=PLAN)
    assert (preview.waves, preview.unschedulable) == ((1,), 1)
    rollout = fleet.start("*")
    assert fleet.steps(rollout) == {"n100": "assigned", "z2": "unschedulable"}
    with fleet.database.read() as session:
        row = session.get(RolloutDevice, (rollout, "z2"))
        assert row is not None
        assert row.reason == "unschedulable.engine"
        assert "needs the engine openvino" in row.message
        assert session.get(Assignment, ("z2", "digits")) is None


@pytest.mark.parametrize(
    ("target", "code", "text"),
    [
        ("site=nowhere", "rollout.empty_target", "no device has these tags"),
        ("id=z2", "rollout.empty_target", "none of its 1 devices can run digits:1"),
        ("site", "query.invalid", "has no '='"),
    ],
)
def test_a_target_that_means_nothing_is_refused(fleet: Fleet, target: str, code: str, text: str) -> None:
    fleet.version(1, memory_mb=100_000)
    fleet.devices("z2", profile="pynq-z2")
    with pytest.raises(InputError, match=text) as caught:
        fleet.start(target)
    assert caught.value.code == code
    with fleet.database.read() as session:
        assert session.exec(select(Rollout)).all() == []


def test_unknown_things_are_named(fleet: Fleet) -> None:
    fleet.devices("a")
    with pytest.raises(InputError, match="cannot roll out digits:9: no such version"):
        fleet.start(version=9)
    with pytest.raises(InputError, match="cannot find rollout 77"):
        fleet.engine.pause(77, actor="ann")


def test_a_rollout_over_one_that_runs_on_the_same_devices_is_refused(fleet: Fleet) -> None:
    fleet.version(1)
    fleet.version(2)
    fleet.devices("a", "b")
    fleet.devices("c", site="shop")
    first = fleet.start()
    with pytest.raises(InputError, match=f"rollout {first} of digits still runs on 2 of these devices") as caught:
        fleet.start("*", version=2)
    assert caught.value.code == "rollout.conflict"
    fleet.start("site=shop", version=2)
    fleet.engine.abort(first, actor="ann")
    fleet.report("a", 0)
    fleet.engine.step()
    assert fleet.state(first) == RolloutState.ABORTED
    fleet.start("site=lab", version=2)


def test_pause_resume_and_their_wrong_states(fleet: Fleet) -> None:
    fleet.version(1)
    fleet.devices("a", "b")
    rollout = fleet.start()
    fleet.engine.pause(rollout, actor="ann", reason="lunch")
    fleet.report("a", 1)
    fleet.engine.step()
    assert fleet.steps(rollout) == {"a": "succeeded", "b": "pending"}
    with pytest.raises(InputError, match="cannot pause"):
        fleet.engine.pause(rollout, actor="ann")
    fleet.engine.resume(rollout, actor="ann")
    assert fleet.steps(rollout) == {"a": "succeeded", "b": "assigned"}


def test_a_large_wave_begins_in_several_transactions_with_one_revision_each(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "ASSIGN_BATCH", 20)
    fleet.version(1)
    fleet.devices(*(f"d{number:03}" for number in range(45)))
    rollout = fleet.start(plan=Plan(waves=(Wave(percent=100.0),), soak_s=0.0))
    assert len(fleet.published) == 20  # who starts it waits for the first ones only
    fleet.engine.step()
    assert set(fleet.steps(rollout).values()) == {"assigned"}
    assert len(fleet.published) == 45 == len(set(fleet.published))


def test_a_crash_between_commit_and_publish_loses_nothing(fleet: Fleet) -> None:
    """The document is in the database, so that a new hub finds and publishes it."""
    fleet.version(1)
    fleet.devices("a")

    def crash(_: object) -> None:
        raise SystemExit("power cut")

    dying = RolloutEngine(fleet.database, fleet.bus, crash)
    with pytest.raises(SystemExit):
        dying.create(module="digits", version=1, target="id=a", plan=PLAN, actor="ann")
    assert fleet.wanted("a").revision == 1
    fleet.report("a", 1)
    fleet.engine.step()
    assert fleet.state(1) == RolloutState.SUCCEEDED


async def _until_done(fleet: Fleet, rollout: int) -> None:
    loop = asyncio.create_task(fleet.engine.run())
    try:
        for device in ("a", "b"):
            while await asyncio.to_thread(fleet.steps, rollout) == {} or (
                (await asyncio.to_thread(fleet.steps, rollout))[device] != "assigned"
            ):
                await asyncio.sleep(0.02)
            await asyncio.to_thread(fleet.report, device, 1)
            fleet.bus.publish(f"device:{device}")
        while await asyncio.to_thread(fleet.state, rollout) != RolloutState.SUCCEEDED:
            await asyncio.sleep(0.02)
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


def test_the_loop_carries_a_rollout_on_by_nudges(fleet: Fleet) -> None:
    fleet.version(1)
    fleet.devices("a", "b")
    rollout = fleet.start()
    asyncio.run(asyncio.wait_for(_until_done(fleet, rollout), 30))
    assert now_ms() > 0
