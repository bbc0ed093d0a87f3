"""All downloads of the device together: which objects are held, a few at a time on their way, the rest in line."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec

from skerry_agent.rules.download import Download, DownloadSettings, Phase
from skerry_agent.rules.effects import Effect


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
        self.bytes_stored = 0
        self._settings = settings
        self._rng = rng
        self._at_once = at_once
        self._active: dict[str, Download] = {}
        self._line: dict[str, int] = {}
        self._ended: list[Ended] = []
        self._connected = False

    def want(self, objects: Iterable[tuple[str, int]], now: float) -> list[Effect]:
        """Fetch what of these is neither held nor on its way."""
        for digest, size in objects:
            if digest not in self.held and digest not in self._active:
                self._line.setdefault(digest, size)
        return self._fill(now)

    def keep_only(self, needed: set[str], now: float) -> list[Effect]:
        """Stop the downloads of all other objects."""
        effects: list[Effect] = []
        for digest in [digest for digest in self._line if digest not in needed]:
            del self._line[digest]
        for digest in [digest for digest in self._active if digest not in needed]:
            effects += self._active.pop(digest).stop()
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
        self._connected = True
        return [effect for download in self._active.values() for effect in download.connected(now)]

    def disconnected(self, now: float) -> list[Effect]:
        self._connected = False
        return [effect for download in self._active.values() for effect in download.disconnected(now)]

    def chunk(self, digest: str, part: int, payload: bytes, now: float) -> list[Effect]:
        download = self._active.get(digest)
        return download.chunk(part, payload, now) if download else []

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
        self._ended.append(
            Ended(download.digest) if download.phase is Phase.DONE else Ended(download.digest, *download.reason)
        )
        return effects + self._fill(now)

    def _fill(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._line and len(self._active) < self._at_once:
            digest = next(iter(self._line))
            size = self._line.pop(digest)
            download = Download(digest, size, self._settings, self._rng, connected=self._connected, now=now)
            self._active[digest] = download
            self.partial.add(digest)
            effects += download.start()
        return effects
