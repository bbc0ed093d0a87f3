"""What ``skerry-agent`` prints for people: plain text, aligned, no colours, no dependency."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec

from skerry_agent import control
from skerry_modules.errors import ResourceError


def status(facts: dict[str, Any]) -> str:
    """The answer of the agent's ``status``."""
    hub = facts["hub"]
    if not hub["broker"]:
        link = "none configured"
    elif hub["connected"]:
        link = f"{hub['broker']}, connected for {_span(hub['since_s'])}"
    else:
        link = f"{hub['broker']}, not connected for {_span(hub['since_s'])}: {hub['reason'] or 'connecting'}"
    spool, disk = facts["spool"], facts["disk"]
    dropped = "".join(f", {count} {stream} dropped" for stream, count in spool["dropped"].items())
    engines = ", ".join(f"{name} {version}" for name, version in facts["engines"].items())
    lines = [
        f"device    {facts['device']} ({facts['profile']}), agent {facts['agent']}, up {_span(facts['uptime_s'])}",
        f"engines   {engines or 'none installed'}",
        f"scoring   {facts['scoring']}",
        f"hub       {link}",
        f"spool     {spool['records']} records, {spool['bytes'] / 1e6:.1f} MB wait for the hub{dropped}",
        f"disk      {disk['used_mb']} MB used of {disk['limit_mb']} MB, {disk['free_mb']} MB free",
        f"revision  {facts['revision']}",
        "",
        *_modules(facts["modules"]),
    ]
    if facts["sources"]:
        lines += ["", *_sources(facts["sources"])]
    return "\n".join(lines)


def _modules(modules: list[dict[str, Any]]) -> list[str]:
    if not modules:
        return ["no modules: the hub has not asked for any yet"]
    rows = [["MODULE", "VERSION", "PHASE", "STEP", "ROLE", "REASON"]]
    for one in modules:
        step = one.get("step", "")
        if progress := one.get("progress", 0.0):
            step = f"{step} {progress:.0%}"
        reason = ": ".join(filter(None, (one.get("reason", ""), one.get("message", ""))))
        rows.append([one["name"], str(one["version"]), one["phase"], step, one.get("role", ""), reason])
    return table(rows)


def _sources(sources: list[dict[str, Any]]) -> list[str]:
    rows = [["SOURCE", "ENDPOINT", "SCORED", "FAILED", "STATE"]]
    for one in sources:
        state = one["waiting"] or one["last_error"] or "scoring"
        rows.append([one["name"], one["endpoint"], str(one["scored"]), str(one["failed"]), state])
    return table(rows)


def events(found: list[dict[str, Any]]) -> str:
    """One line per event, oldest first."""
    lines = []
    for one in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["at"] / 1000))
        subject = f"{one['module']} v{one.get('version', 0)}: " if one.get("module") else ""
        lines.append(f"{at}  {one['severity']:<8}  {one['code']:<28}  {subject}{one['message']}")
    return "\n".join(lines) or "no events"


def read_events(folder: Path, limit: int) -> list[dict[str, Any]]:
    """From the running agent, or from its spool where it is stopped.

    Raises:
        ResourceError: ``resource.agent_unreachable`` where there is neither.
    """
    try:
        running: list[dict[str, Any]] = control.ask(folder, "events", limit=limit)
        return running
    except ResourceError:
        if not (folder / "spool.db").exists():
            raise
    from skerry_agent.spool import read_journal

    path = folder / "spool.db"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            return [{"at": one.at, **msgspec.to_builtins(one.event)} for one in read_journal(db, limit)]
    except sqlite3.Error as error:
        raise ResourceError(
            "resource.agent_unreachable",
            f"cannot read the events in {path}: {error}; run it as the agent's user, or start the agent",
        ) from error


def answer(body: dict[str, Any]) -> str:
    """An Open Inference Protocol answer."""
    lines = [f"{body.get('model_name', '')} v{body.get('model_version', '?')}"]
    for output in body.get("outputs", ()):
        values = output.get("data", [])
        shown = ", ".join(_value(value) for value in values[:20])
        more = f", … {len(values)} values" if len(values) > 20 else ""
        lines.append(f"{output['name']}  {output['datatype']} {output['shape']}  [{shown}{more}]")
    return "\n".join(lines)


def batch(summary: dict[str, Any]) -> str:
    """What a batch job did."""
    lines = [f"{summary['rows']:,} rows scored by {summary['model']} {summary['version']} → {summary['output']}"]
    if summary["errors"]:
        lines.append(f"{summary['errors']:,} rows could not be scored; why is in {summary['errors_file']}")
    if summary["resumed"]:
        lines.append(f"{summary['resumed']:,} of them were done by an earlier run")
    lines.append(f"{summary['seconds']:.1f} s, {summary['rows_per_s']:,.0f} rows/s")
    return "\n".join(lines)


def settings(found: list[dict[str, Any]]) -> str:
    """Every setting with its default."""
    lines = []
    for one in found:
        default = "required" if one["default"] is None else f"default {one['default']!r}"
        lines.append(f"{one['name']}  ({default}{f' {unit}' if (unit := one['unit']) else ''})")
        lines.append(f"    {one['help']}")
    return "\n".join(lines)


def table(rows: list[list[str]]) -> list[str]:
    """Aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _span(seconds: float) -> str:
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole / size:.1f} {unit}"
    return f"{whole} s"
