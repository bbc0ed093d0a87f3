# ruff: noqa: E501 - the table reads best unbroken
"""The life of one module version on one device, as one table; ``docs/lifecycle.md`` is drawn from it.

A version is *proven* only at the end of its soak. Each step asks for one thing, has a deadline, a number of attempts,
and its undo beside it; it ends in the next step, in the same or an earlier step again after a pause, or in a terminal
step with a reason code. A restart begins again at the first step, with what the disk holds: nothing is fetched twice,
everything is verified again, and the restarts of each step are counted.

Times of the network steps run only while connected: a device may be offline for as long as it likes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from skerry_modules.messages import ModulePhase


class Step(StrEnum):
    WANT = "want"  # fetch the index, the object that names all others
    VERIFY = "verify"  # its digest, its publisher's signature, whether it can run here, whether the disk has room
    DOWNLOAD = "download"  # fetch the files that are not held yet
    INSTALL = "install"  # lay them out in a folder, checking each
    LOAD = "load"  # a worker process loads the model
    GOLDEN = "golden"  # the golden inputs give the expected outputs here
    WARM = "warm"  # so that the first real request is not slow
    SOAK = "soak"  # live traffic; the previous version stays warm
    SERVE = "serve"  # proven
    ROLLBACK = "rollback"  # failed while it had the traffic; it ends when the version before has it again
    FAILED = "failed"  # terminal, with a reason; tried again only when the desired attempt rises
    UNSCHEDULABLE = "unschedulable"  # terminal until the device or the module changes


class Undo(StrEnum):
    """What takes a step back. A version that ends undoes its steps from the last to the first."""

    NOTHING = "nothing"
    STOP_DOWNLOAD = "stop the download, drop its objects"
    REMOVE_FOLDER = "remove the folder"
    UNLOAD = "unload"
    ROUTE_BACK = "route back"


class Row(msgspec.Struct, frozen=True):
    """One line of the table.

    ``deadline``: a field of :class:`LifecycleSettings`, or "stall" for the downloader's own clock. ``attempts``: how
    often the step may fail before that is final. ``boots``: how often the device may restart during it.
    ``again``: where a failure that may pass is tried again. ``late``: the reason when the deadline passes.
    ``reason``: the reason of a failure whose code is no reason code itself.
    """

    step: Step
    asks: str
    then: Step
    deadline: str
    attempts: int
    boots: int
    again: Step
    undo: Undo
    late: str
    reason: str


_S, _U = Step, Undo

# fmt: off
_ROWS: Final = (
    #   step         asks          then         deadline    att boots again        undo              late                        reason
    Row(_S.WANT,     "Download",   _S.VERIFY,   "stall",      3, 50, _S.WANT,     _U.STOP_DOWNLOAD, "install.download_timeout", "install.download_timeout"),
    Row(_S.VERIFY,   "ReadIndex",  _S.DOWNLOAD, "verify_s",   3, 50, _S.WANT,     _U.NOTHING,       "install.verify_failed",    "install.verify_failed"),
    Row(_S.DOWNLOAD, "Download",   _S.INSTALL,  "stall",      3, 50, _S.DOWNLOAD, _U.STOP_DOWNLOAD, "install.download_timeout", "install.download_timeout"),
    Row(_S.INSTALL,  "Install",    _S.LOAD,     "install_s",  3,  5, _S.DOWNLOAD, _U.REMOVE_FOLDER, "install.unpack_failed",    "install.unpack_failed"),
    Row(_S.LOAD,     "Load",       _S.GOLDEN,   "load_s",     2,  5, _S.LOAD,     _U.UNLOAD,        "install.load_timeout",     "install.load_failed"),
    Row(_S.GOLDEN,   "Golden",     _S.WARM,     "golden_s",   2,  5, _S.LOAD,     _U.NOTHING,       "install.golden_timeout",   "install.golden_failed"),
    Row(_S.WARM,     "Warm",       _S.SOAK,     "warm_s",     2,  5, _S.LOAD,     _U.NOTHING,       "install.warm_failed",      "install.warm_failed"),
    Row(_S.SOAK,     "Traffic",    _S.SERVE,    "soak_s",     1,  5, _S.ROLLBACK, _U.ROUTE_BACK,    "install.soak_failed",      "install.soak_failed"),
    Row(_S.SERVE,    "Traffic",    _S.SERVE,    "",           1,  0, _S.ROLLBACK, _U.ROUTE_BACK,    "",                         "run.crash_loop"),
    Row(_S.ROLLBACK, "",           _S.FAILED,   "",           1,  0, _S.FAILED,   _U.NOTHING,       "",                         "run.rolled_back"),
)
# fmt: on

TABLE: Final = {row.step: row for row in _ROWS}
ORDER: Final = tuple(TABLE)
TERMINAL: Final = frozenset((Step.FAILED, Step.UNSCHEDULABLE))
SETTLED: Final = frozenset((Step.SERVE, Step.FAILED, Step.UNSCHEDULABLE))
LIVE: Final = frozenset((Step.SOAK, Step.SERVE, Step.ROLLBACK))


class LifecycleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds are monotonic. The time to load is the manifest's ``resources.load_timeout_s``."""

    verify_s: float = 60.0  # time to read and verify an index
    install_s: float = 900.0  # time to lay the files out
    golden_s: float = 300.0  # time for the golden test
    warm_s: float = 60.0  # time to warm up
    grace_s: float = 15.0  # on top of a timeout that the worker's own watchdog should have kept
    backoff_s: float = 2.0  # before a failed step is tried again; doubles each time
    backoff_max_s: float = 300.0  # the longest such pause
    revive_s: float = 600.0  # a proven version that failed and has nothing to fall back on is tried again so often
    stable_s: float = 60.0  # serving this long clears the count of restarts


_FINAL_FAMILIES: Final = ("trust.", "unschedulable.", "manifest.", "message.", "package.", "module.")
_FINAL_CODES: Final = frozenset(
    ("install.golden_failed", "install.soak_failed", "install.superseded", "install.interrupted", "internal.bug")
)
_PASSING_CODES: Final = frozenset(("package.digest_mismatch",))  # damaged on the way or on disk: fetched again
_REASON_FAMILIES: Final = ("trust.", "unschedulable.", "package.", "install.", "run.", "resource.", "board.")


def is_final(code: str) -> bool:
    """Whether trying again unchanged is useless. Resources come back, timeouts may pass; a wrong signature stays."""
    if code in _PASSING_CODES:
        return False
    return code in _FINAL_CODES or code.startswith(_FINAL_FAMILIES)


class Verdict(msgspec.Struct, frozen=True):
    """What a failure leads to: ``to`` is the step to try again, or a terminal step."""

    to: Step
    reason: str

    @property
    def final(self) -> bool:
        return self.to in TERMINAL or self.to is Step.ROLLBACK


def judge(step: Step, code: str, failures: int) -> Verdict:
    """What comes of a failure of ``step`` with ``code``, its ``failures``-th (from 1)."""
    row = TABLE[step]
    reason = code if code.startswith(_REASON_FAMILIES) else row.reason
    if code.startswith("unschedulable."):
        return Verdict(Step.UNSCHEDULABLE, reason)
    if step in LIVE:
        return Verdict(Step.ROLLBACK, reason)
    if is_final(code) or failures >= row.attempts:
        return Verdict(Step.FAILED, reason)
    return Verdict(row.again, reason)


def undo(step: Step) -> list[Undo]:
    """The undos of ``step`` and all before it, last first."""
    if step not in TABLE:
        return []
    found = (TABLE[passed].undo for passed in reversed(ORDER[: ORDER.index(step) + 1]))
    return list(dict.fromkeys(way for way in found if way is not Undo.NOTHING))


def retreat(step: Step, to: Step) -> list[Undo]:
    """The undos for trying again at ``to`` what failed at ``step``: those of ``to`` and all after it, last first."""
    kept = undo(to)[1:] if TABLE[to].undo is not Undo.NOTHING else undo(to)
    return [way for way in undo(step) if way not in kept]


def backoff(failures: int, settings: LifecycleSettings) -> float:
    """Seconds to wait before the next try after the ``failures``-th failure (from 1)."""
    return float(min(settings.backoff_s * 2 ** min(failures - 1, 30), settings.backoff_max_s))


def phase(step: Step, *, troubled: bool = False) -> ModulePhase:
    """What people and rollouts read. ``troubled``: it serves, but crashed, hung or erred of late."""
    if step is Step.SERVE:
        return ModulePhase.UNHEALTHY if troubled else ModulePhase.HEALTHY
    if step is Step.FAILED:
        return ModulePhase.FAILED
    if step is Step.UNSCHEDULABLE:
        return ModulePhase.UNSCHEDULABLE
    return ModulePhase.UNHEALTHY if step is Step.ROLLBACK else ModulePhase.TRANSITIONING
