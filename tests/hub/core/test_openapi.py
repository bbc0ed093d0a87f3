"""The API's description is valid and whole, and no input of any kind breaks the hub: it is answered or refused."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hub.core.parts import served
from skerry_hub.settings import Settings
from skerry_modules import topics
from skerry_modules.errors import CODES


@contextlib.contextmanager
def new_database(server: str) -> Iterator[str]:
    """A database of its own for each hub: two workers of one run, or one worker that is given a test of this file
    later than the others, start the fixture below more than once."""
    import psycopg

    name, admin = f"any_input_{uuid.uuid4().hex}", server.replace("+psycopg", "") + "/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    yield f"{server}/{name}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A served hub, once on each database: they differ in the values that they take."""
    with contextlib.ExitStack() as stack:
        database = ""
        if request.param == "postgres":
            database = stack.enter_context(new_database(request.getfixturevalue("postgres_server")))
        settings = Settings(data=str(tmp_path_factory.mktemp("hub")), database=database, broker="mqtt://127.0.0.1:9")
        _, url = stack.enter_context(served(settings))
        yield stack.enter_context(httpx.Client(base_url=f"{url}/api/v1", timeout=30))


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_it_is_openapi(document: dict[str, Any]) -> None:
    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    wanted = set(re.findall(r'"\$ref": ?"([^"]+)"', httpx.Response(200, json=document).text))
    assert wanted
    assert {reference.rpartition("/")[2] for reference in wanted} <= set(schemas)
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas), "there is one error shape"


def test_every_operation_says_what_it_does_and_how_it_fails(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert path.startswith("/api/v1/"), where
        assert len(operation.get("description", "")) > 8, where
        assert operation["tags"], where
        problem = operation["responses"]["default"]["content"]
        assert list(problem) == ["application/problem+json"], where
        assert "422" not in operation["responses"], where
        named = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)", path)), where


def test_every_list_is_paged(document: dict[str, Any]) -> None:
    lists = [
        (path, operation)
        for method, path, operation in operations(document)
        if method == "get" and "Page_" in str(operation["responses"]["200"])
    ]
    assert len(lists) >= 12
    for path, operation in lists:
        assert {"limit", "cursor"} <= {one["name"] for one in operation["parameters"]}, path
    arrays = [
        path
        for method, path, operation in operations(document)
        if method == "get" and "'type': 'array'" in str(operation["responses"]["200"])
    ]
    assert arrays == ["/api/v1/errors"], "only the list of codes, which is short and fixed, comes whole"


def test_the_reference_page_names_every_address_and_loads_nothing(
    client: httpx.Client, document: dict[str, Any]
) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    for _, path, _ in operations(document):
        assert path.replace("<", "&lt;") in page.text
    assert not re.search(r"(?:src|href)=['\"]?(?:https?:)?//", page.text)
    assert "<script" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


# -- any input --------------------------------------------------------------------------------------------------------

HARD = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["\0", "\ud7ff", "..", "../../etc/passwd", "%00", "ſ", "a" * 300, "-1", "1e999", "{}", "'", '"', "\\"]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), HARD)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HARD, inner, max_size=3), max_leaves=8
)


def near(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Bodies that are nearly right: each field right, wrong or missing, or something else altogether."""
    return st.fixed_dictionaries({}, optional={name: field | JSON for name, field in fields.items()}) | JSON


IDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True)
TAGS = st.dictionaries(HARD, HARD, max_size=3)
# A machine that does other things too makes any of it slow: no test of speed is meant.
SHAKEN = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def sound(response: httpx.Response) -> None:
    """Answered, or refused in the one shape with a code of ours; never an accident."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json"
        assert problem["code"] in CODES
        assert problem["code"] != "internal.bug"
        assert problem["detail"].startswith("cannot ")


def send_json(client: httpx.Client, method: str, path: str, body: Any) -> httpx.Response:
    import json

    text = json.dumps(body).encode("utf-8", "surrogatepass")
    return client.request(method, path, content=text, headers={"Content-Type": "application/json"})


@SHAKEN
@given(near(id=IDS, profile=st.just("generic-x86_64"), tags=TAGS, description=HARD))
@example({"id": "ok", "profile": "generic-x86_64", "tags": {"a": "\0"}})
@example({"id": "ok2", "profile": "generic-x86_64", "description": "\0"})
def test_any_device(client: httpx.Client, body: Any) -> None:
    response = send_json(client, "POST", "/devices", body)
    sound(response)
    if response.status_code == 201:
        name = response.json()["device"]["id"]
        assert topics.check_device_id(name) == name
        assert client.delete(f"/devices/{name}").status_code == 204


@SHAKEN
@given(near(text=HARD), near(name=IDS, description=HARD), near(version=st.integers(), soak_s=st.floats()))
def test_any_key_model_or_wish(client: httpx.Client, key: Any, model: Any, wish: Any) -> None:
    sound(send_json(client, "POST", "/keys", key))
    sound(send_json(client, "POST", "/models", model))
    sound(send_json(client, "PUT", "/devices/nobody/modules/none", wish))


LISTS = ("/devices", "/versions", "/models", "/audit", "/events", "/samples", "/samples/files", "/keys", "/profiles")


@SHAKEN
@given(
    st.sampled_from(LISTS),
    st.dictionaries(
        st.sampled_from(["tag", "cursor", "limit", "module", "device", "severity", "subject", "version", "model"]), HARD
    ),
)
@example("/devices", {"cursor": "WyJcdTAwMDAiXQ"})  # ["\0"]: PostgreSQL takes no NUL in a text
@example("/audit", {"cursor": "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5XQ"})  # [99999999999999999999]
@example("/versions", {"cursor": "WyJhIiwxZTNd"})  # ["a",1e3]
@example("/samples", {"module": "\0"})
def test_any_query_of_a_list(client: httpx.Client, path: str, query: dict[str, str]) -> None:
    sound(client.get(path, params=query))


@SHAKEN
@given(
    st.sampled_from(["GET", "DELETE", "PUT", "POST", "PATCH"]),
    st.lists(
        st.sampled_from(
            ["models", "devices", "versions", "files", "samples", "package", "tags", "1", "errors", "rollouts"]
        )
        | HARD,
        min_size=1,
        max_size=6,
    ),
    st.binary(max_size=60),
)
def test_any_address(client: httpx.Client, method: str, parts: list[str], body: bytes) -> None:
    from urllib.parse import quote

    path = "/".join(quote(part, safe="") for part in parts)
    if path.startswith("stream"):
        return
    sound(client.request(method, f"{client.base_url}{path}", content=body))


@SHAKEN
@given(st.binary(max_size=2000), st.dictionaries(st.sampled_from(["reason", "tag", "git_commit", "git_dirty"]), HARD))
def test_any_package(client: httpx.Client, body: bytes, query: dict[str, str]) -> None:
    response = client.post("/models/digits/versions", content=body, params=query)
    sound(response)
    assert response.status_code >= 400
