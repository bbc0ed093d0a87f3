"""Which devices are to be hailed when the hub has come back, and how fast; and how a fleet spreads its reconnects.

A device that connected before the hub had subscribed said its hello, and its first records, to nobody. The broker tells
the hub which devices these are: it gives their presence as *retained*, while that of a device which comes later is
live. Each is asked once to say it again (``messages.Ack.again``) and so does not wait for silence to tell it.

Ten thousand must not answer at once: no more than ``per_s`` are hailed in a second, and none while what they say has to
wait to be written. A device that speaks first, or goes away, is not hailed.

Pure: time is an argument. Not handled here: a hail that is lost; the device's own clock of silence makes up for it.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

BURST_S: Final = 0.1
"""As many may be hailed at once as in so long."""


class HailSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How fast devices are asked to speak."""

    per_s: float = 1000.0  # each answers with its hello and what waits in its spool
    backlog: int = 2000  # messages that wait to be written, above which nobody is hailed
    look_s: float = 0.05  # how often the backlog is looked at while there are devices to hail


class Hails:
    """Devices to hail, in the order in which they were heard of."""

    def __init__(self, settings: HailSettings | None = None) -> None:
        self.settings = settings or HailSettings()
        self._waiting: dict[str, None] = {}
        self._room = 0.0
        self._at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def present(self, device: str) -> None:
        """It was there before the hub."""
        self._waiting[device] = None

    def settled(self, device: str) -> None:
        """It said hello, or went away."""
        self._waiting.pop(device, None)

    def due(self, now: float, backlog: int) -> list[str]:
        """Whom to hail now; each is named once. ``backlog``: messages that wait to be written."""
        settings = self.settings
        most = max(1.0, settings.per_s * BURST_S)
        self._room = min(most, self._room + settings.per_s * max(0.0, now - self._at))
        self._at = now
        if backlog > settings.backlog:
            return []
        chosen = list(self._waiting)[: int(self._room)] if self._room >= 1 else []
        self._room -= len(chosen)
        for device in chosen:
            del self._waiting[device]
        return chosen


def spread_s(devices: int, per_s: float) -> int:
    """Over how long so many devices spread their reconnects, whole seconds, so that at most ``per_s`` come in each.

    A device draws its pauses from 0 to this; while the broker stays away it draws again and again, which brings twice
    as many attempts a second as one draw would.
    """
    return math.ceil(2 * devices / per_s) if devices > 0 else 0
