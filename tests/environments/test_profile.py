"""A module with an environment is measured in it: what it imports is nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skerry_agent.profiling.command import Profiler
from skerry_agent.serving.plane import Plane
from skerry_agent.serving.settings import ServingSettings
from skerry_modules import profiles
from skerry_modules.errors import SkerryError
from skerry_modules.measurement import from_builtins
from skerry_modules.messages import Command

from .conftest import here
from .test_device import Device, device, packed, resolved, run

__all__ = ["device", "packed", "resolved"]  # fixtures


def test_a_module_is_measured_in_its_environment(device: Device, packed: Callable[..., Path], tmp_path: Path) -> None:
    digest, index = device.receive(packed())
    device.disk.install(digest, index)

    async def measure() -> dict[str, Any]:
        plane = Plane(ServingSettings(http="", cache=str(tmp_path / "cache")))

        async def on_disk(work: Callable[[], Any]) -> Any:
            return work()

        profiler = Profiler("dev-1", profiles.get(here()), device.disk, plane, on_disk)
        arguments = {"module": "scorer", "version": 1, "digest": digest, "seconds": 0.1, "batches": [1]}
        return await profiler(Command(id="c", name="profile", arguments=arguments), lambda _share, _text: None)

    with pytest.raises(SkerryError, match="it is not installed there") as caught:
        run(measure())  # its files are there, its environment is not
    assert caught.value.code == "measure.not_installed"
    run(device.build(index))
    found = from_builtins(run(measure()))
    assert [one.setting.engine for one in found.measurements] == ["python"]
    assert found.recommendation.confirmed
