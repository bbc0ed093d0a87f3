"""Devices and what is wanted of them: passwords that Mosquitto takes, signed documents, revisions without a gap."""

from __future__ import annotations

import shutil
import subprocess
import threading
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import Session, select

from skerry_hub import desired, devices, passwords, queries
from skerry_hub.db import Database
from skerry_hub.rules.rollout import DeviceStep, RolloutState
from skerry_hub.tables import Assignment, Device, EventRow, Model, ModelVersion, Rollout, RolloutDevice
from skerry_modules import messages, trust
from skerry_modules.compatibility import DeviceFacts, ModelFacts
from skerry_modules.errors import BugError, InputError
from skerry_modules.manifest import Manifest, Resources
from skerry_modules.tensors import TensorSpec

PROFILE = "generic-x86_64"


def a_version(
    session: Session, number: int, *, name: str = "digits", engine: str = "onnx", memory_mb: int = 64
) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    manifest = Manifest(
        format=1,
        name=name,
        engine=engine,  # type: ignore[arg-type]
        model="m.onnx",
        inputs=(spec,),
        outputs=(spec,),
        resources=Resources(memory_mb=memory_mb),
    )
    if session.get(Model, name) is None:
        session.add(Model(name=name, created_at=1))
        session.flush()
    signatures = (trust.Signature("0" * 16, bytes([number]) * 64),)
    session.add(
        ModelVersion(
            name=name,
            version=number,
            digest=f"{number:064x}",
            index_size=100 + number,
            size=1,
            engine=engine,
            manifest=msgspec.json.encode(manifest).decode(),
            facts=msgspec.json.encode(ModelFacts(opset=17)).decode(),
            signatures=msgspec.json.encode(signatures).decode(),
            created_by="alice",
            created_at=1,
        )
    )
    session.flush()


def a_device(session: Session, name: str = "gate-1", **tags: str) -> str:
    password = devices.register(session, name, profile=PROFILE, tags=tags, actor="alice", now=1)
    session.flush()
    return password


def opened(database: Database, device: str) -> messages.Desired:
    """The device's document, verified as a device verifies it."""
    with database.read() as session:
        payload = desired.document(session, device)
    assert payload is not None
    signed = messages.decode("desired", payload)
    key = database.info[desired.SIGNER].public
    trust.verify(trust.DESIRED_TYPE, signed.payload, signed.signatures, {key.keyid: key})
    return messages.decode_desired(signed.payload)


# -- registration and passwords ---------------------------------------------------------------------------------------


def test_a_device_is_registered_found_and_removed(database: Database) -> None:
    with database.session() as session:
        a_version(session, 1)
        a_device(session, "gate-1", site="lab", line="1")
        a_device(session, "gate-2", site="lab")
        desired.assign(session, "gate-2", "digits", 1, now=5)
        session.add(EventRow(device="gate-2", at=1, received_at=1, severity="info", code="x", message="x"))

    def found(query: str) -> list[str]:
        with database.read() as session:
            return [row.id for row in devices.find(session, queries.parse(query))]

    assert found("site=lab") == ["gate-1", "gate-2"]
    assert found("site=lab,line=1") == ["gate-1"]
    assert found("id=gate-2") == ["gate-2"]
    assert found(f"profile={PROFILE}") == found("*")
    with database.session() as session:
        devices.set_tags(session, "gate-1", {"site": "hall"}, actor="alice", now=2)
    assert found("site=lab") == ["gate-2"]
    with database.session() as session:
        devices.remove(session, "gate-2", actor="alice", now=3)
    with database.read() as session:
        assert found("*") == ["gate-1"]
        assert desired.document(session, "gate-2") is None
        assert session.exec(select(EventRow)).one().device == "gate-2", "what it told stays"


@pytest.mark.parametrize(
    ("wrong", "code", "text"),
    [
        ({"device": "Gate 1"}, "device.invalid_id", "cannot use 'Gate 1' as a device id"),
        ({"profile": "toaster"}, "profile.unknown", "cannot find the firmware profile 'toaster': choose one of"),
        ({"tags": {"id": "x"}}, "query.invalid", "the name 'id' is the hub's own"),
        ({"tags": {"a,b": "x"}}, "query.invalid", "cannot use the tag query"),
        ({"device": "gate-0"}, "device.exists", "cannot register the device 'gate-0': it exists"),
    ],
)
def test_what_cannot_be_registered_is_said(sqlite: Database, wrong: dict[str, object], code: str, text: str) -> None:
    with sqlite.session() as session:
        a_device(session, "gate-0")
    right = {"device": "gate-1", "profile": PROFILE, "tags": {}}
    with sqlite.session() as session, pytest.raises(InputError) as caught:
        devices.register(session, **{**right, **wrong}, actor="alice", now=1)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert text in caught.value.message


@given(st.text(min_size=1, max_size=40))
def test_a_password_fits_its_own_hash_only(password: str) -> None:
    hashed = passwords.hashed(password)
    assert passwords.is_right(password, hashed)
    assert not passwords.is_right(password + "x", hashed)
    assert not passwords.is_right(password, "nonsense")


def test_a_hash_that_mosquitto_wrote_is_read(tmp_path: Path) -> None:
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("mosquitto_passwd is not on this machine; get it with: apt-get install mosquitto")
    path = tmp_path / "passwords"
    path.touch(mode=0o600)
    subprocess.run([program, "-b", str(path), "gate-1", "open sesame"], check=True, capture_output=True)
    name, _, hashed = path.read_text().strip().partition(":")
    assert name == "gate-1"
    assert passwords.is_right("open sesame", hashed)
    kind, ours = hashed.split("$")[1], passwords.hashed("open sesame").split("$")
    assert (kind, len(ours)) == ("7", 5)
    theirs = hashed.split("$")
    assert [len(part) for part in ours[2:]] == [len(part) for part in theirs[2:]], "rounds, salt, hash: the same shape"


def test_the_configuration_is_toml_with_all_that_the_agent_needs(sqlite: Database) -> None:
    with sqlite.session() as session:
        password = a_device(session)
        text = devices.config_text(
            devices.get(session, "gate-1"),
            password,
            broker="mqtt://hub:1883",
            hub_key="ed25519:AAAA hub",
            publishers=['ed25519:BBBB "al" ice'],
        )
        stored = devices.get(session, "gate-1").secret
    config = tomllib.loads(text)
    assert config["device"] == {"id": "gate-1", "profile": PROFILE}
    assert config["hub"] == {
        "broker": "mqtt://hub:1883",
        "username": "gate-1",
        "password": password,
        "key": "ed25519:AAAA hub",
        "publishers": ['ed25519:BBBB "al" ice'],
    }
    assert config["serving"]["http"] == "127.0.0.1:8090"
    assert password not in stored
    assert passwords.is_right(password, stored)


def test_a_new_password_ends_the_old_one(sqlite: Database) -> None:
    with sqlite.session() as session:
        old = a_device(session)
        new = devices.renew_password(session, "gate-1", actor="alice", now=2)
        hashed = devices.credentials(session)["gate-1"]
    assert passwords.is_right(new, hashed)
    assert not passwords.is_right(old, hashed)


@pytest.mark.parametrize(
    ("state", "step", "removable"),
    [
        (RolloutState.RUNNING, DeviceStep.PENDING, False),
        (RolloutState.PAUSED, DeviceStep.ASSIGNED, False),
        (RolloutState.ROLLING_BACK, DeviceStep.SUCCEEDED, False),
        (RolloutState.RUNNING, DeviceStep.UNSCHEDULABLE, True),
        (RolloutState.SUCCEEDED, DeviceStep.SUCCEEDED, True),
    ],
)
def test_a_device_in_a_running_rollout_stays(
    sqlite: Database, state: RolloutState, step: DeviceStep, removable: bool
) -> None:
    with sqlite.session() as session:
        a_device(session)
        rollout = Rollout(
            module="digits", version=1, target="*", plan="{}", state=state, created_by="alice", created_at=1
        )
        session.add(rollout)
        session.flush()
        session.add(RolloutDevice(rollout=rollout.id or 0, device="gate-1", wave=0, step=step))
    with sqlite.session() as session:
        if removable:
            devices.remove(session, "gate-1", actor="alice", now=2)
            return
        with pytest.raises(InputError, match="cannot remove the device gate-1: rollout 1 runs on it") as caught:
            devices.remove(session, "gate-1", actor="alice", now=2)
    assert (caught.value.code, caught.value.data) == ("device.in_use", {"rollouts": [1]})


# -- what is wanted ---------------------------------------------------------------------------------------------------


def test_a_wish_becomes_a_signed_document(database: Database) -> None:
    with database.session() as session:
        a_version(session, 1)
        a_version(session, 2)
        a_version(session, 1, name="vibration")
        a_device(session)
        assert desired.assign(session, "gate-1", "vibration", 1, now=5) == 1
        assert desired.assign(session, "gate-1", "digits", 2, soak_s=30, rollout=None, now=6) == 2
    document = opened(database, "gate-1")
    assert (document.device, document.revision, document.issued_at) == ("gate-1", 2, 6)
    digits, vibration = document.modules
    assert (digits.name, digits.version, digits.digest, digits.index_size) == ("digits", 2, f"{2:064x}", 102)
    assert (digits.soak_s, digits.attempt, digits.signatures[0].sig) == (30, 2, bytes([2]) * 64)
    assert (vibration.name, vibration.attempt) == ("vibration", 1)
    with database.session() as session:
        assert desired.unassign(session, "gate-1", "vibration", now=7) == 3
        assert desired.unassign(session, "gate-1", "vibration", now=8) == 3, "nothing to do changes nothing"
    assert [module.name for module in opened(database, "gate-1").modules] == ["digits"]


def test_the_same_wish_again_is_a_new_attempt_also_after_a_removal(database: Database) -> None:
    with database.session() as session:
        a_version(session, 1)
        a_device(session)
        attempts = []
        for _ in range(2):
            desired.assign(session, "gate-1", "digits", 1, now=1)
            attempts.append(session.exec(select(Assignment.attempt)).one())
        desired.assign(session, "gate-1", "digits", None, now=1)
        desired.assign(session, "gate-1", "digits", 1, now=1)
        attempts.append(session.exec(select(Assignment.attempt)).one())
    assert attempts == [1, 2, 4]


def test_within_a_rollout_a_wish_may_be_said_twice(database: Database) -> None:
    with database.session() as session:
        a_version(session, 1)
        a_version(session, 2)
        a_device(session)
        desired.assign(session, "gate-1", "digits", 1, now=1)
        first = desired.assign(session, "gate-1", "digits", 2, rollout=7, now=2)
        assert desired.assign(session, "gate-1", "digits", 2, rollout=7, now=3) == first == 2
        assert session.get_one(Device, "gate-1").desired_revision == 2
        assert desired.assign(session, "gate-1", "digits", 2, rollout=8, now=3) == 3


def test_revisions_are_consecutive_under_many_wishes_at_once(database: Database) -> None:
    with database.session() as session:
        for n in range(12):
            a_version(session, 1, name=f"m{n}")
        a_device(session)
    gate, revisions = threading.Barrier(12), []

    def wish(n: int) -> None:
        gate.wait()
        for _ in range(3):
            with database.session() as session:
                revision = desired.assign(session, "gate-1", f"m{n}", 1, now=1)
            revisions.append(revision)

    threads = [threading.Thread(target=wish, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(revisions) == list(range(1, 37))
    document = opened(database, "gate-1")
    assert document.revision == 36
    assert len(document.modules) == 12


def test_unknown_things_are_not_wished_for(sqlite: Database) -> None:
    with sqlite.session() as session:
        a_device(session)
        with pytest.raises(InputError, match="cannot assign digits:9: no such version") as caught:
            desired.assign(session, "gate-1", "digits", 9, now=1)
        assert caught.value.code == "module.unknown"
        with pytest.raises(InputError, match="cannot find the device 'nobody'"):
            desired.assign(session, "nobody", "digits", 9, now=1)
        assert session.get_one(Device, "gate-1").desired_revision == 0


def test_without_the_hubs_key_nothing_is_signed(sqlite: Database) -> None:
    with sqlite.session() as session:
        a_version(session, 1)
        a_device(session)
    del sqlite.info[desired.SIGNER]
    with pytest.raises(BugError, match="carries no hub key"), sqlite.session() as session:
        desired.assign(session, "gate-1", "digits", 1, now=1)
    with sqlite.read() as session:
        assert session.exec(select(Assignment)).all() == [], "and the wish is not kept either"


# -- what can run where -----------------------------------------------------------------------------------------------


def test_what_the_profile_cannot_run_is_said_before_anything_is_sent(sqlite: Database) -> None:
    with sqlite.session() as session:
        a_version(session, 1)
        a_version(session, 2, engine="pynq")
        a_version(session, 3, memory_mb=10_000_000)
        a_device(session)

        def obstacles(number: int) -> list[str]:
            version = session.get_one(ModelVersion, ("digits", number))
            return [found.code for found in devices.compatibility_of(session, "gate-1", version)]

        assert obstacles(1) == []
        assert obstacles(2) == ["unschedulable.engine"]
        assert obstacles(3) == ["unschedulable.memory"]


def test_what_the_device_says_of_itself_counts(sqlite: Database) -> None:
    with sqlite.session() as session:
        a_version(session, 1)
        a_device(session)
        row = devices.get(session, "gate-1")
        row.facts = msgspec.json.encode(DeviceFacts(engines={"python": "3.11"})).decode()
        session.add(row)
        session.flush()
        version = session.get_one(ModelVersion, ("digits", 1))
        (found,) = devices.compatibility_of(session, "gate-1", version)
    assert found.code == "unschedulable.engine"
    assert "the device has installed python" in found.message


def test_memory_that_other_modules_want_is_taken_off(sqlite: Database) -> None:
    from skerry_modules import profiles

    room = profiles.get(PROFILE).limits.memory_mb
    with sqlite.session() as session:
        a_version(session, 1, name="big", memory_mb=room - 100)
        a_version(session, 1, memory_mb=101)
        a_device(session)
        version = session.get_one(ModelVersion, ("digits", 1))
        assert devices.compatibility_of(session, "gate-1", version) == []
        desired.assign(session, "gate-1", "big", 1, now=1)
        (found,) = devices.compatibility_of(session, "gate-1", version)
    assert found.message == "needs 101 MB, profile leaves 100 MB"
