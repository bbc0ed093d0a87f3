"""The registry on both databases: consecutive numbers, refusals that leave nothing, identical downloads, the guard."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from sqlmodel import Session, select

from hub.core.parts import module_folder, onnx_model, packed, pipeline_folder
from skerry_hub import desired, devices, keys, queries, registration, registry
from skerry_hub.db import Database
from skerry_hub.objects import FolderStore
from skerry_hub.registration import Provenance
from skerry_hub.rules.rollout import DeviceStep, RolloutState
from skerry_hub.tables import Audit, DeviceModule, ModelVersion, Rollout, RolloutDevice
from skerry_modules import package, profiles, trust
from skerry_modules.compatibility import ModelFacts
from skerry_modules.errors import InputError, PeerError, SkerryError
from skerry_modules.package import Limits
from skerry_modules.pipeline import Facts

ALICE = Provenance(
    actor="alice", reason="better on sevens", git_commit="c0ffee", git_branch="main", tags={"stage": "test"}
)


def register(
    database: Database, objects: FolderStore, data: bytes, *, name: str = "digits", provenance: Provenance = ALICE
) -> ModelVersion:
    return registration.register(
        database, objects, name, io.BytesIO(data), provenance, limits=package.DEFAULT_LIMITS, now=1000
    )


def trusting(database: Database, key: trust.SigningKey) -> None:
    with database.session() as session:
        keys.add_publisher(session, key.public.text(), actor="alice", now=1)


def a_device(session: Session, name: str = "gate-1") -> str:
    devices.register(session, name, profile=next(iter(profiles.shipped())), tags={}, actor="alice", now=1)
    session.flush()
    return name


def test_registers_with_who_why_and_from_which_commit(
    database: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(database, key)
    data = packed(tmp_path / "m", key, engine="onnx")
    version = register(database, objects, data)
    with database.read() as session:
        row = registry.get_version(session, "digits", 1)
        assert (row.digest, row.signer, row.created_by, row.reason) == (
            version.digest,
            key.public.keyid,
            "alice",
            "better on sevens",
        )
        assert (row.git_commit, row.git_branch, row.git_dirty, row.engine) == ("c0ffee", "main", False, "onnx")
        assert '"MatMul"' in row.facts
        assert registry.tags_of(session, [row])["digits", 1] == {"kind": "test", "stage": "test"}
        deed = session.exec(select(Audit).where(Audit.action == "version.register")).one()
        assert (deed.actor, deed.subject, deed.reason) == ("alice", "digits:1", "better on sevens")


def test_gives_back_every_file_and_the_package_byte_for_byte(
    database: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(database, key)
    data = packed(tmp_path / "m", key, engine="onnx")
    register(database, objects, data)
    with database.read() as session:
        size, blocks = registry.package_of(session, objects, "digits", 1)
        files = registry.files_of(session, "digits", 1)
    assert b"".join(blocks) == data
    assert size == len(data)
    assert {file.path for file in files} == {"module.toml", "model.onnx", "data/labels.txt"}
    for file in files:
        with objects.open(file.sha256) as content:
            assert content.read() == (tmp_path / "m" / file.path).read_bytes()


def test_numbers_are_consecutive_under_fifty_at_once_and_failures_burn_none(
    database: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(database, key)
    stranger = trust.SigningKey.generate("mallory")
    good = [packed(tmp_path / f"good{n}", key, release=str(n)) for n in range(50)]
    bad = [packed(tmp_path / f"bad{n}", stranger, release=f"bad {n}") for n in range(5)]
    bad += [packed(tmp_path / f"cut{n}", key, release=f"cut {n}")[:-600] for n in range(5)]
    gate = threading.Barrier(60)

    def one(data: bytes) -> int | str:
        gate.wait()
        try:
            return register(database, objects, data).version
        except SkerryError as error:
            return error.code

    work = [*good, *bad]
    work = work[::2] + work[1::2]
    with ThreadPoolExecutor(60) as pool:
        results = list(pool.map(one, work))
    assert sorted(result for result in results if isinstance(result, int)) == list(range(1, 51))
    assert sorted(result for result in results if isinstance(result, str)) == (
        ["package.unreadable"] * 5 + ["trust.unknown_key"] * 5
    )
    with database.read() as session:
        assert registry.get_model(session, "digits").last_version == 50
        assert len({row.digest for row in registry.find_versions(session)}) == 50


def test_the_same_content_at_once_becomes_one_version(
    database: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(database, key)
    data = packed(tmp_path / "m", key)
    gate = threading.Barrier(8)

    def one(_: int) -> str:
        gate.wait()
        try:
            return f"v{register(database, objects, data).version}"
        except InputError as error:
            return f"{error.code} {error.data['version']}"

    with ThreadPoolExecutor(8) as pool:
        results = sorted(pool.map(one, range(8)))
    assert results == ["module.exists 1"] * 7 + ["v1"]


def test_a_deleted_number_is_never_given_again(
    sqlite: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(sqlite, key)
    for n in range(2):
        register(sqlite, objects, packed(tmp_path / f"m{n}", key, release=str(n)))
    with sqlite.session() as session:
        registry.delete_version(session, "digits", 2, actor="alice", now=1)
    assert register(sqlite, objects, packed(tmp_path / "m3", key, release="3")).version == 3


@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        ("unsigned", "trust.unsigned", "cannot accept an unsigned document"),
        ("stranger", "trust.unknown_key", "add the publisher's key first"),
        ("forged", "trust.bad_signature", "does not match its content"),
        ("flipped", "package.digest_mismatch", "was damaged or changed"),
        ("cut", "package.unreadable", "cut short"),
        ("no package", "package.unreadable", "cannot"),
    ],
)
def test_refuses_what_is_not_proven_and_keeps_nothing(
    spoil: str, code: str, text: str, sqlite: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(sqlite, key)
    signer = {"unsigned": None, "stranger": trust.SigningKey.generate("mallory")}.get(spoil, key)
    data = packed(tmp_path / "m", signer)
    if spoil == "forged":
        with package.read_package(tmp_path / "m.skerry") as reader:
            good = reader.signatures[0].sig
        import base64

        wrong = bytes([good[0] ^ 1]) + good[1:]
        data = data.replace(base64.b64encode(good), base64.b64encode(wrong))
    elif spoil == "flipped":
        at = data.index(b"def init()")
        data = data[:at] + b"d3f" + data[at + 3 :]
    elif spoil == "cut":
        data = data[: len(data) // 2]
    elif spoil == "no package":
        data = b"\x89PNG" * 1000
    with pytest.raises(SkerryError, match=text) as caught:
        register(sqlite, objects, data)
    assert caught.value.code == code
    with sqlite.read() as session:
        assert registry.find_versions(session) == []
        assert registry.find_models(session) == []
    if code.startswith("trust."):
        assert list(objects.digests()) == [], "nothing unsigned may be stored"


def test_holds_the_model_to_the_manifest_even_where_the_packer_did_not(
    sqlite: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    """A publisher with other tools may sign an index whose manifest lies."""
    trusting(sqlite, key)
    folder = module_folder(tmp_path / "m", engine="onnx")
    index, sources = package.build_index(folder, package.read_folder(folder))
    text = package.index_bytes(index).replace(b'"datatype":"FP32","', b'"datatype":"FP64","', 1)
    text = text.replace(b'"shape":[-1,4]', b'"shape":[-1,5]')
    signature = package.sign_index(text, key)

    def blocks(sha256: str) -> object:
        return iter([sources[sha256].read_bytes()])

    package.write_objects(tmp_path / "lie.skerry", text, (signature,), blocks)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        register(sqlite, objects, (tmp_path / "lie.skerry").read_bytes())
    assert caught.value.code == "manifest.model_mismatch"
    assert caught.value.data["tensor"] == "x"
    assert "cannot register" in caught.value.message
    with sqlite.read() as session:
        assert registry.find_versions(session) == []


def test_an_index_that_understates_what_its_model_needs_is_refused(
    sqlite: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    """Devices decide by the index where a module can run: a lie there would end as a failure on each of them."""
    trusting(sqlite, key)
    made = package.write_package(module_folder(tmp_path / "m", engine="onnx"), tmp_path / "good.skerry", key)
    assert made.index.facts.operators
    lie = msgspec.structs.replace(made.index, facts=msgspec.structs.replace(made.index.facts, operators=()))
    text = package.index_bytes(lie)
    sources = {file.sha256: (tmp_path / "m" / file.path).read_bytes() for file in lie.files}
    package.write_objects(
        tmp_path / "lie.skerry", text, (package.sign_index(text, key),), lambda sha256: iter([sources[sha256]])
    )
    with pytest.raises(InputError, match=r"its index says operators \(\), its model says \('") as caught:
        register(sqlite, objects, (tmp_path / "lie.skerry").read_bytes())
    assert (caught.value.code, caught.value.data["field"]) == ("manifest.model_mismatch", "operators")


def test_a_pipelines_models_are_read_step_by_step(
    sqlite: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(sqlite, key)
    folder = pipeline_folder(tmp_path / "m")
    made = package.write_package(folder, tmp_path / "good.skerry", key)
    version = register(sqlite, objects, made.path.read_bytes())
    facts = msgspec.json.decode(version.facts, type=ModelFacts)
    assert version.engine == "pipeline"
    assert facts.steps == {"plain": Facts(), "net": Facts(opset=17, operators=("MatMul",))}
    assert facts == made.index.facts

    index, sources = package.build_index(folder, package.read_folder(folder))
    text = package.index_bytes(index).replace(b'"shape":[-1,4]', b'"shape":[-1,5]')

    def blocks(sha256: str) -> object:
        return iter([sources[sha256].read_bytes()])

    package.write_objects(tmp_path / "lie.skerry", text, (package.sign_index(text, key),), blocks)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        register(sqlite, objects, (tmp_path / "lie.skerry").read_bytes())
    assert caught.value.message.startswith("cannot register step 'net': input 'x': the manifest says")
    assert caught.value.code == "manifest.model_mismatch"


def test_refuses_a_package_of_another_name(
    sqlite: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(sqlite, key)
    with pytest.raises(InputError, match="its manifest names it 'digits'; use that name"):
        register(sqlite, objects, packed(tmp_path / "m", key), name="letters")


def test_refuses_more_than_the_limits(
    sqlite: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(sqlite, key)
    data = packed(tmp_path / "m", key)
    for limits, code in (
        (Limits(max_files=2), "package.too_many_files"),
        (Limits(max_file_bytes=10), "package.too_large"),
    ):
        with pytest.raises(PeerError) as caught:
            registration.register(sqlite, objects, "digits", io.BytesIO(data), ALICE, limits=limits, now=1)
        assert caught.value.code == code


def test_finds_by_tags(database: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path) -> None:
    trusting(database, key)
    for n, tags in enumerate(({"stage": "test"}, {"stage": "test", "site": "lab"}, {"site": "lab"})):
        register(
            database,
            objects,
            packed(tmp_path / f"m{n}", key, release=str(n)),
            provenance=Provenance(actor="alice", tags=tags),
        )

    def found(query: str) -> list[int]:
        with database.read() as session:
            return [row.version for row in registry.find_versions(session, queries.parse(query))]

    assert found("stage=test") == [2, 1]
    assert found("stage=test,site=lab") == [2]
    assert found("kind=test") == [3, 2, 1]  # the manifest's own
    assert found("stage=prod") == []
    assert found("*") == [3, 2, 1]
    with database.session() as session:
        registry.set_tags(session, "digits", 1, {"stage": "prod"}, actor="alice", now=2)
    assert found("stage=prod") == [1]
    assert found("stage=test") == [2]


@pytest.mark.parametrize("role", ["desired", "current", "candidate", "last-good", "rollout", "rollout back"])
def test_what_is_held_cannot_be_deleted(
    role: str, database: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(database, key)
    register(database, objects, packed(tmp_path / "m", key))
    with database.session() as session:
        device = a_device(session)
        if role == "desired":
            desired.assign(session, device, "digits", 1, now=1)
        elif role.startswith("rollout"):
            rollout = Rollout(
                module="digits",
                version=2 if role == "rollout back" else 1,
                target="*",
                plan="{}",
                state=RolloutState.RUNNING,
                created_by="alice",
                created_at=1,
            )
            session.add(rollout)
            session.flush()
            session.add(
                RolloutDevice(rollout=rollout.id or 0, device=device, wave=0, step=DeviceStep.ASSIGNED, previous=1)
            )
        else:
            session.add(
                DeviceModule(
                    device=device, module="digits", version=1, digest="", phase="Healthy", role=role, reported_at=1
                )
            )
    with database.session() as session, pytest.raises(InputError) as caught:
        registry.delete_version(session, "digits", 1, actor="alice", now=2)
    assert caught.value.code == "module.in_use"
    assert caught.value.message.startswith("cannot delete digits:1: it is in use (")
    if not role.startswith("rollout"):
        assert caught.value.data[role.replace("-", "_")] == ["gate-1"]
        assert "gate-1" in caught.value.message
    with database.session() as session, pytest.raises(InputError, match="in use"):
        registry.delete_model(session, "digits", actor="alice", now=2)
    with database.read() as session:
        assert registry.get_version(session, "digits", 1)


def test_what_nobody_holds_goes_and_its_objects_are_collected(
    database: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path
) -> None:
    trusting(database, key)
    for n in range(2):
        register(database, objects, packed(tmp_path / f"m{n}", key, release=str(n)))
    stored = set(objects.digests())
    with database.session() as session:
        registry.delete_version(session, "digits", 1, actor="alice", now=2, reason="wrong data")
        needed = {file.sha256 for file in registry.files_of(session, "digits", 2)}
        needed.add(registry.get_version(session, "digits", 2).digest)
    assert registry.collect_garbage(database, objects, grace_s=3600) == [], "younger than the grace"
    gone = registry.collect_garbage(database, objects, grace_s=0.0)
    assert set(objects.digests()) == needed
    assert set(gone) == stored - needed
    with database.session() as session:
        registry.delete_model(session, "digits", actor="alice", now=3)
        assert registry.find_models(session) == []


def test_an_object_that_is_stored_again_is_young_again(objects: FolderStore) -> None:
    import os

    digest = objects.put_bytes(onnx_model())
    os.utime(objects.path(digest), (1, 1))
    assert list(objects.digests(older_than_s=60)) == [digest]
    assert objects.put_bytes(onnx_model()) == digest
    assert not objects.delete(digest, older_than_s=60)
    assert objects.exists(digest)


def test_unknown_things_are_named(sqlite: Database) -> None:
    with sqlite.read() as session:
        with pytest.raises(InputError, match=r"cannot find digits:7: no such version") as caught:
            registry.get_version(session, "digits", 7)
        assert caught.value.code == "module.unknown"
        with pytest.raises(InputError, match="cannot find the model 'digits'"):
            registry.get_model(session, "digits")


def test_a_model_may_be_described_before_its_first_version(sqlite: Database) -> None:
    with sqlite.session() as session:
        registry.create_model(session, "digits", description="Handwritten digits", actor="alice", now=1)
        assert registry.get_model(session, "digits").description == "Handwritten digits"
        with pytest.raises(InputError, match="cannot create the model 'Bad Name'"):
            registry.create_model(session, "Bad Name", actor="alice", now=1)
