"""Rendering: one Jinja environment, the addresses of assets, and pages whose ``main`` alone answers a live refresh.

A page is one template that extends ``base.html`` and fills the block ``main``. A request by htmx gets that block only
(and the title); any other gets the whole page. So a page and its live update cannot drift apart.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from skerry_hub.console import format as text
from skerry_hub.console.forms import wrong_field
from skerry_modules.errors import CODES

VERSION: Final = metadata.version("skerry")
STATIC: Final = Path(__file__).parent / "static"

POLL_S: Final = 10.0
"""How often a page without a live connection asks for itself; after three times as long it asks for one again."""

NAVIGATION: Final = (
    ("overview", "/", "Overview", "gauge"),
    ("devices", "/devices", "Devices", "device"),
    ("models", "/models", "Models", "model"),
    ("rollouts", "/rollouts", "Rollouts", "rollout"),
    ("endpoints", "/endpoints", "Endpoints", "endpoint"),
    ("environments", "/environments", "Environments", "environment"),
    ("batches", "/batches", "Batch jobs", "batch"),
    ("samples", "/samples", "Samples", "sample"),
    ("events", "/events", "Events", "event"),
    ("audit", "/audit", "Audit log", "audit"),
)


@cache
def asset_digest(name: str) -> str:
    """The first 12 hex digits of a static file's SHA-256; it changes the file's address when the file changes."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def asset(name: str) -> str:
    return f"/assets/{asset_digest(name)}/{name}"


@cache
def environment() -> Environment:
    found = Environment(
        loader=PackageLoader("skerry_hub.console"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        number=text.number,
        count=text.count,
        size=text.size,
        us=text.microseconds,
        span=text.seconds,
        share=text.share,
        breakable=text.breakable,
        absolute=text.absolute,
        deed=text.deed,
        compact=lambda value: json.dumps(value, separators=(",", ":")),
    )
    found.globals.update(
        wrong_field=wrong_field,
        asset=asset,
        navigation=NAVIGATION,
        percent=text.percent,
        explain=lambda code: CODES.get(code, ""),
    )
    return found


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def is_partial(request: Request) -> bool:
    """Whether htmx asks for the ``main`` of a page that is already open."""
    return "hx-request" in request.headers and "hx-history-restore-request" not in request.headers


def page(
    request: Request,
    template: str,
    *,
    title: str,
    section: str,
    topics: tuple[str, ...] = (),
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """A whole page, or its ``main`` alone for htmx.

    Args:
        topics: of the bus; a nudge on one of them refreshes the page. Empty: the page is not live.
    """
    now = now_ms()
    context = {
        "request": request,
        "partial": is_partial(request),
        "title": title,
        "section": section,
        "topics": ",".join(topics),
        "address": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "now": now,
        "poll_ms": round(POLL_S * 1000),
        "ago": lambda at: text.time_tag(at, now),
        "version": VERSION,
        **values,
    }
    body = environment().get_template(template).render(context)
    return HTMLResponse(body, status_code=status, headers={"Vary": "HX-Request", **(headers or {})})
