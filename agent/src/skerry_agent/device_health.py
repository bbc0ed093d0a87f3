"""The device's own condition by psutil, as :class:`skerry_modules.messages.Health`, and what it can run.

What a machine does not tell (a container without sensors, say) is −1, never an error.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry_modules.compatibility import DeviceFacts
from skerry_modules.messages import Health
from skerry_modules.profiles import Profile

if TYPE_CHECKING:
    import psutil

_HOT = ("coretemp", "k10temp", "cpu_thermal", "soc_thermal", "cpu-thermal", "zynqmp", "acpitz")


class DeviceHealth:
    """Reads the device.

    Args:
        boot: this run of the agent.
        folder: whose disk is watched.
    """

    def __init__(self, boot: str, folder: Path) -> None:
        self._boot = boot
        self._folder = folder
        self._process: psutil.Process | None = None

    def read(self, spool: dict[str, Any], dropped: dict[str, int]) -> Health:
        """Now. ``spool``: its facts; ``dropped``: records by stream. CPU is since the call before."""
        import psutil

        if self._process is None:
            self._process = psutil.Process()
            psutil.cpu_percent()
        memory = psutil.virtual_memory()
        agent, workers = self._memory(self._process)
        network = _or(None, psutil.net_io_counters)
        disk = _or(None, psutil.disk_usage, str(self._folder))
        return Health(
            boot=self._boot,
            uptime_s=time.clock_gettime(time.CLOCK_BOOTTIME),
            cpu_percent=psutil.cpu_percent(),
            load1=_or((-1.0,), os.getloadavg)[0],
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            disk_used=disk.used if disk else -1,
            disk_total=disk.total if disk else -1,
            temperature_c=_temperature(),
            agent_memory=agent,
            workers_memory=workers,
            network_in=network.bytes_recv if network else -1,
            network_out=network.bytes_sent if network else -1,
            spool_records=spool["records"],
            spool_bytes=spool["bytes"],
            spool_dropped=dropped,
        )

    @staticmethod
    def _memory(process: psutil.Process) -> tuple[int, int]:
        """(agent, its children): proportional set size, so that shared pages count once."""
        return pss(process.pid), sum(max(0, pss(child.pid)) for child in _or([], process.children, recursive=True))


def pss(pid: int) -> int:
    """Proportional set size in bytes (``/proc/<pid>/smaps_rollup``); −1 where the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return -1


def _temperature() -> float:
    import psutil

    found = _or({}, getattr(psutil, "sensors_temperatures", dict))
    for name in (*_HOT, *found):
        for reading in found.get(name, ()):
            if reading.current:
                return float(reading.current)
    return -1.0


def _or(default: Any, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the machine tells, or the default: sensors differ, and none of them is worth a crash."""
    import psutil

    try:
        return function(*arguments, **options)
    except (OSError, psutil.Error, RuntimeError, NotImplementedError, KeyError, ValueError):
        return default


def facts(profile: Profile, engines: dict[str, str], free_disk_mb: int) -> DeviceFacts:
    """What this device really is, for the scheduler."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000
    return DeviceFacts(
        architecture=platform.machine(),
        python=platform.python_version(),
        glibc=platform.libc_ver()[1],
        engines=engines,
        accelerators=profile.accelerators,
        memory_mb=memory,
        free_disk_mb=free_disk_mb,
    )
