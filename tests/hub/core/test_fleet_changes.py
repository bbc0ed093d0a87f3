"""A change of a whole fleet: each device gets what it would get alone, in as few statements as one device costs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert
from sqlmodel import Session, col, select

from skerry_hub import desired, devices, endpoints, scheduling
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.desired import Wish
from skerry_hub.tables import (
    Assignment,
    DesiredDocument,
    Device,
    DocumentDue,
    Endpoint,
    EndpointDevice,
    Model,
    ModelVersion,
    ModuleProfileRow,
)
from skerry_modules import messages
from skerry_modules.errors import InputError
from skerry_modules.messages import Route

from .test_endpoints import register

PROFILES = ("generic-x86_64", "raspberry-pi-5", "pynq-z2")
MODULES = {"digits": 64, "vibration": 150, "big": 700}  # name: declared MB
VERSIONS = [(name, number) for name in MODULES for number in (1, 2)]


def route(module: str, version: int, percent: float = 100.0) -> Route:
    return Route(module=module, version=version, percent=percent)


def stock(session: Session) -> None:
    """Three modules of two versions each."""
    for name, memory in MODULES.items():
        session.add(Model(name=name, last_version=2, created_at=1))
        session.flush()
        for number in (1, 2):
            register(session, number, name=name, memory_mb=memory)
    session.flush()


def add_devices(session: Session, count: int, profile: str = PROFILES[0]) -> list[str]:
    names = [f"d{number:04}" for number in range(count)]
    session.execute(insert(Device), [{"id": name, "profile": profile, "created_at": 1} for name in names])
    return names


@st.composite
def devices_of_a_fleet(draw: st.DrawFn) -> list[dict[str, object]]:
    return draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "profile": st.sampled_from(PROFILES),
                    "engines": st.sampled_from([{}, {"onnx": "1.31"}, {"pynq": "3.1"}]),
                    "disk": st.integers(0, 10**6),
                    "assigned": st.dictionaries(st.sampled_from(sorted(MODULES)), st.sampled_from([1, 2])),
                    "endpoints": st.sets(st.sampled_from(["one", "two"])),
                    "measured": st.dictionaries(st.sampled_from(VERSIONS), st.integers(1, 900), max_size=2),
                    "revisions": st.tuples(st.integers(0, 9), st.integers(0, 2**31 - 1)),
                }
            ),
            min_size=1,
            max_size=6,
        )
    )


def fill(session: Session, fleet: Sequence[dict[str, object]]) -> list[str]:
    """The fleet, and two endpoints; returns the devices' ids."""
    routes = {
        "one": ([route("digits", 1, 90), route("digits", 2, 10)], [route("big", 1)]),
        "two": ([route("big", 2)], []),
    }
    for number, (name, (split, shadow)) in enumerate(routes.items()):
        texts = [msgspec.json.encode(part).decode() for part in (split, shadow)]
        session.add(
            Endpoint(
                name=name,
                target="*",
                split=texts[0],
                shadow=texts[1],
                changed_by="t",
                created_at=1,
                changed_at=7 + number,
            )
        )
    names = [f"d{number}" for number in range(len(fleet))]
    for name, one in zip(names, fleet, strict=True):
        facts = msgspec.json.encode({"engines": one["engines"], "free_disk_mb": one["disk"]}).decode()
        have, reported = one["revisions"]
        session.add(
            Device(
                id=name,
                profile=one["profile"],
                facts=facts,
                desired_revision=have,
                reported_revision=reported,
                created_at=1,
            )
        )
        session.flush()
        for module, version in one["assigned"].items():
            session.add(Assignment(device=name, module=module, version=version, soak_s=2.5, attempt=version, at=1))
        for endpoint in one["endpoints"]:
            session.add(EndpointDevice(endpoint=endpoint, device=name))
        for (module, version), memory in one["measured"].items():
            session.add(
                ModuleProfileRow(
                    name=module, version=version, device=name, profile=one["profile"], simulated=False,
                    memory_mb=memory, body="{}", measured_by="t", at=1,
                )
            )  # fmt: skip
    session.flush()
    return names


def documents(session: Session) -> dict[str, messages.Desired]:
    rows = session.exec(select(DesiredDocument)).all()
    found = {}
    for row in rows:
        signed = messages.decode("desired", row.payload)
        found[row.device] = messages.decode_desired(signed.payload)
        assert found[row.device].revision == row.revision == session.get_one(Device, row.device).desired_revision
    return found


def plainly(session: Session, name: str, fleet: Sequence[dict[str, object]], made: messages.Desired) -> None:
    """What a device's document must hold, worked out for that device from what the fleet was drawn as."""
    one = fleet[int(name[1:])]
    assigned = one["assigned"]
    behind = {"one": [("digits", 1), ("digits", 2), ("big", 1)], "two": [("big", 2)]}
    assert [(m.name, m.version, m.soak_s, m.attempt) for m in made.modules] == [
        (module, assigned[module], 2.5, assigned[module]) for module in sorted(assigned)
    ]
    assert [endpoint.name for endpoint in made.endpoints] == sorted(one["endpoints"])
    sides = {key for endpoint in one["endpoints"] for key in behind[endpoint]} - set(assigned.items())
    assert [(m.name, m.version) for m in made.sides] == sorted(sides)
    assert all(m.attempt == (8 if (m.name, m.version) == ("big", 2) else 7) for m in made.sides)
    for module in (*made.modules, *made.sides):
        alike = [
            other["measured"][module.name, module.version]
            for other in fleet
            if other["profile"] == one["profile"] and (module.name, module.version) in other["measured"]
        ]
        own = one["measured"].get((module.name, module.version))
        assert module.memory_mb == (own if own is not None else max(alike, default=0))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(devices_of_a_fleet())
def test_every_device_gets_what_it_would_get_alone(sqlite: Database, fleet: list[dict[str, object]]) -> None:
    with Session(sqlite.engine, info=dict(sqlite.info)) as session:  # never committed
        stock(session)
        names = fill(session, fleet)
        before = {name: session.get_one(Device, name).model_copy() for name in names}
        raised = desired.reissue_all(session, names, now=5)
        together = documents(session)
        for name in names:
            have, reported = before[name].desired_revision, before[name].reported_revision
            assert raised[name] == together[name].revision == max(have, min(reported, desired.NEWEST_SEEN)) + 1
            plainly(session, name, fleet, together[name])
        places = devices.places(session)
        named = {("digits", 2), ("vibration", 1)}
        judged = scheduling.together_all(session, places, named)
        version = session.get_one(ModelVersion, ("big", 2))
        obstacles = scheduling.obstacles_of(session, places, version)
        for place in places:
            assert judged[place.id] == scheduling.together(session, place, named)
            assert obstacles[place.id] == scheduling.obstacles_of(session, [place], version)[place.id]
        session.rollback()


def test_a_fleet_costs_as_many_statements_as_a_device(database: Database) -> None:
    """Below the number of names that one statement takes."""
    with database.session() as session:
        stock(session)
        names = add_devices(session, 200)
    counted: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *given: counted.append(given[2]))

    def statements(target: str, share: float) -> int:
        counted.clear()
        with database.session() as session:
            routes = [route("digits", 1, share), route("digits", 2, 100 - share)]
            endpoints.put(session, "e", routes=routes, target=target, actor="t", now=now_ms())
        return len(counted)

    statements(f"id={names[0]}", 50)
    assert statements(f"id={names[0]}", 60) == statements("*", 70) < 40

    def assigned(asked: list[str], version: int) -> int:
        counted.clear()
        with database.session() as session:
            desired.assign_all(session, "digits", {name: Wish(version) for name in asked}, rollout=version, now=1)
        return len(counted)

    assert assigned(names[:1], 1) == assigned(names, 2) < 20
    counted.clear()
    with database.session() as session:
        endpoints.remove(session, "e", actor="t", now=now_ms())
    assert len(counted) < 20
    with database.read() as session:
        revisions = session.exec(select(Device.desired_revision).order_by(col(Device.id))).all()
    assert revisions == [6] + [3] * 199  # two changes more for the first: set alone twice, and assigned alone


def test_more_devices_than_a_statement_names(sqlite: Database) -> None:
    with sqlite.session() as session:
        stock(session)
        names = add_devices(session, 2500)
        endpoints.put(session, "e", routes=[route("digits", 1)], target="*", actor="t", now=now_ms())
        found = desired.assign_all(session, "digits", {name: Wish(1, soak_s=3) for name in names}, rollout=1, now=2)
        assert set(found.values()) == {1}  # which says the endpoint too: what was due for it is not any more
        assert session.exec(select(DocumentDue.device)).all() == []
        again = desired.assign_all(session, "digits", {name: Wish(1) for name in names}, rollout=1, now=3)
        assert again == found  # within a rollout it may be asked twice
        made = documents(session)
        assert len(made) == 2500
        assert {one.modules[0].soak_s for one in made.values()} == {3.0}
        assert {one.endpoints[0].name for one in made.values()} == {"e"}
        gone = desired.assign_all(session, "digits", {name: Wish(None) for name in names[::2]}, now=4)
        assert set(gone.values()) == {2}
        assert len(session.exec(select(Assignment)).all()) == 1250


def test_one_that_is_not_there_leaves_all_others_as_they_were(database: Database) -> None:
    with database.session() as session:
        stock(session)
        names = add_devices(session, 3)
    wishes = {name: Wish(1) for name in (*names, "nobody")}
    with pytest.raises(InputError, match="'nobody'"), database.session() as session:
        desired.assign_all(session, "digits", wishes, now=1)
    with pytest.raises(InputError, match="digits:9"), database.session() as session:
        desired.assign_all(session, "digits", {names[0]: Wish(1), names[1]: Wish(9)}, now=1)
    with database.read() as session:
        assert not session.exec(select(Assignment)).all()
        assert not documents(session)


def test_a_row_that_the_session_holds_is_read_again(database: Database) -> None:
    with database.session() as session:
        stock(session)
        (name,) = add_devices(session, 1)
        row = session.get_one(Device, name)
        assert desired.assign(session, name, "digits", 1, now=1) == row.desired_revision == 1
        held = session.get_one(Assignment, (name, "digits"))
        assert desired.assign(session, name, "digits", 2, now=2) == row.desired_revision == 2
        assert (held.version, held.attempt) == (2, 2)


# -- documents that follow in slices -----------------------------------------------------------------------------------


MANY = 2 * desired.SLICE + 50


def put(session: Session, name: str, *split: Route, target: str = "*") -> set[str]:
    changed = endpoints.put(session, name, routes=split, target=target, actor="t", now=now_ms())
    return set(changed.devices)


def due(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(session.exec(select(DocumentDue.device)))


def behind(session: Session) -> dict[str, tuple[int, str]]:
    """By device its revision, and what its document puts behind the endpoint ``e``."""
    found = {}
    for device, made in documents(session).items():
        routes = [one.routes for one in made.endpoints if one.name == "e"]
        found[device] = (made.revision, endpoints.text_of(routes[0]) if routes else "")
    return found


def test_the_documents_of_very_many_follow_in_slices_between_which_others_write(database: Database) -> None:
    with database.session() as session:
        stock(session)
        names = add_devices(session, MANY)
        changed = put(session, "e", route("digits", 1))
    assert changed == set(names) == set(due(database))
    first, later = names[0], names[-1]
    slices = desired.issue_due(database)
    written = next(slices)
    assert len(written) == desired.SLICE
    assert first in written
    with database.session() as session:  # a rollout writes meanwhile, to one that waits for its document
        desired.assign(session, later, "vibration", 1, now=now_ms())
    with database.read() as session:
        assert behind(session)[later] == (1, "digits:1=100")
        assert set(behind(session)) == {*written, later}
    rest = [device for part in slices for device in part]
    assert sorted([*written, *rest, later]) == names
    assert due(database) == []
    with database.read() as session:
        assert behind(session) == dict.fromkeys(names, (1, "digits:1=100"))


def test_a_change_of_a_change_and_a_removal_leave_no_document_behind(sqlite: Database) -> None:
    with sqlite.session() as session:
        stock(session)
        names = add_devices(session, MANY)
        put(session, "e", route("digits", 1))
    next(desired.issue_due(sqlite))
    with sqlite.session() as session:  # before all have heard of the first
        put(session, "e", route("digits", 2))
        devices.remove(session, names[-1], actor="t", now=now_ms())
    for _ in desired.issue_due(sqlite):
        pass
    with sqlite.read() as session:
        found = behind(session)
    assert {split for _, split in found.values()} == {"digits:2=100"}
    assert sorted(found) == names[:-1]
    with sqlite.session() as session:
        endpoints.remove(session, "e", actor="t", now=now_ms())
    next(desired.issue_due(sqlite))
    for _ in desired.issue_due(sqlite):
        pass
    with sqlite.read() as session:
        assert {split for _, split in behind(session).values()} == {""}
        assert session.exec(select(DocumentDue.device)).all() == []


KILLED = """
import os, signal, sys
from skerry_hub import desired, endpoints
from skerry_hub.db import Database
from skerry_modules import trust
from skerry_modules.messages import Route

database = Database(sys.argv[1])
database.info[desired.SIGNER] = trust.SigningKey.generate("hub")
with database.session() as session:
    endpoints.put(session, "e", routes=[Route(module="digits", version=2)], target="*", actor="t", now=99)
if sys.argv[2] == "in the middle":
    next(desired.issue_due(database))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["in the middle", "after the commit"])
def test_a_hub_that_is_killed_before_all_are_written_goes_on_at_its_next_start(sqlite: Database, when: str) -> None:
    with sqlite.session() as session:
        stock(session)
        names = add_devices(session, MANY)
        put(session, "e", route("digits", 1))
    for _ in desired.issue_due(sqlite):
        pass
    done = subprocess.run([sys.executable, "-c", KILLED, str(sqlite.url.database), when], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    waiting = due(sqlite)
    assert len(waiting) == MANY - (desired.SLICE if when == "in the middle" else 0)
    with sqlite.read() as session:  # each device has the one or the other, whole
        found = behind(session)
    assert {found[device] for device in waiting} == {(1, "digits:1=100")}
    assert {found[device] for device in set(names) - set(waiting)} <= {(2, "digits:2=100")}
    for _ in desired.issue_due(sqlite):
        pass
    with sqlite.read() as session:
        assert behind(session) == dict.fromkeys(names, (2, "digits:2=100"))
