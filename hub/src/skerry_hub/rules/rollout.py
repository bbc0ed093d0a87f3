"""Rollouts as a pure rule: a plan, what devices report, and the time → new steps and actions.

A device has *succeeded* only when its own report says that this version is Healthy and current (it verified, loaded,
passed its golden test and soaked) under the revision that assigned it. Silence is never success: it ends in
``rollout.device_timeout`` or ``rollout.offline``.

The driver (:mod:`skerry_hub.rollouts`) loads, calls :func:`advance`, saves and performs, in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from skerry_modules.messages import ModuleState


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
    message: str = ""
    devices: tuple[DeviceProgress, ...] = ()


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub knows of one device now: its newest report of this module (all versions), presence, last word."""

    online: bool
    seen_at: int
    reported_revision: int
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


def advance(rollout: Rollout, reports: Mapping[str, DeviceReport], now: int) -> tuple[Rollout, list[Action]]:
    """One step. Idempotent: called again with the same arguments on its own result, it does nothing more.

    Args:
        rollout: as saved.
        reports: by device id; a device that is missing has never been heard of.
        now: wall clock of the hub, ms.
    """
    raise NotImplementedError
