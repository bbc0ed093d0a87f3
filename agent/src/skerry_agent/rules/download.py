"""One object's way onto the disk, chunk by chunk, without I/O: events in, effects out.

It lists what the disk holds already, subscribes, asks for the missing chunks by a bitmap, stores what comes, asks
again with progress (the hub paces itself by it) and after silence, and has the whole checked. A reconnect subscribes
and asks again: nothing rests on the broker's memory. Bytes that were stored once are never asked for again, unless
the whole turns out damaged: then the object is dropped and asked for again a limited number of times.

Silence is the device's: all its downloads share one :class:`~skerry_agent.rules.reception.Reception`. A chunk of any
object says that the link and the hub work, and that what this one waits for may stand in line behind it.

What it does not handle: which objects are needed (:mod:`brain`), the disk (the driver), the hub's pacing.
"""

from __future__ import annotations

import random
from enum import StrEnum

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
from skerry_agent.rules.reception import EPSILON_S, Reception
from skerry_modules import chunks
from skerry_modules.errors import PeerError


class DownloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds are monotonic, and those of silence are the device's: a chunk of any of its objects ends it."""

    want_jitter_s: float = 0.05  # the first want is put off by up to this, so that a fleet does not ask at once
    quiet_s: float = 3.0  # silence before chunks are asked for again; longer where chunks are seen to come more slowly
    quiet_max_s: float = 60.0  # the silence doubles each time without progress, up to this
    report_chunks: int = 32  # a want goes out each time so many chunks have come
    report_s: float = 15.0  # a want goes out with the next chunk after so long: the hub forgets who says nothing
    stall_s: float = 900.0  # this long connected without one new chunk of any object: give up
    damaged_tries: int = 3  # how often a damaged whole is asked for again
    answer_s: float = 120.0  # the disk must answer within this


class Phase(StrEnum):
    LISTING = "listing"
    FETCHING = "fetching"
    CHECKING = "checking"
    DONE = "done"
    FAILED = "failed"


class Download:
    """One object of ``size`` bytes named ``digest``. ``phase`` tells how it stands; ``reason`` is (code, message).

    Times that end in ``_clock`` are read on the reception's clock, which runs only while the device is connected: it
    may be offline for as long as it likes.
    """

    def __init__(
        self,
        digest: str,
        size: int,
        settings: DownloadSettings,
        rng: random.Random,
        *,
        reception: Reception,
        now: float,
    ) -> None:
        self.digest = digest
        self.size = size
        self.total = chunks.count(size)
        self.phase = Phase.LISTING
        self.reason = ("", "")
        self.flipped = 0  # chunks that came damaged
        self._settings = settings
        self._rng = rng
        self._reception = reception
        self._lacking = chunks.Lacking(self.total)
        self._damaged = 0
        self._answer_by: float | None = now + settings.answer_s
        self._began_clock = 0.0  # the fetching
        self._first_clock: float | None = None  # when the first want after a subscription is due
        self._open_clock = 0.0  # the newest subscription: from then on chunks may come
        self._asked_clock = 0.0  # the last want, or the subscription before the first
        self._silent_asks = 0  # wants that brought nothing
        self._jitter = 1.0
        self._chunks_at_want = 0  # what the device had received

    @property
    def ended(self) -> bool:
        return self.phase in (Phase.DONE, Phase.FAILED)

    @property
    def progress(self) -> float:
        return 1.0 if self.phase is Phase.DONE else 1 - self._lacking.count / self.total

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`tick` wants to be called."""
        if self.ended:
            return None
        if self._answer_by is not None or not self._listens:
            return self._answer_by
        return self._reception.when(min(self._want_clock, self._stall_clock))

    # -- events

    def start(self) -> list[Effect]:
        return [ListParts(self.digest, self.size)]

    def listed(self, parts: list[int], now: float) -> list[Effect]:
        """The disk has answered which chunks it holds."""
        if self.phase is not Phase.LISTING:
            return []
        self._lacking = chunks.Lacking(self.total, parts)
        self._answer_by = None
        if not self._lacking.count:
            return self._check(now)
        return self._fetch(now)

    def connected(self, now: float) -> list[Effect]:
        return self._ask_anew(now) if self.phase is Phase.FETCHING else []

    def chunk(self, part: int, payload: bytes, now: float) -> list[Effect]:
        """A chunk came: checked here, so that a flipped bit costs one chunk and not the object."""
        if self.phase is not Phase.FETCHING or part not in self._lacking:
            return []
        try:
            data = chunks.unframe(payload)
        except PeerError:
            self.flipped += 1
            return []
        if len(data) != min(chunks.CHUNK_BYTES, self.size - part * chunks.CHUNK_BYTES):
            self.flipped += 1
            return []
        self._lacking.discard(part)
        self._reception.heard(now, self._open_clock)
        effects: list[Effect] = [StoreChunk(self.digest, part, self.size, data)]
        if not self._lacking.count:
            return effects + self._check(now)
        return effects + self.report(now)

    def report(self, now: float) -> list[Effect]:
        """A chunk came, of this object or of another: tell the hub now and then what is still missing."""
        if not self._listens or self._first_clock is not None:
            return []
        settings, reception = self._settings, self._reception
        due = reception.chunks - self._chunks_at_want >= settings.report_chunks
        return [self._want(now)] if due or reception.clock(now) - self._asked_clock >= settings.report_s else []

    def gone(self) -> list[Effect]:
        """The hub does not have it any more. What it says of an object that is not being asked for is old."""
        if self.phase is not Phase.FETCHING:
            return []
        return self._give_up(
            "install.object_gone",
            f"cannot fetch the object {self.digest[:12]}: the hub does not have it any more; restore the hub's store "
            "from a backup, or register the same files there again; then ask for the version once more",
        )

    def checked(self) -> list[Effect]:
        """The whole is stored and its digest holds."""
        self.phase = Phase.DONE
        self._answer_by = None
        return [Unsubscribe(self.digest), SendWant(self.digest, self.size, b"")]

    def failed(self, effect: str, code: str, message: str, now: float) -> list[Effect]:
        """An effect of this download ended badly."""
        if self.ended:
            return []
        if effect == "CompleteObject" and code == "package.digest_mismatch":
            self._damaged += 1
            if self._damaged < self._settings.damaged_tries:
                self._lacking = chunks.Lacking(self.total)
                return self._fetch(now)
        return self._give_up(code, message)

    def tick(self, now: float) -> list[Effect]:
        if self.ended:
            return []
        if self._answer_by is not None and now >= self._answer_by:
            return self._give_up("install.download_timeout", "cannot go on: the disk did not answer in time")
        if not self._listens:
            return []
        clock = self._reception.clock(now) + EPSILON_S
        if clock >= self._stall_clock:
            return self._give_up(
                "install.download_timeout",
                f"cannot fetch the object {self.digest[:12]}: nothing came for {self._settings.stall_s:.0f} s; "
                "check the link and whether the hub still has it",
            )
        if clock < self._want_clock:
            return []
        if self._first_clock is None:
            self._silent_asks = self._asks_in_silence + 1
        return [self._want(now)]

    def postpone(self, seconds: float) -> None:
        """Nothing that was asked for could begin for so long: it does not count."""
        if self._answer_by is not None:
            self._answer_by += seconds

    def stop(self) -> list[Effect]:
        """Nobody needs it any more; what is stored stays for the driver to keep or remove."""
        was, self.phase = self.phase, Phase.FAILED
        self._answer_by = None
        return [Unsubscribe(self.digest)] if was in (Phase.FETCHING, Phase.CHECKING) else []

    # -- parts

    @property
    def _listens(self) -> bool:
        return self._reception.connected and self.phase is Phase.FETCHING

    @property
    def _asks_in_silence(self) -> int:
        return 0 if self._reception.heard_clock > self._asked_clock else self._silent_asks

    @property
    def _want_clock(self) -> float:
        """When chunks are asked for again, if the device hears nothing until then."""
        if self._first_clock is not None:
            return self._first_clock
        patience = self._reception.patience(self._settings.quiet_s) * 2.0 ** min(self._asks_in_silence, 30)
        quiet = min(patience, self._settings.quiet_max_s) * self._jitter
        return max(self._reception.heard_clock, self._asked_clock) + quiet

    @property
    def _stall_clock(self) -> float:
        return max(self._reception.heard_clock, self._began_clock) + self._settings.stall_s

    def _fetch(self, now: float) -> list[Effect]:
        self.phase = Phase.FETCHING
        self._answer_by = None
        self._began_clock = self._reception.clock(now)
        return self._ask_anew(now) if self._reception.connected else []

    def _ask_anew(self, now: float) -> list[Effect]:
        self._silent_asks = 0
        self._open_clock = self._asked_clock = self._reception.clock(now)
        self._first_clock = self._asked_clock + self._rng.uniform(0, self._settings.want_jitter_s)
        return [Subscribe(self.digest)]

    def _want(self, now: float) -> Effect:
        self._first_clock = None
        self._asked_clock = self._reception.clock(now)
        self._chunks_at_want = self._reception.chunks
        self._jitter = self._rng.uniform(0.8, 1.2)
        return SendWant(self.digest, self.size, self._lacking.encode())

    def _check(self, now: float) -> list[Effect]:
        self.phase = Phase.CHECKING
        self._answer_by = now + self._settings.answer_s
        return [CompleteObject(self.digest, self.size)]

    def _give_up(self, code: str, message: str) -> list[Effect]:
        effects = self.stop()
        self.reason = (code, message)
        return effects
