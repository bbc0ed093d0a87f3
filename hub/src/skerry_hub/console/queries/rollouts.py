"""Rollouts as people watch them: counts by step, waves, devices with their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, and_, func, select
from sqlmodel import Session, col

from skerry_hub.console.queries.paging import PAGE_ROWS, Page, clamp
from skerry_hub.rules.rollout import DeviceStep, Plan, RolloutState
from skerry_hub.tables import Audit, DeviceModule, Rollout, RolloutDevice

ACTIVE: Final = (RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ROLLING_BACK)

ORDER: Final = (
    DeviceStep.SUCCEEDED,
    DeviceStep.ASSIGNED,
    DeviceStep.ROLLING_BACK,
    DeviceStep.FAILED,
    DeviceStep.ROLLED_BACK,
    DeviceStep.UNSCHEDULABLE,
    DeviceStep.PENDING,
    DeviceStep.SKIPPED,
)
"""As the bars show them."""

_ENDED: Final = (
    DeviceStep.SUCCEEDED,
    DeviceStep.FAILED,
    DeviceStep.UNSCHEDULABLE,
    DeviceStep.SKIPPED,
    DeviceStep.ROLLED_BACK,
)


@dataclass
class RolloutLine:
    """A rollout with its devices counted by step."""

    row: Rollout
    plan: Plan
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.steps.values())

    @property
    def done(self) -> int:
        return sum(self.steps.get(step, 0) for step in _ENDED)

    @property
    def failed(self) -> int:
        return self.steps.get(DeviceStep.FAILED, 0) + self.steps.get(DeviceStep.ROLLED_BACK, 0)

    @property
    def segments(self) -> list[tuple[str, int]]:
        return [(str(step), self.steps.get(step, 0)) for step in ORDER if self.steps.get(step, 0)]

    @property
    def active(self) -> bool:
        return self.row.state in ACTIVE


@dataclass
class WaveLine:
    """One wave: its devices by step."""

    number: int
    steps: dict[str, int]
    state: str  # see wave_state

    @property
    def total(self) -> int:
        return sum(self.steps.values())

    @property
    def segments(self) -> list[tuple[str, int]]:
        return [(str(step), self.steps.get(step, 0)) for step in ORDER if self.steps.get(step, 0)]


@dataclass(frozen=True)
class ReasonLine:
    """Devices of a rollout that ended for the same reason."""

    reason: str
    message: str
    count: int
    devices: list[str]


@dataclass(frozen=True)
class DeviceProgressLine:
    """A device's way through a rollout, with what it last said of the module."""

    row: RolloutDevice
    phase: str = ""
    step: str = ""
    progress: float = 0.0
    message: str = ""


def rollouts(session: Session, *, state: str = "", module: str = "", number: int = 1) -> Page[RolloutLine]:
    """Running ones first, then the newest."""
    conditions: list[ColumnElement[bool]] = []
    if state == "active":
        conditions.append(col(Rollout.state).in_(ACTIVE))
    elif state:
        conditions.append(col(Rollout.state) == state)
    if module:
        conditions.append(col(Rollout.module) == module)
    where = and_(True, *conditions)
    total = session.execute(select(func.count()).select_from(Rollout).where(where)).scalar_one()
    number = clamp(number, total)
    statement = (
        select(Rollout)
        .where(where)
        .order_by(col(Rollout.state).in_(ACTIVE).desc(), col(Rollout.id).desc())
        .limit(PAGE_ROWS)
        .offset((number - 1) * PAGE_ROWS)
    )
    lines = [_line(row) for row in session.execute(statement).scalars()]
    _count(session, lines)
    return Page(rows=lines, number=number, total=total)


def active(session: Session, limit: int = 6) -> list[RolloutLine]:
    """Those that are not at their end."""
    statement = select(Rollout).where(col(Rollout.state).in_(ACTIVE)).order_by(col(Rollout.id).desc()).limit(limit)
    lines = [_line(row) for row in session.execute(statement).scalars()]
    _count(session, lines)
    return lines


def of_device(session: Session, device: str, limit: int = 8) -> list[tuple[Rollout, RolloutDevice]]:
    statement = (
        select(Rollout, RolloutDevice)
        .join(RolloutDevice, col(RolloutDevice.rollout) == col(Rollout.id))
        .where(col(RolloutDevice.device) == device)
        .order_by(col(Rollout.id).desc())
        .limit(limit)
    )
    return [(rollout, progress) for rollout, progress in session.execute(statement)]


def one(session: Session, number: int) -> RolloutLine | None:
    row = session.get(Rollout, number)
    if row is None:
        return None
    line = _line(row)
    _count(session, [line])
    return line


def _line(row: Rollout) -> RolloutLine:
    return RolloutLine(row, msgspec.json.decode(row.plan, type=Plan))


def _count(session: Session, lines: Sequence[RolloutLine]) -> None:
    by_id = {line.row.id: line for line in lines}
    if not by_id:
        return
    statement = (
        select(col(RolloutDevice.rollout), col(RolloutDevice.step), func.count())
        .where(col(RolloutDevice.rollout).in_(by_id))
        .group_by(col(RolloutDevice.rollout), col(RolloutDevice.step))
    )
    for rollout, step, number in session.execute(statement):
        by_id[rollout].steps[step] = number


def waves(session: Session, line: RolloutLine) -> list[WaveLine]:
    """Each wave, with the devices that are its own; those that cannot be scheduled belong to none."""
    statement = (
        select(col(RolloutDevice.wave), col(RolloutDevice.step), func.count())
        .where(col(RolloutDevice.rollout) == line.row.id, col(RolloutDevice.step) != DeviceStep.UNSCHEDULABLE)
        .group_by(col(RolloutDevice.wave), col(RolloutDevice.step))
    )
    steps: dict[int, dict[str, int]] = {}
    for wave, step, number in session.execute(statement):
        steps.setdefault(wave, {})[step] = number
    return [
        WaveLine(number, mine, wave_state(line.row.state, line.row.wave, number))
        for number, mine in sorted(steps.items())
    ]


def wave_state(rollout: str, current: int, number: int) -> str:
    """What one wave is at, from the rollout's state and its current wave. Pure."""
    if number > current:
        return "pending" if rollout in ACTIVE else "skipped"
    if number < current or rollout == RolloutState.SUCCEEDED:
        return "succeeded"
    return {
        RolloutState.RUNNING: "running",
        RolloutState.PAUSED: "paused",
        RolloutState.ABORTED: "aborted",
        RolloutState.ROLLING_BACK: "rolling-back",
        RolloutState.ROLLED_BACK: "rolled-back",
        RolloutState.FAILED: "failed",
    }[RolloutState(rollout)]


def reasons(session: Session, number: int, devices: int = 5) -> list[ReasonLine]:
    """Why devices did not get there, the most frequent first; at most ``devices`` named of each."""
    statement = (
        select(col(RolloutDevice.reason), func.count(), func.min(col(RolloutDevice.message)))
        .where(col(RolloutDevice.rollout) == number, col(RolloutDevice.reason) != "")
        .group_by(col(RolloutDevice.reason))
        .order_by(func.count().desc(), col(RolloutDevice.reason))
    )
    found = []
    for reason, count, message in session.execute(statement):
        named = (
            select(col(RolloutDevice.device))
            .where(col(RolloutDevice.rollout) == number, col(RolloutDevice.reason) == reason)
            .order_by(col(RolloutDevice.device))
            .limit(devices)
        )
        found.append(ReasonLine(reason, message, count, list(session.execute(named).scalars())))
    return found


def cells(session: Session, number: int, limit: int = 2_000) -> list[tuple[str, int, str, str]]:
    """(device, wave, step, reason) of every device, for the grid; at most ``limit``."""
    statement = (
        select(col(RolloutDevice.device), col(RolloutDevice.wave), col(RolloutDevice.step), col(RolloutDevice.reason))
        .where(col(RolloutDevice.rollout) == number)
        .order_by(col(RolloutDevice.wave), col(RolloutDevice.device))
        .limit(limit)
    )
    return [(device, wave, step, reason) for device, wave, step, reason in session.execute(statement)]


def devices(
    session: Session, line: RolloutLine, *, steps: Iterable[str] = (), number: int = 1
) -> Page[DeviceProgressLine]:
    """Devices of a rollout, those in work and those that failed first."""
    wanted = tuple(steps)
    conditions = [col(RolloutDevice.rollout) == line.row.id]
    if wanted:
        conditions.append(col(RolloutDevice.step).in_(wanted))
    where = and_(*conditions)
    total = session.execute(select(func.count()).select_from(RolloutDevice).where(where)).scalar_one()
    number = clamp(number, total)
    statement = (
        select(RolloutDevice, DeviceModule)
        .outerjoin(
            DeviceModule,
            and_(
                col(DeviceModule.device) == col(RolloutDevice.device),
                col(DeviceModule.module) == line.row.module,
                col(DeviceModule.version) == line.row.version,
            ),
        )
        .where(where)
        .order_by(
            col(RolloutDevice.step).in_((DeviceStep.ASSIGNED, DeviceStep.ROLLING_BACK)).desc(),
            col(RolloutDevice.step).in_((DeviceStep.FAILED, DeviceStep.ROLLED_BACK)).desc(),
            col(RolloutDevice.wave),
            col(RolloutDevice.device),
        )
        .limit(PAGE_ROWS)
        .offset((number - 1) * PAGE_ROWS)
    )
    rows = []
    for row, module in session.execute(statement):
        if module is None:
            rows.append(DeviceProgressLine(row))
        else:
            rows.append(DeviceProgressLine(row, module.phase, module.step, module.progress, module.message))
    return Page(rows=rows, number=number, total=total)


@dataclass(frozen=True)
class Happening:
    """One line of a rollout's story. ``message`` says what, where the one who acted gave no reason."""

    at: int
    actor: str
    action: str
    message: str
    device: str


def timeline(session: Session, number: int, limit: int = 100) -> list[Happening]:
    """What was done and noted about a rollout, newest first."""
    statement = (
        select(Audit)
        .where(col(Audit.subject) == f"rollout:{number}")
        .order_by(col(Audit.at).desc(), col(Audit.id).desc())
        .limit(limit)
    )
    found = []
    for row in session.execute(statement).scalars():
        data = msgspec.json.decode(row.data or "{}")
        message = row.reason or str(data.get("message", ""))
        found.append(Happening(row.at, row.actor, row.action, message, str(data.get("device", ""))))
    return found
