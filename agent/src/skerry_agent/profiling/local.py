"""``skerry-agent profile FOLDER``: measure a module that lies on this machine. No agent runs, no hub is asked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from skerry_agent.profiling.session import Progress, Session, Subject, free_mb
from skerry_modules.errors import InputError
from skerry_modules.measurement import Measurement, ModuleProfile

if TYPE_CHECKING:
    from skerry_agent.rules.profile_plan import Wanted

RESERVE_MB = 256
"""Left free for the machine that is measured on."""


def profile(
    folder: Path, wanted: Wanted, *, deadline_s: float, firmware_profile: str, niceness: int, progress: Progress
) -> ModuleProfile:
    """Measure the module in ``folder``.

    Raises:
        SkerryError: ``manifest.*``, ``profile.unknown``, and as :meth:`Session.run`.
    """
    from skerry_agent.serving.plane import run
    from skerry_modules.package import build_index, index_bytes, read_folder

    manifest = read_folder(folder)
    if manifest.environment.given:
        raise InputError(
            "request.invalid",
            f"cannot measure {manifest.name} here: it brings an environment, which devices build; measure it on one: "
            "skerry modules profile NAME:VERSION --device D",
        )
    index, _ = build_index(folder, manifest)
    room, affinity = _room(firmware_profile)
    subject = Subject(
        folder=folder.resolve(),
        manifest=index.manifest,
        module=manifest.name,
        version=0,
        digest=hashlib.sha256(index_bytes(index)).hexdigest(),
        device="",
        profile=firmware_profile,
        room_mb=room,
        cache=None,
        niceness=niceness,
        affinity=affinity,
    )

    async def work() -> ModuleProfile:
        return await Session(subject, wanted, deadline_s, progress).run()

    found: ModuleProfile = run(work())
    return found


def _room(name: str) -> tuple[int, tuple[int, ...]]:
    """MB for a worker, and its processors: this machine's, within a firmware profile where one is named."""
    free = max(0, free_mb() - RESERVE_MB)
    if not name:
        return free, ()
    from skerry_agent.device_profile import load_profile

    firmware = load_profile(name)
    if firmware.architecture != os.uname().machine:
        raise InputError(
            "profile.invalid",
            f"cannot measure for {name} here: it is {firmware.architecture}, this machine is {os.uname().machine}; "
            "measure on such a device",
        )
    for variable, value in firmware.environment().items():
        os.environ.setdefault(variable, value)
    return min(free, firmware.limits.memory_mb), firmware.limits.cpu_affinity


def text(found: ModuleProfile) -> str:
    """For people."""
    from skerry_agent.report import table

    rows = [["ENGINE", "THREADS", "BATCH", "P50", "P90", "P99", "±", "ROWS/S", "CPU", "LOAD", "MEMORY", "RUNS"]]
    rows += [_row(one) for one in found.measurements]
    lines = [f"{found.module} on {found.machine}, {found.cores} cores, niceness {found.niceness}", ""]
    if found.simulated:
        lines[1:1] = ["simulated board: times mean nothing"]
    lines += table(rows)
    lines += [
        f"not measured: {one.setting.engine}, {one.setting.threads} threads, batch {one.setting.batch}: {one.message}"
        for one in found.unmeasured
    ]
    best = found.recommendation
    setting = best.setting
    lines += [
        "",
        (
            f"recommended: engine = {setting.engine}, threads = {setting.threads}, "
            f"max_rows = {best.max_rows}, memory_mb = {best.memory_mb}{'' if best.confirmed else ' (not tried)'}"
        ),
    ]
    lines += [f"  {reason}" for reason in best.reasons]
    lines.append(f"as its manifest stands it needs {found.memory_mb} MB")
    return "\n".join(lines)


def _row(one: Measurement) -> list[str]:
    times = [f"{value / 1000:.3f} ms" for value in (one.p50_us, one.p90_us, one.p99_us)]
    return [
        one.setting.engine,
        str(one.setting.threads),
        str(one.setting.batch),
        *times,
        f"{one.spread:.0%}",
        f"{one.rows_per_s:.0f}",
        f"{one.cpu_percent:.0f} %",
        f"{one.load_ms:.0f} ms",
        f"{one.limit_mb:.1f} MB",
        str(one.runs),
    ]
