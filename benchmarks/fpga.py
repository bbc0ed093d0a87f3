"""The simulated board against the integer reference, and eight faults, each caught by a reason of its own.

``fpga.exact`` counts the int32 accumulators of all held-out digits that differ from
``skerry_simulators.fpga.network.reference``, which computes directly what the board computes from the packed bitstream
in folds: through the engine, the stock ``pynq`` overlay and its DMA driver. There is no tolerance.

``fpga.caught`` starts a data plane for each fault, in a process whose board has it (``SKERRY_FPGA_FAULTS``), and loads
the module there as an agent does. A fault is caught where the load is refused with the code and the words that belong
to it, no two faults are told alike, and the same plane without the fault loads and passes its golden test.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the example modules, as the tests build them

from examples.parts import built, read, script

DEVICE: Final = "skerry_simulators.fpga.device"
TIMEOUT_S = 0.5
"""A transfer that takes longer hangs; a good one takes some milliseconds."""
FAULTS: Final = {
    "no-flush": ("board.stale_memory", "never reached the board (no flush)"),
    "wrong-order": ("board.wrong_order", "the bytes of each 4-byte word are reversed"),
    "misaligned": ("board.misaligned", "needs multiples of 4 bytes"),
    "oversize": ("board.oversize", "bytes that its DMA engine moves at once"),
    "dma-error": ("board.dma_error", "input DMA slave error"),
    "hang": ("board.hang", "did not end within"),
    "wrong-hwh": ("board.wrong_metadata", "nothing answers where its .hwh says"),
    "wrong-bitstream": ("board.wrong_bitstream", "identifies itself as"),
}


def run() -> list[dict[str, Any]]:
    folder = built("digits-fpga", quality="better")[0]
    with tempfile.TemporaryDirectory() as name:
        differ, total = exact(folder, Path(name))
        caught = faults(folder)
    return [
        {
            "name": "fpga.exact",
            "value": differ,
            "unit": f"of {total} outputs differ from the integer reference",
            "limit": 0,
            "ratio": 0.0,
            "bar": 0,
            "ok": differ == 0 and total > 0,
        },
        {
            "name": "fpga.caught",
            "value": caught,
            "unit": "faults, each by a reason of its own",
            "limit": len(FAULTS),
            "ratio": round(caught / len(FAULTS), 3),
            "bar": 1.0,
            "ok": caught == len(FAULTS),
        },
    ]


def exact(folder: Path, cache: Path) -> tuple[int, int]:
    """(accumulators that differ, all of them) over the held-out digits."""
    from skerry_simulators.fpga import network

    os.environ["SKERRY_PYNQ_DEVICE"] = DEVICE
    from skerry_agent.engines.pynq import ENGINE

    example = script("digits-fpga")
    train_x, train_y, held_x, _ = example.load()
    reference, _scale = example.quantise(example.train(train_x, train_y, example.PLANS["better"], 0), train_x)
    expected = network.reference(reference, example.to_int8(held_x))
    model: Any = ENGINE.load(folder, read(folder), cache)
    try:
        found = model.integers({"pixels": held_x})
    finally:
        model.close()
    assert found.shape == expected.shape
    assert len(held_x) == 599
    return int(np.count_nonzero(found != expected)), expected.size


def faults(folder: Path) -> int:
    """How many are caught by the code and the words that are theirs alone."""
    assert told(folder, "") == {"code": "", "message": "", "golden": True}, "the board without a fault must serve"
    caught, reasons = 0, set()
    for fault, (code, words) in FAULTS.items():
        found = told(folder, fault)
        right = found["code"] == code and words in found["message"]
        print(f"  {fault}: {found['code'] or 'not caught'}: {found['message']}", file=sys.stderr)
        caught += right
        reasons.add((found["code"], found["message"]))
    return min(caught, len(reasons))


def told(folder: Path, fault: str) -> dict[str, Any]:
    """What a data plane in a process of its own, whose board has the fault, says of the module."""
    environment = {**os.environ, "SKERRY_PYNQ_DEVICE": DEVICE, "SKERRY_FPGA_FAULTS": fault}
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.fpga", str(folder), cache]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


async def load(folder: Path, cache: Path) -> None:
    from skerry_agent.serving.plane import Plane
    from skerry_agent.serving.settings import ServingSettings
    from skerry_modules import profiles
    from skerry_modules.errors import SkerryError

    manifest = read(folder)
    manifest = msgspec.structs.replace(manifest, options={**manifest.options, "transfer_timeout_s": TIMEOUT_S})
    plane = Plane(ServingSettings(http="", cache=str(cache)))
    await plane.start()
    found: dict[str, Any] = {"code": "", "message": "", "golden": False}
    try:
        await plane.load("a" * 64, folder, manifest, 1, profiles.get("simulated-fpga").limits)
        found["golden"] = (await plane.golden("a" * 64, folder, manifest)).passed
    except SkerryError as error:
        found.update(code=error.code, message=error.message)
    finally:
        await plane.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(load(Path(sys.argv[1]), Path(sys.argv[2])))
