"""Who asks, and may they: one check in front of every address, console and API alike.

* Without a token the hub serves this machine only: it listens on loopback, believes only loopback callers, and calls
  them local. Then a page from elsewhere is the danger, since a browser on this machine may reach the hub:
  the Host header must name this machine (DNS rebinding), and a changing request must not come from another site.
* With tokens (``name:secret``) every caller gives one, as ``Authorization: Bearer`` or as the password of HTTP Basic,
  which browsers ask for by themselves. Browsers repeat Basic credentials on requests that other sites provoke, so the
  check for other sites holds here too.

:class:`Authenticator` is the port: certificates, roles and OpenID Connect come as further adapters.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry_hub.settings import Settings, is_loopback
from skerry_modules.errors import InputError

ACTOR_HEADER: Final = "x-skerry-actor"
LOCAL: Final = "local"
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")

_ACTOR = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


class Identity(msgspec.Struct, frozen=True):
    """Who asks; ``name`` goes into the audit log. ``local``: believed because of where the request comes from."""

    name: str
    local: bool


class Authenticator(Protocol):
    def identify(self, headers: Mapping[str, str], client: str) -> Identity:
        """Who sent a request with these headers from this address.

        Raises:
            InputError: ``auth.missing``, ``auth.denied``.
        """
        ...


class LocalUser:
    """No token is set: whoever reaches the hub from this machine is its user."""

    def identify(self, headers: Mapping[str, str], client: str) -> Identity:
        if not is_loopback(client):
            raise InputError(
                "auth.missing", f"cannot serve {client}: this hub has no token and serves its own machine only"
            )
        return Identity(_actor(headers) or LOCAL, local=True)


class Tokens:
    """Every caller gives one of the hub's tokens."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = dict(tokens)

    def identify(self, headers: Mapping[str, str], client: str) -> Identity:
        given = _given(headers.get("authorization", ""))
        if given is None:
            raise InputError(
                "auth.missing",
                "cannot serve this request: it carries no token; set SKERRY_TOKEN, or send Authorization: Bearer …",
            )
        # All are compared, so that the time taken tells nothing about which came close.
        names = [name for name, secret in self._tokens.items() if hmac.compare_digest(given, secret.encode())]
        if not names:
            raise InputError("auth.denied", "cannot serve this request: its token is not one of this hub's; check it")
        return Identity(names[0], local=False)


def authenticator(settings: Settings) -> Authenticator:
    """The adapter that the settings ask for.

    Raises:
        InputError: ``settings.invalid``: the hub would listen to other machines without a token.
    """
    tokens = parse_tokens(settings.token)
    if tokens:
        return Tokens(tokens)
    if not settings.loopback:
        raise InputError(
            "settings.invalid",
            f"cannot listen on {settings.host} without a token: anyone who reaches it could change the fleet. "
            "Set SKERRY_HUB_TOKEN=name:secret, or listen on 127.0.0.1",
            setting="token",
        )
    return LocalUser()


def parse_tokens(text: str) -> dict[str, str]:
    """``name:secret,name:secret`` (a bare secret is the operator's).

    Raises:
        InputError: ``settings.invalid``.
    """
    found: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, colon, secret = part.partition(":")
        if not colon:
            name, secret = "operator", part
        if len(secret) < 16 or not _ACTOR.fullmatch(name):
            raise InputError(
                "settings.invalid",
                "cannot use the setting token: write name:secret, with a secret of at least 16 characters "
                "(`openssl rand -hex 24` makes one)",
                setting="token",
            )
        found[name] = secret
    return found


class Guard:
    """ASGI middleware: refuses what must not be served, and puts the identity into ``scope["state"]["identity"]``."""

    def __init__(self, app: ASGIApp, settings: Settings, respond: Any) -> None:
        self._app = app
        self._authenticator = authenticator(settings)
        names = (name.strip().lower() for name in settings.allowed_hosts.split(","))
        self._allowed = frozenset(name for name in names if name)
        self._hosts = self._allowed | {settings.host.lower()}
        self._check_host = isinstance(self._authenticator, LocalUser) or bool(settings.allowed_hosts)
        self._respond = respond  # makes the one error response of the hub from a SkerryError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._admit(scope)
            except InputError as error:
                await self._respond(scope, error)(scope, receive, send)
                return
        elif scope["type"] != "lifespan":  # no address of the hub speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._check_host:
            self._refuse_foreign_host(headers)
        if scope["method"] not in SAFE_METHODS:
            refuse_cross_site(headers, self._allowed)
        client = (scope.get("client") or ("127.0.0.1",))[0]  # None: a Unix socket, or a test in the same process
        scope.setdefault("state", {})["identity"] = self._authenticator.identify(headers, client)

    def _refuse_foreign_host(self, headers: Headers) -> None:
        host = host_name(headers.get("host", ""))
        if not (is_loopback(host) or host in self._hosts):
            raise InputError(
                "auth.cross_site",
                f"cannot serve the host {host[:100]!r}: another site's page may be behind it. "
                "Use http://127.0.0.1 or http://localhost, or add the name to SKERRY_HUB_ALLOWED_HOSTS",
                host=host[:100],
            )


def refuse_cross_site(headers: Mapping[str, str], allowed: Collection[str] = ()) -> None:
    """Refuse a changing request that another site's page provoked. Callers that are no browsers send neither header.

    Args:
        headers: the request's, with lower-case names.
        allowed: names of this hub besides its Host, such as that of a proxy which sends another Host on.

    Raises:
        InputError: ``auth.cross_site``.
    """
    origin, fetch_site = headers.get("origin"), headers.get("sec-fetch-site")
    foreign = fetch_site not in (None, "same-origin", "none")
    if origin is not None:
        place = _origin(origin)
        foreign = foreign or (place != headers.get("host", "").lower() and host_name(place) not in allowed)
    if foreign:
        raise InputError(
            "auth.cross_site",
            f"cannot serve a change that a page of {(origin or 'another site')[:100]} asks for: use this hub's console",
        )


def host_name(host: str) -> str:
    """The name or address in a Host header, without its port."""
    name = host.strip().lower()
    if name.startswith("["):
        inner, bracket, _ = name[1:].partition("]")
        return inner if bracket else ""
    if name.count(":") > 1:  # a bare IPv6 address is no valid Host
        return ""
    return name.partition(":")[0].rstrip(".")


def _origin(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _actor(headers: Mapping[str, str]) -> str:
    actor = headers.get(ACTOR_HEADER, "").strip()
    if actor and not _ACTOR.fullmatch(actor):
        raise InputError("request.invalid", "cannot use the X-Skerry-Actor header: 1 to 100 printable characters")
    return actor


def _given(authorization: str) -> bytes | None:
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:  # no base64, or no ASCII
            return None
    return None
