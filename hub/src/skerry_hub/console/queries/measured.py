"""What a version was measured to need, and measurements that go on."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlmodel import Session

from skerry_hub import commands, profiling
from skerry_hub.tables import CommandRow, ModuleProfileRow
from skerry_modules.measurement import ModuleProfile

_KEEP_FAILED_MS = 86_400_000
"""So long a measurement that failed is shown."""


@dataclass(frozen=True)
class Measured:
    """The newest profile of each machine, and commands that are no profile yet or became none."""

    profiles: list[tuple[ModuleProfileRow, ModuleProfile]]
    running: list[CommandRow]
    failed: list[CommandRow]


def of_version(session: Session, name: str, version: int, now: int) -> Measured:
    """Everything about one version."""
    rows = profiling.of_version(session, name, version)
    told = [row for row in commands.of_version(session, name, version) if row.name == "profile"]
    newest: dict[str, CommandRow] = {}
    for row in told:
        newest.setdefault(row.device, row)
    return Measured(
        profiles=[(row, msgspec.json.decode(row.body, type=ModuleProfile)) for row in rows],
        running=[row for row in told if not row.ended_at],
        failed=[row for row in newest.values() if row.state == "failed" and now - row.ended_at < _KEEP_FAILED_MS],
    )
