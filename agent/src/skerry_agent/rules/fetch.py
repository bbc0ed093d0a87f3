"""All downloads of the device together: which objects are held, a few at a time on their way, the rest in line.

They share one link, so they share one clock of silence (:mod:`reception`). What a module's own versions need goes
before what versions at the side need, which never take all places.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec

from skerry_agent.rules.download import Download, DownloadSettings, Phase
from skerry_agent.rules.effects import Effect
from skerry_agent.rules.reception import Reception


class Ended(msgspec.Struct, frozen=True):
    """A download is over; ``code`` is empty where the object is now held."""

    digest: str
    code: str = ""
    message: str = ""


class Fetcher:
    """Keeps the :class:`Download` of each object that is on its way. Effects come back; ends are taken by the caller.

    Args:
        at_once: how many objects are fetched at the same time; the others wait in line.
    """

    def __init__(self, settings: DownloadSettings, rng: random.Random, at_once: int = 4) -> None:
        self.held: set[str] = set()
        self.partial: set[str] = set()  # begun on the disk and not whole
        self._settings = settings
        self._rng = rng
        self._at_once = at_once
        self._reception = Reception()
        self._active: dict[str, Download] = {}
        self._line: dict[str, int] = {}
        self._aside: set[str] = set()  # of these all: wanted by versions at the side only
        self._ended: list[Ended] = []

    def want(self, objects: Iterable[tuple[str, int]], now: float, *, aside: bool = False) -> list[Effect]:
        """Fetch what of these is neither held nor on its way. ``aside``: after what is wanted otherwise."""
        for digest, size in objects:
            if digest in self.held:
                continue
            if not aside:
                self._aside.discard(digest)
            elif digest not in self._active and digest not in self._line:
                self._aside.add(digest)
            if digest not in self._active:
                self._line.setdefault(digest, size)
        return self._fill(now)

    def prefer(self, digests: Iterable[str], now: float) -> list[Effect]:
        """These are not wanted at the side only any more."""
        self._aside.difference_update(digests)
        return self._fill(now)

    def keep_only(self, needed: set[str], now: float) -> list[Effect]:
        """Stop the downloads of all other objects."""
        effects: list[Effect] = []
        for digest in [digest for digest in self._line if digest not in needed]:
            del self._line[digest]
        for digest in [digest for digest in self._active if digest not in needed]:
            effects += self._active.pop(digest).stop()
        self._aside &= needed
        return effects + self._fill(now)

    def progress(self, digest: str) -> float:
        """0 to 1."""
        if digest in self.held:
            return 1.0
        return self._active[digest].progress if digest in self._active else 0.0

    def ended(self) -> list[Ended]:
        """Downloads that are over since the last call."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def next_deadline(self) -> float | None:
        times = (download.next_deadline for download in self._active.values())
        return min((time for time in times if time is not None), default=None)

    # -- events

    def connected(self, now: float) -> list[Effect]:
        self._reception.up(now)
        return [effect for download in self._active.values() for effect in download.connected(now)]

    def disconnected(self, now: float) -> list[Effect]:
        self._reception.down(now)
        return []

    def chunk(self, digest: str, part: int, payload: bytes, now: float) -> list[Effect]:
        download = self._active.get(digest)
        if download is None:
            return []
        before = self._reception.chunks
        effects = download.chunk(part, payload, now)
        if self._reception.chunks != before and len(self._active) > 1:
            for other in self._active.values():
                if other is not download:
                    effects += other.report(now)
        return effects

    def gone(self, digest: str, now: float) -> list[Effect]:
        """The hub does not have an object any more."""
        download = self._active.get(digest)
        return self._after(download, download.gone(), now) if download else []

    def done(self, effect: str, digest: str, parts: list[int], now: float) -> list[Effect]:
        """``ListParts`` or ``CompleteObject`` ended well."""
        download = self._active.get(digest)
        if download is None:
            return []
        if effect == "ListParts":
            return self._after(download, download.listed(parts, now), now)
        self.held.add(digest)
        self.partial.discard(digest)
        return self._after(download, download.checked(), now)

    def failed(self, effect: str, digest: str, code: str, message: str, now: float) -> list[Effect]:
        download = self._active.get(digest)
        return self._after(download, download.failed(effect, code, message, now), now) if download else []

    def postpone(self, seconds: float) -> None:
        """Nothing that was asked for could begin for so long."""
        self._reception.postpone(seconds)
        for download in self._active.values():
            download.postpone(seconds)

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for download in list(self._active.values()):
            effects += self._after(download, download.tick(now), now)
        return effects

    # -- parts

    def _after(self, download: Download, effects: list[Effect], now: float) -> list[Effect]:
        if not download.ended:
            return effects
        del self._active[download.digest]
        self._aside.discard(download.digest)
        self._ended.append(
            Ended(download.digest) if download.phase is Phase.DONE else Ended(download.digest, *download.reason)
        )
        return effects + self._fill(now)

    def _fill(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while (digest := self._next()) is not None:
            size = self._line.pop(digest)
            download = Download(digest, size, self._settings, self._rng, reception=self._reception, now=now)
            self._active[digest] = download
            self.partial.add(digest)
            effects += download.start()
        return effects

    def _next(self) -> str | None:
        """Who of the line begins now; None: nobody."""
        if len(self._active) >= self._at_once:
            return None
        first = next((digest for digest in self._line if digest not in self._aside), None)
        if first is not None:
            return first
        places = max(1, self._at_once - 1)
        busy = sum(digest in self._aside for digest in self._active)
        return next(iter(self._line), None) if busy < places else None
