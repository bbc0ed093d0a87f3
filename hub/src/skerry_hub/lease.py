"""One hub per database: a row that names the hub which runs on it, renewed while it lives.

A second hub is refused with ``resource.database_in_use``. A hub that dies frees the database by itself: at once where
the new one runs on the same machine and sees that the process is gone, else when the lease runs out. A hub that finds
its lease taken (it slept longer than the lease) must stop: two would number, sign and acknowledge at once.

Time is the database's own clock (:meth:`Database.now_ms`), so machines with different clocks agree.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from skerry_hub.db import Database, add_missing
from skerry_hub.tables import HubLease
from skerry_modules.errors import ResourceError, SkerryError

log = logging.getLogger(__name__)

ROW: Final = 1
RENEWALS: Final = 3  # per lease: two may fail before it runs out


class Lease:
    """The right to run on a database.

    Args:
        database: migrated already.
        address: where this hub answers, for the message that a second one gets.
        seconds: how long the lease lasts without being renewed.
        on_lost: called once, from the renewing thread, when another hub has the lease or ours ran out.
    """

    def __init__(self, database: Database, address: str, *, seconds: float, on_lost: Callable[[], None]) -> None:
        self.holder = f"{machine()}/{os.getpid()}/{started(os.getpid())}/{secrets.token_hex(4)}"
        self._database, self._address = database, address
        self._seconds, self._on_lost = seconds, on_lost
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease and go on renewing it.

        Raises:
            ResourceError: ``resource.database_in_use``.
        """
        with self._database.session() as session:
            row = _locked(session)
            now = self._database.now_ms(session)
            if row.holder and row.expires_at > now and not is_dead(row.holder):
                raise _in_use(row, now, self._database)
            row.holder, row.address, row.expires_at = self.holder, self._address, now + self._milliseconds()
            session.add(row)
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Free the database for the next hub at once."""
        self._stop.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        # A database that is gone frees itself when the lease runs out.
        with contextlib.suppress(SkerryError), self._database.session() as session:
            session.exec(delete(HubLease).where(col(HubLease.holder) == self.holder))

    def _keep(self) -> None:
        """Renew until stopped. Judged by the monotonic clock: a lease that could not be renewed in time is lost."""
        renewed = time.monotonic()
        while not self._stop.wait(self._seconds / RENEWALS):
            asked = time.monotonic()
            try:
                if not self._renew():
                    break
                renewed = asked
            except Exception as error:
                log.warning("cannot renew the lease of the database: %s", error)
                if time.monotonic() - renewed >= self._seconds:
                    break
        else:
            return
        log.error("lost the database's lease to another hub, or could not renew it in time: this hub stops")
        self._on_lost()

    def _renew(self) -> bool:
        """Whether the lease was still ours."""
        with self._database.session() as session:
            until = self._database.now_ms(session) + self._milliseconds()
            changed = session.exec(update(HubLease).where(col(HubLease.holder) == self.holder).values(expires_at=until))
            return changed.rowcount == 1

    def _milliseconds(self) -> int:
        return int(self._seconds * 1000)


def _locked(session: Session) -> HubLease:
    """The row, made if it is missing, locked against another hub that starts at the same time."""
    add_missing(session, HubLease, id=ROW, holder="", address="", expires_at=0)
    return session.exec(select(HubLease).where(col(HubLease.id) == ROW).with_for_update()).one()


def _in_use(row: HubLease, now: int, database: Database) -> ResourceError:
    host, pid = _place(row.holder)
    left = max(1, round((row.expires_at - now) / 1000))
    return ResourceError(
        "resource.database_in_use",
        f"cannot start on the database {database}: the hub at {row.address} (process {pid} on {host}) holds it. "
        f"Stop that hub, or choose another --data or --database; if it is gone, its lease runs out in {left} s",
        holder=row.holder,
        address=row.address,
        host=host,
        pid=pid,
        expires_in_s=left,
    )


def machine() -> str:
    """This machine since its boot, as its processes see it: a process id means something only within it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return f"{socket.gethostname()}/-/-"


def started(pid: int) -> str:
    """When a process started, in clock ticks since boot: tells it from a later one with the same number."""
    try:
        # The second field is the program's name in brackets and may hold spaces; 22 counts from the first.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"


def is_dead(holder: str) -> bool:
    """Whether a holder ran on this machine and is gone for certain; False where nobody can tell."""
    host, _, rest = holder.partition("/")
    boot, namespace, pid, ticks, _ = (rest.split("/") + [""] * 5)[:5]
    if f"{host}/{boot}/{namespace}" != machine() or "-" in (boot, ticks) or not pid.isdigit():
        return False
    return started(int(pid)) != ticks or _is_zombie(int(pid))


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    return True


def _place(holder: str) -> tuple[str, str]:
    parts = holder.split("/")
    return parts[0], parts[3] if len(parts) > 3 else "?"
