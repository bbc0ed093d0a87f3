"""The API's reference as a page, from the OpenAPI document: nothing is loaded from elsewhere, and no script runs."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer; padding: .3rem 0 }
code, pre { font: .9em/1.4 ui-monospace, monospace }
pre, table { background: color-mix(in srgb, currentColor 6%, transparent); padding: .6rem; overflow-x: auto }
table { border-collapse: collapse; width: 100% } td { padding: .15rem .6rem; vertical-align: top }
b.method { display: inline-block; width: 4.5rem }
"""


@router.get("/docs")
def reference(request: Request) -> HTMLResponse:
    """Every address, its parameters and bodies."""
    document: dict[str, Any] = request.app.openapi()
    sections: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["hub"])[0]
            sections.setdefault(tag, []).append(_operation(document, method, path, operation))
    body = "".join(f"<h2>{escape(tag)}</h2>{''.join(parts)}" for tag, parts in sections.items())
    intro = "".join(
        f"<p>{escape(line.strip('* '))}</p>" for line in document["info"]["description"].splitlines() if line
    )
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Skerry hub API</title><style>{_STYLE}</style><h1>Skerry hub API</h1>{intro}"
        f"<p>For machines: <a href='{escape(request.app.openapi_url)}'>OpenAPI</a></p>{body}"
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})


def _operation(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(_parameter(one) for one in operation.get("parameters", ()))
    table = f"<table>{rows}</table>" if rows else ""
    body = _content(document, "Body", operation.get("requestBody", {}))
    answers = "".join(
        _content(document, f"Answer {status}", answer)
        for status, answer in operation["responses"].items()
        if status != "default"
    )
    text = escape(operation.get("description", "")).replace("\n\n", "<p>")
    return (
        f"<details><summary><b class=method>{method.upper()}</b> <code>{escape(path)}</code></summary>"
        f"<p>{text}</p>{table}{body}{answers}</details>"
    )


def _parameter(one: dict[str, Any]) -> str:
    need = " (needed)" if one.get("required") else ""
    about = escape(one.get("description") or one.get("schema", {}).get("description") or "")
    return f"<tr><td><code>{escape(one['name'])}</code><td>{escape(one['in'])}{need}<td>{about}</tr>"


def _content(document: dict[str, Any], title: str, part: dict[str, Any]) -> str:
    found = ""
    for media, content in part.get("content", {}).items():
        lines = "\n".join(_fields(document, content.get("schema", {})))
        found += f"<p>{escape(title)}: <code>{escape(media)}</code></p>" + (
            f"<pre>{escape(lines)}</pre>" if lines else ""
        )
    return found


def _fields(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> list[str]:
    """A schema's fields, one a line, what they refer to indented below them."""
    if depth > 4:
        return []
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return _fields(document, document["components"]["schemas"][name], depth)
    for choice in (schema.get("items"), *schema.get("anyOf", ())):
        if choice and (lines := _fields(document, choice, depth)):
            return lines
    lines = []
    for field, about in schema.get("properties", {}).items():
        need = "" if field in schema.get("required", ()) else " (optional)"
        text = about.get("description", "")
        lines.append(f"{'  ' * depth}{field}: {_kind(about)}{need}" + (f", {text}" if text else ""))
        lines += _fields(document, about, depth + 1)
    return lines


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    kind = str(schema.get("type", "any"))
    return f"list of {_kind(schema['items'])}" if kind == "array" and "items" in schema else kind
