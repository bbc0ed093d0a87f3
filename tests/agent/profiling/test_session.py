"""Real workers are measured: numbers that hang together, limits that hold, ends that are typed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.serving.models import Module, linear, linear_module, python_module
from skerry_agent.profiling.session import Session, Subject
from skerry_agent.rules.profile_plan import Wanted
from skerry_agent.serving.plane import Plane
from skerry_agent.serving.settings import ServingSettings
from skerry_modules import measurement
from skerry_modules.errors import PeerError, SkerryError
from skerry_modules.measurement import ModuleProfile
from skerry_modules.profiles import Limits
from support.processes import wait_until

QUICK = Wanted(seconds=0.1, threads=(1,), batches=(1, 8))


def subject(module: Module, **more: Any) -> Subject:
    fields: dict[str, Any] = {"room_mb": 800, "niceness": 0, "cache": None, **more}
    return Subject(
        folder=module.folder,
        manifest=module.manifest,
        module=module.manifest.name,
        version=3,
        digest=module.digest,
        device="device-1",
        profile="test-board",
        **fields,
    )


def profile(module: Module, wanted: Wanted = QUICK, *, deadline_s: float = 60.0, **more: Any) -> ModuleProfile:
    told: list[float] = []
    session = Session(subject(module, **more), wanted, deadline_s, lambda share, _text: told.append(share))
    found = asyncio.run(session.run())
    assert told == sorted(told)
    assert all(0 <= share < 1 for share in told)
    return found


def test_what_is_compiled_meanwhile_stands_where_it_was_told_and_goes(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    line = f"open({str(seen)!r}, 'a').write('|'.join(os.listdir({str(tmp_path / 'scratch')!r})) + ' ')"
    (tmp_path / "scratch").mkdir()
    wanted = msgspec.structs.replace(QUICK, batches=(1,))
    profile(script_module(tmp_path / "m", line), wanted, scratch=tmp_path / "scratch")
    assert {name.rpartition("-")[0] for name in seen.read_text().split()} == {"skerry-profile"}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_numbers_hang_together_for_each_engine_and_batch(tmp_path: Path) -> None:
    found = profile(linear_module(tmp_path / "m"))
    settings = [(one.setting.engine, one.setting.threads, one.setting.batch) for one in found.measurements]
    assert sorted(settings) == sorted((engine, 1, batch) for engine in ("onnx", "openvino") for batch in (1, 8))
    for one in found.measurements:
        assert 0 < one.p50_us <= one.p90_us <= one.p99_us <= one.max_us
        assert one.p99_low_us <= one.p99_us * 1.01
        assert one.rounds == 5
        assert one.runs >= 10
        assert one.limit_mb > 0
        assert 0 < one.steady_mb <= one.peak_mb + one.limit_mb
        assert one.first_load_ms > 0
        assert one.load_ms > 0
        assert one.spread >= 0
        # The mean time of a run is what throughput says it is, and lies between the extremes.
        assert one.rows_per_s * one.p50_us / 1e6 / one.setting.batch < 3
        assert 0 < one.cpu_percent < 100 * (os.cpu_count() or 1) + 50
    best = found.recommendation
    assert best.confirmed
    assert found.memory_mb > max(one.limit_mb for one in found.measurements if one.setting.engine == "onnx")
    assert not found.simulated
    again = measurement.from_builtins(msgspec.json.decode(msgspec.json.encode(measurement.to_builtins(found))))
    assert again == found


def test_a_worker_that_serves_gets_by_with_what_was_measured(tmp_path: Path) -> None:
    """The point of the number: it becomes the manifest's limit, and the data plane enforces it."""
    module = linear_module(tmp_path / "m")
    linear(module.folder / "model.onnx", hidden=60_000, scale=0.01)  # 1.7 MB of weights, compiled on the device
    found = profile(module)
    assert found.memory_mb < module.manifest.resources.memory_mb
    resources = msgspec.structs.replace(module.manifest.resources, memory_mb=found.memory_mb)
    tight = msgspec.structs.replace(module.manifest, resources=resources)

    async def serve() -> None:
        plane = Plane(ServingSettings(http="127.0.0.1:0", cache=str(tmp_path / "cache")))
        await plane.start()
        try:
            await plane.load(module.digest, module.folder, tight, 1, Limits(memory_mb=2000, disk_mb=100))
            await plane.warm(module.digest, tight, 20)
        finally:
            await plane.stop()

    asyncio.run(serve())


SCRIPT = """
import os, time
held = [bytearray({size})]
def run(inputs):
    rows = len(inputs["x"])
    {line}
    return {{"y": inputs["x"].sum(axis=1)}}
"""


def script_module(folder: Path, line: str = "pass", *, size: int = 0) -> Module:
    return python_module(folder, SCRIPT.format(line=line, size=size))


def test_what_a_module_holds_is_what_is_measured(tmp_path: Path) -> None:
    """A script that holds 60 MB more is measured to need 60 MB more, and its sleep is no CPU time."""
    wanted = msgspec.structs.replace(QUICK, batches=(1,))
    small = profile(script_module(tmp_path / "small", "time.sleep(0.005)"), wanted)
    large = profile(script_module(tmp_path / "large", "time.sleep(0.005)", size=60_000_000), wanted)
    (one,), (other,) = small.measurements, large.measurements
    assert 55 < other.limit_mb - one.limit_mb < 65
    assert 55 < other.steady_mb - one.steady_mb < 65
    assert 5_000 <= one.p50_us < 50_000
    assert one.cpu_percent < 60, "it sleeps"
    assert large.memory_mb - small.memory_mb >= 55


def test_a_batch_that_ends_its_worker_is_named_and_the_smaller_ones_stand(tmp_path: Path) -> None:
    found = profile(script_module(tmp_path / "m", "rows > 4 and os.kill(os.getpid(), 11)"))
    assert [one.setting.batch for one in found.measurements] == [1]
    (left,) = found.unmeasured
    assert (left.setting.batch, left.code) == (8, "measure.failed")
    assert "its worker ended (signal 11)" in left.message
    assert found.recommendation.max_rows == 1


def test_a_batch_that_the_model_refuses_is_named(tmp_path: Path) -> None:
    found = profile(script_module(tmp_path / "m", "assert rows < 4, 'too many'"))
    (left,) = found.unmeasured
    assert (left.setting.batch, left.code) == (8, "scoring.failed")
    assert "too many" in left.message
    assert [one.setting.batch for one in found.measurements] == [1]


def test_a_module_that_never_scores_ends_in_its_reason(tmp_path: Path) -> None:
    with pytest.raises(
        PeerError, match=r"cannot profile script: cannot measure script: its worker ended \(signal 11\)"
    ) as e:
        profile(script_module(tmp_path / "m", "os.kill(os.getpid(), 11)"))
    assert e.value.code == "measure.failed"


def test_a_device_without_the_memory_refuses_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(SkerryError, match=r"needs 300 MB, the device leaves 100 MB; .*") as caught:
        profile(linear_module(tmp_path / "m"), room_mb=100)
    assert caught.value.code == "unschedulable.memory"


def test_a_module_that_takes_more_than_there_is_ends_in_its_reason(tmp_path: Path) -> None:
    greedy = script_module(tmp_path / "m", "held.append(bytearray(30_000_000))")
    with pytest.raises(PeerError, match=r"its worker ended \(memory\); it had 260 MB") as caught:
        profile(greedy, room_mb=260)
    assert caught.value.code == "measure.failed"


def test_a_module_that_hangs_ends_at_the_deadline_and_leaves_no_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    line = f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(SkerryError, match="no setting was measured within the deadline") as caught:
        profile(script_module(tmp_path / "m", line), deadline_s=1.5)
    assert caught.value.code == "command.deadline"
    gone = Path(f"/proc/{pid.read_text()}")
    wait_until(lambda: not gone.exists(), what="the worker's end")


def test_what_does_not_fit_before_the_deadline_is_named_and_the_manifests_own_setting_is_not(tmp_path: Path) -> None:
    wanted = msgspec.structs.replace(QUICK, seconds=1.0, threads=(1, 2, 3, 4), batches=(1,))
    found = profile(linear_module(tmp_path / "m"), wanted, deadline_s=4.0)
    assert found.measurements[0].setting.engine == "onnx"
    assert found.measurements[0].setting.threads == 1
    assert {one.code for one in found.unmeasured} == {"command.deadline"}
    assert len(found.measurements) + len(found.unmeasured) == 8
