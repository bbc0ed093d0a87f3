"""Writes the reference pages that are drawn from the code: docs/errors.md and docs/settings.md.

A test holds the pages to what this writes: ``python scripts/reference.py`` brings them up to date.
"""

from __future__ import annotations

from pathlib import Path

from skerry_agent import settings as agent_settings
from skerry_hub import settings as hub_settings
from skerry_modules.errors import CODES

ROOT = Path(__file__).parents[1]

GROUPS = {
    "manifest": "Manifests",
    "module": "Modules and versions",
    "device": "Devices",
    "environment": "Environments",
    "profile": "Firmware profiles",
    "query": "Tag queries",
    "rollout": "Rollouts",
    "request": "Requests to the hub",
    "auth": "Who may do what",
    "scoring": "Scoring requests",
    "convert": "Conversions",
    "batch": "Batch jobs",
    "package": "Packages",
    "trust": "Signatures and keys",
    "message": "Messages over MQTT",
    "desired": "Desired documents",
    "resource": "Resources of a device or server",
    "unschedulable": "Why a module cannot run on a device",
    "install": "Why a version was not taken into service",
    "run": "Why a version that served no longer does",
    "command": "Commands to a device",
    "measure": "Measuring a module",
    "settings": "Settings",
    "board": "FPGA boards",
    "internal": "Ours",
}


def errors_page() -> str:
    """docs/errors.md: every code, in the order of the code's own table."""
    lines = [
        "# Error codes",
        "",
        "Every error of the hub, the agent and the client has one of these codes. In the hub's API it is the `code` of",
        "a problem document (RFC 9457); in a device's state and events it is the `reason` or `code`; on the command",
        "line it stands in brackets before the text, which says what to do.",
        "",
        "This page is written from `skerry_modules/errors.py` by `scripts/reference.py`.",
    ]
    seen: set[str] = set()
    for code, text in CODES.items():
        group = code.split(".")[0]
        if group not in seen:
            seen.add(group)
            lines += ["", f"## {GROUPS.get(group, group)}", "", "| code | meaning |", "| --- | --- |"]
        lines.append(f'| <a id="{code}"></a>`{code}` | {text} |')
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """docs/settings.md: every setting of hub and agent, with unit, default and variable."""
    lines = [
        "# Settings",
        "",
        "This page is written from the code by `scripts/reference.py`; `skerry-hub settings` and",
        "`skerry-agent settings` print the same. Sizes are in bytes and times in seconds where no unit is given.",
        "",
        "## Hub",
        "",
        "Flags of `skerry-hub serve` win over environment variables, and these over defaults.",
        "",
        "| flag | variable | default | unit | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{one.flag}` | `{one.variable}` | {_value(one.default)} | {one.unit} | {_cell(one.help)} |"
        for one in hub_settings.describe()
    ]
    lines += [
        "",
        "## Agent",
        "",
        "`--set section.name=value` wins over environment variables, these over the configuration file, this over",
        "defaults. `skerry devices add` writes the file. `sources[]` are tables, `[[sources]]`, as many as wanted.",
        "",
        "| setting | variable | default | unit | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in agent_settings.catalogue():
        env = f"`{each.env}`" if each.env else ""
        lines.append(f"| `{each.name}` | {env} | {_value(each.default)} | {each.unit} | {_cell(each.help)} |")
    return "\n".join(lines) + "\n"


def _value(default: object) -> str:
    return "" if default in ("", None, ()) else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES = {"docs/errors.md": errors_page, "docs/settings.md": settings_page}


def main() -> None:
    for name, make in PAGES.items():
        (ROOT / name).write_text(make())


if __name__ == "__main__":
    main()
