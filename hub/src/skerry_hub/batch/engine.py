"""Carries batch jobs on: loads, asks the rules of :mod:`skerry_hub.rules.batch`, saves and performs.

* One look (:meth:`BatchEngine.step`) at a time, whenever something changed and every second while jobs go on. What is
  decided is committed before it is sent; what is lost on the way is sent again until the device says a word.
* A command of a part has a **lease**: each word of the device renews it. Where it runs out, the keeper ends the command
  (``command.no_answer``), and the part goes to another.
* What takes long (cutting, merging, scoring on the hub) runs in threads of its own, and is begun anew after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import update
from sqlmodel import col, select

from skerry_hub import batches, commands
from skerry_hub.batch import inputs as batch_inputs
from skerry_hub.batch.here import Here
from skerry_hub.batch.look import NEVER_S, BatchSettings, Look, part_of, put_part
from skerry_hub.batch.merge import merge
from skerry_hub.batch.results import finish, manifest_of
from skerry_hub.batches import HUB, names_of
from skerry_hub.clock import now_ms
from skerry_hub.rules import batch as rules
from skerry_hub.rules.batch import ACTIVE, JobState, PartState
from skerry_hub.tables import BatchPart, BatchRow, CommandRow
from skerry_modules.batches import COMMAND, STOP, PartOrder
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.messages import Command

if TYPE_CHECKING:
    from skerry_hub.bus import Bus
    from skerry_hub.db import Database
    from skerry_hub.objects import ObjectStore

log = logging.getLogger(__name__)

STEP_S: Final = 0.2
QUIET_S: Final = 1.0
AGAIN_S: Final = 5.0
"""A command that nobody answered a word to is sent again after so long."""
RETRY_S: Final = 10.0
DAY_MS: Final = 86_400_000
PRUNE_S: Final = 600.0

Send = Callable[[str, Command], bool]


class BatchEngine:
    """See the module's text.

    Args:
        db, objects, bus: the hub's.
        folder: where jobs of the hub itself stand, and what is merged.
        send: tells a device a command; False where it could not be handed to the broker.
    """

    def __init__(
        self,
        db: Database,
        objects: ObjectStore,
        bus: Bus,
        folder: Path,
        send: Send,
        *,
        settings: BatchSettings | None = None,
    ) -> None:
        self.settings = settings or BatchSettings()
        self._db, self._objects, self._bus, self._folder, self._send = db, objects, bus, folder, send
        self._heavy = ThreadPoolExecutor(1, "batch")
        self._scorer = ThreadPoolExecutor(max(1, self.settings.hub_jobs), "batch-here")  # a child in each
        self._busy: set[tuple[str, int]] = set()  # what runs in threads of its own
        self._retry: dict[tuple[str, int], float] = {}
        self._here: dict[int, Here] = {}
        self._sent: dict[str, float] = {}  # command or stop: when it was sent last
        self._active: set[int] = set()  # jobs that went on at the last look
        self._lock = threading.Lock()
        self._pruned = -1e9
        self._over = False

    async def run(self) -> None:
        """Until cancelled. One hub at a time runs this (see ``skerry_hub.lease``)."""
        last = 0.0
        await asyncio.to_thread(self._forgive)
        try:
            async for topics in self._bus.listen(quiet_s=QUIET_S):
                if topics and not any(topic.startswith(("batch", "device:", "fleet", "models")) for topic in topics):
                    continue
                await asyncio.sleep(max(0.0, last + STEP_S - time.monotonic()))
                last = time.monotonic()
                await asyncio.to_thread(self.step)
        finally:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the children; what they have scored stays."""
        self._over = True
        for here in list(self._here.values()):
            here.stop()
        self._heavy.shutdown(cancel_futures=True)
        self._scorer.shutdown(cancel_futures=True)

    def step(self) -> None:
        """One look at all jobs. An error of one is logged and tried again; it never stops the others."""
        try:
            self._lease()
            with self._db.read() as session:
                active = select(BatchRow.id).where(col(BatchRow.state).in_(ACTIVE)).order_by(col(BatchRow.id))
                jobs = [job for job in session.exec(active) if job is not None]
            for job in jobs:
                self._guarded(job)
            self._end_children(set(jobs))
            self._tell_ended(self._active - set(jobs))
            self._active = set(jobs)
            if time.monotonic() - self._pruned > PRUNE_S:
                self._pruned = time.monotonic()
                self._prune()
        except SkerryError as error:
            log.warning("cannot look at the batch jobs now: %s", error)

    def _guarded(self, job: int) -> None:
        try:
            self._job(job)
        except SkerryError as error:
            log.warning("cannot carry the batch job %d on now: %s", job, error)
        except Exception:
            log.exception("cannot carry the batch job %d on; it is tried again", job)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _forgive(self) -> None:
        """While the hub was away nobody could be heard: leases begin anew with it."""
        until = now_ms() + int(self.settings.lease_s * 1000)
        try:
            with self._db.session() as session:
                session.connection().execute(
                    update(CommandRow)
                    .where(col(CommandRow.name) == COMMAND, col(CommandRow.ended_at) == 0)
                    .values(deadline_at=until)
                )
        except SkerryError as error:
            log.warning("cannot renew the leases of batch jobs: %s", error)

    def _lease(self) -> None:
        """Renew leases by what was heard, send again what nobody answered, and stop what is not wanted any more."""
        with self._db.read() as session:
            going = select(CommandRow).where(col(CommandRow.name) == COMMAND, col(CommandRow.ended_at) == 0)
            rows = list(session.exec(going))
            if not rows:
                self._sent.clear()
                return
            wanted = set(
                session.exec(
                    select(BatchPart.command).where(
                        col(BatchPart.command).in_([row.id for row in rows]),
                        col(BatchPart.state) == PartState.RUNNING.value,
                    )
                )
            )
        lease_ms = int(self.settings.lease_s * 1000)
        late = [row for row in rows if row.id in wanted and row.deadline_at < row.updated_at + lease_ms]
        if late:
            with self._db.session() as session:
                for row in late:
                    session.connection().execute(
                        update(CommandRow)
                        .where(col(CommandRow.id) == row.id, col(CommandRow.ended_at) == 0)
                        .values(deadline_at=row.updated_at + lease_ms)
                    )
        for row in rows:
            if row.id not in wanted:
                order = msgspec.json.decode(row.arguments, type=PartOrder)
                self._say(f"stop {row.id}", row.device, _stop(order.job, order.part))
            elif row.state == commands.CommandState.SENT:
                self._say(row.id, row.device, _command(row))

    def _tell_ended(self, jobs: set[int]) -> None:
        """Let devices forget what they have of jobs that have ended. Who is away, or does not hear it, asks later:
        see :mod:`skerry_hub.batch.results`."""
        for job in jobs:
            with self._db.read() as session:
                parts = batches.parts_of(session, job)
            left = [set(names_of(part.given)) - {part.device if part.state == PartState.DONE else ""} for part in parts]
            for device in sorted(set().union(*left) - {HUB}):
                self._send(device, _stop(job))

    def _say(self, key: str, device: str, command: Command) -> None:
        now = time.monotonic()
        if now - self._sent.get(key, -1e9) >= AGAIN_S:
            self._sent[key] = now
            self._send(device, command)

    # -- one job ------------------------------------------------------------------------------------------------------

    def _job(self, job: int) -> None:
        with self._db.read() as session:
            row = batches.get(session, job)
            made = bool(batches.parts_of(session, job, limit=1))
        if not made or batches.being_cut(row):
            self._begin(("cut", job), lambda: self._cut(job))
        if not made:
            return
        with self._db.read() as session:
            changed = Look(session, job, self.settings).changed
        if changed:
            with self._db.session() as session:
                look = Look(session, job, self.settings)
                sent = look.save()
            for device, command in sent:
                self._say(command.id, device, command)
            self._bus.publish("batches", f"batch:{job}")
        self._after(job)

    def _after(self, job: int) -> None:
        """What follows from how the parts stand: the hub's own work, and the end."""
        with self._db.read() as session:
            row, parts = batches.get(session, job), batches.parts_of(session, job)
        ending = rules.ending([part_of(part) for part in parts], more=batches.being_cut(row))
        if ending is not None:
            self._begin(("merge", job), lambda: self._end(row, parts, ending))
        elif row.target == HUB and any(part.state == PartState.RUNNING for part in parts):
            self._begin(("score", job), lambda: self._score(row))

    def _begin(self, key: tuple[str, int], work: Callable[[], None]) -> None:
        """Run something that takes long, once at a time; what failed is tried again in a while."""
        with self._lock:
            if key in self._busy or self._over or time.monotonic() < self._retry.get(key, 0.0):
                return
            self._busy.add(key)

        def guarded() -> None:
            try:
                work()
                self._retry.pop(key, None)
            except Exception as error:
                self._retry[key] = time.monotonic() + RETRY_S
                if isinstance(error, SkerryError):
                    log.warning("cannot %s the batch job %d now: %s", *key, error)
                else:
                    log.exception("cannot %s the batch job %d; it is tried again", *key)
            finally:
                with self._lock:
                    self._busy.discard(key)
                self._bus.publish("batches", f"batch:{key[1]}")

        try:
            (self._scorer if key[0] == "score" else self._heavy).submit(guarded)
        except RuntimeError:  # the hub stops
            self._busy.discard(key)

    # -- in threads of their own --------------------------------------------------------------------------------------

    def _cut(self, job: int) -> None:
        """Make the parts; each is given out as soon as it is made."""
        with self._db.read() as session:
            row = batches.get(session, job)
            if row.state not in ACTIVE or (batches.parts_of(session, job, limit=1) and not batches.being_cut(row)):
                return  # it was done since somebody looked
        try:
            unit, units, parts = self._parts(row)
            if not self._cut_up(job, unit, units, parts):
                return
        except InputError as error:
            with self._db.session() as session:
                found = batches.get(session, job)
                if found.state in ACTIVE:
                    batches.end(session, found, JobState.FAILED, error.code, error.message, now=now_ms())
            return
        with self._db.session() as session:
            found = batches.get(session, job)
            if found.target != HUB:
                found.upload = ""  # the parts have it all
            session.add(found)

    def _cut_up(self, job: int, unit: str, units: int, parts: Iterable[BatchPart]) -> bool:
        """Write parts as they come; False: they are not wanted any more."""
        with self._db.session() as session:
            found = batches.get(session, job)
            found.unit, found.units = unit, units
            session.add(found)
            there = {part.number for part in batches.parts_of(session, job)}  # of a hub that did not come to the end
        number = -1
        for part in parts:
            number = part.number
            with self._db.session() as session:
                if batches.get(session, job).state not in ACTIVE:
                    return False
                if number not in there:
                    session.add(part)
            self._bus.publish("batches")
        if number < 0:
            raise InputError("batch.input", "cannot score this upload: it has no rows")
        return True

    def _parts(self, row: BatchRow) -> tuple[str, int, Iterable[BatchPart]]:
        """Unit, how many there are (0: not known), and the parts."""
        job, devices = row.id or 0, names_of(row.devices)
        queued = PartState.QUEUED.value
        if row.source == "device":
            each = enumerate(devices)
            return "", 0, [BatchPart(batch=job, number=number, state=queued, only=device) for number, device in each]
        upload = batch_inputs.read_list(self._objects, row.upload)
        unit = batch_inputs.unit_of(upload)
        if row.target == HUB:
            return unit, 0, [BatchPart(batch=job, number=0, state=queued, only=HUB)]
        with self._db.read() as session:
            inputs = manifest_of(session, row).inputs
        how = batch_inputs.Cutting(
            inputs=inputs,
            chosen=names_of(row.columns),
            kept=names_of(row.keep),
            part_rows=row.part_rows,
            devices=len(devices),
        )
        units, made = batch_inputs.cut(self._objects, upload, how)
        parts = (
            BatchPart(batch=job, number=number, state=queued, **msgspec.structs.asdict(one))
            for number, one in enumerate(made)
        )
        return unit, units, parts

    def _score(self, row: BatchRow) -> None:
        """Score a job here."""
        job = row.id or 0
        here = self._here[job] = Here(self._db, self._objects, self._folder / str(job), row)
        told_at = 0.0

        def told(done: int, units: int) -> None:
            nonlocal told_at
            if time.monotonic() - told_at < QUIET_S:
                return
            told_at = time.monotonic()
            with self._db.session() as session:
                found = session.get(BatchPart, (job, 0))
                if found is not None and found.state == PartState.RUNNING:
                    found.progress, found.units = done / max(units, 1), units
                    session.add(found)
            self._bus.publish("batches", f"batch:{job}")

        try:
            result = here.run(told)
        except SkerryError as error:
            if error.code != "batch.cancelled":
                self._failed_here(job, error)
        else:
            with self._db.session() as session:
                finish(session, result)
            here.forget()
        finally:
            self._here.pop(job, None)

    def _failed_here(self, job: int, error: SkerryError) -> None:
        with self._db.session() as session:
            found = session.get(BatchPart, (job, 0))
            if found is not None and found.state == PartState.RUNNING:
                after = rules.ended_badly(
                    part_of(found), error.code, error.message, now_ms(), devices=[HUB], limits=self.settings.limits
                )
                put_part(session, found, after, now_ms())

    def _end(self, row: BatchRow, parts: Sequence[BatchPart], ending: JobState) -> None:
        """Merge what is done, and write the end."""
        job, now = row.id or 0, now_ms()
        bad = next((part for part in parts if part.state == PartState.FAILED), None)
        merged = None
        if any(part.result for part in parts) or ending is JobState.DONE:
            with self._db.read() as session:
                manifest = manifest_of(session, row)
            self._folder.mkdir(parents=True, exist_ok=True)
            merged = merge(self._objects, row, parts, manifest, self._folder)
        with self._db.session() as session:
            found = batches.get(session, job)
            if found.state not in ACTIVE:
                return
            if merged is not None:
                found.result, found.result_size, found.errors_file, found.errors_size = merged
            found.scored, found.errors = (sum(getattr(one, name) for one in parts) for name in ("scored", "errors"))
            found.units = found.units or found.scored + found.errors
            found.unit = found.unit or "rows"
            found.progress = 1.0 if ending is JobState.DONE else found.progress
            code, message = (bad.code, _named(bad)) if bad is not None else ("", "")
            batches.end(session, found, ending, code, message, now=now)

    def _end_children(self, active: set[int]) -> None:
        for job, here in list(self._here.items()):
            if job not in active:
                here.stop()
        if self._folder.is_dir() and not self._busy:
            for left in self._folder.iterdir():
                if left.name.isdecimal() and int(left.name) not in active:
                    shutil.rmtree(left, ignore_errors=True)

    def _prune(self) -> None:
        if not self.settings.days:
            return
        before = now_ms() - int(self.settings.days * DAY_MS)
        with self._db.read() as session:
            old = select(BatchRow).where(col(BatchRow.ended_at) > 0, col(BatchRow.ended_at) < before).limit(100)
            rows = list(session.exec(old))
        for row in rows:
            for key in filter(None, (row.result, row.errors_file)):
                self._objects.delete_key(key)
            with self._db.session() as session:
                batches.remove(session, row.id or 0)


def _command(row: CommandRow) -> Command:
    return Command(id=row.id, name=row.name, arguments=msgspec.json.decode(row.arguments), deadline_s=NEVER_S)


def _stop(job: int, part: int | None = None) -> Command:
    # An id of its own each time: a device does the same id once, and may not have heard the one before.
    found = {"job": job} if part is None else {"job": job, "part": part}
    return Command(id=f"stop-{secrets.token_hex(6)}", name=STOP, arguments=found, deadline_s=NEVER_S)


def _named(part: BatchPart) -> str:
    where = f" on {part.device}" if part.device else ""
    return f"part {part.number}{where}: {part.message}"
