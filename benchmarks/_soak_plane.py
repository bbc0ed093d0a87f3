"""The process with the data plane that a soak disturbs: obeys one order per line. See ``benchmarks.soak``."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import _models


async def serve(folder: Path) -> None:
    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings

    plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(folder / "cache")))
    exits: dict[str, list[str]] = {}
    ended: Counter[str] = Counter()  # of those that must not end by themselves

    def on_exit(key: str, reason: str, _restarting: bool) -> None:
        exits.setdefault(key, []).append(reason)
        if key != "rogue":
            ended[reason] += 1

    plane.on_exit = on_exit
    await plane.start()
    print(json.dumps({"port": plane.port}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        answer = ended if order["do"] == "ended" else await obey(plane, folder, exits, order)
        print(json.dumps(answer), flush=True)
    await plane.stop()


async def obey(plane: Any, folder: Path, exits: dict[str, list[str]], order: dict[str, Any]) -> Any:
    from skerry_modules.manifest import parse

    match order["do"]:
        case "load":
            source = folder / order["folder"]
            manifest = parse((source / "module.toml").read_text())
            await plane.load(order["key"], source, manifest, order["version"], _models.LIMITS)
            await plane.warm(order["key"], manifest)
        case "unload":
            await plane.unload(order["key"])
            return {"exits": exits.pop(order["key"], [])}
        case "route":
            shares, copies = order["live"], [[key, 100.0] for key in order["shadow"]]
            plane.set_routes(order["endpoint"], *_routes(plane, shares), *_routes(plane, copies))
        case "pid":
            version = plane.versions[order["key"]]
            return {"pid": version.facts["pid"], "ready": version.ready}
        case "counters":
            found: Counter[str] = Counter(rows=0, agreed=0, dropped=0, failed=0)
            for key in plane.versions:
                for part in plane.take_counters(key).parts:
                    if part.role == "shadow":
                        told = part.agreement
                        found.update(rows=told.rows, agreed=told.agreed, dropped=told.dropped, failed=told.failed)
            return {**found, "loans": sum(version.lender.loans for version in plane.versions.values())}
    return {}


def _routes(plane: Any, parts: list[Any]) -> Any:
    from skerry_modules.messages import Route

    def route(key: str, percent: float) -> Any:
        version = plane.versions[key]
        return Route(module=version.manifest.name, version=version.number, percent=percent)

    return tuple(route(*part) for part in parts), tuple(key for key, _ in parts)


if __name__ == "__main__":
    from skerry_agent.serving.plane import run

    logging.basicConfig(level=logging.ERROR, format="  plane: %(levelname)s %(name)s: %(message)s")  # stderr
    run(serve(Path(sys.argv[1])))
