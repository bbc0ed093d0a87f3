"""Who did what, when and why. Rows are only ever added, in the transaction of the deed itself: no deed without its
row, no row without its deed."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlmodel import Session

from skerry_hub.tables import Audit


def record(session: Session, *, actor: str, action: str, subject: str, now: int, reason: str = "", **data: Any) -> None:
    """Add one row.

    Args:
        actor: who; ``system`` where nobody asked.
        action: dotted, e.g. ``version.register``, ``device.remove``, ``rollout.pause``.
        subject: the thing's name: a device id, ``model:version``, a rollout's number.
        data: small JSON-able facts.
    """
    session.add(
        Audit(
            at=now,
            actor=actor,
            action=action,
            subject=subject,
            reason=reason,
            data=msgspec.json.encode(data).decode(),
        )
    )
