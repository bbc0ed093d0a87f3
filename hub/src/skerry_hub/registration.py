"""Registration: a signed package becomes the next version of its model.

The index and its signature are checked first, so that nothing unsigned is stored; then each object streams into
the store; then the model is held to its manifest; the version number is taken last, in one short transaction
under a lock on the model's row. So numbers are consecutive however many register at once, and a registration
that fails burns none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import msgspec
from sqlmodel import Session, col, select

from skerry_hub import audit, environments, keys, queries, registry
from skerry_hub.db import Database
from skerry_hub.objects import ObjectStore
from skerry_hub.tables import ModelVersion, VersionFile, VersionTag
from skerry_modules import model_files, package
from skerry_modules.compatibility import ModelFacts
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.package import Index, Limits, PackageReader


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version comes from: who registers it and why, its commit, its tags."""

    actor: str
    reason: str = ""
    git_commit: str = ""
    git_branch: str = ""
    git_remote: str = ""
    git_dirty: bool = False
    tags: dict[str, str] = {}


def register(
    database: Database,
    objects: ObjectStore,
    name: str,
    stream: IO[bytes],
    provenance: Provenance,
    *,
    limits: Limits,
    now: int,
) -> ModelVersion:
    """Register a package as the next version of ``name``. Blocks while the stream is read.

    Args:
        stream: the package file; it is read once, forwards.
        limits: what the package may be at most.

    Raises:
        InputError: ``module.exists`` (``data`` has the version that is there), ``manifest.model_mismatch``,
            ``request.invalid`` (the package is of another name), ``query.invalid`` (a tag), ``environment.unknown``.
        PeerError: ``package.*``, ``trust.*``.
        ResourceError: ``resource.no_space``.
    """
    queries.check_tags(provenance.tags)
    with package.read_package(stream, limits) as reader:
        _check_name(name, reader.index.manifest)
        with database.read() as session:
            trusted = keys.publishers(session)
            _refuse_known(session, name, reader.digest)
        signer = package.verify_index(reader.index_bytes, reader.signatures, trusted)
        for item in reader.objects():
            objects.put_stream(item, expected=item.sha256)
        facts = _check_model(objects, reader.index)
        objects.put_stream(reader.index_bytes, expected=reader.digest)
    version = _row(reader, facts, signer.keyid, provenance, now)
    with database.session() as session:
        _number(session, version)
        environments.record(session, version, reader.index.manifest, facts.environment)
        _add_parts(session, version, reader.index, {**reader.index.manifest.tags, **provenance.tags})
        audit.record(
            session,
            actor=provenance.actor,
            action="version.register",
            subject=f"{name}:{version.version}",
            reason=provenance.reason,
            now=now,
            digest=version.digest,
            signer=signer.keyid,
        )
    return version


def _check_name(name: str, manifest: Manifest) -> None:
    if manifest.name != name:
        raise InputError(
            "request.invalid",
            f"cannot register the package as {name[:80]!r}: its manifest names it {manifest.name!r}; use that name",
            name=manifest.name,
        )


def _refuse_known(session: Session, name: str, digest: str) -> None:
    known = session.exec(
        select(ModelVersion.version).where(col(ModelVersion.name) == name, col(ModelVersion.digest) == digest)
    ).first()
    if known is not None:
        raise InputError(
            "module.exists",
            f"cannot register this package: its content is {name}:{known} already; use that version",
            name=name,
            version=known,
            digest=digest,
        )


def _check_model(objects: ObjectStore, index: Index) -> ModelFacts:
    """Hold the model to the manifest here too: a publisher may pack with other tools than ours."""
    manifest = index.manifest
    wanted = [manifest.model] if manifest.model else [step.model for step in manifest.steps if step.model]
    objects_by_path = {entry.path: entry.sha256 for entry in index.files}
    with tempfile.TemporaryDirectory(prefix="skerry-model-") as folder:
        for path in dict.fromkeys(wanted):
            if path not in objects_by_path:
                raise InputError(
                    "manifest.model_mismatch",
                    f"cannot register {manifest.name}: its model {path!r} is not in the package",
                )
            link = Path(folder) / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(objects.path(objects_by_path[path]).absolute())
        try:
            read = model_files.check(Path(folder), manifest, {file.path: file.size for file in index.files})
        except SkerryError as error:
            error.message = error.message.replace("cannot pack", "cannot register", 1)
            raise
    facts = msgspec.structs.replace(read, environment=index.facts.environment)
    if facts != index.facts:  # hub and devices decide by them where the module can run
        wrong = next(field for field in facts.__struct_fields__ if getattr(facts, field) != getattr(index.facts, field))
        raise InputError(
            "manifest.model_mismatch",
            f"cannot register {manifest.name}: its index says {wrong} {_brief(getattr(index.facts, wrong))}, its model "
            f"says {_brief(getattr(facts, wrong))}; pack it with this version of `skerry modules pack`",
            field=wrong,
        )
    return facts


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _row(reader: PackageReader, facts: ModelFacts, signer: str, provenance: Provenance, now: int) -> ModelVersion:
    return ModelVersion(
        name=reader.index.manifest.name,
        version=0,
        digest=reader.digest,
        index_size=len(reader.index_bytes),
        size=reader.index.size,
        engine=reader.index.manifest.engine,
        manifest=msgspec.json.encode(reader.index.manifest).decode(),
        facts=msgspec.json.encode(facts).decode(),
        signatures=msgspec.json.encode(reader.signatures).decode(),
        signer=signer,
        git_commit=provenance.git_commit,
        git_branch=provenance.git_branch,
        git_remote=provenance.git_remote,
        git_dirty=provenance.git_dirty,
        created_by=provenance.actor,
        reason=provenance.reason,
        created_at=now,
    )


def _number(session: Session, version: ModelVersion) -> None:
    """Take the next number, under the lock of the model's row, and add the version."""
    registry.ensure_model(session, version.name, version.created_at)
    model = registry.lock_model(session, version.name)
    _refuse_known(session, version.name, version.digest)
    model.last_version += 1
    version.version = model.last_version
    session.add(model)
    session.add(version)
    session.flush()


def _add_parts(session: Session, version: ModelVersion, index: Index, tags: Mapping[str, str]) -> None:
    name, number = version.name, version.version
    session.add_all(
        VersionFile(name=name, version=number, path=file.path, sha256=file.sha256, size=file.size)
        for file in index.files
    )
    session.add_all(VersionTag(name=name, version=number, key=key, value=value) for key, value in tags.items())
