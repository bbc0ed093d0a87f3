"""Endpoints on the hub: what may be set, what devices are told, how memory and boards limit it, and the way back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from sqlmodel import Session, select

from skerry_hub import desired, devices, endpoints, monitoring, registry
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.settings import Settings
from skerry_hub.tables import Audit, EndpointDevice, Model, ModelVersion, TelemetryRow
from skerry_modules import messages
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.histogram import Histogram
from skerry_modules.manifest import Manifest, Resources
from skerry_modules.messages import Agreement, Desired, Route, Telemetry
from skerry_modules.tensors import TensorSpec

from .parts import in_process, packed

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))


def register(
    session: Session,
    version: int,
    *,
    name: str = "digits",
    engine: Literal["onnx", "pynq"] = "onnx",
    memory_mb: int = 64,
) -> None:
    manifest = Manifest(
        format=1,
        name=name,
        engine=engine,
        model="model.onnx",
        inputs=(SPEC,),
        outputs=(SPEC,),
        resources=Resources(memory_mb=memory_mb),
    )
    row = ModelVersion(
        name=name,
        version=version,
        digest=f"{version:x}" * 64,
        index_size=100,
        size=100,
        engine=engine,
        manifest=msgspec.json.encode(manifest).decode(),
        facts="{}",
        signatures="[]",
        created_by="test",
        created_at=1,
    )
    if session.get(Model, name) is None:
        session.add(Model(name=name, created_at=1))
        session.flush()
    session.add(row)
    session.flush()


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.session() as found:
        for version in (1, 2, 3, 4):
            register(found, version)
        for device, site in (("a", "lab"), ("b", "lab"), ("c", "yard")):
            devices.register(found, device, profile="generic-x86_64", tags={"site": site}, actor="test", now=1)
        found.flush()
        yield found


def route(version: int, percent: float = 100.0, name: str = "digits") -> Route:
    return Route(module=name, version=version, percent=percent)


def put(session: Session, *routes: Route, name: str = "e", **more: Any) -> endpoints.Changed:
    fields: dict[str, Any] = {"target": "site=lab", "actor": "test", "now": now_ms(), **more}
    return endpoints.put(session, name, routes=routes, **fields)


def told(session: Session, device: str) -> Desired:
    payload = desired.document(session, device)
    assert payload is not None
    signed: messages.Signed = messages.decode("desired", payload)
    return messages.decode_desired(signed.payload)


@pytest.mark.parametrize(
    ("name", "routes", "shadow", "said"),
    [
        ("E", [route(1)], [], "a-z, 0-9"),
        ("e", [], [], "no version answers"),
        ("e", [route(1, 90)], [], "90 percent together"),
        ("e", [route(1, 60), route(2, 60)], [], "120 percent"),
        ("e", [route(1, 50), route(1, 50)], [], "a version twice"),
        ("e", [route(1, 100), route(2, 0)], [], "above 0"),
        ("e", [route(1)], [route(1)], "in the split and in shadow"),
        ("e", [route(1)], [route(2, 101)], "up to 100"),
    ],
)
def test_what_is_no_endpoint_is_refused(name: str, routes: list[Route], shadow: list[Route], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        endpoints.check(name, routes, shadow)
    assert caught.value.code == "endpoint.invalid"


def test_a_device_is_told_of_the_split_and_of_the_versions_beside_its_own(session: Session) -> None:
    desired.assign(session, "a", "digits", 1, now=now_ms())
    changed = put(session, route(1, 90), route(2, 10), shadow=[route(3)])
    assert changed.devices == ("a", "b")
    one = told(session, "a")
    assert [(m.name, m.version) for m in one.modules] == [("digits", 1)]
    assert [(m.name, m.version) for m in one.sides] == [("digits", 2), ("digits", 3)]  # 1 is its own
    assert one.endpoints == (
        messages.Endpoint(name="e", routes=(route(1, 90), route(2, 10)), shadow=(route(3),), before=()),
    )
    assert [m.version for m in told(session, "b").sides] == [1, 2, 3]
    assert desired.document(session, "c") is None
    # A rollout makes a side version the module's own: the other one goes to the side.
    desired.assign(session, "a", "digits", 2, now=now_ms())
    assert [m.version for m in told(session, "a").sides] == [1, 3]


def test_a_change_keeps_the_split_before_for_the_way_back(session: Session) -> None:
    put(session, route(1))
    first = told(session, "a")
    put(session, route(2, 50), route(3, 50))
    second = told(session, "a")
    assert second.revision == first.revision + 1
    assert second.endpoints[0].before == (route(1),)
    assert [m.version for m in second.sides] == [1, 2, 3]
    assert min(m.attempt for m in second.sides) > first.sides[0].attempt  # what failed before is tried again
    endpoints.go_back(session, "e", actor="test", now=now_ms())
    third = told(session, "a")
    assert third.endpoints[0].routes == (route(1),)
    assert third.endpoints[0].before == (route(2, 50), route(3, 50))
    put(session, route(1), shadow=[route(4)])  # only shadows change: the way back stays
    assert told(session, "a").endpoints[0].before == (route(2, 50), route(3, 50))
    put(session, route(4), keep_before=False)
    assert [m.version for m in told(session, "a").sides] == [4]
    with pytest.raises(InputError, match="no split before"):
        endpoints.go_back(session, "e", actor="test", now=now_ms())


def test_deleting_takes_it_off_and_versions_can_go_then(session: Session) -> None:
    put(session, route(1), shadow=[route(2)])
    for version in (1, 2):
        with pytest.raises(InputError, match="endpoint: e") as caught:
            registry.delete_version(session, "digits", version, actor="test", now=2)
        assert caught.value.code == "module.in_use"
    assert endpoints.remove(session, "e", actor="test", now=now_ms()).devices == ("a", "b")
    assert (told(session, "a").endpoints, told(session, "a").sides) == ((), ())
    registry.delete_version(session, "digits", 1, actor="test", now=2)
    with pytest.raises(InputError) as caught:
        endpoints.get(session, "e")
    assert caught.value.code == "endpoint.unknown"
    actions = [row.action for row in session.exec(select(Audit)) if row.subject == "e"]
    assert actions == ["endpoint.set", "endpoint.delete"]


def test_a_changed_target_takes_it_off_the_devices_that_it_leaves(session: Session) -> None:
    put(session, route(1))
    assert put(session, route(1), target="site=yard").devices == ("a", "b", "c")
    assert told(session, "a").endpoints == ()
    assert told(session, "c").endpoints[0].name == "e"


def test_a_device_that_is_tagged_or_registered_later_gets_it(session: Session) -> None:
    put(session, route(1))
    devices.set_tags(session, "c", {"site": "lab"}, actor="test", now=2)
    assert endpoints.settle(session, "c", now=now_ms())
    assert told(session, "c").endpoints[0].name == "e"
    assert not endpoints.settle(session, "c", now=now_ms())
    devices.set_tags(session, "c", {}, actor="test", now=3)
    assert endpoints.settle(session, "c", now=now_ms())
    assert told(session, "c").endpoints == ()


def test_all_versions_together_must_fit_the_profile(session: Session) -> None:
    limit = 0
    from skerry_modules import profiles

    limit = profiles.get("generic-x86_64").limits.memory_mb
    register(session, 5, memory_mb=limit - 100)
    register(session, 6, memory_mb=200)
    put(session, route(5))
    with pytest.raises(InputError, match="together, profile leaves") as caught:
        put(session, route(5, 50), route(6, 50))
    assert caught.value.code == "unschedulable.memory"
    session.rollback()


def test_a_device_that_cannot_have_it_is_left_out_with_the_reason(session: Session) -> None:
    devices.register(session, "small", profile="pynq-z2", tags={"site": "lab"}, actor="test", now=1)
    session.flush()
    assert put(session, route(1)).devices == ("a", "b")  # no engine for it on the board
    row = session.get(EndpointDevice, ("e", "small"))
    assert row is not None
    assert row.reason.startswith("unschedulable.")
    assert "digits:1" in row.message


def test_a_board_holds_one_version(session: Session) -> None:
    for version in (1, 2):
        register(session, version, name="fpga", engine="pynq")
    devices.register(session, "board", profile="pynq-z2", tags={"site": "board"}, actor="test", now=1)
    session.flush()
    put(session, route(1, name="fpga"), target="site=board")
    with pytest.raises(InputError, match="one version at a time") as caught:
        put(session, route(1, 50, "fpga"), route(2, 50, "fpga"), target="site=board", keep_before=False)
    assert caught.value.code == "unschedulable.engine"
    session.rollback()


def test_what_is_unknown_is_said(session: Session) -> None:
    with pytest.raises(InputError) as caught:
        put(session, route(99))
    assert caught.value.code == "module.unknown"
    with pytest.raises(InputError, match="no device matches"):
        put(session, route(1), target="site=nowhere")


def test_traffic_is_summed_by_version_and_role(session: Session) -> None:
    put(session, route(1), shadow=[route(2)])
    now = now_ms()
    for device, version, role in (("a", 1, "live"), ("b", 1, "live"), ("a", 2, "shadow"), ("c", 1, "live")):
        latency = Histogram()
        latency.add(100.0)
        agreement = Agreement(rows=10, agreed=9, within=8, worst=0.5, dropped=1) if role == "shadow" else Agreement()
        body = Telemetry(
            module="digits",
            version=version,
            digest="d",
            endpoint="e",
            start=now - 10_000,
            end=now,
            requests=30,
            errors=1,
            latency_us=latency.to_wire(),
            role=role,
            agreement=agreement,
        )
        session.add(
            TelemetryRow(
                device=device,
                module="digits",
                version=version,
                endpoint="e",
                start_ms=body.start,
                end_ms=body.end,
                requests=30,
                errors=1,
                rejected=0,
                p50_us=100.0,
                p99_us=100.0,
                body=messages.encode(body),
                role=role,
            )
        )
    session.flush()
    live, shadow = monitoring.behind(session, "e", since=now - 60_000, now=now)
    assert (live.version, live.role, live.requests, live.errors, live.rate) == (1, "live", 60, 2, 1.0)
    assert (shadow.version, shadow.role) == (2, "shadow")
    assert shadow.agreement == Agreement(rows=10, agreed=9, within=8, worst=0.5, dropped=1)
    assert monitoring.traffic(session, module="digits", version=2).requests == 0  # nobody was answered by it


def test_the_api_says_all_of_it(settings: Settings, tmp_path: Path, key: Any) -> None:
    async def story() -> None:
        async with in_process(settings) as (_, client):
            await client.post("/api/v1/keys", json={"text": key.public.text()})
            for number in (1, 2):
                body = packed(tmp_path / str(number), key, release=str(number))
                answer = await client.post("/api/v1/models/digits/versions", content=body)
                assert answer.status_code == 201, answer.text
            made = await client.post(
                "/api/v1/devices", json={"id": "a", "profile": "generic-x86_64", "tags": {"site": "lab"}}
            )
            assert made.status_code == 201
            split = [{"module": "digits", "version": 1, "percent": 100}]
            shadow = [{"module": "digits", "version": 2}]
            wish = {"split": split, "shadow": shadow, "target": "site=lab", "reason": "try"}
            answer = await client.put("/api/v1/endpoints/e", json=wish)
            assert answer.status_code == 200, answer.text
            view = answer.json()
            assert (view["devices"], view["revision"], view["split"][0]["ready"]) == (1, 1, 0)
            assert (await client.get("/api/v1/endpoints")).json()["items"][0]["name"] == "e"
            later = await client.post(
                "/api/v1/devices", json={"id": "b", "profile": "generic-x86_64", "tags": {"site": "lab"}}
            )
            assert later.status_code == 201
            assert (await client.get("/api/v1/endpoints/e")).json()["devices"] == 2
            board = {"id": "c", "profile": "pynq-z2", "tags": {"site": "lab"}}
            assert (await client.post("/api/v1/devices", json=board)).status_code == 201
            view = (await client.get("/api/v1/endpoints/e")).json()
            assert (view["devices"], view["unschedulable"]) == (2, 1)
            assert [one["device"] for one in view["members"]] == ["c", "a", "b"]  # first what needs a look
            page = (await client.get("/api/v1/endpoints/e/devices", params={"limit": 2})).json()
            rest = (await client.get("/api/v1/endpoints/e/devices", params={"cursor": page["next"]})).json()
            assert [one["device"] for one in (*page["items"], *rest["items"])] == ["a", "b", "c"]
            only = (await client.get("/api/v1/endpoints/e/devices", params={"unschedulable": True})).json()["items"]
            assert [(one["device"], one["reason"]) for one in only] == [("c", "unschedulable.memory")]
            assert (await client.get("/api/v1/endpoints/none/devices")).json()["code"] == "endpoint.unknown"
            assert (await client.put("/api/v1/endpoints/e", json={**wish, "split": []})).status_code == 422
            assert (await client.post("/api/v1/endpoints/e/back")).json()["code"] == "endpoint.invalid"
            assert (await client.delete("/api/v1/endpoints/e")).status_code == 204
            assert (await client.get("/api/v1/endpoints/e")).json()["code"] == "endpoint.unknown"

    asyncio.run(story())


def test_every_error_is_ours(session: Session) -> None:
    with pytest.raises(SkerryError):
        endpoints.go_back(session, "none", actor="test", now=1)
