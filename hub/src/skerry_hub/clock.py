"""The hub's wall clock, for labels: milliseconds since 1970, UTC. Deadlines are judged by ``time.monotonic``."""

from __future__ import annotations

import time


def now_ms() -> int:
    return time.time_ns() // 1_000_000
