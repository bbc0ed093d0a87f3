"""What a shadow of every request costs those who are answered: p95 with it and without it, in one plane.

One version stands behind two endpoints: one has it alone, the other has a second version of the same size in shadow for
100 % of the requests. One client asks both in turns, in blocks; the live model, its worker and the front are the same
for both. A figure is the median of the blocks' p95 ratios. How many copies were scored and compared is part of each.

* ``shadow``: a model of about 6 ms, with a pause of 0 to 4 ms, drawn at random, after each answer. Answers take three
  quarters of one core, copies as much of another: a load that two cores carry twice. The copies must really be scored.
* ``shadow.saturated``: the same without a pause. Answers, front and client take a little more than one core, so that
  the copies cannot all be scored on two; answers must be as quick all the same, and the share scored is what it is.
* ``shadow.paced``: a model of about 25 µs, asked every ``PACE_S``, as devices are asked.
* ``shadow.busy``: the same without a pause. The client, the front and the live worker already take all of two cores
  here, and a copy costs the front what a request costs it (it is made, sent, compared and counted), so it cannot be
  free: the figure says what it is and has no bar.

Unlike the other benchmarks this one keeps no core awake by a spinner: spinners are of the scheduler's idle class, and
so are workers in shadow. They would take half of the copies' time, which nothing does on a device.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import _client, _models
from benchmarks._child import Child


class Case(NamedTuple):
    """How one figure is measured."""

    name: str
    model: str
    pause_s: tuple[float, float]
    block: int
    blocks: int
    bar: float | None
    scored: float = 0.0
    """Share of the copies that must be scored, else there is nothing to feel."""


PACE_S = 0.004
CASES = (
    Case("shadow", "medium", (0.0, 0.004), 60, 18, 1.1, 0.98),
    Case("shadow.saturated", "medium", (0.0, 0.0), 60, 18, 1.1),
    Case("shadow.paced", "tiny", (PACE_S, PACE_S), 100, 18, 1.1, 0.98),
    Case("shadow.busy", "tiny", (0.0, 0.0), 300, 60, None),
)
FIRST = 40
"""Requests of each block that are not measured: by then its connection is lent to the worker, as it stays for a client
that does not change between endpoints all the time."""
SETTLE_S = 0.05
"""Between two blocks: the last copies of one must not be scored during the next."""
SIZES = [64, 384, 384, 256, 256, 128, 128, 64, 64, 10]


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {}
        for version in (1, 2):
            at = folder / f"medium-{version}"
            models["medium"] = _models.convolutional(at, "medium", 64, [3, 64, 96, 112, 10], seed=version)
            models["tiny"] = _models.dense(folder / f"tiny-{version}", "tiny", SIZES, seed=version)
        with Child("benchmarks.shadow", str(folder)) as plane:
            port = plane.hear()["port"]
            return [figure(case, measure(port, case, models[case.model]), plane.ask("counts")) for case in CASES]


def measure(port: int, case: Case, model: _models.Model) -> dict[str, list[tuple[float, float]]]:
    """(p50, p95) in seconds of each block, for each of the two endpoints."""
    client = _client.Client(port)
    asked = {key: _client.request(f"{case.model}-{key}", "x", model.example) for key in ("alone", "shadowed")}
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "shadowed": []}
    chance = random.Random(1)
    for turn in range(case.blocks):
        for key in ("alone", "shadowed") if turn % 2 else ("shadowed", "alone"):
            time.sleep(SETTLE_S)
            times = []
            for _ in range(FIRST + case.block):
                began = time.perf_counter()
                status, body = client.ask(asked[key])
                times.append(time.perf_counter() - began)
                assert status == 200, body
                if case.pause_s[1]:
                    time.sleep(chance.uniform(*case.pause_s))
            times = sorted(times[FIRST:])
            found[key].append((statistics.median(times), times[len(times) * 95 // 100]))
    client.close()
    return found


def figure(case: Case, found: dict[str, list[tuple[float, float]]], counts: dict[str, int]) -> dict[str, Any]:
    asked = (FIRST + case.block) * case.blocks
    middle = {key: round(statistics.median(p50 for p50, _ in blocks) * 1e6) for key, blocks in found.items()}
    told = f"{counts['rows']} of {asked} copies scored, {counts['dropped']} dropped, {counts['failed']} failed"
    print(f"  {case.name}: {told}; p50 {middle['alone']} us alone, {middle['shadowed']} us shadowed", file=sys.stderr)
    assert counts["failed"] == 0, counts
    alone, shadowed = ([p95 for _, p95 in found[key]] for key in ("alone", "shadowed"))
    ratio = statistics.median(one / other for one, other in zip(shadowed, alone, strict=True))
    return {
        "name": case.name,
        "value": round(statistics.median(shadowed) * 1e6),
        "unit": f"us p95, {counts['rows'] / asked:.0%} of the copies scored",
        "limit": round(statistics.median(alone) * 1e6),
        "ratio": round(ratio, 3),
        "bar": case.bar,
        "ok": case.bar is None or (ratio <= case.bar and counts["rows"] >= case.scored * asked),
    }


async def serve(folder: Path) -> None:
    """The process with the plane: tells at each line what became of the copies since the last."""
    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules.manifest import parse
    from skerry_modules.messages import Route

    plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(folder / "cache")))
    await plane.start()
    for name in ("medium", "tiny"):
        for version in (1, 2):
            source = folder / f"{name}-{version}"
            manifest = parse((source / "module.toml").read_text())
            await plane.load(source.name, source, manifest, version, _models.LIMITS)
            await plane.warm(source.name, manifest, 20)
        live, copy = ((Route(module=name, version=version),) for version in (1, 2))
        plane.set_routes(f"{name}-alone", live, (f"{name}-1",))
        plane.set_routes(f"{name}-shadowed", live, (f"{name}-1",), copy, (f"{name}-2",))
    print(json.dumps({"port": plane.port}), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        await asyncio.sleep(0.5)
        parts = [part for name in ("medium-2", "tiny-2") for part in plane.take_counters(name).parts]
        shadows = [part.agreement for part in parts if part.role == "shadow"]
        print(
            json.dumps({what: sum(getattr(one, what) for one in shadows) for what in ("rows", "dropped", "failed")}),
            flush=True,
        )
    await plane.stop()


if __name__ == "__main__":
    from skerry_agent.serving.plane import run as run_loop

    run_loop(serve(Path(sys.argv[1])))
