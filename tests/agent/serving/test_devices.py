"""Which device an engine takes: by manifest, by profile, by what is here; what is missing is told and stops nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent import engines
from skerry_agent.engines import _devices, _host
from skerry_agent.engines.onnx import provider_options
from skerry_modules import profiles

from .conftest import Start
from .models import linear_module

X = np.ones((2, 4), "f4")
NAMES = ["CPU", "GPU", "GPU.1", "NPU", "AUTO:GPU,CPU"]


@given(st.lists(st.sampled_from(NAMES), max_size=5), st.sets(st.sampled_from(["CPU", "GPU", "GPU.0", "NPU", "AUTO"])))
def test_choices_keep_the_order_and_end_with_the_cpu(asked: list[str], here: set[str]) -> None:
    devices, missing = _devices.choose(asked, here, "CPU")
    assert "CPU" in devices
    assert len(set(devices)) == len(devices)
    others = [name for name in devices if name != "CPU"]
    assert others == [name for name in dict.fromkeys(asked) if name in others]
    assert not set(others) & set(missing)
    assert "CPU" not in missing
    if asked and devices[0] == asked[0]:
        assert not missing


@pytest.mark.parametrize(
    ("asked", "here", "devices", "missing"),
    [
        ((), ("CPU",), ("CPU",), ()),
        (("GPU", "CPU"), ("CPU",), ("CPU",), ("GPU",)),
        (("NPU", "GPU", "CPU"), ("CPU", "GPU.0", "GPU.1"), ("GPU", "CPU"), ("NPU",)),
        (("GPU.1",), ("CPU", "GPU.0", "GPU.1"), ("GPU.1", "CPU"), ()),
        (("AUTO:GPU,CPU",), ("CPU", "AUTO"), ("AUTO:GPU,CPU", "CPU"), ()),
        (("CPU", "GPU"), ("CPU",), ("CPU",), ()),
    ],
)
def test_examples(asked: tuple[str, ...], here: tuple[str, ...], devices: tuple[str, ...], missing: tuple[str]) -> None:
    assert _devices.choose(asked, here, "CPU") == (devices, missing)


def test_the_manifest_goes_before_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_DEVICES_ONNX", "A,B")
    assert _devices.wanted({}, ("provider",), "onnx") == ("A", "B")
    assert _devices.wanted({"provider": "C, D"}, ("provider",), "onnx") == ("C", "D")
    assert _devices.wanted({}, ("provider",), "openvino") == ()


@pytest.mark.parametrize("profile", profiles.shipped().values(), ids=profiles.shipped().keys())
def test_every_profile_reaches_its_engines(profile: profiles.Profile) -> None:
    environment: dict[str, str] = {}
    _devices.publish(profile, environment)
    for engine in profile.engines:
        assert _devices.listed(engine.name, environment) == engine.devices


@pytest.mark.parametrize(
    ("engine", "devices", "option"),
    [
        ("onnx", "TensorrtExecutionProvider,CUDAExecutionProvider,CPUExecutionProvider", ""),
        ("onnx", "", 'options = { provider = "CUDAExecutionProvider" }'),
        ("onnx", "", 'options = { provider = "TensorRT,CUDA,CPU" }'),
        ("openvino", "NPU,CPU", ""),
        ("openvino", "", 'options = { device = "NPU" }'),
    ],
)
def test_a_device_that_is_missing_is_told_and_the_cpu_serves(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, devices: str, option: str
) -> None:
    """This machine has none of these: real loads through real workers."""
    monkeypatch.setenv(f"SKERRY_DEVICES_{engine.upper()}", devices)
    plane = start()
    notices: list[tuple[str, str, str]] = []
    plane.plane.on_notice = lambda *what: notices.append(what)
    module = plane.serve(linear_module(tmp_path / "m", engine=engine, more=option))
    ((digest, code, text),) = notices
    assert (digest, code) == (module.digest, "run.engine_device")
    assert "CUDA" in text or "NPU" in text
    assert "runs on CPU" in text
    assert plane.score("linear", X).status == 200


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_the_cpu_first_needs_no_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setenv(
        f"SKERRY_DEVICES_{engine.upper()}", "CPU,GPU" if engine == "openvino" else "CPUExecutionProvider"
    )
    module = linear_module(tmp_path / "m", engine=engine)
    model = engines.get(engine).load(module.folder, module.manifest, tmp_path / "cache")
    assert tuple(getattr(model, "notes", ())) == ()
    model.close()


def test_a_provider_that_is_here_is_taken(tmp_path: Path) -> None:
    """Azure's is in every build and takes no operator: the session goes on with the CPU behind it."""
    module = linear_module(tmp_path / "m", more='options = { provider = "AzureExecutionProvider" }')
    model = engines.get("onnx").load(module.folder, module.manifest, tmp_path / "cache")
    assert model._session.get_providers() == ["AzureExecutionProvider", "CPUExecutionProvider"]  # type: ignore[attr-defined]
    assert model.run({"x": X})["y"].shape == (2, 3)
    model.close()


def test_providers_keep_what_they_compile_in_the_cache(tmp_path: Path) -> None:
    module = linear_module(tmp_path / "m", more='options = { precision = "f16" }')
    found = provider_options("TensorrtExecutionProvider", module.manifest, tmp_path)
    assert found["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
    assert found["trt_fp16_enable"] == "1"
    assert provider_options("OpenVINOExecutionProvider", module.manifest, Path())["precision"] == "FP16"
    assert provider_options("CUDAExecutionProvider", module.manifest, tmp_path) == {}


def test_the_cache_is_bounded_by_bytes_too(tmp_path: Path) -> None:
    """Folders of ours count whole; in a runtime's own folder each file counts for itself."""
    for age, (name, size) in enumerate(
        [("onnx-new", 400), ("openvino-1/a.blob", 400), ("onnx-old", 400), ("openvino-1/b.blob", 100)]
    ):
        path = tmp_path / name / "model.onnx" if name.startswith("onnx") else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        for one in (path, path.parent) if name.startswith("onnx") else (path,):
            os.utime(one, (1000 - age, 1000 - age))
    _host.prune(tmp_path, 16, 900)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "onnx-new/model.onnx",
        "openvino-1/a.blob",
    ]
    _host.prune(tmp_path, 16, 10)
    assert [path.name for path in tmp_path.glob("onnx-*")] == ["onnx-new"]
