"""Rows of a rollout as the rule's values, and the rule's answer as rows: a few statements, however many devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, select, update
from sqlmodel import Session, SQLModel, col

from skerry_hub import audit, desired
from skerry_hub.rules import rollout as rules
from skerry_hub.rules.rollout import DeviceProgress, DeviceReport, DeviceStep, Plan, Rollout, RolloutState
from skerry_hub.tables import Device, DeviceModule, RolloutDevice
from skerry_hub.tables import Rollout as RolloutRow
from skerry_modules.errors import InputError
from skerry_modules.messages import ModulePhase, ModuleState


def load(session: Session, rollout_id: int) -> tuple[Rollout, dict[str, DeviceReport]]:
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise InputError("rollout.unknown", f"cannot find rollout {rollout_id}: see `skerry rollouts list`")
    d = RolloutDevice
    progress = session.execute(
        select(
            col(d.device),
            col(d.wave),
            col(d.step),
            col(d.previous),
            col(d.revision),
            col(d.reason),
            col(d.message),
            col(d.assigned_at),
            col(d.finished_at),
        )
        .where(col(d.rollout) == rollout_id)
        .order_by(col(d.wave), col(d.device))
    ).all()
    rollout = Rollout(
        id=rollout_id,
        module=row.module,
        version=row.version,
        plan=msgspec.json.decode(row.plan, type=Plan),
        state=RolloutState(row.state),
        wave=row.wave,
        wave_started_at=row.wave_started_at,
        ending=row.ending,
        message=row.message,
        devices=tuple(
            DeviceProgress(
                device=device,
                wave=wave,
                step=DeviceStep(step),
                previous=previous,
                revision=revision,
                reason=reason,
                message=message,
                assigned_at=assigned,
                finished_at=finished,
            )
            for device, wave, step, previous, revision, reason, message, assigned, finished in progress
        ),
    )
    return rollout, _reports(session, rollout_id, row.module)


def _reports(session: Session, rollout_id: int, module: str) -> dict[str, DeviceReport]:
    inside = select(col(RolloutDevice.device)).where(col(RolloutDevice.rollout) == rollout_id)
    states: dict[str, list[ModuleState]] = {}
    m = DeviceModule
    for device, version, digest, phase, step, role, reason, message, revision in session.execute(
        select(
            col(m.device),
            col(m.version),
            col(m.digest),
            col(m.phase),
            col(m.step),
            col(m.role),
            col(m.reason),
            col(m.message),
            col(m.revision),
        ).where(col(m.module) == module, col(m.device).in_(inside))
    ):
        states.setdefault(device, []).append(
            ModuleState(
                name=module,
                version=version,
                digest=digest,
                phase=ModulePhase(phase),
                step=step,
                role=role,
                reason=reason,
                message=message,
                revision=revision,
            )
        )
    rows = session.execute(
        select(
            col(Device.id),
            col(Device.online),
            col(Device.seen_at),
            col(Device.reported_revision),
            col(Device.presence_at),
        ).where(col(Device.id).in_(inside))
    )
    return {
        device: DeviceReport(
            online=online,
            seen_at=seen,
            reported_revision=revision,
            online_since=presence if online else 0,
            modules=tuple(states.get(device, ())),
        )
        for device, online, seen, revision, presence in rows
    }


def save(
    session: Session, before: Rollout, after: Rollout, actions: Sequence[rules.Action], *, actor: str, now: int
) -> list[str]:
    """Write what changed and perform the actions; returns the devices whose desired document changed."""
    wishes = {
        action.device: desired.Wish(action.version, action.soak_s)
        for action in actions
        if isinstance(action, rules.Assign)
    }
    revisions = desired.assign_all(session, after.module, wishes, rollout=after.id, now=now)
    for action in actions:
        if not isinstance(action, rules.Assign):
            audit.record(
                session,
                actor=actor,
                action=action.code,
                subject=f"rollout:{after.id}",
                now=now,
                message=action.message,
                device=action.device,
            )
    was = {one.device: one for one in before.devices}
    changed = [one for one in after.devices if one != was[one.device] or one.device in revisions]
    _save_progress(session, after.id, changed, revisions)
    session.execute(
        update(RolloutRow)
        .where(col(RolloutRow.id) == after.id)
        .values(
            state=str(after.state),
            wave=after.wave,
            wave_started_at=after.wave_started_at,
            ending=after.ending,
            message=after.message,
            finished_at=0 if after.state in rules.ACTIVE else now,
        )
    )
    return list(revisions)


def _save_progress(
    session: Session, rollout_id: int, changed: Sequence[DeviceProgress], revisions: Mapping[str, int]
) -> None:
    """Write devices' progress: one statement for all of them."""
    rows = [
        {
            "of": one.device,
            "to_step": str(one.step),
            "to_revision": revisions.get(one.device, one.revision),
            "to_reason": one.reason,
            "to_message": one.message,
            "to_assigned_at": one.assigned_at,
            "to_finished_at": one.finished_at,
        }
        for one in changed
    ]
    if rows:
        table = SQLModel.metadata.tables["rollout_device"]
        written: dict[str, Any] = {name.removeprefix("to_"): bindparam(name) for name in rows[0] if name != "of"}
        mine = (table.c.rollout == rollout_id, table.c.device == bindparam("of"))
        session.connection().execute(update(table).where(*mine).values(**written), rows)
