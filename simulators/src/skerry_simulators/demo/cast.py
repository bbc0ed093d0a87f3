"""Who plays in the demo: agents with their engines, and the modules that each of them runs."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

import skerry_modules
from skerry_simulators.demo.processes import DemoFailure

QUALITIES: Final = {1: "good", 2: "better", 3: "broken"}
"""What ``train.py`` calls the demo's versions: few digits seen, all digits seen, pre-processing that differs."""


class Player(msgspec.Struct, frozen=True, kw_only=True):
    """One agent. ``example`` is the folder of the module that it runs, under ``modules/examples``."""

    device: str
    engine: str
    package: str  # the Python package that the engine needs
    profile: str
    module: str
    example: str
    environment: dict[str, str] = {}

    @property
    def fault(self) -> str:
        """Why the engine's package cannot be used here; empty where it can."""
        return _fault(self.package)


@cache
def _fault(package: str) -> str:
    """Found is not enough: a package that cannot be imported would let the demo fail a minute later."""
    if find_spec(package) is None:
        return "is not installed here"
    tried = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return ""
    return f"cannot be imported here: {(tried.stderr.strip().splitlines() or ['it crashed'])[-1]}"


def players() -> tuple[Player, ...]:
    """The four agents: two on ONNX Runtime, one on OpenVINO, one on PYNQ over the simulated board."""
    machine = platform.machine()
    profile = f"generic-{machine}" if machine in ("x86_64", "aarch64") else "generic-x86_64"
    gate = Player(
        device="gate-1", engine="onnx", package="onnxruntime", profile=profile, module="digits", example="digits"
    )
    return (
        gate,
        msgspec.structs.replace(gate, device="gate-2"),
        Player(
            device="line-1",
            engine="openvino",
            package="openvino",
            profile=profile,
            module="digits-openvino",
            example="digits",
        ),
        Player(
            device="board-1",
            engine="pynq",
            package="pynq",
            profile="simulated-fpga",
            module="digits-fpga",
            example="digits-fpga",
            environment={"SKERRY_PYNQ_DEVICE": "skerry_simulators.fpga.device"},
        ),
    )


def cast() -> tuple[list[Player], list[str]]:
    """The agents that this installation can run, and a sentence on each that it cannot.

    Raises:
        DemoFailure: ONNX Runtime is missing, without which there is no canary.
    """
    able = [player for player in players() if not player.fault]
    missing = [
        f"{player.device} is left out: the package {player.package} {player.fault} "
        f"(`pip install 'skerry[{player.engine}]'`)"
        for player in players()
        if player.fault
    ]
    if sum(player.engine == "onnx" for player in able) < 2:
        raise DemoFailure("the demo needs ONNX Runtime: pip install 'skerry[onnx]'")
    if find_spec("sklearn") is None or find_spec("skl2onnx") is None:
        raise DemoFailure("the demo trains its models: pip install 'skerry[train]'")
    return able, missing


def example(name: str) -> Path:
    """The source folder of an example module.

    Raises:
        DemoFailure: this is an installation without the source tree.
    """
    folder = Path(skerry_modules.__file__).resolve().parents[2] / "examples" / name
    if not (folder / "train.py").is_file():
        raise DemoFailure(f"the demo trains {name} from the source tree, which is not here: clone the repository")
    return folder
