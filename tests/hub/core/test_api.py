"""The API as programs use it, most of it over a real server: register, wish, page, stream, refuse."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from hub.core.parts import in_process, packed, served
from skerry_hub import desired, registry
from skerry_hub.app import Hub
from skerry_hub.settings import Settings
from skerry_hub.tables import EventRow, HealthRow, SampleRow, TelemetryRow
from skerry_modules import messages, trust
from skerry_modules.errors import CODES
from support.processes import wait_until

PROFILE = "generic-x86_64"


class Api:
    """A served hub, and requests to it."""

    def __init__(self, hub: Hub, url: str) -> None:
        self.hub, self.url = hub, url
        self.client = httpx.Client(base_url=f"{url}/api/v1", timeout=30)

    def __call__(self, method: str, path: str, status: int, **parts: Any) -> Any:
        response = self.client.request(method, path, **parts)
        assert response.status_code == status, response.text
        if not response.content:
            return None
        return response.json() if "json" in response.headers["content-type"] else response.content

    def device(self, name: str, **tags: str) -> Any:
        return self("POST", "/devices", 201, json={"id": name, "profile": PROFILE, "tags": tags})

    def trust(self, key: trust.SigningKey) -> None:
        self("POST", "/keys", 201, json={"text": key.public.text()})

    def upload(self, data: bytes, status: int = 201, name: str = "digits", **query: Any) -> Any:
        return self("POST", f"/models/{name}/versions", status, content=data, params=query)


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    with served(settings) as (hub, url):
        made = Api(hub, url)
        yield made
        made.client.close()


def test_from_a_package_to_a_device_and_back(api: Api, key: trust.SigningKey, tmp_path: Path) -> None:
    api.trust(key)
    data = packed(tmp_path / "m", key, engine="onnx")
    made = api.upload(
        data,
        reason="better on sevens",
        git_commit="c0ffee",
        git_branch="main",
        git_dirty=True,
        tag=["stage=test", "a=b"],
    )
    assert (made["version"], made["tags"]) == (1, {"stage": "test", "a": "b", "kind": "test"})
    assert (made["created_by"], made["reason"], made["git_commit"], made["git_dirty"]) == (
        "local",
        "better on sevens",
        "c0ffee",
        True,
    )
    assert {file["path"] for file in made["files"]} == {"module.toml", "model.onnx", "data/labels.txt"}
    assert made["manifest"]["inputs"][0]["name"] == "x"
    assert api("GET", "/models/digits/versions/1/package", 200) == data
    for file in made["files"]:
        content = api("GET", f"/models/digits/versions/1/files/{file['path']}", 200)
        assert content == (tmp_path / "m" / file["path"]).read_bytes()
    registered = api.device("gate-1", site="lab")
    config = tomllib.loads(registered["config"])
    status = api("GET", "/status", 200)
    assert config["hub"]["key"] == status["hub_key"]
    assert config["hub"]["publishers"] == [key.public.text()]
    assert config["hub"]["broker"] == status["broker"]
    assert config["hub"]["password"] not in str(api("GET", "/devices/gate-1", 200)), "shown once"
    wanted = api("PUT", "/devices/gate-1/modules/digits", 200, json={"version": 1, "soak_s": 2})
    assert wanted == {"revision": 1, "wanted": [{**wanted["wanted"][0], "module": "digits", "version": 1, "soak_s": 2}]}
    assert api("GET", "/devices/gate-1/modules", 200)["reported"] == []
    refused = api("DELETE", "/models/digits/versions/1", 409)
    assert refused["data"] == {"desired": ["gate-1"]}
    assert api("GET", "/models/digits/versions/1", 200)["holders"] == {"desired": ["gate-1"]}
    assert api("DELETE", "/devices/gate-1/modules/digits", 200) == {"revision": 2, "wanted": []}
    api("DELETE", "/models/digits/versions/1", 204, params={"reason": "obsolete"})
    api("DELETE", "/devices/gate-1", 204)
    deeds = [(row["action"], row["subject"], row["reason"]) for row in api("GET", "/audit", 200)["items"]]
    assert deeds == [
        ("device.remove", "gate-1", ""),
        ("version.delete", "digits:1", "obsolete"),
        ("device.unassign", "gate-1", ""),
        ("device.assign", "gate-1", ""),
        ("device.register", "gate-1", ""),
        ("version.register", "digits:1", "better on sevens"),
        ("key.add", key.public.keyid, ""),
    ]


def test_many_register_at_once_over_http(api: Api, key: trust.SigningKey, tmp_path: Path) -> None:
    api.trust(key)
    packages = [packed(tmp_path / f"m{n}", key, release=str(n)) for n in range(50)]
    gate = threading.Barrier(50)

    def one(data: bytes) -> int:
        with httpx.Client(base_url=f"{api.url}/api/v1", timeout=60) as client:
            gate.wait()
            response = client.post("/models/digits/versions", content=data)
        assert response.status_code == 201, response.text
        return int(response.json()["version"])

    with ThreadPoolExecutor(50) as pool:
        numbers = sorted(pool.map(one, packages))
    assert numbers == list(range(1, 51))


def test_a_large_package_that_is_refused_early_gets_its_answer(api: Api, key: trust.SigningKey, tmp_path: Path) -> None:
    """The signature stands before 24 MB of objects: the refusal must not be lost with the rest of the upload."""
    big = tmp_path / "m" / "big.bin"
    from skerry_modules import package

    from .parts import module_folder

    module_folder(tmp_path / "m")
    big.write_bytes(bytes(24_000_000))
    data = package.write_package(tmp_path / "m", tmp_path / "m.skerry", key).path.read_bytes()
    for _ in range(3):
        assert api.upload(data, 403)["code"] == "trust.unknown_key"
    assert list(api.hub.objects.digests()) == []
    api.trust(key)
    assert api.upload(data)["size"] > 24_000_000
    assert api("GET", "/models/digits/versions/1/package", 200) == data


def test_an_upload_that_breaks_off_leaves_nothing(api: Api, key: trust.SigningKey, tmp_path: Path) -> None:
    api.trust(key)
    data = packed(tmp_path / "m", key)
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        lines = ["POST /api/v1/models/digits/versions HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(data)}"]
        raw.sendall("\r\n".join([*lines, "", ""]).encode() + data[: len(data) // 2])
    assert api.upload(data)["version"] == 1, "the broken one took no number"


def test_an_upload_that_stands_still_is_given_up_and_others_go_on(
    settings: Settings, key: trust.SigningKey, tmp_path: Path
) -> None:
    data = packed(tmp_path / "m", key)
    with served(dataclasses.replace(settings, upload_idle_s=0.5, uploads_max=2)) as (hub, url):
        api = Api(hub, url)
        api.trust(key)
        host, port = url.removeprefix("http://").split(":")
        lines = ["POST /api/v1/models/digits/versions HTTP/1.1", f"Host: {host}:{port}", f"Content-Length: {len(data)}"]
        stuck = [socket.create_connection((host, int(port)), timeout=20) for _ in range(4)]
        for raw in stuck:
            raw.sendall("\r\n".join([*lines, "", ""]).encode() + data[:600])
        assert api("GET", "/models", 200)["items"] == [], "all other requests are answered meanwhile"
        assert api.upload(data)["version"] == 1
        for raw in stuck:
            answer = raw.recv(4096)
            assert answer.startswith(b"HTTP/1.1 422 ")
            assert b"nothing came for 0.5 s; send it again" in answer
            raw.close()
        api.client.close()


def test_more_than_the_limit_is_refused_declared_or_not(settings: Settings) -> None:
    small = dataclasses.replace(settings, package_max_bytes=100_000, body_max_bytes=1000)
    with served(small) as (hub, url):
        api = Api(hub, url)

        def undeclared(size: int) -> Iterator[bytes]:
            for _ in range(size // 500):
                yield b'"' + b"x" * 499

        for body in (bytes(1001), undeclared(5000)):
            refused = api("POST", "/devices", 413, content=body)
            assert refused["code"] == "request.too_large"
            assert "SKERRY_HUB_BODY_MAX_BYTES" in refused["detail"]
        api("POST", "/keys", 422, content=bytes(900))
        assert api("POST", "/devices", 413, content=bytes(5_000_000))["code"] == "request.too_large"
        for package in (b"x" * 100_001, b"x" * 9_000_000):
            assert "SKERRY_HUB_PACKAGE_MAX_BYTES" in api.upload(package, 413)["detail"]
        assert api.upload(b"x" * 9000, 422)["code"] == "package.unreadable"
        api.client.close()


def test_lists_come_in_pages_that_make_the_whole(api: Api, key: trust.SigningKey, tmp_path: Path) -> None:
    names = [f"gate-{n}" for n in range(7)]
    for name in names:
        api.device(name, site="lab" if name != "gate-3" else "hall")
    api.trust(key)
    for n in range(3):
        api.upload(packed(tmp_path / f"m{n}", key, release=str(n)))

    def everything(path: str, **query: Any) -> list[Any]:
        items, cursor = [], None
        while True:
            page = api("GET", path, 200, params={"limit": 2, **query, **({"cursor": cursor} if cursor else {})})
            assert len(page["items"]) <= 2
            items += page["items"]
            cursor = page["next"]
            if cursor is None:
                return items

    assert [row["id"] for row in everything("/devices")] == names
    assert [row["id"] for row in everything("/devices", tag="site=lab")] == [name for name in names if name != "gate-3"]
    assert [row["id"] for row in everything("/devices", tag=["site=lab", "id=gate-5"])] == ["gate-5"]
    assert [row["version"] for row in everything("/models/digits/versions")] == [3, 2, 1]
    assert [row["version"] for row in everything("/versions", tag="kind=test", model="digits")] == [3, 2, 1]
    assert len(everything("/audit")) == 11
    assert {row["name"] for row in everything("/profiles")} >= {PROFILE}
    assert api("GET", "/devices", 200, params={"limit": 100_000})["next"] is None, (
        "more than the limit is cut, not refused"
    )


def test_what_devices_told_is_read_newest_first(api: Api) -> None:
    api.device("gate-1")
    health = messages.Health(boot="b", uptime_s=5.0, cpu_percent=12.5)
    with api.hub.db.session() as session:
        for n in range(1, 4):
            session.add(
                HealthRow(
                    device="gate-1",
                    at=n,
                    cpu_percent=1,
                    memory_used=1,
                    memory_total=2,
                    disk_used=1,
                    disk_total=2,
                    temperature_c=-1,
                    body=msgspec.msgpack.encode(health),
                )
            )
            session.add(
                TelemetryRow(
                    device="gate-1",
                    module="digits",
                    version=n,
                    endpoint="digits",
                    start_ms=n,
                    end_ms=n + 1,
                    requests=10,
                    errors=0,
                    rejected=0,
                    p50_us=100,
                    p99_us=200,
                    body=b"",
                )
            )
            severity = "error" if n == 2 else "info"
            session.add(
                EventRow(device="gate-1", at=n, received_at=n, severity=severity, code="x.y", message=f"event {n}")
            )
            session.add(
                SampleRow(
                    id=f"s{n}",
                    device="gate-1",
                    module="digits",
                    version=n,
                    digest="d",
                    at=n,
                    received_at=1 + n // 2,
                    reason="random",
                    probability=0.5,
                )
            )
    api.hub.objects.put_key("samples/digits/2026-11-20/1.parquet", b"PAR1")
    api.hub.objects.put_key("secrets/1.txt", b"x")
    rows = api("GET", "/devices/gate-1/health", 200)["items"]
    assert [row["at"] for row in rows] == [3, 2, 1]
    assert rows[0]["health"]["cpu_percent"] == 12.5
    assert [row["version"] for row in api("GET", "/devices/gate-1/telemetry", 200)["items"]] == [3, 2, 1]
    assert api("GET", "/devices/gate-1/telemetry?module=other", 200)["items"] == []
    assert [row["message"] for row in api("GET", "/events?severity=error", 200)["items"]] == ["event 2"]
    assert len(api("GET", "/devices/gate-1/events", 200)["items"]) == 3
    first = api("GET", "/samples?limit=2", 200)
    second = api("GET", "/samples", 200, params={"limit": 2, "cursor": first["next"]})
    assert [row["id"] for row in first["items"] + second["items"]] == ["s3", "s2", "s1"]
    assert [row["id"] for row in api("GET", "/samples?module=digits&version=2", 200)["items"]] == ["s2"]
    (file,) = api("GET", "/samples/files", 200)["items"]
    assert file == {"key": "samples/digits/2026-11-20/1.parquet", "size": 4}
    assert api("GET", f"/samples/files/{file['key']}", 200) == b"PAR1"
    assert api("GET", "/samples/files?module=digits", 200)["items"] == [file]
    for key in ("secrets/1.txt", "samples/../secrets/1.txt", "samples/%2e%2e/secrets/1.txt", "samples/none.parquet"):
        assert api("GET", f"/samples/files/{key}", 404)["code"] == "request.not_found"


def test_the_stream_nudges_about_what_was_asked_for(api: Api) -> None:
    seen: list[str] = []
    ready, done = threading.Event(), threading.Event()

    def listen() -> None:
        with (
            httpx.Client(timeout=30) as client,
            client.stream("GET", f"{api.url}/api/v1/stream", params={"topic": ["device:*"]}) as stream,
        ):
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    seen.append(line.removeprefix("data: "))
                    ready.set()
                if "device:gate-1" in seen:
                    done.set()
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(20)
    api.device("gate-1")  # nudges "fleet", which this listener did not ask for
    api("PUT", "/devices/gate-1/tags", 200, json={"tags": {"site": "lab"}})
    assert done.wait(20)
    thread.join()
    assert seen == ["ready", "device:gate-1"]


def test_a_silent_stream_is_kept_alive(settings: Settings) -> None:
    with (
        served(dataclasses.replace(settings, stream_keepalive_s=0.05)) as (_, url),
        httpx.Client(timeout=30) as client,
        client.stream("GET", f"{url}/api/v1/stream") as stream,
    ):
        lines = (line for line in stream.iter_lines() if line)
        assert ": quiet" in [next(lines) for _ in range(4)]


ERRORS = [
    ("GET", "/nothing", None, 404, "request.not_found", "cannot find anything at this address"),
    ("PATCH", "/devices", None, 405, "request.method_not_allowed", "cannot PATCH here: the address takes GET, POST"),
    ("GET", "/devices/nobody", None, 404, "device.unknown", "cannot find the device 'nobody'"),
    ("GET", "/devices/nobody/health", None, 404, "device.unknown", "cannot find the device 'nobody'"),
    ("DELETE", "/devices/nobody", None, 404, "device.unknown", "see `skerry devices list`"),
    ("POST", "/devices", {"id": "x"}, 422, "request.invalid", "body field profile: Field required"),
    ("POST", "/devices", {"id": "x", "profile": PROFILE, "tgas": {}}, 422, "request.invalid", "body field tgas: Extra"),
    ("POST", "/devices", {"id": "A B", "profile": PROFILE}, 422, "device.invalid_id", "cannot use 'A B'"),
    ("POST", "/devices", {"id": "x", "profile": "toaster"}, 422, "profile.unknown", f"{PROFILE}, "),
    ("POST", "/keys", {"text": "rsa:xyz"}, 422, "trust.bad_key", "use ed25519:<base64> [name]"),
    ("POST", "/keys", {"text": "ed25519:ü"}, 422, "trust.bad_key", "cannot read the public key"),
    ("DELETE", "/keys/abc", None, 404, "request.not_found", "cannot remove the key abc"),
    ("GET", "/models/none", None, 404, "module.unknown", "cannot find the model 'none'"),
    ("GET", "/models/none/versions", None, 404, "module.unknown", "cannot find the model 'none'"),
    ("GET", "/models/none/versions/1", None, 404, "module.unknown", "cannot find none:1"),
    ("GET", "/models/none/versions/0", None, 422, "request.invalid", "path field version"),
    ("GET", "/models/none/versions/99999999999999999999", None, 422, "request.invalid", "path field version"),
    ("GET", "/models/none/versions/1/package", None, 404, "module.unknown", "cannot find none:1"),
    ("POST", "/models/none/versions", b"junk", 422, "package.unreadable", "cannot"),
    ("POST", "/models/none/versions?tag=x", b"junk", 422, "query.invalid", "'x' has no '='"),
    ("GET", "/devices?tag=x", None, 422, "query.invalid", "write TagName=TagValue"),
    ("GET", "/devices?limit=0", None, 422, "request.invalid", "query field limit"),
    ("GET", "/devices?cursor=junk", None, 422, "request.invalid", "cannot use the cursor"),
    ("GET", "/audit?cursor=WyJhIl0", None, 422, "request.invalid", "cannot use the cursor"),
    ("GET", "/errors/no.such", None, 404, "request.not_found", "it is no code of this hub"),
    ("PUT", "/devices/nobody/modules/none", {"version": 1}, 404, "module.unknown", "cannot find none:1"),
    ("PUT", "/devices/nobody/tags", {"tags": {"a": 1}}, 422, "request.invalid", "body field tags.a"),
]


def test_every_error_has_one_shape_and_says_what_to_do(settings: Settings) -> None:
    async def run() -> list[tuple[httpx.Response, httpx.Response]]:
        async with in_process(settings) as (_, client):
            answers = []
            for method, path, body, *_ in ERRORS:
                sent: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body} if body else {}
                answer = await client.request(method, f"/api/v1{path}", **sent)
                answers.append((answer, await client.get(answer.json()["type"])))
            return answers

    for (method, path, _, status, code, text), (answer, explained) in zip(ERRORS, asyncio.run(run()), strict=True):
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["status"]) == (status, code, status), (
            method,
            path,
            problem,
        )
        assert answer.headers["content-type"] == "application/problem+json"
        assert text in problem["detail"], (method, path, problem["detail"])
        assert set(problem) == {"type", "title", "status", "detail", "code", "family", "data", "instance"}
        assert problem["title"] == CODES[code]
        assert explained.json() == {"code": code, "meaning": CODES[code]}, "the type is a page that explains it"
        if status == 405:
            assert answer.headers["allow"] == "GET, POST"


def test_a_mistake_of_ours_is_told_without_its_insides(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("the secret insides")

    monkeypatch.setattr(registry, "find_models", broken)
    with served(settings) as (_, url):
        answer = httpx.get(f"{url}/api/v1/models")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal.bug")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "insides" not in answer.text
    assert "the secret insides" in caplog.text, "the log has all of it"


def test_what_cannot_run_there_is_refused_before_anything_is_sent(
    api: Api, key: trust.SigningKey, tmp_path: Path
) -> None:
    api.trust(key)
    api.upload(packed(tmp_path / "m", key, engine="onnx"))
    api("POST", "/devices", 201, json={"id": "board", "profile": "pynq-z2"})
    refused = api("PUT", "/devices/board/modules/digits", 422, json={"version": 1})
    assert refused["code"] == "unschedulable.engine"
    assert "cannot run digits:1 on board: needs the engine onnx" in refused["detail"]
    assert refused["data"]["obstacles"][0]["code"] == "unschedulable.engine"
    assert api("GET", "/devices/board", 200)["desired_revision"] == 0


def test_a_hub_with_another_key_says_so_and_can_win_its_devices_back(
    settings: Settings, key: trust.SigningKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The data folder was lost, the database was not: devices trust a key that is no more."""
    database = f"sqlite:///{tmp_path / 'kept.db'}"
    with served(dataclasses.replace(settings, database=database)) as (hub, url):
        api = Api(hub, url)
        api.trust(key)
        api.upload(packed(tmp_path / "m", key))
        api.device("gate-1")
        api("PUT", "/devices/gate-1/modules/digits", 200, json={"version": 1})
        former = hub.key.public
        api.client.close()
    assert "will refuse this hub's documents" not in caplog.text
    moved = dataclasses.replace(settings, database=database, data=str(tmp_path / "another"))
    with served(moved) as (hub, url):
        api = Api(hub, url)
        assert f"trust the hub key {former.keyid} and will refuse this hub's documents" in caplog.text
        config = tomllib.loads(api("POST", "/devices/gate-1/password", 200)["config"])
        new = trust.parse_public(config["hub"]["key"])
        assert new.keyid == hub.key.public.keyid != former.keyid
        with hub.db.read() as session:
            signed = messages.decode("desired", desired.document(session, "gate-1") or b"")
        trust.verify(trust.DESIRED_TYPE, signed.payload, signed.signatures, {new.keyid: new})
        assert messages.decode_desired(signed.payload).revision == 2
        api.client.close()


def test_a_changed_fleet_reaches_the_broker_by_its_own_credentials(tmp_path: Path) -> None:
    """A real broker: a registered device may connect, a removed one no longer, another's topics never."""

    def connects(name: str, password: str, port: int) -> bool:
        """An MQTT 3.1.1 CONNECT by hand (section 3.1 of the standard): whether its CONNACK says yes."""
        fields = [b"MQTT", *(part.encode() for part in (name, name, password))]
        protocol, *payload = (len(field).to_bytes(2, "big") + field for field in fields)
        body = protocol + b"\x04\xc2\x00\x3c" + b"".join(payload)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(bytes([0x10, len(body)]) + body)
            return raw.recv(4) == b"\x20\x02\x00\x00"

    with served(Settings(data=str(tmp_path), broker_port=0)) as (hub, url):
        api = Api(hub, url)
        config = tomllib.loads(api.device("gate-1")["config"])["hub"]
        port = int(config["broker"].rpartition(":")[2])
        wait_until(lambda: connects("gate-1", config["password"], port), what="the device to be let in")
        assert not connects("gate-1", "wrong", port)
        renewed = tomllib.loads(api("POST", "/devices/gate-1/password", 200)["config"])["hub"]
        wait_until(lambda: connects("gate-1", renewed["password"], port), what="the new password")
        assert not connects("gate-1", config["password"], port)
        api("DELETE", "/devices/gate-1", 204)
        wait_until(lambda: not connects("gate-1", renewed["password"], port), what="the device to be put out")
        api.client.close()
