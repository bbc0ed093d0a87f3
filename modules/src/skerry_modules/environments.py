"""A python module's packages, locked: which wheels, by SHA-256, for which devices.

A **lock** holds, for each kind of device (architecture, Python, glibc), the complete list of wheels. It stands in the
module's signed index among the facts, so that hub and device decide with it before a wheel is sent; its **key**, the
SHA-256 of its canonical JSON, names the built environment on a device, and so two modules with the same lock share one.

The wheels are files of the package under :data:`FOLDER`. A device fetches only those of its own kind and lays them out
in no module's folder: it builds an environment from them.

Pure rules; resolving is the client's (:mod:`skerry.environments`), building the agent's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from skerry_modules.errors import InputError
from skerry_modules.profiles import Profile

FORMAT: Final = 1
FOLDER: Final = "environment/"
"""Where a package keeps wheels. A path below it that no lock names is refused."""
LOCK_FILE: Final = "environment.lock"
"""Beside ``module.toml``, written when a folder is packed: packing again uses it, and so gives the same bytes."""
AGENT_PYTHON: Final = (3, 11)
"""The oldest Python that the agent runs on: a device class whose system brings an older one runs this beside it."""
ZYGOTE_MB: Final = 32
"""What a running environment takes beside its modules' workers: the process that they are forked from (measured)."""
UNLIMITED_GLIBC: Final = (999, 0)
MAX_TARGETS: Final = 64
MAX_WHEELS: Final = 1000

_PINNED: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[A-Za-z0-9._,\s-]*\])?\s*"
    r"==\s*(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)\s*(?:;.*)?"
)
_REFERENCE: Final = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]{0,62}):(?P<version>[1-9][0-9]{0,8})")
_WHEEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,240}\.whl")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Wheel(_Part, frozen=True, kw_only=True):
    """One wheel. ``installed`` is what its files take when they are unpacked; both sizes are in bytes."""

    file: str
    sha256: str
    size: int
    installed: int


class Target(_Part, frozen=True, kw_only=True):
    """The wheels for one kind of device, by file name. ``glibc`` is the oldest that they run on."""

    architecture: str  # as `uname -m` prints it
    python: str  # "3.11"
    glibc: str  # "2.36"
    wheels: tuple[Wheel, ...]

    @property
    def label(self) -> str:
        """For people, and the name of the tag that could not be resolved."""
        return f"Python {self.python}, manylinux_{self.glibc.replace('.', '_')}_{self.architecture}"

    @property
    def size(self) -> int:
        return sum(wheel.size for wheel in self.wheels)

    @property
    def installed(self) -> int:
        return sum(wheel.installed for wheel in self.wheels)


class Lock(_Part, frozen=True, kw_only=True):
    """What was asked for and what was found, for each kind of device in ascending order."""

    format: int
    requirements: tuple[str, ...]
    targets: tuple[Target, ...]

    def wheels(self) -> dict[str, Wheel]:
        """Every wheel once, by file name."""
        return {wheel.file: wheel for target in self.targets for wheel in target.wheels}


class LockFile(_Part, frozen=True, kw_only=True):
    """``environment.lock``: the lock and, where it was taken from the hub, the ``NAME:VERSION`` it came from."""

    lock: Lock
    use: str = ""


class Bundle(msgspec.Struct, frozen=True):
    """A lock and the files that hold its wheels, by SHA-256: what packing needs."""

    lock: Lock
    sources: Mapping[str, Path]


# -- what authors write ------------------------------------------------------------------------------------------------


def is_pinned(requirement: str) -> bool:
    """Whether a requirement names one version exactly: ``name[extra]==1.2.3; marker``."""
    return bool(_PINNED.fullmatch(requirement.strip()))


def parse_reference(text: str) -> tuple[str, int]:
    """``NAME:VERSION`` of an environment.

    Raises:
        InputError: ``environment.unknown``.
    """
    found = _REFERENCE.fullmatch(text)
    if not found:
        raise InputError(
            "environment.unknown",
            f"cannot find the environment {text[:80]!r}: write NAME:VERSION; see `skerry environments list`",
        )
    return found["name"], int(found["version"])


def is_reference(text: str) -> bool:
    return bool(_REFERENCE.fullmatch(text))


# -- locks -------------------------------------------------------------------------------------------------------------


def lock_bytes(lock: Lock) -> bytes:
    """Canonical JSON."""
    return msgspec.json.encode(lock, order="sorted")


def key_of(lock: Lock) -> str:
    """The SHA-256 that a lock, and the environment built from it, is known by."""
    return hashlib.sha256(lock_bytes(lock)).hexdigest()


def problems(lock: Lock) -> list[str]:
    """What types alone cannot say of a lock that came from elsewhere."""
    if lock.format != FORMAT:
        return [f"its lock has the format {lock.format}, this version reads {FORMAT}"]
    if len(lock.targets) > MAX_TARGETS or sum(len(target.wheels) for target in lock.targets) > MAX_WHEELS:
        return [f"its lock has more than {MAX_TARGETS} kinds of devices or {MAX_WHEELS} wheels"]
    found = []
    kinds = [_order(target) for target in lock.targets if _well_formed(target)]
    if len(kinds) != len(lock.targets) or not kinds or kinds != sorted(set(kinds)):
        found.append("its lock's kinds of devices are none, malformed, twice or out of order")
    seen: dict[str, Wheel] = {}
    for target in lock.targets:
        names = [wheel.file for wheel in target.wheels]
        if names != sorted(set(names)):
            found.append(f"its wheels for {target.label} stand twice or out of order")
        for wheel in target.wheels:
            if (
                not _WHEEL.fullmatch(wheel.file)
                or not _DIGEST.fullmatch(wheel.sha256)
                or min(wheel.size, wheel.installed) < 0
            ):
                found.append(f"{wheel.file[:80]!r} is no wheel with a SHA-256 and sizes")
            if seen.setdefault(wheel.file, wheel) != wheel:
                found.append(f"{wheel.file[:80]!r} stands twice with different content")
    return found


def choose(lock: Lock, architecture: str, python: str, glibc: str) -> Target | None:
    """The wheels that fit a device best: its architecture and Python, and the newest glibc that it still has.

    Args:
        python: as the device says it, ``3.11`` or ``3.11.7``.
        glibc: empty where it is not known; then any fits.
    """
    have = numbers(glibc) or UNLIMITED_GLIBC
    fitting = [
        target
        for target in lock.targets
        if target.architecture == architecture
        and numbers(target.python)[:2] == numbers(python)[:2]
        and numbers(target.glibc) <= have
    ]
    return max(fitting, key=lambda target: numbers(target.glibc), default=None)


def python_of(profile: Profile) -> str:
    """The Python that modules run under on a device class, ``3.11``; empty where the profile does not say."""
    if not profile.python:
        return ""
    return ".".join(map(str, max(numbers(profile.python)[:2], AGENT_PYTHON)))


def kinds_of(
    profiles: Iterable[Profile], pythons: tuple[str, ...] = ()
) -> dict[tuple[str, str], tuple[str, list[str]]]:
    """The kinds of devices to lock for: (architecture, Python) with the oldest glibc, and the profiles they stand for.

    Wheels for an older glibc run on a newer one, so one list per architecture and Python is enough.

    Raises:
        InputError: ``environment.unresolvable``: a profile does not say which Python or glibc its class has.
    """
    found: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for profile in profiles:
        for python in pythons or (python_of(profile),):
            if not python or not profile.glibc:
                raise InputError(
                    "environment.unresolvable",
                    f"cannot resolve an environment for {profile.name}: its profile names no python or no glibc; "
                    "add them, or leave it out of the module's targets.profiles",
                    profile=profile.name,
                )
            oldest, names = found.setdefault((profile.architecture, python), (profile.glibc, []))
            names.append(profile.name)
            if numbers(profile.glibc) < numbers(oldest):
                found[profile.architecture, python] = (profile.glibc, names)
    return dict(sorted(found.items()))


def covers(lock: Lock, architecture: str, python: str, glibc: str) -> bool:
    """Whether a lock holds wheels for a kind of device."""
    return choose(lock, architecture, python, glibc) is not None


def ordered(targets: Iterable[Target]) -> tuple[Target, ...]:
    """In the order that a lock has them."""
    return tuple(sorted(targets, key=_order))


def numbers(text: str) -> tuple[int, ...]:
    """``2.36`` as (2, 36)."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _order(target: Target) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return target.architecture, numbers(target.python), numbers(target.glibc)


def _well_formed(target: Target) -> bool:
    return bool(
        re.fullmatch(r"[a-z0-9_]{1,32}", target.architecture)
        and _VERSION.fullmatch(target.python)
        and _VERSION.fullmatch(target.glibc)
    )
