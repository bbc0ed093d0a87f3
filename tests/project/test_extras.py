"""Each extra installs alone in an empty environment and starts its command.

A shared environment hides undeclared imports: this one has nothing but what the extra asks for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")

CASES = [
    pytest.param("", ["skerry", "--help"], "import skerry, skerry_modules.package", id="base"),
    pytest.param("agent", ["skerry-agent", "--help"], "import skerry_agent.app", id="agent"),
    pytest.param(
        "agent,onnx", ["skerry-agent", "run", "--help"], "import onnxruntime, skerry_agent.app", id="agent-onnx"
    ),
    pytest.param("hub", ["skerry-hub", "--help"], "import skerry_hub.app", id="hub"),
    pytest.param(
        "environments",
        ["skerry", "environments", "--help"],
        "import pip, packaging, skerry.environments",
        id="environments",
    ),
    pytest.param(
        "convert",
        ["skerry", "modules", "convert", "--help"],
        "import onnx, onnxruntime.quantization, openvino, pyarrow, skerry.convert",
        id="convert",
    ),
    pytest.param(
        "batch", ["skerry-agent", "batch", "--help"], "import pyarrow, skerry_agent.batch.parquet", id="batch"
    ),
    pytest.param(
        "grpc", ["skerry-agent", "--help"], "import grpc, google.protobuf, skerry_agent.serving.grpc_front", id="grpc"
    ),
    pytest.param("postgres", ["skerry", "--help"], "import psycopg", id="postgres"),
    pytest.param("train", ["skerry", "--help"], "import onnx, sklearn, skl2onnx, skerry.convert.sklearn", id="train"),
    pytest.param("openvino", ["skerry-agent", "--help"], "import openvino", id="openvino"),
    pytest.param("simulators", ["skerry-sim", "--help"], "import skerry_simulators.cli", id="simulators"),
]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("extra", "command", "code"), CASES)
def test_an_extra_alone_installs_and_starts(extra: str, command: list[str], code: str, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, home], check=True)
    what = f"skerry[{extra}] @ {ROOT.as_uri()}" if extra else f"skerry @ {ROOT.as_uri()}"
    install = [UV, "pip", "install", "-q", "--python", home / "bin/python", what]
    lock = ROOT / "locks/dev.txt"
    if sys.version_info[:2] == (3, 11):
        install += ["-c", lock]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    started = subprocess.run([home / "bin" / command[0], *command[1:]], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    assert "usage" in started.stdout.lower()
    imported = subprocess.run([home / "bin/python", "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert imported.returncode == 0, imported.stderr
    profiles = "from skerry_modules import profiles; assert len(profiles.shipped()) >= 7, profiles.folder()"
    subprocess.run([home / "bin/python", "-c", profiles], check=True, cwd="/")
