"""A hundred light devices over a real Mosquitto: real downloads, a bad version, cut cables, and nothing lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_hub import desired
from skerry_hub.broker import parse_url
from skerry_hub.clock import now_ms
from skerry_hub.tables import Model, ModelVersion, VersionFile
from skerry_modules import index as indexes
from skerry_modules.manifest import parse
from skerry_simulators.fleet.fleet import Fleet, FleetSettings

from .conftest import World

pytestmark = pytest.mark.mosquitto

MANIFEST = """
format = 1
name = "blob"
engine = "python"
model = "score.py"

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 1]
"""


def publish_version(world: World, folder: Path, version: int, size: int) -> str:
    """A real index with a file of random bytes, registered by hand; returns its digest."""
    folder.mkdir()
    (folder / "module.toml").write_text(MANIFEST)
    (folder / "score.py").write_text("def init(): ...\ndef run(inputs): return inputs\n")
    (folder / "weights.bin").write_bytes(np.random.default_rng(version).bytes(size))
    built, files = indexes.build_index(folder, parse(MANIFEST))
    raw = indexes.index_bytes(built)
    digest = world.objects.put_bytes(raw)
    for path in files.values():
        world.objects.put_bytes(path.read_bytes())
    with world.db.session() as session:
        if session.get(Model, "blob") is None:
            session.add(Model(name="blob", last_version=version, created_at=now_ms()))
            session.flush()
        session.add(
            ModelVersion(
                name="blob",
                version=version,
                digest=digest,
                index_size=len(raw),
                size=built.size,
                engine="python",
                manifest="{}",
                facts="{}",
                signatures="[]",
                created_by="t",
                created_at=now_ms(),
            )
        )
        for entry in built.files:
            session.add(
                VersionFile(name="blob", version=version, path=entry.path, sha256=entry.sha256, size=entry.size)
            )
    return digest


def assign_all(world: World, names: list[str], version: int) -> None:
    with world.db.session() as session:
        for name in names:
            desired.assign(session, name, "blob", version, now=now_ms())
    world.streaming.publish_desired(names)


def until(fleet: Fleet, check: Any, what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds

    def done() -> bool:
        assert time.monotonic() < end, f"waited {seconds} s for {what}: {fleet.summary()}"
        return bool(check())

    fleet.run(done, look_s=0.1)


def test_a_fleet_takes_a_version_refuses_a_bad_one_and_loses_nothing(small_world: World, tmp_path: Path) -> None:
    world = small_world
    names = [f"sim-{number:03}" for number in range(100)]
    world.register(*names)
    world.start()
    publish_version(world, tmp_path / "v1", 1, 400_000)
    publish_version(world, tmp_path / "v2", 2, 200_000)
    host, port, _ = parse_url(world.broker.hub_url)
    key = world.key.public
    settings = FleetSettings(telemetry_s=0.5, health_s=5.0, connect_s=0.5, cut_s=20.0, fail_versions=("blob:2",))
    fleet = Fleet((host, port), world.passwords, settings=settings, trusted={key.keyid: key})
    fleet.start()
    try:
        until(fleet, lambda: fleet.summary().online == 100, "all devices to be online")
        assign_all(world, names, 1)
        until(fleet, lambda: fleet.summary().serving == {"blob:1": 100}, "version 1 everywhere")
        before = world.streaming.delivery.counters.published_bytes
        assert before < 100 * 400_000 / 4, "chunks were not shared"
        assign_all(world, names, 2)
        until(fleet, lambda: fleet.stats.failed == 100, "version 2 to fail everywhere")
        fleet.quiet = True
        until(fleet, lambda: not fleet.summary().waiting, "every record to be acknowledged")
    finally:
        fleet.stop()
    assert fleet.stats.disconnects > 0, "no cable was cut: the test proves less than it says"
    assert fleet.stats.chunks_bad == fleet.stats.unverified == fleet.stats.refused == 0
    assert world.count("telemetry") == fleet.stats.telemetry > 0
    assert world.rows("SELECT SUM(lost) FROM stream_mark")[0][0] == 0
    told = world.rows(
        "SELECT phase, role, version, COUNT(*) FROM device_module GROUP BY phase, role, version ORDER BY 3"
    )
    assert [tuple(row) for row in told] == [("Healthy", "current", 1, 100), ("Failed", "", 2, 100)]
    reasons = {reason for (reason,) in world.rows("SELECT reason FROM device_module WHERE phase = 'Failed'")}
    assert reasons == {"install.golden_failed"}
