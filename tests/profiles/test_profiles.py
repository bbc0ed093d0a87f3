"""The shipped device classes: complete, sourced, and each able to say why something cannot run on it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_modules import profiles
from skerry_modules.compatibility import DeviceFacts, ModelFacts, Obstacle, obstacles
from skerry_modules.environments import Lock, Target
from skerry_modules.errors import InputError
from skerry_modules.manifest import Environment, Manifest, Resources, Targets
from skerry_modules.tensors import TensorSpec

REQUIRED = {
    "generic-x86_64",
    "generic-aarch64",
    "raspberry-pi-5",
    "intel-n100",
    "jetson-orin-nano",
    "pynq-z2",
    "kria-kv260",
    "simulated-fpga",
}
FILES = sorted(profiles.folder().glob("*.toml"))
NAMES = [path.stem for path in FILES]

TENSOR = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
MODULE = Manifest(format=1, name="m", engine="onnx", model="m.onnx", inputs=TENSOR, outputs=TENSOR)


def change(**fields: Any) -> Manifest:
    return msgspec.structs.replace(MODULE, **fields)


def codes(found: list[Obstacle]) -> list[str]:
    return [obstacle.code for obstacle in found]


def test_every_class_that_was_promised_is_there() -> None:
    assert set(NAMES) >= REQUIRED
    assert set(profiles.shipped()) == set(NAMES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_is_a_profile_by_its_own_name_with_sources(path: Any) -> None:
    profile = profiles.parse(path.read_text(), source=path.name)
    assert profile.name == path.stem
    assert profile.title
    assert profile.description or profile.board
    assert profile.min_os
    assert profile.python
    documents = [source for source in profile.sources if "https://" in source]
    assert len(documents) >= 2, "name the documents that the facts come from"
    assert all(source.split(", https://")[0].strip() for source in documents), "a title before each address"


@pytest.mark.parametrize("name", NAMES)
def test_modules_leave_the_system_a_share(name: str) -> None:
    profile = profiles.get(name)
    assert profile.limits.memory_mb <= 0.75 * profile.memory_mb
    assert all(core < profile.cores for core in profile.limits.cpu_affinity)


@pytest.mark.parametrize("name", NAMES)
def test_python_runs_everywhere(name: str) -> None:
    assert not obstacles(
        change(engine="python", model="main.py", resources=Resources(memory_mb=64)), ModelFacts(), profiles.get(name)
    )


def test_armv7_has_no_wheel_based_engine() -> None:
    """There are no onnxruntime or openvino wheels for armv7l."""
    assert {engine.name for engine in profiles.get("pynq-z2").engines} == {"pynq", "python"}


def test_pynq_4_is_kept_off_the_zynq_7000() -> None:
    assert "<4" in profiles.get("pynq-z2").engine("pynq").versions  # type: ignore[union-attr]


SCALER = ModelFacts(opset=17, operators=("MatMul", "ai.onnx.ml.Scaler"))
NORMALIZER = ModelFacts(opset=17, operators=("MatMul", "ai.onnx.ml.Normalizer"))

# (profile, manifest, what the model needs, what the device said, code, words)
LOCK = Lock(
    format=1,
    requirements=("a==1",),
    targets=(Target(architecture="aarch64", python="3.11", glibc="2.36", wheels=()),),
)

CASES = [
    ("pynq-z2", change(), ModelFacts(), None, "unschedulable.engine", "has pynq, python"),
    (
        "jetson-orin-nano",
        change(engine="openvino"),
        ModelFacts(),
        None,
        "unschedulable.engine",
        "needs the engine openvino",
    ),
    ("raspberry-pi-5", change(engine="openvino"), SCALER, None, "unschedulable.operator", "ai.onnx.ml.Scaler"),
    (
        "intel-n100",
        change(resources=Resources(accelerators=("npu",))),
        ModelFacts(),
        None,
        "unschedulable.accelerator",
        "npu",
    ),
    (
        "kria-kv260",
        change(resources=Resources(accelerators=("cuda",))),
        ModelFacts(),
        None,
        "unschedulable.accelerator",
        "cuda",
    ),
    (
        "generic-aarch64",
        change(resources=Resources(memory_mb=1201)),
        ModelFacts(),
        None,
        "unschedulable.memory",
        "leaves 1200 MB",
    ),
    (
        "generic-aarch64",
        change(resources=Resources(memory_mb=500)),
        ModelFacts(),
        DeviceFacts(memory_in_use_mb=1000),
        "unschedulable.memory",
        "leaves 200 MB",
    ),
    (
        "pynq-z2",
        change(engine="pynq"),
        ModelFacts(size_bytes=1_000_000_001),
        None,
        "unschedulable.disk",
        "needs 1001 MB",
    ),
    (
        "raspberry-pi-5",
        change(targets=Targets(architectures=("x86_64",))),
        ModelFacts(),
        None,
        "unschedulable.architecture",
        "the device is aarch64",
    ),
    (
        "jetson-orin-nano",
        change(targets=Targets(python=">=3.11")),
        ModelFacts(),
        None,
        "unschedulable.python",
        "has 3.10",
    ),
    (
        "raspberry-pi-5",
        change(engine="python", environment=Environment(requirements=("a==1",))),
        ModelFacts(environment=LOCK),
        DeviceFacts(python="3.13.5"),
        "unschedulable.environment",
        "the device has Python 3.13.5, aarch64, glibc 2.36",
    ),
    (
        "generic-x86_64",
        change(targets=Targets(profiles=("intel-n100",))),
        ModelFacts(),
        None,
        "unschedulable.profile",
        "targets intel-n100",
    ),
    (
        "generic-x86_64",
        change(engine="openvino"),
        ModelFacts(),
        DeviceFacts(engines={"onnx": "1.31"}),
        "unschedulable.engine",
        "has installed onnx",
    ),
]


@pytest.mark.parametrize(("name", "manifest", "model", "device", "code", "words"), CASES)
def test_each_reason_on_a_class_that_has_it(
    name: str, manifest: Manifest, model: ModelFacts, device: DeviceFacts | None, code: str, words: str
) -> None:
    roomy = (
        manifest
        if manifest.resources != Resources()
        else msgspec.structs.replace(manifest, resources=Resources(memory_mb=64))
    )
    found = obstacles(roomy, model, profiles.get(name), device)
    assert code in codes(found)
    assert words in next(obstacle.message for obstacle in found if obstacle.code == code)


def test_the_cases_cover_every_reason() -> None:
    from skerry_modules.errors import CODES

    assert {case[4] for case in CASES} == {code for code in CODES if code.startswith("unschedulable.")}


@pytest.mark.parametrize("name", [name for name in NAMES if profiles.get(name).engine("openvino")])
def test_openvino_takes_what_it_converts_and_no_more(name: str) -> None:
    profile = profiles.get(name)
    openvino = change(engine="openvino", resources=Resources(memory_mb=64))
    assert codes(obstacles(openvino, SCALER, profile)) == ["unschedulable.operator"]
    assert not obstacles(openvino, NORMALIZER, profile), "the one operator of ai.onnx.ml that OpenVINO does convert"
    assert not obstacles(change(resources=Resources(memory_mb=64)), SCALER, profile), "ONNX Runtime has them all"


names = st.sampled_from(NAMES)


@given(name=names, less=st.integers(1, 10_000), more=st.integers(0, 10_000), used=st.integers(0, 5_000))
def test_needing_less_never_hurts(name: str, less: int, more: int, used: int) -> None:
    """What fits with more memory needed fits with less, and what fits beside more modules fits beside fewer."""
    profile, device = profiles.get(name), DeviceFacts(memory_in_use_mb=used)
    small = change(engine="python", resources=Resources(memory_mb=less))
    large = change(engine="python", resources=Resources(memory_mb=less + more))
    if not obstacles(large, ModelFacts(), profile, device):
        assert not obstacles(small, ModelFacts(), profile, device)
        assert not obstacles(large, ModelFacts(), profile, DeviceFacts(memory_in_use_mb=used // 2))


@given(
    name=names, operators=st.sets(st.sampled_from(["MatMul", "ai.onnx.ml.Scaler", "com.microsoft.QAttention", "Det"]))
)
def test_an_operator_more_never_helps(name: str, operators: set[str]) -> None:
    profile = profiles.get(name)
    manifest = change(engine="openvino", resources=Resources(memory_mb=64))
    every = obstacles(manifest, ModelFacts(operators=tuple(operators)), profile)
    for operator in operators:
        fewer = obstacles(manifest, ModelFacts(operators=tuple(operators - {operator})), profile)
        assert set(codes(fewer)) <= set(codes(every))


@given(name=names)
def test_a_profile_survives_json(name: str) -> None:
    profile = profiles.get(name)
    assert msgspec.json.decode(msgspec.json.encode(profile), type=profiles.Profile) == profile


GOOD = """
format = 1
name = "box"
title = "A box"
architecture = "x86_64"
cores = 2
memory_mb = 1000
sources = ["a document"]
[[engines]]
name = "onnx"
[limits]
memory_mb = 500
disk_mb = 100
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", ""),
        ('sources = ["a document"]', "sources = []", "sources: name the documents"),
        ('name = "onnx"', 'name = "tensorflow"', "'tensorflow' is not one of onnx"),
        ("[limits]", '[[engines]]\nname = "onnx"\n[limits]', "'onnx' stands twice"),
        ("memory_mb = 500", "memory_mb = 1000", "must leave memory"),
        ("disk_mb = 100", "disk_mb = 100\ncpu_affinity = [2]", "a core that the class does not have"),
        ("cores = 2", "cores = 0", "must be above 0"),
        ("cores = 2", "corse = 2", "corse"),
        ("format = 1", "format = 2", "reads format 1"),
        ("[limits]", "[limits", "cannot use the firmware profile"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_reason(old: str, new: str, words: str) -> None:
    text = GOOD.replace(old, new, 1)
    if not words:
        assert profiles.parse(text).name == "box"
        return
    with pytest.raises(InputError) as caught:
        profiles.parse(text, source="box.toml")
    assert caught.value.code == "profile.invalid"
    assert words in caught.value.message


def test_an_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(InputError, match="choose one of generic-aarch64, ") as caught:
        profiles.get("toaster")
    assert caught.value.code == "profile.unknown"
