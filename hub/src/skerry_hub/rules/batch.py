"""Batch jobs as pure rules: which device gets which part next, what a part's end means, when a job has ended.

* A device has up to ``at_once`` parts, of whichever job, and scores one after the other: while it scores one it fetches
  the next and sends the one before. The older job goes first. A part goes to a device that is connected and serves the
  version, and that has not failed on it; nobody gets one ahead while another has none, or would have none soon.
* A part that was **lost** (the device went silent, restarted, was busy) is given again after a pause, to whoever is
  free; only after ``attempts`` times it counts as failed (``batch.lost``), so that no part can circle for ever.
* A part that **failed** is tried on other devices first, ``failures`` times in all, after a pause where each has
  failed on it: that may pass, as a process that was killed. What is wrong with the job itself (a
  column that is missing) would fail everywhere: it ends the job at once, unless each device has an input of its own.

Does not handle: leases (the driver ends silent commands as ``command.no_answer``), results (a part is done once, by
whoever is first).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PartState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE: Final = (JobState.QUEUED, JobState.RUNNING)
OPEN: Final = (PartState.QUEUED, PartState.RUNNING)

LOST: Final = frozenset(
    {
        "command.busy",
        "command.interrupted",
        "command.no_answer",
        "command.offline",
        "resource.broker_unreachable",
        "resource.agent_unreachable",
    }
)
"""The part is as good as before: somebody was away."""
WRONG: Final = frozenset({"batch.input", "request.invalid", "scoring.unknown_input", "scoring.wrong_shape"})
"""The job itself is wrong: no other device could do better with the same input."""


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, and seconds."""

    attempts: int = 30  # times that a part is given, lost ones included
    failures: int = 3  # times that a part may fail, on any device
    pause_s: float = 1.0  # before a lost part is given again; doubled each time …
    pause_max_s: float = 60.0  # … up to this
    at_once: int = 2  # parts that a device has at most: the one that it scores, and one ahead


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules need of a part. Times in ms."""

    number: int
    state: PartState = PartState.QUEUED
    device: str = ""
    only: str = ""
    refused: tuple[str, ...] = ()
    attempts: int = 0
    failures: int = 0
    retry_at: int = 0
    code: str = ""
    message: str = ""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A device that may score."""

    device: str
    online: bool
    serves: bool  # the job's version
    parts: int = 0  # that it has now, of any job


def give(parts: Iterable[Part], places: Sequence[Place], now: int, *, at_once: int) -> list[tuple[int, str]]:
    """(part, device) to begin now: each part at most once, each device as many as it may have."""
    has = {one.device: one.parts for one in places if one.online and one.serves}
    left = [part for part in parts if part.state is PartState.QUEUED and part.retry_at <= now]
    found: list[tuple[int, str]] = []
    for ahead in range(at_once):
        for part in list(left):
            # The last parts go to whoever is ready first: one that waits behind another would be the end of the job.
            if ahead and len(left) < len(has):
                break
            wanted = [part.only] if part.only else has
            device = next((one for one in wanted if has.get(one, at_once) <= ahead and one not in part.refused), "")
            if device:
                has[device] += 1
                left.remove(part)
                found.append((part.number, device))
    return found


def given(part: Part, device: str) -> Part:
    """The part as it is on its way to a device."""
    return msgspec.structs.replace(
        part, state=PartState.RUNNING, device=device, attempts=part.attempts + 1, code="", message=""
    )


def ended_badly(part: Part, code: str, message: str, now: int, *, devices: Sequence[str], limits: BatchLimits) -> Part:
    """What becomes of a part whose device said ``code``, or said nothing (``command.no_answer``)."""
    pause_s = min(limits.pause_s * 2.0 ** min(part.attempts - 1, 30), limits.pause_max_s)
    again = msgspec.structs.replace(
        part, state=PartState.QUEUED, code=code, message=message, retry_at=now + int(pause_s * 1000)
    )
    if code in LOST:
        if part.attempts < limits.attempts:
            return again
        text = (
            f"cannot have part {part.number} scored: it was given out {part.attempts} times; the last time: {message}"
        )
        return msgspec.structs.replace(part, state=PartState.FAILED, code="batch.lost", message=text)
    failed = msgspec.structs.replace(part, state=PartState.FAILED, code=code, message=message)
    failures = part.failures + 1
    if code in WRONG or code == "batch.not_allowed" or failures >= limits.failures:
        return msgspec.structs.replace(failed, failures=failures)
    if part.only:  # nobody else has its input
        return msgspec.structs.replace(again, failures=failures)
    refused = (*part.refused, part.device)
    if all(device in refused for device in devices):  # a killed process or a full disk may pass: one more round
        return msgspec.structs.replace(again, failures=failures, refused=())
    return msgspec.structs.replace(again, failures=failures, refused=refused, retry_at=now)


def dooms(part: Part) -> bool:
    """Whether the end of this part ends the whole job: the same input would fail everywhere."""
    return part.state is PartState.FAILED and part.code in WRONG and not part.only


def ending(parts: Sequence[Part], *, more: bool = False) -> JobState | None:
    """The state that a job ends in, or None while it goes on. A job without parts is done.

    ``more``: parts are still being made.
    """
    states = {part.state for part in parts}
    if any(dooms(part) for part in parts):
        return JobState.FAILED
    if more or states & set(OPEN):
        return None
    return JobState.FAILED if PartState.FAILED in states else JobState.DONE


def progress(parts: Sequence[tuple[int, float]]) -> float:
    """The share that is done, from (units, share done) of each part; parts of unknown size weigh the same."""
    weighed = [(units or 1, share) for units, share in parts]
    total = sum(units for units, _ in weighed)
    return sum(units * min(max(share, 0.0), 1.0) for units, share in weighed) / total if total else 0.0


def waiting(places: Mapping[str, Place]) -> str:
    """Why nothing goes on, for people: empty where some device could score."""
    if any(one.online and one.serves for one in places.values()):
        return ""
    online = [name for name, one in places.items() if one.online]
    if online:
        return f"waiting: {', '.join(sorted(online)[:5])} does not serve the version now; roll it out there again"
    return f"waiting: none of {', '.join(sorted(places)[:5]) or 'its devices'} is connected"
