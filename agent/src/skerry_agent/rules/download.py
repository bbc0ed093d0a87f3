"""One object's way onto the disk, chunk by chunk, without I/O: events in, effects out.

It lists what the disk holds already, subscribes, asks for the missing chunks by a bitmap, stores what comes, asks
again with progress (the hub paces itself by it) and after silence, and has the whole checked. A reconnect subscribes
and asks again: nothing rests on the broker's memory. Bytes that were stored once are never asked for again, unless
the whole turns out damaged: then the object is dropped and asked for again a limited number of times.

What it does not handle: which objects are needed (:mod:`brain`), the disk (the driver), the hub's pacing.
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Final

import msgspec

from skerry_agent.rules.effects import (
    CompleteObject,
    Effect,
    ListParts,
    SendWant,
    StoreChunk,
    Subscribe,
    Unsubscribe,
)
from skerry_modules import chunks
from skerry_modules.errors import PeerError

_EPSILON_S: Final = 1e-6  # adding up seconds leaves a rest; without this a deadline could come again and again


class DownloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds are monotonic."""

    want_jitter_s: float = 0.05  # the first want is put off by up to this, so that a fleet does not ask at once
    quiet_s: float = 3.0  # silence before chunks are asked for again
    quiet_max_s: float = 60.0  # the silence doubles each time without progress, up to this
    report_chunks: int = 32  # a want goes out each time so many chunks have come
    stall_s: float = 900.0  # this long connected without one new chunk: give up
    damaged_tries: int = 3  # how often a damaged whole is asked for again
    answer_s: float = 120.0  # the disk must answer within this


class Phase(StrEnum):
    LISTING = "listing"
    FETCHING = "fetching"
    CHECKING = "checking"
    DONE = "done"
    FAILED = "failed"


class Download:
    """One object of ``size`` bytes named ``digest``. ``phase`` tells how it stands; ``reason`` is (code, message)."""

    def __init__(
        self, digest: str, size: int, settings: DownloadSettings, rng: random.Random, *, connected: bool, now: float
    ) -> None:
        self.digest = digest
        self.size = size
        self.total = chunks.count(size)
        self.phase = Phase.LISTING
        self.reason = ("", "")
        self.flipped = 0  # chunks that came damaged
        self._settings = settings
        self._rng = rng
        self._connected = connected
        self._have: set[int] = set()
        self._since_want = 0
        self._damaged = 0
        self._quiet = settings.quiet_s
        self._next_want: float | None = None
        self._stall_left = settings.stall_s
        self._clock_at = now
        self._answer_by: float | None = now + settings.answer_s

    @property
    def ended(self) -> bool:
        return self.phase in (Phase.DONE, Phase.FAILED)

    @property
    def progress(self) -> float:
        return 1.0 if self.phase is Phase.DONE else len(self._have) / self.total

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`tick` wants to be called."""
        if self.ended:
            return None
        stall = self._clock_at + self._stall_left if self._connected and self.phase is Phase.FETCHING else None
        return min((t for t in (self._next_want, stall, self._answer_by) if t is not None), default=None)

    # -- events

    def start(self) -> list[Effect]:
        return [ListParts(self.digest, self.size)]

    def listed(self, parts: list[int], now: float) -> list[Effect]:
        """The disk has answered which chunks it holds."""
        if self.phase is not Phase.LISTING:
            return []
        self._have = {part for part in parts if 0 <= part < self.total}
        self._answer_by = None
        if len(self._have) == self.total:
            return self._check(now)
        self.phase = Phase.FETCHING
        self._clock_at = now
        return self._ask_anew(now) if self._connected else []

    def connected(self, now: float) -> list[Effect]:
        self._run_clock(now)
        self._connected = True
        return self._ask_anew(now) if self.phase is Phase.FETCHING else []

    def disconnected(self, now: float) -> list[Effect]:
        self._run_clock(now)
        self._connected = False
        self._next_want = None
        return []

    def chunk(self, part: int, payload: bytes, now: float) -> list[Effect]:
        """A chunk came: checked here, so that a flipped bit costs one chunk and not the object."""
        if self.phase is not Phase.FETCHING or not 0 <= part < self.total or part in self._have:
            return []
        try:
            data = chunks.unframe(payload)
        except PeerError:
            self.flipped += 1
            return []
        if len(data) != min(chunks.CHUNK_BYTES, self.size - part * chunks.CHUNK_BYTES):
            self.flipped += 1
            return []
        self._have.add(part)
        self._progressed(now)
        effects: list[Effect] = [StoreChunk(self.digest, part, self.size, bytes(data))]
        if len(self._have) == self.total:
            return effects + self._check(now)
        if self._since_want >= self._settings.report_chunks:
            effects.append(self._want(now))
        return effects

    def checked(self) -> list[Effect]:
        """The whole is stored and its digest holds."""
        self.phase = Phase.DONE
        self._next_want = self._answer_by = None
        return [Unsubscribe(self.digest), SendWant(self.digest, self.size, b"")]

    def failed(self, effect: str, code: str, message: str, now: float) -> list[Effect]:
        """An effect of this download ended badly."""
        if self.ended:
            return []
        if effect == "CompleteObject" and code == "package.digest_mismatch":
            self._damaged += 1
            if self._damaged < self._settings.damaged_tries:
                self.phase = Phase.FETCHING
                self._have.clear()
                self._clock_at, self._answer_by = now, None
                return self._ask_anew(now) if self._connected else []
        return self._give_up(code, message)

    def tick(self, now: float) -> list[Effect]:
        if self.ended:
            return []
        if self._answer_by is not None and now >= self._answer_by:
            return self._give_up("install.download_timeout", "cannot go on: the disk did not answer in time")
        self._run_clock(now)
        if self._connected and self.phase is Phase.FETCHING:
            if self._stall_left <= _EPSILON_S:
                return self._give_up(
                    "install.download_timeout",
                    f"cannot fetch the object {self.digest[:12]}: nothing came for {self._settings.stall_s:.0f} s; "
                    "check the link and whether the hub still has it",
                )
            if self._next_want is not None and now >= self._next_want:
                self._quiet = min(self._quiet * 2, self._settings.quiet_max_s)
                return [self._want(now)]
        return []

    def postpone(self, seconds: float) -> None:
        """Nothing that was asked for could begin for so long: it does not count."""
        self._clock_at += seconds
        if self._answer_by is not None:
            self._answer_by += seconds

    def stop(self) -> list[Effect]:
        """Nobody needs it any more; what is stored stays for the driver to keep or remove."""
        was, self.phase = self.phase, Phase.FAILED
        self._next_want = self._answer_by = None
        return [Unsubscribe(self.digest)] if was in (Phase.FETCHING, Phase.CHECKING) else []

    # -- parts

    def _ask_anew(self, now: float) -> list[Effect]:
        self._quiet = self._settings.quiet_s
        self._next_want = now + self._rng.uniform(0, self._settings.want_jitter_s)
        # The first want is not silence: the quiet time is doubled when it goes, so start one step lower.
        self._quiet /= 2
        return [Subscribe(self.digest)]

    def _want(self, now: float) -> Effect:
        self._since_want = 0
        self._next_want = now + self._quiet * self._rng.uniform(0.8, 1.2)
        missing = (part for part in range(self.total) if part not in self._have)
        return SendWant(self.digest, self.size, chunks.encode_bitmap(missing, self.total))

    def _progressed(self, now: float) -> None:
        self._since_want += 1
        self._quiet = self._settings.quiet_s
        self._stall_left = self._settings.stall_s
        self._clock_at = now
        self._next_want = now + self._quiet * self._rng.uniform(0.8, 1.2)

    def _check(self, now: float) -> list[Effect]:
        self.phase = Phase.CHECKING
        self._next_want = None
        self._answer_by = now + self._settings.answer_s
        return [CompleteObject(self.digest, self.size)]

    def _give_up(self, code: str, message: str) -> list[Effect]:
        effects = self.stop()
        self.reason = (code, message)
        return effects

    def _run_clock(self, now: float) -> None:
        """The stall clock runs only while connected and fetching: a device may be offline for as long as it likes."""
        if self._connected and self.phase is Phase.FETCHING:
            self._stall_left -= now - self._clock_at
        self._clock_at = now
