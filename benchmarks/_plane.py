"""A process with the data plane, for benchmarks: what an agent serves with, without the rest of the agent.

Run as ``python -m benchmarks._plane FOLDER NAME…``; each NAME is a model of ``benchmarks._models``. It prints one JSON
line with its address and process ids, then serves until standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._child import Child


@contextlib.contextmanager
def serving(folder: Path, *names: str) -> Iterator[dict[str, Any]]:
    """Facts of a running plane: port, pid, zygote and workers."""
    with Child("benchmarks._plane", str(folder), *names) as plane:
        yield {"pid": plane.pid, **plane.hear()}


async def main(folder: Path, names: list[str]) -> None:
    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules.manifest import parse
    from skerry_modules.messages import Route
    from skerry_modules.profiles import Limits

    plane = Plane(ServingSettings(http="127.0.0.1:0", socket=str(folder / "s.sock"), cache=str(folder / "cache")))
    await plane.start()
    workers = []
    for name in names:
        manifest = parse((folder / name / "module.toml").read_text())
        limits = Limits(memory_mb=4000, disk_mb=1000)
        facts = await plane.load(name, folder / name, manifest, 1, limits)
        workers.append(facts["pid"])
        plane.set_routes(name, (Route(module=name, version=1),), (name,))
        await plane.warm(name, manifest)
    told = {"port": plane.port, "socket": str(folder / "s.sock"), "pids": plane.pids(), "workers": workers}
    print(json.dumps(told), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await plane.stop()


if __name__ == "__main__":
    from skerry_agent.serving.plane import run

    run(main(Path(sys.argv[1]), sys.argv[2:]))
