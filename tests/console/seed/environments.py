"""Two environments of the seeded fleet: one reused by versions of two modules, one that nothing uses any more."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlmodel import SQLModel

from skerry_hub import tables as t
from skerry_modules import environments
from skerry_modules.environments import Lock, Target, Wheel

MINUTE = 60_000
KINDS = (("aarch64", "3.11", "2.36"), ("x86_64", "3.11", "2.36"), ("x86_64", "3.12", "2.39"))
PURE = (("joblib", "1.5.2", 308_396), ("threadpoolctl", "3.6.0", 18_638))
BUILT = (("numpy", "2.3.4", 16_821_570), ("scikit_learn", "1.7.2", 9_484_133), ("scipy", "1.16.2", 35_711_002))


def rows(now: int) -> dict[type[SQLModel], list[dict[str, Any]]]:
    """Rows of the three tables."""
    first, second = _lock(KINDS[:2], BUILT[:1]), _lock(KINDS, BUILT)
    versions = [
        _version("signals", 1, first, "mira", now - 9_000 * MINUTE),
        _version("vision", 1, first, "jonas", now - 7_000 * MINUTE),
        _version("vision", 2, second, "mira", now - 600 * MINUTE),
    ]
    uses = [("vibration", 1, "vision", 1), ("vibration", 2, "vision", 2), ("digits", 4, "vision", 2)]
    return {
        t.Environment: [
            {"name": "signals", "last_version": 1, "created_at": now - 9_000 * MINUTE},
            {"name": "vision", "last_version": 2, "created_at": now - 7_000 * MINUTE},
        ],
        t.EnvironmentVersion: versions,
        t.EnvironmentUse: [
            {"module": module, "module_version": number, "environment": name, "environment_version": version}
            for module, number, name, version in uses
        ],
    }


def _lock(kinds: tuple[tuple[str, str, str], ...], built: tuple[tuple[str, str, int], ...]) -> Lock:
    targets = []
    for architecture, python, glibc in kinds:
        tag = f"cp{python.replace('.', '')}"
        place = f"{tag}-{tag}-manylinux_{glibc.replace('.', '_')}_{architecture}"
        names = [(f"{name}-{version}-{place}.whl", size) for name, version, size in built]
        names += [(f"{name}-{version}-py3-none-any.whl", size) for name, version, size in PURE]
        wheels = (_wheel(file, size) for file, size in sorted(names))
        targets.append(Target(architecture=architecture, python=python, glibc=glibc, wheels=tuple(wheels)))
    asked = tuple(f"{name.replace('_', '-')}=={version}" for name, version, _ in built)
    return Lock(format=environments.FORMAT, requirements=asked, targets=tuple(targets))


def _wheel(file: str, size: int) -> Wheel:
    return Wheel(file=file, sha256=hashlib.sha256(file.encode()).hexdigest(), size=size, installed=size * 3)


def _version(name: str, version: int, lock: Lock, by: str, at: int) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "digest": environments.key_of(lock),
        "lock": environments.lock_bytes(lock).decode(),
        "size": sum(wheel.size for wheel in lock.wheels().values()),
        "created_by": by,
        "created_at": at,
    }
