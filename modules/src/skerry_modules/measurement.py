"""What it costs to run one module version on one machine: measured values, and the recommendation made of them.

The agent measures (``skerry_agent.profiling``), the hub stores it with the version and lets its scheduler use it, the
client shows it. A profile of a *module* is meant here; a device class is a firmware profile
(:mod:`skerry_modules.profiles`). Times are in µs unless their name ends otherwise, MB are 10**6 bytes.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from skerry_modules.errors import PeerError

FORMAT: Final = 1
MAX_SETTINGS: Final = 200
"""Measurements, and settings that could not be measured, that one profile may hold."""
MAX_TEXT: Final = 500


class Setting(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One way to run a module. ``batch`` is the rows of one request."""

    engine: str
    threads: int
    batch: int = 1


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One setting's numbers, from ``runs`` runs in ``rounds`` rounds after a warm-up.

    ``spread`` is (largest − smallest) / median of the rounds' medians: what two settings must differ by to differ.
    ``p99_low_us`` is the best round's p99: what else the machine does only ever adds, so settings are judged by it.
    CPU is of the worker process: ``cpu_percent`` of one core while it scored, ``cpu_us_per_row`` per row; −1 for
    ``others_percent`` (0–100 of all cores, used by everything else meanwhile) where the machine does not tell.

    Memory is of the worker process: ``peak_mb`` is the kernel's high-water mark of what was resident (with the
    runtime's pages, which workers share), ``steady_mb`` what only this process had when it was done, and
    ``limit_mb`` the most that counted towards the memory limit of a worker (``RLIMIT_DATA``), loading included.
    """

    setting: Setting
    engine_version: str
    runs: int
    rounds: int
    p50_us: float
    p90_us: float
    p99_us: float
    p99_low_us: float
    max_us: float
    spread: float
    rows_per_s: float
    cpu_percent: float
    cpu_us_per_row: float
    others_percent: float
    first_load_ms: float  # with nothing compiled and cached
    load_ms: float
    peak_mb: float
    steady_mb: float
    limit_mb: float
    golden: str  # "passed", "none", or what failed


class Unmeasured(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that gave no numbers, and why."""

    setting: Setting
    code: str
    message: str


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """What to set, and why. ``confirmed``: a worker with just this memory loaded the module and scored."""

    setting: Setting
    max_rows: int  # for the manifest's batching.max_rows
    memory_mb: int  # for the manifest's resources.memory_mb
    confirmed: bool
    reasons: tuple[str, ...]


class ModuleProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One module on one machine.

    ``memory_mb`` is what the module needs as its manifest stands (its engine and threads, requests of as many rows as
    were measured), margin included: what the scheduler counts. ``simulated``: the engine ran on a simulated board, so
    its times mean nothing. ``inputs``: ``golden`` where the module's own cases were scored, else ``made up``.
    """

    format: int = FORMAT
    module: str
    version: int
    digest: str
    device: str  # empty: not a registered device
    profile: str  # the firmware profile; empty: unknown
    machine: str
    cores: int
    at: int  # ms since 1970
    took_s: float
    niceness: int
    inputs: str
    simulated: bool
    memory_mb: int
    measurements: tuple[Measurement, ...]
    unmeasured: tuple[Unmeasured, ...]
    recommendation: Recommendation


def to_builtins(profile: ModuleProfile) -> dict[str, Any]:
    """Plain dicts and lists, for JSON or a command's result."""
    found: dict[str, Any] = msgspec.to_builtins(profile)
    return found


def from_builtins(value: Any) -> ModuleProfile:
    """The inverse, for what came from a device or a client: checked before it is believed.

    Raises:
        PeerError: ``message.malformed``.
    """
    try:
        profile = msgspec.convert(value, ModuleProfile)
    except msgspec.ValidationError as error:
        raise _malformed(str(error)) from error
    for problem in problems(profile):
        raise _malformed(problem)
    return profile


def problems(profile: ModuleProfile) -> list[str]:
    """What types alone cannot say."""
    found = []
    if profile.format != FORMAT:
        found.append(f"its format is {profile.format}, this side reads {FORMAT}")
    if not profile.measurements:
        found.append("it holds no measurement")
    if len(profile.measurements) + len(profile.unmeasured) > MAX_SETTINGS:
        found.append(f"it holds more than {MAX_SETTINGS} settings")
    if profile.memory_mb < 1 or profile.recommendation.memory_mb < 1:
        found.append("memory_mb must be at least 1")
    if profile.recommendation.setting not in {one.setting for one in profile.measurements}:
        found.append("it recommends a setting that was not measured")
    numbers = [value for one in profile.measurements for value in msgspec.structs.astuple(one)]
    if not all(math.isfinite(value) for value in numbers if isinstance(value, float)):
        found.append("a number is not finite")
    if any(min(one.runs, one.setting.threads, one.setting.batch) < 1 for one in profile.measurements):
        found.append("runs, threads and batch must be at least 1")
    texts = [one.message for one in profile.unmeasured] + list(profile.recommendation.reasons)
    if any(len(text) > MAX_TEXT for text in texts):
        found.append(f"a text has more than {MAX_TEXT} characters")
    return found


def _malformed(problem: str) -> PeerError:
    return PeerError("message.malformed", f"cannot use the module's profile: {problem}; measure it again")


def time_text(us: float) -> str:
    """Microseconds for people."""
    return f"{us:.3g} µs" if us < 999.5 else f"{us / 1000:.3g} ms"


def threads_text(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
