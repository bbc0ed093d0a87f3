"""What versions were measured to need: kept with the version, by machine, and used by the scheduler.

A device's profile comes with its answer to the command ``profile`` (:mod:`skerry_hub.ingest.sql`); one from a laptop
is posted. What counts for a device is what it measured itself, else the most that any device of its firmware profile
measured: two boards of one kind differ, and a module that fits only the better one does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
from sqlmodel import Session, col, select

from skerry_hub import audit, registry
from skerry_hub.tables import ModuleProfileRow
from skerry_modules import profiles
from skerry_modules.errors import InputError
from skerry_modules.measurement import ModuleProfile


def store(session: Session, name: str, version: int, found: ModuleProfile, *, actor: str, now: int) -> ModuleProfileRow:
    """Keep a profile that was measured on a machine that is no device.

    Raises:
        InputError: ``module.unknown``; ``profile.unknown``; ``request.invalid``: it is of other content.
    """
    row = registry.get_version(session, name, version)
    if found.digest != row.digest:
        raise InputError(
            "request.invalid",
            f"cannot keep this profile with {name}:{version}: it was measured on {found.digest[:12]}, the version is "
            f"{row.digest[:12]}; download the version and measure that",
        )
    if found.profile:
        profiles.get(found.profile)
    kept = session.get(ModuleProfileRow, (name, version, "", found.profile)) or ModuleProfileRow(
        name=name,
        version=version,
        device="",
        profile=found.profile,
        simulated=False,
        memory_mb=0,
        body="",
        measured_by="",
        at=now,
    )
    kept.simulated, kept.memory_mb, kept.measured_by, kept.at = found.simulated, found.memory_mb, actor, now
    kept.body = msgspec.json.encode(msgspec.structs.replace(found, device="", version=version)).decode()
    session.add(kept)
    audit.record(session, actor=actor, action="version.profile", subject=f"{name}:{version}", now=now)
    return kept


def of_version(session: Session, name: str, version: int) -> Sequence[ModuleProfileRow]:
    """A version's profiles, newest first."""
    statement = select(ModuleProfileRow).where(
        col(ModuleProfileRow.name) == name, col(ModuleProfileRow.version) == version
    )
    return session.exec(statement.order_by(col(ModuleProfileRow.at).desc(), col(ModuleProfileRow.device))).all()


class Located(Protocol):
    """A device, as far as measurements tell devices apart."""

    @property
    def id(self) -> str: ...

    @property
    def profile(self) -> str: ...


class Measured:
    """Measured memory of versions, looked up once for many devices."""

    def __init__(self, session: Session, versions: Iterable[tuple[str, int]]) -> None:
        self._by_device: dict[tuple[str, int, str], int] = {}
        self._by_profile: dict[tuple[str, int, str], int] = {}
        wanted = set(versions)
        statement = select(ModuleProfileRow).where(
            col(ModuleProfileRow.name).in_({name for name, _ in wanted}), col(ModuleProfileRow.profile) != ""
        )
        for row in session.exec(statement) if wanted else ():
            if (row.name, row.version) not in wanted:
                continue
            key = (row.name, row.version, row.profile)
            self._by_profile[key] = max(self._by_profile.get(key, 0), row.memory_mb)
            if row.device:
                self._by_device[row.name, row.version, row.device] = row.memory_mb

    def memory_mb(self, name: str, version: int, device: Located) -> int:
        """MB that the version needs there; 0 where nobody measured it."""
        own = self._by_device.get((name, version, device.id))
        return own if own is not None else self._by_profile.get((name, version, device.profile), 0)
