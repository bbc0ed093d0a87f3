"""The asynchronous front of the spool: what the agent puts in, and what goes out over the link.

Callers only queue; one task hands what has gathered to the spool's thread, which commits it, takes in the hub's
acknowledgements, and returns what may be sent now. A full or slow disk therefore never delays scoring: while it
lasts, records wait in memory within ``PENDING_BYTES`` (urgent ones last to be dropped) and are written when it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

from skerry_agent.spool import JournalEntry, Outgoing, Record, Spool, wall_ms
from skerry_modules import messages
from skerry_modules.errors import SkerryError
from skerry_modules.messages import MAX_BYTES, STREAM_OF, Stream

PENDING_BYTES: Final = 4 * 1024 * 1024
"""Records that wait in memory for a disk that refuses them."""

_RETRY_S: Final = 5.0
_TIDY_RECORDS: Final = 256
_ENVELOPE_BYTES: Final = 64
_URGENT: Final = frozenset({Stream.ALARM, Stream.STATE, Stream.RESULT})


class Outbox:
    """Queue, task and thread hop around one :class:`Spool`.

    Args:
        spool: opened; used only in ``thread`` from now on.
        thread: an executor of exactly one thread.
        publish: sends one payload of a kind; must not block.
        gather_s: how long samples and metrics gather before they are committed.
        trouble: told once when the disk starts to refuse (the error) and once when it takes again (None).
    """

    def __init__(
        self,
        spool: Spool,
        thread: Executor,
        publish: Callable[[str, bytes], None],
        *,
        gather_s: float,
        trouble: Callable[[SkerryError | None], None],
    ) -> None:
        self._spool = spool
        self._thread = thread
        self._publish = publish
        self._gather_s = gather_s
        self._trouble = trouble
        self._pending: list[Record] = []
        self._acks: list[messages.Ack] = []
        self._link: bool | None = None
        self._wake = asyncio.Event()
        self._flush_at: float | None = None
        self._failing = False
        self._dropped = 0
        self.epoch: bytes = spool.epoch
        self._turn = asyncio.Lock()
        self.facts: dict[str, Any] = spool.facts()

    # -- putting in --------------------------------------------------------------------------------------------------

    def put(self, kind: str, body: Any, *, coalesce: bool = False) -> None:
        """Keep one message of a spooled kind; ``body`` is its struct, or its msgpack already."""
        data = body if isinstance(body, bytes) else messages.encode(body)
        if len(data) + _ENVELOPE_BYTES > MAX_BYTES[kind]:
            self._dropped += 1  # the hub would refuse it for ever, and all that follows would wait behind it
            return
        self._pending.append(Record(kind, data, wall_ms(), coalesce, journal=kind == "event"))
        now = time.monotonic()
        due = now if STREAM_OF[kind] in _URGENT else now + self._gather_s
        if self._failing:  # the disk is tried again at its time, not with each record
            self._bound()
        elif self._flush_at is None or due < self._flush_at:
            self._flush_at = due
        self._wake.set()

    def linked(self, up: bool) -> None:
        self._link = up
        self._wake.set()

    def acked(self, ack: messages.Ack) -> None:
        self._acks.append(ack)
        self._wake.set()

    # -- the task ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._pause()
            await self.turn()

    async def _pause(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            if self._acks or self._link is not None:
                return
            deadlines = [self._flush_at, self.facts.get("next")]
            soonest = min((one for one in deadlines if one is not None), default=None)
            if soonest is not None and soonest <= now:
                return
            # Not wait_for: before Python 3.12 it may swallow a cancellation that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if soonest is None else soonest - now):
                    await self._wake.wait()

    async def turn(self) -> None:
        """One round: commit what is pending, take in acks, send what is due."""
        async with self._turn:
            pending: list[Record] = []
            if not self._failing or self._flush_at is None or time.monotonic() >= self._flush_at:
                pending, self._pending, self._flush_at = self._pending, [], None
            acks, self._acks = self._acks, []
            link, self._link = self._link, None
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, pending, acks, link)
            # Shielded: when the agent stops, what is queued for the thread must still be written.
            error, outgoing, self.facts = await asyncio.shield(work)
            self.epoch = self._spool.epoch
            if error:
                self._put_back(pending)
            if pending and bool(error) != self._failing:
                self._failing = bool(error)
                self._trouble(error)
            for one in outgoing:
                self._publish(one.kind, one.payload)

    def _work(
        self, pending: list[Record], acks: list[messages.Ack], link: bool | None
    ) -> tuple[SkerryError | None, list[Outgoing], dict[str, Any]]:
        """In the spool's thread."""
        error: SkerryError | None = None
        now = time.monotonic()
        if link is not None:
            self._spool.linked(link, now)
        for ack in acks:
            self._spool.acked(ack, now)
        try:
            if pending:
                self._spool.append(pending)
            elif self._spool.untidy >= _TIDY_RECORDS:
                self._spool.tidy()
        except SkerryError as caught:
            error = caught
        outgoing = self._spool.read(self._spool.policy.due(now))
        facts = self._spool.facts()
        facts["next"] = self._spool.policy.next_deadline
        return error, outgoing, facts

    def _put_back(self, records: list[Record]) -> None:
        """Keep what the disk refused, and try again in a while."""
        self._pending = records + self._pending
        self._bound()
        self._flush_at = time.monotonic() + _RETRY_S

    def _bound(self) -> None:
        """Hold what waits in memory within its bound: the urgent first, each stream in its order."""
        if sum(len(record.body) for record in self._pending) <= PENDING_BYTES:
            return
        room = PENDING_BYTES
        kept: list[Record] = []
        for record in sorted(self._pending, key=lambda record: STREAM_OF[record.kind]):
            room -= len(record.body)
            if room >= 0:
                kept.append(record)
            else:
                self._dropped += 1
        self._pending = kept

    async def journal(self, limit: int) -> list[JournalEntry]:
        """The last events, oldest first."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._spool.journal, limit)

    @property
    def dropped(self) -> dict[str, int]:
        """Records dropped since the start, by stream; ``unstored``: never reached the disk."""
        found = dict(self.facts["dropped"])
        if self._dropped:
            found["unstored"] = self._dropped
        return found

    async def close(self) -> None:
        """Commit what is pending; to be called after :meth:`run` was cancelled."""
        await self.turn()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._spool.close)
