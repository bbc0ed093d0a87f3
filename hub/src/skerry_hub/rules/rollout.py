"""Rollouts as a pure rule: a plan, what devices report, and the time → new steps and actions.

A device has *succeeded* only when its own report says that this version is Healthy and current (it verified, loaded,
passed its golden test and soaked) under the revision that assigned it. Silence is never success: it ends in
``rollout.device_timeout`` or ``rollout.offline``.

Waves go on without devices that were away before their turn came (they take the version when they return and are
judged then), but never without one that fell silent *after* it was assigned: that may be the version's doing.

The driver (:mod:`skerry_hub.rollouts`) loads, calls :func:`advance`, saves and performs, in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from skerry_modules.errors import InputError
from skerry_modules.messages import ModulePhase, ModuleState


class RolloutState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling-back"
    SUCCEEDED = "succeeded"  # terminal: every device that could has proven the version
    ROLLED_BACK = "rolled-back"  # terminal: the threshold was passed, devices went back
    FAILED = "failed"  # terminal: the threshold was passed and the plan asked to stop only
    ABORTED = "aborted"  # terminal: a person stopped it


class DeviceStep(StrEnum):
    PENDING = "pending"
    ASSIGNED = "assigned"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNSCHEDULABLE = "unschedulable"  # found before anything was sent
    SKIPPED = "skipped"  # the rollout ended before its turn
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"


ACTIVE: Final = (RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ROLLING_BACK)
RESOLVED: Final = (DeviceStep.SUCCEEDED, DeviceStep.FAILED)


class Wave(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many devices, all waves before included: a count, or a percentage of the target. Exactly one is set."""

    count: int = 0
    percent: float = 0.0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to go. ``failure_threshold`` is the share of a wave's devices that may fail; above it the rollout ends."""

    waves: tuple[Wave, ...] = (Wave(count=1), Wave(percent=100.0))
    soak_s: float = 60.0  # on each device, under live traffic, before it counts as proven
    wave_pause_s: float = 0.0  # between waves
    failure_threshold: float = 0.0
    device_timeout_s: float = 3600.0
    offline_timeout_s: float = 86400.0
    on_failure: str = "rollback"  # or "stop"


class DeviceProgress(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    wave: int
    step: DeviceStep = DeviceStep.PENDING
    previous: int | None = None
    revision: int = 0
    reason: str = ""
    message: str = ""
    assigned_at: int = 0
    finished_at: int = 0


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    module: str
    version: int
    plan: Plan
    state: RolloutState = RolloutState.RUNNING
    wave: int = 0
    wave_started_at: int = 0
    ending: str = ""  # while rolling back: the state that it ends in
    message: str = ""
    devices: tuple[DeviceProgress, ...] = ()


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub knows of one device now: its newest report of this module (all versions), presence, last word."""

    online: bool
    seen_at: int
    reported_revision: int
    online_since: int = 0
    modules: tuple[ModuleState, ...] = ()


class Assign(msgspec.Struct, frozen=True):
    """Set (or with ``version`` None remove) the module on a device: a new desired revision."""

    device: str
    version: int | None
    soak_s: float


class Note(msgspec.Struct, frozen=True):
    """Something for the audit log and the console: a wave began, a device failed, the rollout ended."""

    code: str
    message: str
    device: str = ""


Action = Assign | Note


def check_plan(plan: Plan) -> None:
    """Refuse what cannot be meant.

    Raises:
        InputError: ``rollout.invalid`` with ``field``.
    """
    reached = -1.0
    for index, wave in enumerate(plan.waves):
        if (wave.count > 0) == (wave.percent > 0):
            raise _invalid(f"waves[{index}]", "give each wave either a count or a percent above 0")
        if wave.percent > 100:
            raise _invalid(f"waves[{index}].percent", "a percent is at most 100")
        if wave.percent:
            if wave.percent <= reached:
                raise _invalid(f"waves[{index}].percent", "waves count all devices so far, so percentages must rise")
            reached = wave.percent
    if not plan.waves or plan.waves[-1].percent != 100:
        raise _invalid("waves", "the last wave must be 100 percent, or some devices would never be reached")
    if not 0 <= plan.failure_threshold <= 1:
        raise _invalid("failure_threshold", "it is a share from 0 to 1")
    if plan.on_failure not in ("rollback", "stop"):
        raise _invalid("on_failure", "it is rollback or stop")
    for name in ("soak_s", "wave_pause_s"):
        if not 0 <= getattr(plan, name) < float("inf"):
            raise _invalid(name, "it is a time in seconds, not negative")
    for name in ("device_timeout_s", "offline_timeout_s"):
        if not 0 < getattr(plan, name) < float("inf"):
            raise _invalid(name, "it is a time in seconds, above 0")


def _invalid(field: str, problem: str) -> InputError:
    return InputError("rollout.invalid", f"cannot roll out with this plan, {field}: {problem}", field=field)


def assign_waves(plan: Plan, devices: Sequence[str]) -> list[int]:
    """The wave of each device, in the order given; waves that would add no device are left out.

    The caller puts devices that are online first, so that a canary is one that can answer.
    """
    total, reached, waves = len(devices), 0, []
    number = 0
    for wave in plan.waves:
        goal = wave.count or -int(-(total * wave.percent) // 100)
        added = min(goal, total) - reached
        if added > 0:
            waves += [number] * added
            reached += added
            number += 1
    return waves


def pause(rollout: Rollout) -> Rollout:
    """Start nothing new; what is under way goes on and is judged."""
    _require(rollout, "pause", RolloutState.RUNNING)
    return msgspec.structs.replace(rollout, state=RolloutState.PAUSED)


def resume(rollout: Rollout) -> Rollout:
    _require(rollout, "resume", RolloutState.PAUSED)
    return msgspec.structs.replace(rollout, state=RolloutState.RUNNING)


def abort(rollout: Rollout, *, rollback: bool, now: int) -> tuple[Rollout, list[Action]]:
    """Stop for good. Unproven devices go back; proven ones too if ``rollback``. Aborting a rollback lets it be."""
    _require(rollout, "abort", *ACTIVE)
    if rollout.state is RolloutState.ROLLING_BACK:
        devices = tuple(
            _end(one, DeviceStep.FAILED, now, "rollout.device_timeout", "aborted while it went back")
            if one.step is DeviceStep.ROLLING_BACK
            else one
            for one in rollout.devices
        )
        return msgspec.structs.replace(rollout, state=RolloutState.ABORTED, devices=devices, ending=""), []
    return _turn_back(rollout, RolloutState.ABORTED, "aborted", proven_too=rollback, now=now)


def _require(rollout: Rollout, verb: str, *states: RolloutState) -> None:
    if rollout.state not in states:
        raise InputError(
            "rollout.wrong_state",
            f"cannot {verb} rollout {rollout.id}: it is {rollout.state}",
            state=str(rollout.state),
        )


def advance(
    rollout: Rollout, reports: Mapping[str, DeviceReport], now: int, *, batch: int = 1_000_000
) -> tuple[Rollout, list[Action]]:
    """One step. Idempotent: called again with the same arguments on its own result, it does nothing more (but for a
    wave of more than ``batch`` devices, which takes several steps to begin).

    The caller performs each :class:`Assign` and writes the revision that carries it into the device's progress;
    a device whose revision is still 0 is not judged.

    Args:
        rollout: as saved.
        reports: by device id; a device that is missing has never been heard of.
        now: wall clock of the hub, ms.
        batch: the most devices to assign in one step.
    """
    if rollout.state not in ACTIVE:
        return rollout, []
    silent = DeviceReport(online=False, seen_at=0, reported_revision=0)
    actions: list[Action] = []
    devices = []
    for before in rollout.devices:
        after = _judge(rollout, before, reports.get(before.device, silent), now)
        if after.step is not before.step:
            actions.append(_note_of(rollout, after))
        devices.append(after)
    rollout = msgspec.structs.replace(rollout, devices=tuple(devices))
    if rollout.state is RolloutState.ROLLING_BACK:
        return _finish_turning_back(rollout, actions)
    if (wave := _tripped(rollout)) is not None:
        ending = RolloutState.ROLLED_BACK if rollout.plan.on_failure == "rollback" else RolloutState.FAILED
        reason = f"wave {wave + 1} failed more than its share"
        turned, more = _turn_back(rollout, ending, reason, proven_too=ending is RolloutState.ROLLED_BACK, now=now)
        return turned, actions + more
    turned, more = _go_on(rollout, reports, now, batch)
    return turned, actions + more


def _judge(rollout: Rollout, one: DeviceProgress, report: DeviceReport, now: int) -> DeviceProgress:
    """What a device's report, or its silence, makes of its progress."""
    watched = (DeviceStep.ASSIGNED, DeviceStep.SUCCEEDED, DeviceStep.ROLLING_BACK)
    if one.step not in watched or not one.revision:
        return one
    if report.reported_revision >= one.revision:
        verdict = _back(rollout, one, report) if one.step is DeviceStep.ROLLING_BACK else _proof(rollout, one, report)
        if verdict is not None:
            step, reason, message = verdict
            return one if step is one.step else _end(one, step, now, reason, message)
    if one.step is DeviceStep.SUCCEEDED:
        return one
    if report.online:
        waited = now - max(one.assigned_at, report.online_since)
        if waited > (rollout.plan.device_timeout_s + rollout.plan.soak_s) * 1000:
            return _end(one, DeviceStep.FAILED, now, "rollout.device_timeout", _last_words(rollout, report))
    elif now - max(one.assigned_at, report.seen_at) > rollout.plan.offline_timeout_s * 1000:
        return _end(one, DeviceStep.FAILED, now, "rollout.offline", "not seen for as long as the rollout waits")
    return one


Verdict = tuple[DeviceStep, str, str]


def _proof(rollout: Rollout, one: DeviceProgress, report: DeviceReport) -> Verdict | None:
    """Healthy and current proves it; a terminal failure, also after it was proven, disproves it."""
    state = _state_of(report, rollout.version)
    if state is None:
        return None
    if state.phase is ModulePhase.HEALTHY and state.role == "current":
        return DeviceStep.SUCCEEDED, "", ""
    if state.phase in (ModulePhase.FAILED, ModulePhase.UNSCHEDULABLE):
        return DeviceStep.FAILED, state.reason or "install.load_failed", state.message
    return None


def _back(rollout: Rollout, one: DeviceProgress, report: DeviceReport) -> Verdict | None:
    """Back when the previous version serves again, or, where there was none, when this one no longer does."""
    if one.previous is None:
        state = _state_of(report, rollout.version)
        gone = state is None or state.role != "current"
        return (DeviceStep.ROLLED_BACK, one.reason, one.message) if gone else None
    state = _state_of(report, one.previous)
    if state is not None and state.phase is ModulePhase.HEALTHY and state.role == "current":
        return DeviceStep.ROLLED_BACK, one.reason, one.message
    if state is not None and state.phase in (ModulePhase.FAILED, ModulePhase.UNSCHEDULABLE):
        return DeviceStep.FAILED, state.reason or "install.load_failed", f"going back failed: {state.message}"
    return None


def _state_of(report: DeviceReport, version: int) -> ModuleState | None:
    return next((state for state in report.modules if state.version == version), None)


def _last_words(rollout: Rollout, report: DeviceReport) -> str:
    state = _state_of(report, rollout.version)
    if state is None:
        return "the device never reported on this version"
    return f"the last report was {state.phase} at step {state.step or 'unknown'}"


def _end(one: DeviceProgress, step: DeviceStep, now: int, reason: str, message: str) -> DeviceProgress:
    return msgspec.structs.replace(one, step=step, finished_at=now, reason=reason, message=message)


def _note_of(rollout: Rollout, one: DeviceProgress) -> Note:
    why = f": {one.reason} {one.message}".rstrip() if one.reason else ""
    return Note(
        f"rollout.device-{one.step}", f"{one.device} {one.step} {rollout.module}:{rollout.version}{why}", one.device
    )


def _tripped(rollout: Rollout) -> int | None:
    """The first wave of which more than the allowed share has failed."""
    for wave in range(rollout.wave + 1):
        counted = [one for one in rollout.devices if one.wave == wave and one.step is not DeviceStep.UNSCHEDULABLE]
        failed = sum(one.step is DeviceStep.FAILED for one in counted)
        if failed > rollout.plan.failure_threshold * len(counted):
            return wave
    return None


def _turn_back(
    rollout: Rollout, ending: RolloutState, why: str, *, proven_too: bool, now: int
) -> tuple[Rollout, list[Action]]:
    """Send devices back to what they had; what was not begun is skipped."""
    actions: list[Action] = [Note("rollout.turning-back", f"rollout {rollout.id} turns back: {why}")]
    devices = []
    for one in rollout.devices:
        if one.step is DeviceStep.PENDING:
            devices.append(_end(one, DeviceStep.SKIPPED, now, "", ""))
        elif one.step in (DeviceStep.ASSIGNED, DeviceStep.FAILED) or (proven_too and one.step is DeviceStep.SUCCEEDED):
            actions.append(Assign(one.device, one.previous, 0.0))
            devices.append(
                msgspec.structs.replace(one, step=DeviceStep.ROLLING_BACK, revision=0, assigned_at=now, finished_at=0)
            )
        else:
            devices.append(one)
    turned = msgspec.structs.replace(
        rollout, state=RolloutState.ROLLING_BACK, ending=str(ending), message=why, devices=tuple(devices)
    )
    return _finish_turning_back(turned, actions)


def _finish_turning_back(rollout: Rollout, actions: list[Action]) -> tuple[Rollout, list[Action]]:
    if any(one.step is DeviceStep.ROLLING_BACK for one in rollout.devices):
        return rollout, actions
    state = RolloutState(rollout.ending or RolloutState.ROLLED_BACK)
    note = Note(f"rollout.{state}", f"rollout {rollout.id} of {rollout.module}:{rollout.version} is {state}")
    return msgspec.structs.replace(rollout, state=state, ending=""), [*actions, note]


def _go_on(rollout: Rollout, reports: Mapping[str, DeviceReport], now: int, batch: int) -> tuple[Rollout, list[Action]]:
    """Begin the wave, the next wave, or the end."""
    current = [one for one in rollout.devices if one.wave == rollout.wave]
    if any(one.step is DeviceStep.PENDING for one in current):
        return _begin_wave(rollout, rollout.wave, now, batch)
    if not any(one.step is DeviceStep.PENDING for one in rollout.devices):
        if any(one.step is DeviceStep.ASSIGNED for one in rollout.devices):
            return rollout, []
        note = Note("rollout.succeeded", f"rollout {rollout.id} of {rollout.module}:{rollout.version} succeeded")
        return msgspec.structs.replace(rollout, state=RolloutState.SUCCEEDED), [note]
    if not _proven(rollout, reports):
        return rollout, []
    ended = max((one.finished_at for one in current), default=rollout.wave_started_at)
    if now - max(ended, rollout.wave_started_at) < rollout.plan.wave_pause_s * 1000:
        return rollout, []
    following = min(one.wave for one in rollout.devices if one.step is DeviceStep.PENDING)
    return _begin_wave(rollout, following, now, batch)


def _proven(rollout: Rollout, reports: Mapping[str, DeviceReport]) -> bool:
    """Whether every device so far has answered, but for those that were away before they were asked."""
    answered = False
    for one in rollout.devices:
        if one.wave > rollout.wave or one.step is DeviceStep.UNSCHEDULABLE:
            continue
        if one.step in RESOLVED:
            answered = answered or one.wave == rollout.wave
            continue
        report = reports.get(one.device)
        away = report is None or (not report.online and report.seen_at < one.assigned_at)
        if not away:
            return False
    return answered


def _begin_wave(rollout: Rollout, wave: int, now: int, batch: int) -> tuple[Rollout, list[Action]]:
    if rollout.state is not RolloutState.RUNNING:
        return rollout, []
    actions: list[Action] = []
    devices = []
    for one in rollout.devices:
        if one.wave <= wave and one.step is DeviceStep.PENDING and len(actions) < batch:
            actions.append(Assign(one.device, rollout.version, rollout.plan.soak_s))
            devices.append(msgspec.structs.replace(one, step=DeviceStep.ASSIGNED, assigned_at=now, revision=0))
        else:
            devices.append(one)
    mine = [one for one in rollout.devices if one.wave == wave and one.step is not DeviceStep.UNSCHEDULABLE]
    if all(one.step is DeviceStep.PENDING for one in mine):
        size = len(mine)
        actions.insert(0, Note("rollout.wave", f"rollout {rollout.id} begins wave {wave + 1} with {size} devices"))
        rollout = msgspec.structs.replace(rollout, wave=wave, wave_started_at=now)
    return msgspec.structs.replace(rollout, devices=tuple(devices)), actions
