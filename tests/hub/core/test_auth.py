"""Who may ask: this machine without a token, a token's holder with one, and no other site's page in either case."""

from __future__ import annotations

import asyncio
import dataclasses

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st

from skerry_hub import api, auth
from skerry_hub.settings import Settings
from skerry_modules.errors import InputError

SECRET = "0123456789abcdef"
LOCAL = Settings(data="unused")
OPEN = Settings(data="unused", host="0.0.0.0", token=f"ci:{SECRET},alice:{SECRET[::-1]}")


@pytest.fixture(params=["local", "open"])
def settings(request: pytest.FixtureRequest) -> Settings:
    return LOCAL if request.param == "local" else OPEN


def ask(
    settings: Settings, method: str = "GET", *, client: str = "127.0.0.1", host: str = "127.0.0.1:8420", **headers: str
) -> httpx.Response:
    """One request through the real guard to an address that names the caller; nothing behind it."""
    app: FastAPI = api.create(settings, None)

    @app.api_route("/who", methods=["GET", "POST", "DELETE"])
    def who(request: Request) -> str:
        identity: auth.Identity = request.state.identity
        return f"{identity.name} {identity.local}"

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 50000))
        async with httpx.AsyncClient(transport=transport, base_url="http://hub") as caller:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            return await caller.request(method, "/who", headers={"Host": host, **sent})

    return asyncio.run(run())


def refused(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    return str(response.json()["detail"])


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8420", "localhost:8420", "LOCALHOST", "[::1]:8420", "127.9.9.9", "localhost."]
)
def test_this_machine_needs_no_token(host: str) -> None:
    assert ask(LOCAL, host=host).json() == "local True"
    assert ask(LOCAL, "POST", host=host, X_Skerry_Actor="alice").json() == "alice True"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8420",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.0.2.1",
        "",
        "[::1",
        "::1",
    ],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(host: str) -> None:
    """DNS rebinding: the page's own name points to 127.0.0.1, so the browser sends it here with the page's rights."""
    text = refused(ask(LOCAL, host=host), 403, "auth.cross_site")
    assert "SKERRY_HUB_ALLOWED_HOSTS" in text


def test_a_name_that_was_allowed_is_served() -> None:
    named = dataclasses.replace(LOCAL, allowed_hosts="hub.lab, Other")
    assert ask(named, host="hub.lab:8420").status_code == 200
    assert ask(named, host="other").status_code == 200
    refused(ask(named, host="hub.lab.evil.example"), 403, "auth.cross_site")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},  # another program's page on this machine
        {"Origin": "http://127.0.0.1:8420.evil.example"},
        {"Origin": "http://["},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "http://127.0.0.1:8420", "Sec_Fetch_Site": "cross-site"},
    ],
)
def test_a_change_that_another_sites_page_asks_for_is_refused(
    settings: Settings, method: str, headers: dict[str, str]
) -> None:
    headers = {**headers, "Authorization": f"Bearer {SECRET}"}
    text = refused(ask(settings, method, **headers), 403, "auth.cross_site")
    assert text.endswith("use this hub's console")


def test_the_hubs_own_pages_may_change_things(settings: Settings) -> None:
    headers = {"Origin": "http://127.0.0.1:8420", "Sec_Fetch_Site": "same-origin", "Authorization": f"Bearer {SECRET}"}
    assert ask(settings, "POST", **headers).status_code == 200


def test_a_proxys_own_name_may_be_allowed(settings: Settings) -> None:
    named = dataclasses.replace(settings, allowed_hosts="hub.lab")
    headers = {"Authorization": f"Bearer {SECRET}"}
    assert ask(named, "POST", Origin="https://hub.lab", **headers).status_code == 200
    refused(ask(named, "POST", Origin="https://evil.example", **headers), 403, "auth.cross_site")
    refused(ask(named, "POST", Origin="http://127.0.0.1:9999", **headers), 403, "auth.cross_site")


def test_another_machine_is_refused_without_a_token() -> None:
    """Only a proxy or a forwarded port brings one here; it would make the whole network local."""
    text = refused(ask(LOCAL, client="192.0.2.7"), 401, "auth.missing")
    assert "its own machine only" in text


@pytest.mark.parametrize("client", ["127.0.0.1", "192.0.2.7"])
def test_with_tokens_everyone_gives_one(client: str) -> None:
    response = ask(OPEN, client=client, host="hub.lab")
    text = refused(response, 401, "auth.missing")
    assert "SKERRY_TOKEN" in text
    assert response.headers["www-authenticate"].startswith("Basic ")
    refused(ask(OPEN, client=client, Authorization="Bearer wrong-wrong-wrong"), 401, "auth.denied")
    assert ask(OPEN, client=client, Authorization=f"Bearer {SECRET}").json() == "ci False"
    assert ask(OPEN, client=client, Authorization=f"bearer {SECRET[::-1]}").json() == "alice False"
    basic = httpx.BasicAuth("anyone", SECRET)._auth_header
    assert ask(OPEN, client=client, Authorization=basic).json() == "ci False"


def test_a_tokens_name_is_not_the_callers_to_choose() -> None:
    assert ask(OPEN, Authorization=f"Bearer {SECRET}", X_Skerry_Actor="alice").json() == "ci False"


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60))
def test_no_other_text_is_a_token(text: str) -> None:
    tokens = auth.Tokens(auth.parse_tokens(OPEN.token))
    for scheme in ("Bearer", "Basic", ""):
        if SECRET in text or SECRET[::-1] in text:
            continue
        with pytest.raises(InputError) as caught:
            tokens.identify({"authorization": f"{scheme} {text}"}, "192.0.2.7")
        assert caught.value.code in ("auth.missing", "auth.denied")


@pytest.mark.parametrize("actor", ["a" * 101, "a\tb"])
def test_an_actor_that_would_spoil_the_log_is_refused(actor: str) -> None:
    refused(ask(LOCAL, X_Skerry_Actor=actor), 422, "request.invalid")


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (LOCAL, True),
        (Settings(data="x", host="::1"), True),
        (Settings(data="x", host="localhost"), True),
        (Settings(data="x", host="0.0.0.0"), False),
        (Settings(data="x", host="hub.lab"), False),
        (OPEN, True),
    ],
)
def test_an_open_address_needs_a_token(settings: Settings, allowed: bool) -> None:
    if allowed:
        auth.authenticator(settings)
        return
    with pytest.raises(
        InputError, match=r"without a token: anyone who reaches it could change the fleet\. Set"
    ) as caught:
        auth.authenticator(settings)
    assert caught.value.code == "settings.invalid"
