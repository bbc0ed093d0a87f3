"""Rollouts as people watch them: counts by step, waves, devices with their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlmodel import Session, col

from skerry_hub.console.queries.paging import PAGE_ROWS, Page, clamp
from skerry_hub.rollouts import waves as numbers_of_waves
from skerry_hub.rules.rollout import DeviceStep, Plan, RolloutState
from skerry_hub.tables import Audit, DeviceModule, Rollout, RolloutDevice

ACTIVE: Final = (RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ROLLING_BACK)

MAX_AT_WORK: Final = 8
"""Rollouts that the overview shows at most."""

MAX_CELLS: Final = 1_000
"""Devices that a rollout's grid shows at most: a page that is refreshed every two seconds must stay small."""

WENT_BACK: Final = "went-back"
"""How a device is shown that turned back with the others; one that turned back for a reason of its own has failed."""

ORDER: Final = (
    str(DeviceStep.SUCCEEDED),
    str(DeviceStep.ASSIGNED),
    str(DeviceStep.ROLLING_BACK),
    str(DeviceStep.FAILED),
    WENT_BACK,
    str(DeviceStep.UNSCHEDULABLE),
    str(DeviceStep.PENDING),
    str(DeviceStep.SKIPPED),
)
"""As the bars show them."""


def shown(step: str, has_reason: bool) -> str:
    """What a device is shown as: a step, or :data:`WENT_BACK`. Pure."""
    if step in (DeviceStep.ROLLED_BACK, DeviceStep.ROLLING_BACK) and has_reason:
        return str(DeviceStep.FAILED)
    return WENT_BACK if step == DeviceStep.ROLLED_BACK else str(step)


def _shown_as(names: Iterable[str]) -> ColumnElement[bool]:
    """:func:`shown` as a condition: the devices that are shown as one of ``names``."""
    step, has_reason = col(RolloutDevice.step), col(RolloutDevice.reason) != ""
    back = (DeviceStep.ROLLED_BACK, DeviceStep.ROLLING_BACK)
    of: dict[str, ColumnElement[bool]] = {
        str(DeviceStep.FAILED): or_(step == DeviceStep.FAILED, and_(step.in_(back), has_reason)),
        str(DeviceStep.ROLLING_BACK): and_(step == DeviceStep.ROLLING_BACK, ~has_reason),
        WENT_BACK: and_(step == DeviceStep.ROLLED_BACK, ~has_reason),
    }
    return or_(*(of.get(name, step == name) for name in names))


def segments(steps: dict[str, int]) -> list[tuple[str, int]]:
    """Counts in the order of :data:`ORDER`, without those that are 0. Pure."""
    return [(step, steps[step]) for step in ORDER if steps.get(step)]


@dataclass
class RolloutLine:
    """A rollout with its devices counted by what they are shown as (see :func:`shown`)."""

    row: Rollout
    plan: Plan
    steps: dict[str, int] = field(default_factory=dict)
    waves: int = 0  # those of the plan that have a device

    @property
    def total(self) -> int:
        return sum(self.steps.values())

    @property
    def failed(self) -> int:
        return self.steps.get(DeviceStep.FAILED, 0)

    @property
    def segments(self) -> list[tuple[str, int]]:
        return segments(self.steps)

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
        return segments(self.steps)


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

    @property
    def shown(self) -> str:
        return shown(self.row.step, bool(self.row.reason))


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


def latest(session: Session, limit: int = 4) -> list[RolloutLine]:
    """All that are at work, and the newest of the others up to ``limit`` in all."""
    at_work = col(Rollout.state).in_(ACTIVE)
    statement = select(Rollout).order_by(at_work.desc(), col(Rollout.id).desc()).limit(MAX_AT_WORK)
    rows = list(session.execute(statement).scalars())
    lines = [_line(row) for place, row in enumerate(rows) if place < limit or row.state in ACTIVE]
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
    for number, count in numbers_of_waves(session, [number for number in by_id if number is not None]).items():
        by_id[number].waves = count
    has_reason = (col(RolloutDevice.reason) != "").label("has_reason")
    statement = (
        select(col(RolloutDevice.rollout), col(RolloutDevice.step), has_reason, func.count())
        .where(col(RolloutDevice.rollout).in_(by_id))
        .group_by(col(RolloutDevice.rollout), col(RolloutDevice.step), has_reason)
    )
    for rollout, step, reason, number in session.execute(statement):
        steps = by_id[rollout].steps
        steps[shown(step, reason)] = steps.get(shown(step, reason), 0) + number


def waves(session: Session, line: RolloutLine) -> list[WaveLine]:
    """Each wave, with the devices that are its own; those that cannot be scheduled belong to none."""
    has_reason = (col(RolloutDevice.reason) != "").label("has_reason")
    statement = (
        select(col(RolloutDevice.wave), col(RolloutDevice.step), has_reason, func.count())
        .where(col(RolloutDevice.rollout) == line.row.id, col(RolloutDevice.step) != DeviceStep.UNSCHEDULABLE)
        .group_by(col(RolloutDevice.wave), col(RolloutDevice.step), has_reason)
    )
    steps: dict[int, dict[str, int]] = {}
    for wave, step, reason, number in session.execute(statement):
        mine = steps.setdefault(wave, {})
        mine[shown(step, reason)] = mine.get(shown(step, reason), 0) + number
    return [
        WaveLine(number, mine, wave_state(line.row.state, line.row.wave, number, mine))
        for number, mine in sorted(steps.items())
    ]


def wave_state(rollout: str, current: int, number: int, steps: dict[str, int]) -> str:
    """What one wave is at, from the rollout's state, its current wave and the wave's own devices. Pure."""
    if number > current:
        return "pending" if rollout in ACTIVE else "skipped"
    if number < current and (steps.get(WENT_BACK) or steps.get(DeviceStep.ROLLING_BACK)):
        return "rolling-back" if steps.get(DeviceStep.ROLLING_BACK) else "rolled-back"
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


def cells(session: Session, number: int, limit: int = MAX_CELLS) -> list[tuple[str, int, str, str]]:
    """(device, wave, what it is shown as, reason) of every device, for the grid; at most ``limit``."""
    statement = (
        select(col(RolloutDevice.device), col(RolloutDevice.wave), col(RolloutDevice.step), col(RolloutDevice.reason))
        .where(col(RolloutDevice.rollout) == number)
        .order_by(col(RolloutDevice.wave), col(RolloutDevice.device))
        .limit(limit)
    )
    return [
        (device, wave, shown(step, bool(reason)), reason) for device, wave, step, reason in session.execute(statement)
    ]


def devices(
    session: Session, line: RolloutLine, *, names: Iterable[str] = (), number: int = 1
) -> Page[DeviceProgressLine]:
    """Devices of a rollout, those in work and those that failed first; ``names``: only those :func:`shown` as these."""
    wanted = tuple(names)
    conditions = [col(RolloutDevice.rollout) == line.row.id]
    if wanted:
        conditions.append(_shown_as(wanted))
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
            rows.append(DeviceProgressLine(row, module.phase, module.step, module.progress))
    return Page(rows=rows, number=number, total=total)


@dataclass
class Happening:
    """One line of a rollout's story: something done, or the same thing noted of ``devices`` one after another."""

    at: int
    actor: str
    action: str
    message: str
    devices: list[str] = field(default_factory=list)


def timeline(session: Session, number: int, limit: int = 2_000) -> list[Happening]:
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
        devices = [str(data["device"])] if data.get("device") else []
        found.append(Happening(row.at, row.actor, row.action, row.reason or str(data.get("message", "")), devices))
    return together(found)


def together(happenings: Iterable[Happening]) -> list[Happening]:
    """Notes of the same kind about one device after another as one line: a wave of 500 is no list of 500. Pure."""
    found: list[Happening] = []
    for one in happenings:
        if one.devices and found and found[-1].devices and found[-1].action == one.action:
            found[-1].devices += one.devices
        else:
            found.append(one)
    return found
