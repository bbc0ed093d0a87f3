"""What a device class cannot run is said before anything is sent, with the number or name that decides."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_modules.compatibility import DeviceFacts, ModelFacts, deciding, obstacles, python_fits
from skerry_modules.manifest import Manifest, Resources, Targets
from skerry_modules.profiles import EngineSupport, Limits, Profile
from skerry_modules.tensors import TensorSpec

X = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
MODULE = Manifest(format=1, name="m", engine="onnx", model="m.onnx", inputs=X, outputs=X)
ENGINES = (
    EngineSupport(name="onnx", max_opset=21),
    EngineSupport(name="openvino", unsupported_operators=("ai.onnx.ml.*", "NonZero")),
)
PROFILE = Profile(
    format=1,
    name="box",
    title="A box",
    architecture="x86_64",
    cores=4,
    memory_mb=4000,
    engines=ENGINES,
    limits=Limits(memory_mb=500, disk_mb=100),
    sources=("test",),
    accelerators=("npu",),
    python="3.11",
)


def change(**fields: Any) -> Manifest:
    return msgspec.structs.replace(MODULE, **fields)


NONE = ModelFacts()
CASES: list[tuple[str, Manifest, ModelFacts, DeviceFacts | None, str, str]] = [
    ("engine", change(engine="pynq"), NONE, None, "engine", "needs the engine pynq, box has onnx, openvino"),
    ("not installed", MODULE, NONE, DeviceFacts(engines={"openvino": "1"}), "engine", "has installed openvino"),
    ("memory", change(resources=Resources(memory_mb=501)), NONE, None, "memory", "needs 501 MB, profile leaves 500"),
    (
        "memory in use",
        change(resources=Resources(memory_mb=256)),
        NONE,
        DeviceFacts(memory_in_use_mb=300),
        "memory",
        "needs 256 MB, profile leaves 200 MB",
    ),
    ("disk", MODULE, ModelFacts(size_bytes=100_000_001), None, "disk", "needs 101 MB of disk, profile leaves 100 MB"),
    ("disk declared", change(resources=Resources(disk_mb=200)), NONE, None, "disk", "needs 200 MB of disk"),
    ("accelerator", change(resources=Resources(accelerators=("npu", "gpu"))), NONE, None, "accelerator", "needs gpu"),
    (
        "architecture",
        change(targets=Targets(architectures=("aarch64",))),
        NONE,
        None,
        "architecture",
        "supports aarch64, the device is x86_64",
    ),
    (
        "profile",
        change(targets=Targets(profiles=("kv260",))),
        NONE,
        None,
        "profile",
        "targets kv260, the device is a box",
    ),
    (
        "python",
        change(targets=Targets(python=">=3.12")),
        NONE,
        None,
        "python",
        "needs Python >=3.12, the device has 3.11",
    ),
    ("opset", MODULE, ModelFacts(opset=22), None, "operator", "uses opset 22, onnx there reads up to 21"),
    ("operator", change(engine="openvino"), ModelFacts(operators=("Add", "NonZero")), None, "operator", "uses NonZero"),
    (
        "operator domain",
        change(engine="openvino"),
        ModelFacts(operators=("ai.onnx.ml.Scaler",)),
        None,
        "operator",
        "uses ai.onnx.ml.Scaler, which openvino does not support",
    ),
]


@pytest.mark.parametrize(("_name", "module", "model", "device", "code", "text"), CASES, ids=[case[0] for case in CASES])
def test_each_obstacle_has_its_code_and_says_what_decides(
    _name: str, module: Manifest, model: ModelFacts, device: DeviceFacts | None, code: str, text: str
) -> None:
    found = obstacles(module, model, PROFILE, device)
    assert [obstacle.code for obstacle in found] == [f"unschedulable.{code}"]
    assert text in found[0].message


def test_what_fits_has_no_obstacle_and_all_obstacles_are_told_at_once() -> None:
    assert obstacles(MODULE, ModelFacts(opset=21, operators=("ai.onnx.ml.Scaler",), size_bytes=1), PROFILE) == []
    heavy = change(engine="python", resources=Resources(memory_mb=9999, accelerators=("gpu",)))
    codes = {obstacle.code for obstacle in obstacles(heavy, ModelFacts(), PROFILE)}
    assert codes == {"unschedulable.engine", "unschedulable.memory", "unschedulable.accelerator"}


def test_what_the_device_says_of_itself_counts_more_than_its_profile() -> None:
    module = change(
        targets=Targets(architectures=("aarch64",), python=">=3.12"), resources=Resources(accelerators=("gpu",))
    )
    device = DeviceFacts(architecture="aarch64", python="3.13.1", accelerators=("gpu",))
    assert obstacles(module, ModelFacts(), PROFILE, device) == []


@pytest.mark.parametrize(
    ("version", "specifier", "fits"),
    [
        ("3.11", ">=3.11", True),
        ("3.11.2", ">=3.11", True),
        ("3.11", ">=3.11.4", False),
        ("3.12.1", "<3.12", False),
        ("3.11.9", "<3.12", True),
        ("3.11.9", "<=3.11", True),
        ("3.12", "==3.11.*", False),
        ("3.11.4", "==3.11.*", True),
        ("3.11.4", "==3.11", True),
        ("3.11", "!=3.11", False),
        ("3.12", ">3.11", True),
        ("3.11.5", ">3.11", False),
        ("3.13", "~=3.11", True),
        ("4.0", "~=3.11", False),
        ("3.13", ">=3.11,<3.13", False),
        ("3.12", " >= 3.11 , < 3.13 ", True),
        ("3.12", "", True),
        ("3.12", "nonsense", False),
    ],
)
def test_python_versions(version: str, specifier: str, fits: bool) -> None:
    assert python_fits(version, specifier) is fits


NUMBERS = st.tuples(st.integers(0, 9), st.integers(0, 20))


@given(NUMBERS, NUMBERS)
def test_python_versions_order_as_numbers_do(have: tuple[int, int], want: tuple[int, int]) -> None:
    version, bound = f"{have[0]}.{have[1]}", f"{want[0]}.{want[1]}"
    assert python_fits(version, f">={bound}") == (have >= want)
    assert python_fits(version, f"<{bound}") == (have < want)
    assert python_fits(version, f"=={bound}") == (have == want)
    assert python_fits(version, f"!={bound}") != python_fits(version, f"=={bound}")


@given(st.integers(1, 2000), st.integers(0, 600))
def test_memory_is_an_obstacle_exactly_above_what_is_left(needs: int, used: int) -> None:
    found = obstacles(
        change(resources=Resources(memory_mb=needs)), ModelFacts(), PROFILE, DeviceFacts(memory_in_use_mb=used)
    )
    assert bool(found) == (needs > 500 - used)


FACTS = st.builds(
    DeviceFacts,
    architecture=st.sampled_from(["", "x86_64", "aarch64"]),
    python=st.sampled_from(["", "3.9.2", "3.13"]),
    engines=st.sampled_from([{}, {"onnx": "1.31"}, {"pynq": "3"}]),
    accelerators=st.sampled_from([(), ("cuda",)]),
    memory_mb=st.integers(0, 10**5),
    free_disk_mb=st.integers(0, 10**6),
    memory_in_use_mb=st.integers(0, 600),
)


@given(FACTS, FACTS, st.integers(1, 600))
def test_devices_that_are_equal_in_what_decides_are_judged_alike(
    one: DeviceFacts, other: DeviceFacts, needs: int
) -> None:
    module = change(resources=Resources(memory_mb=needs, accelerators=("cuda",)), targets=Targets(python=">=3.10"))
    alike = obstacles(module, ModelFacts(size_bytes=10**9), PROFILE, one)
    assert obstacles(module, ModelFacts(size_bytes=10**9), PROFILE, deciding(one)) == alike
    if deciding(one) == deciding(other):
        assert obstacles(module, ModelFacts(size_bytes=10**9), PROFILE, other) == alike
