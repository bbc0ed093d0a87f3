"""Firmware profiles: one TOML per device class, from the vendor's published facts, read into typed structs.

The hub decides with them what can be scheduled where, before anything is sent; the agent starts from one; the
simulator builds fleets from them. The files stand in ``firmware-profiles/`` and ship inside this package.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Final, get_args

import msgspec

from skerry_modules.errors import InputError
from skerry_modules.manifest import EngineName

FORMAT: Final = 1
ENGINES: Final[tuple[str, ...]] = get_args(EngineName)


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class EngineSupport(_Part, frozen=True, kw_only=True):
    """An engine on this class: versions as a PEP 440 specifier, and the devices or providers it may use.

    ``environment`` is set in the agent before it starts the engine, where it is not set already.
    """

    name: str
    versions: str = ""
    devices: tuple[str, ...] = ()  # e.g. CPU, GPU, NPU; CUDAExecutionProvider; the PYNQ board's name
    max_opset: int = 0  # 0: not limited by the profile
    unsupported_operators: tuple[str, ...] = ()  # "ai.onnx.ml.Scaler"; "some.domain.*" for a whole domain
    environment: dict[str, str] = {}
    note: str = ""


class Limits(_Part, frozen=True, kw_only=True):
    """What modules may take, all together. Megabytes are 10**6 bytes."""

    memory_mb: int
    disk_mb: int
    processes: int = 64
    niceness: int = 0
    cpu_affinity: tuple[int, ...] = ()  # empty: any


class Link(_Part, frozen=True, kw_only=True):
    """What the class usually hangs on; the byte budget per day is for all that goes up."""

    kind: str = "ethernet"
    up_kbit_s: int = 10_000
    down_kbit_s: int = 10_000
    budget_mb_day: int = 0  # 0: unlimited


class Profile(_Part, frozen=True, kw_only=True):
    """One device class. ``sources`` name where the facts come from."""

    format: int
    name: str
    title: str
    architecture: str  # as `uname -m` prints it
    cores: int
    memory_mb: int
    engines: tuple[EngineSupport, ...]
    limits: Limits
    sources: tuple[str, ...]
    vendor: str = ""
    board: str = ""
    cpu: str = ""
    description: str = ""
    accelerators: tuple[str, ...] = ()
    python: str = ""  # the Python that the minimum OS brings, e.g. "3.11"
    glibc: str = ""  # and its C library, e.g. "2.36": which wheels run there
    min_os: str = ""
    min_firmware: str = ""
    sensors: tuple[str, ...] = ()
    power_w: float = 0.0
    link: Link = Link()

    def engine(self, name: str) -> EngineSupport | None:
        return next((engine for engine in self.engines if engine.name == name), None)

    def environment(self) -> dict[str, str]:
        """What the engines of this class want set."""
        return {name: value for engine in self.engines for name, value in engine.environment.items()}


def parse(text: str, *, source: str = "profile") -> Profile:
    """Read one profile.

    Raises:
        InputError: ``profile.invalid``.
    """
    try:
        profile = msgspec.convert(tomllib.loads(text), Profile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError("profile.invalid", f"cannot use the firmware profile {source}: {error}") from error
    if profile.format != FORMAT:
        raise InputError("profile.invalid", f"cannot use the firmware profile {source}: this version reads format 1")
    for problem in problems(profile):
        raise InputError("profile.invalid", f"cannot use the firmware profile {source}: {problem}")
    return profile


def problems(profile: Profile) -> list[str]:
    """What types alone cannot say."""
    found = []
    if not profile.sources or not all(profile.sources):
        found.append("sources: name the documents that its facts come from")
    if not profile.engines:
        found.append("engines: at least one is needed")
    names = [engine.name for engine in profile.engines]
    found += [f"engines: {name!r} stands twice" for name in sorted(set(names)) if names.count(name) > 1]
    found += [f"engines: {name!r} is not one of {', '.join(ENGINES)}" for name in names if name not in ENGINES]
    if min(profile.cores, profile.memory_mb, profile.limits.memory_mb, profile.limits.disk_mb) <= 0:
        found.append("cores, memory_mb, limits.memory_mb and limits.disk_mb must be above 0")
    if profile.limits.memory_mb >= profile.memory_mb:
        found.append("limits.memory_mb: modules must leave memory to the system and the agent")
    if profile.glibc and not re.fullmatch(r"2\.[0-9]{1,2}", profile.glibc):
        found.append("glibc: a version such as 2.36, or nothing")
    if any(not 0 <= core < profile.cores for core in profile.limits.cpu_affinity):
        found.append("limits.cpu_affinity: names a core that the class does not have")
    return found


def folder() -> Path:
    """Where the shipped profiles stand: inside the installed package, or in the source tree."""
    installed = Path(__file__).parent / "firmware_profiles"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "firmware-profiles"


@cache
def shipped() -> dict[str, Profile]:
    """All shipped profiles by name."""
    found = [parse(path.read_text(), source=path.name) for path in sorted(folder().glob("*.toml"))]
    return {profile.name: profile for profile in found}


def get(name: str) -> Profile:
    """One shipped profile.

    Raises:
        InputError: ``profile.unknown``, with the names that exist.
    """
    try:
        return shipped()[name]
    except KeyError:
        names = ", ".join(shipped())
        raise InputError(
            "profile.unknown", f"cannot find the firmware profile {name!r}: choose one of {names}"
        ) from None
