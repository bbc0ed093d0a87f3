"""The rollout engine: what people ask of rollouts, and the loop that carries them on.

Every change is one transaction: load the rollout and what its devices reported, ask the rule
(:mod:`skerry_hub.rules.rollout`), save its answer, make the desired documents that it asks for, write the audit log.
Only after the commit are the documents published; a hub that dies in between publishes them when it starts, since
the documents stand in the database. So a broker or hub that goes away in the middle of a rollout only delays it.

Not handled here: how a device gets there (the agent), and how bytes reach it (:mod:`skerry_hub.delivery`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import func, insert, select
from sqlmodel import Session, col

from skerry_hub import audit, desired, devices, queries, registry, rollout_rows, scheduling
from skerry_hub.clock import now_ms
from skerry_hub.rules import rollout as rules
from skerry_hub.rules.rollout import DeviceStep, Plan, Rollout, RolloutState
from skerry_hub.tables import ModelVersion, RolloutDevice
from skerry_hub.tables import Rollout as RolloutRow
from skerry_modules.errors import InputError, SkerryError

if TYPE_CHECKING:
    from skerry_hub.bus import Bus
    from skerry_hub.db import Database

log = logging.getLogger(__name__)

STEP_S: Final = 0.5
"""The least time between two looks at all running rollouts, seconds: nudges come far more often."""
QUIET_S: Final = 2.0
"""The longest time between two looks, seconds: deadlines pass without any nudge."""
ASSIGN_BATCH: Final = 1000
"""Devices assigned in one transaction: each gets a signed document, and other writers must not wait long."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One device that a target matches: in which wave it would come, or why it cannot run the version at all."""

    device: str
    online: bool
    wave: int  # −1 where it cannot be scheduled
    previous: int | None
    obstacles: tuple[tuple[str, str], ...] = ()  # (code, sentence)


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout would do, before anything is sent."""

    module: str
    version: int
    target: str
    candidates: tuple[Candidate, ...]
    waves: tuple[int, ...]  # devices in each wave
    unschedulable: int


class RolloutEngine:
    """Create, pause, resume and abort rollouts, and carry the running ones on.

    Args:
        database: the hub's.
        bus: nudged after every change.
        publish_desired: called with device ids after the commit that changed their documents.
    """

    def __init__(self, database: Database, bus: Bus, publish_desired: Callable[[Iterable[str]], None]) -> None:
        self._database = database
        self._bus = bus
        self._publish_desired = publish_desired

    # -- what people ask ---------------------------------------------------------------------------------------------

    def preview(self, *, module: str, version: int, target: str, plan: Plan) -> Preview:
        """What :meth:`create` would do now.

        Raises:
            InputError: ``rollout.invalid``, ``query.invalid``, ``module.unknown``.
        """
        rules.check_plan(plan)
        with self._database.read() as session:
            return _preview(session, module, version, target, plan)

    def create(self, *, module: str, version: int, target: str, plan: Plan, actor: str, reason: str = "") -> int:
        """Start a rollout; returns its id.

        Raises:
            InputError: ``rollout.empty_target`` (nothing matches, or nothing that matches can run it),
                ``rollout.conflict`` (a running rollout of the same module holds some of the devices), and what
                :meth:`preview` raises.
        """
        rules.check_plan(plan)
        now = now_ms()
        with self._database.session() as session:
            registry.held(session, module, version)  # no deletion between this look at it and the commit
            preview = _preview(session, module, version, target, plan)
            _refuse_empty(preview)
            _refuse_conflict(session, module, [one.device for one in preview.candidates])
            row = RolloutRow(
                module=module,
                version=version,
                target=target,
                plan=msgspec.json.encode(plan).decode(),
                state=RolloutState.RUNNING,
                wave_started_at=now,
                created_by=actor,
                reason=reason,
                created_at=now,
            )
            session.add(row)
            session.flush()
            assert row.id is not None  # flush gave it one
            session.execute(insert(RolloutDevice), [_device_row(row.id, one) for one in preview.candidates])
            audit.record(
                session,
                actor=actor,
                action="rollout.create",
                subject=f"rollout:{row.id}",
                reason=reason,
                now=now,
                module=module,
                version=version,
                target=target,
                devices=len(preview.candidates),
            )
            rollout_id = row.id
        self._step_once(rollout_id)  # the first devices at once; of many, the loop asks the rest
        self._bus.publish(f"rollout:{rollout_id}", "fleet")
        return rollout_id

    def pause(self, rollout_id: int, *, actor: str, reason: str = "") -> None:
        """Start nothing new. Raises InputError ``rollout.wrong_state``, ``rollout.unknown``."""
        self._change(rollout_id, "pause", lambda rollout, _: (rules.pause(rollout), []), actor, reason)

    def resume(self, rollout_id: int, *, actor: str, reason: str = "") -> None:
        """Go on. Raises InputError ``rollout.wrong_state``, ``rollout.unknown``."""
        self._change(rollout_id, "resume", lambda rollout, _: (rules.resume(rollout), []), actor, reason)
        self._step_once(rollout_id)

    def abort(self, rollout_id: int, *, actor: str, reason: str = "", rollback: bool = True) -> None:
        """Stop for good; proven devices go back too if ``rollback``. Raises InputError as :meth:`pause` does."""

        def stop(rollout: Rollout, now: int) -> tuple[Rollout, list[rules.Action]]:
            return rules.abort(rollout, rollback=rollback, now=now)

        self._change(rollout_id, "abort", stop, actor, reason)

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry running rollouts on until cancelled. One hub at a time runs this (see ``skerry_hub.lease``)."""
        last = 0.0
        async for topics in self._bus.listen(quiet_s=QUIET_S):
            if topics and not any(topic.startswith(("device:", "rollout:", "fleet")) for topic in topics):
                continue
            await asyncio.sleep(max(0.0, last + STEP_S - time.monotonic()))
            last = time.monotonic()
            await asyncio.to_thread(self.step)

    def step(self) -> None:
        """One look at all running rollouts. An error of one is logged and tried again; it never stops the others."""
        try:
            with self._database.read() as session:
                active = session.execute(
                    select(col(RolloutRow.id)).where(col(RolloutRow.state).in_(rules.ACTIVE))
                ).scalars()
                ids = [rollout_id for rollout_id in active if rollout_id is not None]
        except SkerryError as error:
            log.warning("cannot look at the rollouts now: %s", error)
            return
        for rollout_id in ids:
            try:
                self._step(rollout_id)
            except Exception:
                log.exception("cannot carry rollout %s on; it is tried again", rollout_id)

    def _step(self, rollout_id: int) -> None:
        """Advance until nothing more is to be done now: a large wave begins in several transactions."""
        more = False  # a full batch is followed by another: no need to look first
        while more or self._has_work(rollout_id):
            more = self._step_once(rollout_id) >= ASSIGN_BATCH

    def _has_work(self, rollout_id: int) -> bool:
        """The common case is that there is none, and takes no write lock."""
        with self._database.read() as session:
            before, reports = rollout_rows.load(session, rollout_id)
            after, _ = rules.advance(before, reports, now_ms(), batch=ASSIGN_BATCH)
        return after != before

    def _step_once(self, rollout_id: int) -> int:
        """Advance once; returns how many devices have a new document."""
        with self._database.session() as session:
            now = now_ms()
            before, reports = rollout_rows.load(session, rollout_id)
            after, actions = rules.advance(before, reports, now, batch=ASSIGN_BATCH)
            changed = rollout_rows.save(session, before, after, actions, actor="hub", now=now)
        self._published(rollout_id, changed)
        return len(changed)

    def _change(
        self,
        rollout_id: int,
        verb: str,
        change: Callable[[Rollout, int], tuple[Rollout, list[rules.Action]]],
        actor: str,
        reason: str,
    ) -> None:
        with self._database.session() as session:
            now = now_ms()
            before, _ = rollout_rows.load(session, rollout_id)
            after, actions = change(before, now)
            audit.record(
                session, actor=actor, action=f"rollout.{verb}", subject=f"rollout:{rollout_id}", reason=reason, now=now
            )
            changed = rollout_rows.save(session, before, after, actions, actor=actor, now=now)
        self._published(rollout_id, changed)

    def _published(self, rollout_id: int, changed: Sequence[str]) -> None:
        if changed:
            self._publish_desired(changed)
        self._bus.publish(f"rollout:{rollout_id}", "fleet", *(f"device:{device}" for device in changed))


# -- rows to rules and back --------------------------------------------------------------------------------------------


def _preview(session: Session, module: str, version: int, target: str, plan: Plan) -> Preview:
    wanted = session.get(ModelVersion, (module, version))
    if wanted is None:
        raise InputError(
            "module.unknown", f"cannot roll out {module}:{version}: no such version; see `skerry models show {module}`"
        )
    # Devices that are online come first, so that a canary is one that can answer.
    matched = sorted(devices.places(session, queries.parse(target)), key=lambda device: (not device.online, device.id))
    found = scheduling.obstacles_of(session, matched, wanted)
    able = [device.id for device in matched if not found[device.id]]
    wave_of = dict(zip(able, rules.assign_waves(plan, able), strict=True))
    before = desired.fallbacks(session, module)
    candidates = tuple(
        Candidate(
            device=device.id,
            online=device.online,
            wave=wave_of.get(device.id, -1),
            previous=before.get(device.id),
            obstacles=tuple((obstacle.code, obstacle.message) for obstacle in found[device.id]),
        )
        for device in matched
    )
    sizes = [0] * (max(wave_of.values(), default=-1) + 1)
    for wave in wave_of.values():
        sizes[wave] += 1
    return Preview(
        module=module,
        version=version,
        target=target,
        candidates=candidates,
        waves=tuple(sizes),
        unschedulable=len(matched) - len(able),
    )


def _refuse_empty(preview: Preview) -> None:
    if not preview.candidates:
        raise InputError(
            "rollout.empty_target",
            f"cannot roll out to {preview.target!r}: no device has these tags; see `skerry devices list`",
            target=preview.target,
        )
    if preview.waves:
        return
    reasons = sorted({f"{code}: {sentence}" for one in preview.candidates for code, sentence in one.obstacles})
    raise InputError(
        "rollout.empty_target",
        f"cannot roll out to {preview.target!r}: none of its {len(preview.candidates)} devices can run "
        f"{preview.module}:{preview.version} ({'; '.join(reasons[:5])})",
        target=preview.target,
        reasons=reasons,
    )


def _refuse_conflict(session: Session, module: str, targets: Sequence[str]) -> None:
    running = session.execute(
        select(col(RolloutDevice.rollout), col(RolloutDevice.device))
        .join(RolloutRow, col(RolloutRow.id) == col(RolloutDevice.rollout))
        .where(col(RolloutRow.module) == module, col(RolloutRow.state).in_(rules.ACTIVE))
        .where(col(RolloutDevice.step) != DeviceStep.UNSCHEDULABLE)
    ).all()
    wanted = set(targets)
    held = {device: rollout_id for rollout_id, device in running if device in wanted}
    if held:
        ids = sorted(set(held.values()))
        named = ", ".join(sorted(held)[:5]) + (", …" if len(held) > 5 else "")
        raise InputError(
            "rollout.conflict",
            f"cannot start: rollout {ids[0]} of {module} still runs on {len(held)} of these devices ({named}); "
            f"wait for it, or `skerry rollouts abort {ids[0]}`",
            rollouts=ids,
            devices=sorted(held)[:100],
        )


def _device_row(rollout_id: int, one: Candidate) -> dict[str, Any]:
    return {
        "rollout": rollout_id,
        "device": one.device,
        "wave": max(one.wave, 0),
        "step": str(DeviceStep.UNSCHEDULABLE if one.obstacles else DeviceStep.PENDING),
        "previous": one.previous,
        "reason": one.obstacles[0][0] if one.obstacles else "",
        "message": "; ".join(sentence for _, sentence in one.obstacles),
    }


def counts(session: Session, rollout_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Devices by step, for each rollout."""
    result: dict[int, dict[str, int]] = {rollout_id: {} for rollout_id in rollout_ids}
    rows = session.execute(
        select(col(RolloutDevice.rollout), col(RolloutDevice.step), func.count())
        .where(col(RolloutDevice.rollout).in_(rollout_ids))
        .group_by(col(RolloutDevice.rollout), col(RolloutDevice.step))
    )
    for rollout_id, step, number in rows:
        result[rollout_id][step] = number
    return result


def waves(session: Session, rollout_ids: Sequence[int]) -> dict[int, int]:
    """How many waves each rollout has: those of its plan that have a device."""
    result = dict.fromkeys(rollout_ids, 0)
    rows = session.execute(
        select(col(RolloutDevice.rollout), func.max(col(RolloutDevice.wave)))
        .where(col(RolloutDevice.rollout).in_(rollout_ids), col(RolloutDevice.step) != DeviceStep.UNSCHEDULABLE)
        .group_by(col(RolloutDevice.rollout))
    )
    result |= {rollout_id: last + 1 for rollout_id, last in rows}
    return result
