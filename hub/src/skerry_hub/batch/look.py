"""One look at a batch job: how it stands, what changes by the rules, and the writing of it.

Computed in a reading session first, and only where something changes again in a writing one: most looks change nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from sqlmodel import Session, col, select

from skerry_hub import batches, commands
from skerry_hub.batches import HUB, names_of, text_of
from skerry_hub.clock import now_ms
from skerry_hub.rules import batch as rules
from skerry_hub.rules.batch import ACTIVE, OPEN, BatchLimits, JobState, Part, PartState, Place
from skerry_hub.tables import BatchPart, CommandRow, Device
from skerry_modules.batches import COMMAND, PartOrder
from skerry_modules.errors import InputError, ResourceError
from skerry_modules.messages import Command

log = logging.getLogger(__name__)

NEVER_S: Final = 86_400.0
"""What a device is told as its deadline: the lease is what ends a part."""


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``lease_s``: silence of a device after which its part goes to another; ``days``: how long jobs are kept;
    ``hub_jobs``: that the hub itself scores at once."""

    lease_s: float = 120.0
    days: float = 30.0
    hub_jobs: int = 1
    limits: BatchLimits = BatchLimits()


class Look:
    """How one job stands, and what changes: computed in a reading session first, then again in a writing one."""

    def __init__(self, session: Session, job: int, settings: BatchSettings) -> None:
        self._session, self._settings, self._now = session, settings, now_ms()
        self._row = batches.get(session, job)
        self._devices = names_of(self._row.devices)
        self._parts = {part.number: part for part in batches.parts_of(session, job)}
        self._after: dict[int, Part] = {}
        self._give: list[tuple[int, str]] = []
        self._progress: dict[int, float] = {}
        self._places = self._find_places()
        if self._row.state in ACTIVE:
            self._hear()
            self._hand_out()
        self._job = self._job_columns()

    @property
    def changed(self) -> bool:
        same = all(getattr(self._row, name) == value for name, value in self._job.items())
        return bool(self._after or self._give or self._progress or not same)

    def _find_places(self) -> dict[str, Place]:
        if self._row.target == HUB:
            return {HUB: Place(device=HUB, online=True, serves=True)}
        known = {one.id: one for one in self._session.exec(select(Device).where(col(Device.id).in_(self._devices)))}
        serving = batches.serving_devices(self._session, self._row.module, self._row.version, self._devices)
        going = select(CommandRow.device).where(col(CommandRow.name) == COMMAND, col(CommandRow.ended_at) == 0)
        has = Counter(self._session.exec(going))
        silent = self._silent(known)
        return {
            name: Place(
                device=name,
                online=name in known and known[name].online and name not in silent,
                serves=name in serving,
                parts=has[name],
            )
            for name in self._devices
        }

    def _silent(self, known: Mapping[str, Device]) -> set[str]:
        """Devices that let a part's lease run out and were not heard of since: the broker may hold one for connected
        that has no power any more, and the same part would be lost to it again and again."""
        lost = [
            part.command
            for part in self._parts.values()
            if part.state == PartState.QUEUED and part.code == "command.no_answer"
        ]
        rows = self._session.exec(select(CommandRow).where(col(CommandRow.id).in_(lost))) if lost else ()
        return {row.device for row in rows if row.device in known and known[row.device].seen_at < row.ended_at}

    def _hear(self) -> None:
        """What became of the parts that were given out."""
        running = [part for part in self._parts.values() if part.state == PartState.RUNNING and part.device != HUB]
        told = {
            row.id: row
            for row in self._session.exec(
                select(CommandRow).where(col(CommandRow.id).in_([part.command for part in running]))
            )
        }
        for part in running:
            row = told.get(part.command)
            if row is None or row.ended_at:
                code = row.code if row is not None and row.code else "command.no_answer"
                message = row.message if row is not None and row.message else "the device said no word of its result"
                self._after[part.number] = rules.ended_badly(
                    part_of(part), code, message, self._now, devices=self._devices, limits=self._settings.limits
                )
            elif row.progress > part.progress:
                self._progress[part.number] = row.progress

    def _hand_out(self) -> None:
        parts = [self._after.get(number) or part_of(part) for number, part in sorted(self._parts.items())]
        if not any(rules.dooms(part) for part in parts):
            self._give = rules.give(
                parts, list(self._places.values()), self._now, at_once=self._settings.limits.at_once
            )

    def _job_columns(self) -> dict[str, Any]:
        parts = list(self._parts.values())
        shares = [
            (one.units, 1.0 if one.state == PartState.DONE else self._progress.get(one.number, one.progress))
            for one in parts
        ]
        if batches.being_cut(self._row):
            shares.append((self._row.units - sum(one.units for one in parts), 0.0))
        share = rules.progress(shares)
        going = self._give or any(part.state == PartState.RUNNING for part in parts) or self._row.started_at
        message = "" if self._row.state not in ACTIVE or self._give else rules.waiting(self._places)
        found: dict[str, Any] = {
            "progress": round(max(share, self._row.progress), 4),
            "message": message,
            "state": JobState.RUNNING.value if going else JobState.QUEUED.value,
            "scored": sum(
                one.scored or int(self._progress.get(one.number, one.progress) * one.units)
                for one in parts
                if self._row.unit == "rows" or one.state == PartState.DONE
            ),
            "errors": sum(one.errors for one in parts),
        }
        return found if self._row.state in ACTIVE else {}

    def save(self) -> list[tuple[str, Command]]:
        """Write it; returns what is to be sent after the commit."""
        for number, after in self._after.items():
            put_part(self._session, self._parts[number], after, self._now)
        for number, share in self._progress.items():
            self._parts[number].progress = share
            self._session.add(self._parts[number])
        sent = [made for number, device in self._give if (made := self._give_out(number, device))]
        for name, value in self._job.items():
            setattr(self._row, name, value)
        if self._give and not self._row.started_at:
            self._row.started_at = self._now
        self._row.updated_at = self._now
        self._session.add(self._row)
        return sent

    def _give_out(self, number: int, device: str) -> tuple[str, Command] | None:
        part = self._parts[number]
        after = rules.given(self._after.get(number) or part_of(part), device)
        made: tuple[CommandRow, Command] | None = None
        if device != HUB:
            try:
                made = self._make(part, device)
            except (InputError, ResourceError) as error:  # it went away, or was removed, a moment ago
                log.info("cannot give part %d of the batch job %d to %s: %s", number, part.batch, device, error)
                return None
        put_part(self._session, part, after, self._now)
        part.given = text_of(dict.fromkeys((*names_of(part.given), device)))
        part.given_at, part.progress = self._now, 0.0
        part.command = made[0].id if made is not None else ""
        self._session.add(part)
        return (device, made[1]) if made is not None else None

    def _make(self, part: BatchPart, device: str) -> tuple[CommandRow, Command]:
        row = self._row
        kind = "path" if row.source == "device" else "table" if row.unit == "rows" else "files"
        order = PartOrder(
            job=part.batch,
            part=part.number,
            module=row.module,
            version=row.version,
            kind=kind,
            input=part.input,
            size=part.input_size,
            path=row.input if kind == "path" else "",
            columns=names_of(row.columns),
            keep=names_of(row.keep) if kind == "path" else (),  # those of an upload stand here
            rows=row.rows,
            part_rows=row.part_rows,
        )
        made, message = commands.create(
            self._session,
            device,
            COMMAND,
            msgspec.to_builtins(order),
            deadline_s=self._settings.lease_s,
            module=row.module,
            version=row.version,
            actor=row.created_by,
            reason=row.reason,
            now=self._now,
            audited=False,  # the job is; its parts are many
            at_once=self._settings.limits.at_once,
        )
        made.deadline_at = self._now + int(self._settings.lease_s * 1000)
        return made, msgspec.structs.replace(message, deadline_s=NEVER_S)


def part_of(row: BatchPart) -> Part:
    return Part(
        number=row.number,
        state=PartState(row.state),
        device=row.device,
        only=row.only,
        refused=names_of(row.refused),
        attempts=row.attempts,
        failures=row.failures,
        retry_at=row.retry_at,
        code=row.code,
        message=row.message,
    )


def put_part(session: Session, row: BatchPart, part: Part, now: int) -> None:
    row.state, row.device, row.refused = part.state.value, part.device, text_of(part.refused)
    row.attempts, row.failures, row.retry_at = part.attempts, part.failures, part.retry_at
    row.code, row.message = part.code, part.message[:4096]
    row.ended_at = 0 if part.state in OPEN else now
    if part.state is PartState.QUEUED:
        row.progress = 0.0
    session.add(row)
