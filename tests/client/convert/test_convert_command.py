"""``skerry modules convert`` as people and programs see it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from skerry_modules.errors import InputError

from ..conftest import Run
from . import models


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return models.heldout(tmp_path / "heldout.npz")


def test_it_tells_the_figures_and_the_folder_packs(run: Run, rows: Path, tmp_path: Path) -> None:
    module = models.digits_module(tmp_path / "digits")
    said = run(
        "modules", "convert", module, "--precision", "int8-static", "--samples", rows, "--timing-s", "0.01"
    )  # fmt: skip
    for word in ("passed", "of 331 samples", "accuracy", "p50, 1 row", "p50, 32 rows", "size", "onnxruntime"):
        assert word in said.out
    assert "next: skerry deploy digits-onnx-int8-static" in said.err
    packed = run("modules", "pack", "digits-onnx-int8-static", "--unsigned", "--json").json
    assert packed["manifest"]["tags"]["conversion"] == "onnx-int8-static"


def test_programs_get_the_whole_report(run: Run, rows: Path, tmp_path: Path) -> None:
    module = models.digits_module(tmp_path / "digits")
    options = ("--to", "openvino", "--samples", rows, "--timing-s", "0.01", "-o", "ir", "--json")
    report = run("modules", "convert", module, *options).json
    assert report["ok"] is True
    assert report["folder"] == "ir"
    assert report["verdict"]["agreement"] == 1
    assert report["before"]["size"] == (module / "model.onnx").stat().st_size
    assert report["after"]["size"] == sum(
        (tmp_path / "ir" / name).stat().st_size for name in ("model.xml", "model.bin")
    )
    assert [one["rows"] for one in report["after"]["latency"]] == [1, 32]


@pytest.mark.parametrize("calibrator", ["minmax", "entropy"])
def test_what_fails_is_exit_code_1_and_nothing_is_written(run: Run, calibrator: str, tmp_path: Path) -> None:
    source = models.convnet(tmp_path / "source" / "net.onnx", stretch=2000.0)
    images = models.heldout(tmp_path / "images.npz", images=True)
    options = ("--precision", "int8-static", "--samples", images, "-o", "int8", "--calibrator", calibrator)
    said = run("modules", "convert", source, *options, code=1)
    assert "FAILED" in said.out
    assert "images.npz row" in said.out
    assert "[convert.gate_failed]" in said.err
    as_json = run("modules", "convert", source, *options, "--json", code=1)
    assert as_json.json["ok"] is False
    assert as_json.json["folder"] is None
    assert len(as_json.json["verdict"]["worst"]) == 5
    assert json.loads(as_json.err)["code"] == "convert.gate_failed"
    assert not (tmp_path / "int8").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".int8")]


def test_bars_are_options(run: Run, rows: Path, tmp_path: Path) -> None:
    module = models.digits_module(tmp_path / "digits")
    quantise = ("--precision", "int8-dynamic", "--samples", rows, "--timing-s", "0", "-o", "int8")
    run("modules", "convert", module, *quantise, "--max-delta", "0.0001", code=1)
    run("modules", "convert", module, *quantise, "--min-agreement", "1.0", "--max-delta", "0.0001", code=1)
    report = run("modules", "convert", module, *quantise, "--max-delta", "0.4", "--argmax", "none", "--json").json
    (output,) = report["verdict"]["outputs"]
    assert (output["decides"], output["bar"]) == ("", 0.4)


def test_wrong_input_is_exit_code_2(run: Run, tmp_path: Path) -> None:
    module = models.digits_module(tmp_path / "digits")
    said = run("modules", "convert", module, "--precision", "int1", code=2)
    assert "[convert.unsupported]" in said.err
    (tmp_path / "m.pkl").write_bytes(b"")
    said = run("modules", "convert", "m.pkl", code=2)
    assert "say --trust-pickle" in said.err


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_it_says_what_to_install(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"")
    said = run("modules", "convert", "net.pt2", "--trust-pickle", code=4)
    assert "`pip install torch onnxscript`" in said.err
    assert "[resource.missing_dependency]" in said.err


def test_the_error_survives_a_trip_between_processes() -> None:
    import pickle

    from skerry.convert.report import GateFailed

    error = pickle.loads(pickle.dumps(GateFailed("convert.gate_failed", "cannot", report={"ok": False})))
    assert isinstance(error, GateFailed)
    assert isinstance(error, InputError)
    assert error.data["report"] == {"ok": False}
