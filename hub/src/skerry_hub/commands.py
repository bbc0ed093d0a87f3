"""What devices are told to do once: each command has a row, and each row comes to a typed end.

A row is there before the command is sent. The device's own words change it (:mod:`skerry_hub.ingest.sql`); where none
come by ``deadline_at``, the hub ends it with ``command.no_answer``, and a late answer still replaces that.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import update
from sqlmodel import Session, col, select

from skerry_hub import audit, devices
from skerry_hub.tables import CommandRow
from skerry_modules.errors import InputError, ResourceError
from skerry_modules.messages import Command

if TYPE_CHECKING:
    from skerry_hub.db import Database

GRACE_S: Final = 30.0
"""Beyond a command's deadline on the device: for the way there, and for the spool's way back."""


class CommandState(StrEnum):
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


def create(
    session: Session,
    device: str,
    name: str,
    arguments: Mapping[str, Any],
    *,
    deadline_s: float,
    module: str = "",
    version: int = 0,
    actor: str,
    reason: str = "",
    now: int,
    audited: bool = True,
    at_once: int = 1,
) -> tuple[CommandRow, Command]:
    """The row, and the message to send after the commit.

    Args:
        audited: whether it is a deed of its own.
        at_once: how many of this name a device may have in hand.

    Raises:
        InputError: ``device.unknown``.
        ResourceError: ``command.offline``, ``command.busy``: another of this name goes on there.
    """
    _check_free(session, device, name, at_once)
    row = CommandRow(
        id=secrets.token_hex(8),
        device=device,
        name=name,
        module=module,
        version=version,
        arguments=msgspec.json.encode(dict(arguments)).decode(),
        state=CommandState.SENT,
        created_by=actor,
        reason=reason,
        created_at=now,
        updated_at=now,
        deadline_at=now + int((deadline_s + GRACE_S) * 1000),
    )
    session.add(row)
    if audited:
        audit.record(
            session,
            actor=actor,
            action=f"device.{name}",
            subject=device,
            now=now,
            reason=reason,
            command=row.id,
            module=module,
        )
    return row, Command(id=row.id, name=name, arguments=dict(arguments), deadline_s=deadline_s)


def _check_free(session: Session, device: str, name: str, at_once: int) -> None:
    found = devices.get(session, device)
    if not found.online:
        raise ResourceError(
            "command.offline",
            f"cannot tell {device} to {name}: it is not connected; try again when it is",
        )
    going = select(CommandRow.id).where(
        col(CommandRow.device) == device, col(CommandRow.name) == name, col(CommandRow.ended_at) == 0
    )
    others = session.exec(going.limit(at_once)).all()
    if len(others) >= at_once:
        raise ResourceError(
            "command.busy",
            f"cannot tell {device} to {name}: the command {others[0]} goes on there; wait for its end",
            command=others[0],
        )


def get(session: Session, command: str) -> CommandRow:
    """One command.

    Raises:
        InputError: ``request.not_found``.
    """
    row = session.get(CommandRow, command)
    if row is None:
        raise InputError("request.not_found", f"cannot find the command {command[:80]!r}: there is none, or no more")
    return row


def of_version(session: Session, module: str, version: int, limit: int = 20) -> Sequence[CommandRow]:
    """Commands about a version, newest first."""
    statement = select(CommandRow).where(col(CommandRow.module) == module, col(CommandRow.version) == version)
    return session.exec(statement.order_by(col(CommandRow.created_at).desc()).limit(limit)).all()


def fail(session: Session, command: str, code: str, message: str, *, now: int) -> None:
    """End a command that could not be sent."""
    row = get(session, command)
    row.state, row.code, row.message = CommandState.FAILED, code, message
    row.updated_at = row.ended_at = now
    session.add(row)


def end_unanswered(db: Database, *, now: int) -> int:
    """End what is past its deadline; returns how many."""
    with db.read() as session:
        late = select(CommandRow.id).where(col(CommandRow.ended_at) == 0, col(CommandRow.deadline_at) < now)
        if session.exec(late.limit(1)).first() is None:  # what is nearly always so costs no write
            return 0
    with db.session() as session:
        done = session.connection().execute(
            update(CommandRow)
            .where(col(CommandRow.ended_at) == 0, col(CommandRow.deadline_at) < now)
            .values(
                state=CommandState.FAILED.value,
                code="command.no_answer",
                message="cannot say how it ended: the device did not answer in time; ask again when it is connected",
                updated_at=now,
                ended_at=now,
            )
        )
        return int(done.rowcount)
