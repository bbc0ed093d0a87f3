"""A module of the FPGA is measured on the simulated board, while another version of it serves there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from examples.parts import built, read
from skerry_agent.profiling.session import Session, Subject
from skerry_agent.rules.profile_plan import Wanted
from skerry_agent.serving.plane import Plane
from skerry_agent.serving.settings import ServingSettings
from skerry_modules import profiles
from skerry_modules.errors import SkerryError
from skerry_modules.measurement import ModuleProfile
from skerry_modules.messages import Route

pytestmark = pytest.mark.pynq

LIMITS = profiles.get("simulated-fpga").limits
SERVING, MEASURED = "a" * 64, "b" * 64


async def measure(cache: Path, deadline_s: float = 60.0) -> ModuleProfile:
    folder = built("digits-fpga", quality="better")[0]
    manifest = read(folder)
    options = {**manifest.options, "lock_timeout_s": 1.0}
    subject = Subject(
        folder=folder,
        manifest=msgspec.structs.replace(manifest, options=options),
        module="digits-fpga",
        version=2,
        digest=MEASURED,
        device="board-1",
        profile="simulated-fpga",
        room_mb=LIMITS.memory_mb,
        cache=cache,
    )
    return await Session(subject, Wanted(seconds=0.2, batches=(1, 8)), deadline_s, lambda _share, _text: None).run()


def test_the_board_is_lent_to_the_measurement_and_no_request_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_PYNQ_DEVICE", "skerry_simulators.fpga.device")
    folder = built("digits-fpga", quality="good")[0]
    pixels = np.load(folder / "heldout.npz")["input.pixels"]

    async def scenario() -> None:
        plane = Plane(ServingSettings(http="", cache=str(tmp_path)))
        await plane.start()
        answered, over = [0], asyncio.Event()

        async def client(row: int) -> None:
            while not over.is_set():
                await plane.infer("digits", {"pixels": pixels[row : row + 1]}, timeout_s=30.0)
                answered[0] += 1

        try:
            await plane.load(SERVING, folder, read(folder), 1, LIMITS)
            plane.set_routes("digits", (Route(module="digits-fpga", version=1),), (SERVING,))
            clients = [asyncio.create_task(client(row)) for row in range(3)]
            await asyncio.sleep(0.1)
            with pytest.raises(SkerryError, match="another process held it"):
                await measure(tmp_path)  # the board is the serving worker's until it is lent
            async with plane.borrowed("pynq"):
                found = await measure(tmp_path)
                before = answered[0]
            while answered[0] < before + 20:
                await asyncio.sleep(0.01)
            over.set()
            await asyncio.gather(*clients)  # raises what any request ended in
        finally:
            await plane.stop()
        assert found.simulated
        assert [one.setting.batch for one in found.measurements] == [1, 8]
        assert {one.golden for one in found.measurements} == {"passed"}
        assert found.recommendation.setting.engine == "pynq"
        assert found.recommendation.confirmed

    asyncio.run(scenario())
