"""Events on their way to the hub and the log: equal ones within a while are counted, not repeated.

A peer that sends a thousand broken payloads a second must not fill the spool with a thousand alarms.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from skerry_modules.errors import SkerryError
from skerry_modules.messages import Event, Severity

log = logging.getLogger("skerry_agent")

_LEVELS: Final = {
    Severity.DEBUG: logging.DEBUG,
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
    Severity.CRITICAL: logging.CRITICAL,
}
_FREE: Final = 3
"""Equal events that pass before the rest of the while is only counted: one fault often shows more than once."""

MAX_KEYS: Final = 256


class Repeats:
    """A pure rule: which event passes, and how many like it were held back."""

    def __init__(self, repeat_s: float) -> None:
        self._repeat_s = repeat_s
        self._seen: dict[tuple[str, str, int], list[float]] = {}  # key → [since, passed, held]

    def admit(self, event: Event, now: float) -> Event | None:
        """The event to tell, with the count of those held back before it in ``data["repeated"]``; or None."""
        key = (event.code, event.module, event.version)
        entry = self._seen.get(key)
        if entry is None or now - entry[0] >= self._repeat_s:
            held = int(entry[2]) if entry else 0
            self._seen.pop(key, None)
            if len(self._seen) >= MAX_KEYS:
                del self._seen[next(iter(self._seen))]
            self._seen[key] = [now, 1, 0]
            return msgspec.structs.replace(event, data={**event.data, "repeated": held}) if held else event
        if entry[1] < _FREE:
            entry[1] += 1
            return event
        entry[2] += 1
        return None


class Events:
    """Log and spool events.

    Args:
        put: keeps an event for the hub.
        repeat_s: see :class:`Repeats`.
        clock: monotonic seconds.
    """

    def __init__(self, put: Callable[[Event], None], repeat_s: float, clock: Callable[[], float]) -> None:
        self._put = put
        self._repeats = Repeats(repeat_s)
        self._clock = clock

    def emit(self, event: Event) -> None:
        admitted = self._repeats.admit(event, self._clock())
        if admitted is None:
            return
        subject = f" [{event.module} v{event.version}]" if event.module else ""
        log.log(_LEVELS[event.severity], "%s%s: %s", event.code, subject, event.message)
        self._put(admitted)

    def tell(self, severity: Severity, code: str, message: str, *, module: str = "", **data: Any) -> None:
        """Emit an event of the daemon's own."""
        self.emit(Event(severity=severity, code=code, message=message, module=module, data=data))

    def error(self, error: SkerryError, severity: Severity = Severity.WARNING, *, module: str = "") -> None:
        """Emit an error that was met and survived."""
        data = {key: value for key, value in error.data.items() if isinstance(value, str | int | float | bool)}
        self.tell(severity, error.code, error.message, module=module, **data)
