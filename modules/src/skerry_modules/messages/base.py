"""What all messages share: the format's number, streams, phases, severities, and the envelope of what is spooled."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, Generic, TypeVar

import msgspec

FORMAT: Final = 1

T = TypeVar("T")


class Stream(IntEnum):
    """Priorities of the spool, most urgent first; also the numbering's scope."""

    ALARM = 0
    STATE = 1
    RESULT = 2
    SAMPLE = 3
    METRIC = 4


class ModulePhase(StrEnum):
    """What a module's state is, as people and rollouts read it."""

    TRANSITIONING = "Transitioning"
    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    UNSCHEDULABLE = "Unschedulable"
    FAILED = "Failed"


class Severity(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class Up(msgspec.Struct, Generic[T], frozen=True, array_like=True, gc=False):
    """The envelope. ``at`` is the device's wall clock in ms since 1970: a label, never a judge of order."""

    v: int
    epoch: bytes
    stream: int
    seq: int
    base: int
    at: int
    body: T
