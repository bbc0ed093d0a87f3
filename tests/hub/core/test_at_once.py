"""Many who change the same things at once, on both databases: each is done or refused by name, none by accident."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, col, select

from hub.core.parts import packed
from skerry_hub import desired, devices, keys, registration, registry
from skerry_hub.db import Database
from skerry_hub.objects import FolderStore
from skerry_hub.registration import Provenance
from skerry_hub.tables import Assignment, Device, ModelVersion
from skerry_modules import package, trust
from skerry_modules.errors import InputError, SkerryError

PROFILE = "generic-x86_64"


@pytest.fixture
def filled(database: Database, objects: FolderStore, key: trust.SigningKey, tmp_path: Path) -> Database:
    """Three versions of a model."""
    with database.session() as session:
        keys.add_publisher(session, key.public.text(), actor="a", now=1)
    for n in range(3):
        data = io.BytesIO(packed(tmp_path / f"m{n}", key, release=str(n)))
        registration.register(
            database, objects, "digits", data, Provenance(actor="a"), limits=package.DEFAULT_LIMITS, now=1
        )
    return database


def together(*works: Callable[[], Any]) -> list[Any]:
    """Run all at once; each one's result, or the error that ended it."""
    gate, results = threading.Barrier(len(works)), [None] * len(works)

    def one(number: int) -> None:
        gate.wait()
        try:
            results[number] = works[number]()
        except Exception as error:
            results[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_nothing_that_people_do_at_once_ends_in_an_accident(filled: Database) -> None:
    publisher = trust.SigningKey.generate("bob").public.text()

    def deeds(session: Session) -> list[Callable[[], Any]]:
        who: dict[str, Any] = {"actor": "a", "now": 1}
        return [
            lambda: devices.register(session, "gate-1", profile=PROFILE, tags={"a": "1"}, **who),
            lambda: devices.set_tags(session, "gate-1", {"a": "2", "b": "1"}, **who),
            lambda: devices.renew_password(session, "gate-1", **who),
            lambda: devices.remove(session, "gate-1", **who),
            lambda: desired.assign(session, "gate-1", "digits", 1, now=1),
            lambda: desired.assign(session, "gate-1", "digits", 2, now=1),
            lambda: desired.unassign(session, "gate-1", "digits", now=1),
            lambda: registry.set_tags(session, "digits", 1, {"a": "1", "b": "2"}, **who),
            lambda: registry.create_model(session, "other", **who),
            lambda: registry.delete_model(session, "other", **who),
            lambda: keys.add_publisher(session, publisher, **who),
            lambda: keys.remove_publisher(session, trust.parse_public(publisher).keyid, **who),
        ]

    def person(seed: int) -> Callable[[], None]:
        def work() -> None:
            chance = random.Random(seed)
            for _ in range(25):
                try:
                    with filled.session() as session:
                        chance.choice(deeds(session))()
                except InputError as error:
                    refusals.append(error.code)

        return work

    refusals: list[str] = []
    results = together(*(person(seed) for seed in range(8)))
    assert results == [None] * 8
    assert set(refusals) <= {"device.exists", "device.unknown", "module.unknown", "request.not_found"}
    with filled.read() as session:
        wanted = session.exec(select(Assignment)).all()
        known = set(session.exec(select(Device.id)))
        assert {row.device for row in wanted} <= known


@pytest.mark.parametrize("first", ["wish", "deletion"])
def test_a_version_is_not_deleted_under_a_wish_for_it(filled: Database, first: str) -> None:
    """Whichever comes first wins; a wish for a version that is gone would silently leave it out of the document."""
    with filled.session() as session:
        devices.register(session, "gate-1", profile=PROFILE, tags={}, actor="a", now=1)
    done = threading.Event()
    refused: list[str] = []

    def wish(session: Session) -> None:
        desired.assign(session, "gate-1", "digits", 2, now=1)

    def deletion(session: Session) -> None:
        registry.delete_version(session, "digits", 2, actor="a", now=1)

    def second() -> None:
        try:
            with filled.session() as session:
                (deletion if first == "wish" else wish)(session)
        except SkerryError as error:
            refused.append(error.code)
        done.set()

    thread = threading.Thread(target=second)
    with filled.session() as session:
        (wish if first == "wish" else deletion)(session)
        thread.start()
        assert not done.wait(0.3), "the second waits for the first one's commit"
    thread.join()
    assert refused == ["module.in_use" if first == "wish" else "module.unknown"]
    with filled.read() as session:
        wanted = session.exec(select(Assignment.version)).all()
        there = session.exec(select(ModelVersion.version).where(col(ModelVersion.version) == 2)).all()
    assert (wanted, there) == (([2], [2]) if first == "wish" else ([], []))
