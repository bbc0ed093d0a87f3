"""A wrong manifest names the field and the line that it stands on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_modules import manifest
from skerry_modules.errors import InputError

GOOD = """\
format = 1
name = "digits"
engine = "onnx"
model = "model.onnx"
description = "handwritten digits"

[[inputs]]
name = "image"
datatype = "FP32"
shape = [-1, 64]

[[inputs]]
name = "mask"
datatype = "BOOL"
shape = [-1, 64]

[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 10]

[golden]
file = "golden.npz"
argmax = "probabilities"

[resources]
memory_mb = 128
"""


def test_a_good_manifest_reads() -> None:
    found = manifest.parse(GOOD)
    assert (found.name, found.engine, found.resources.memory_mb) == ("digits", "onnx", 128)
    assert [spec.name for spec in found.inputs] == ["image", "mask"]
    assert manifest.to_builtins(found)["golden"]["file"] == "golden.npz"


FAULTS = [
    ("format = 1", "format = 2", "format", 1, "reads format 1"),
    ("format = 1", 'format = "1"', "format", 1, "Expected `int`"),
    ('name = "digits"', 'name = "Digits"', "name", 2, "use 1 to 63"),
    ('name = "digits"', 'nmae = "digits"', "nmae", 2, "unknown field"),
    ('engine = "onnx"', 'engine = "tflite"', "engine", 3, "'tflite': use one of onnx, openvino, pynq, python"),
    ('model = "model.onnx"', 'model = "../model.onnx"', "model", 4, "not a plain relative path"),
    ('model = "model.onnx"', "model = 4", "model", 4, "Expected `str`"),
    ('datatype = "BOOL"', 'datatype = "bool"', "inputs[1].datatype", 14, "is not one of"),
    ('name = "mask"', 'name = "image"', "inputs[1].name", 13, "stands twice"),
    ("shape = [-1, 10]", "shape = [0, 10]", "outputs[0].shape", 20, "above 0, or -1"),
    ("shape = [-1, 10]", 'shape = "all"', "outputs[0].shape", 20, "Expected `array`"),
    ('file = "golden.npz"', "", "golden.file", 22, "missing required field"),
    ('argmax = "probabilities"', 'argmax = "p"', "golden.argmax", 24, "no output is named"),
    ("memory_mb = 128", "memory_mb = 0", "resources.memory_mb", 27, "above 0"),
    ("memory_mb = 128", "memory_mb = -1.5", "resources.memory_mb", 27, "Expected `int`"),
    ("memory_mb = 128", "memory = 5", "resources.memory", 27, "unknown field"),
    ("memory_mb = 128", f"memory_mb = {10**30}", "resources.memory_mb", 27, "64 bits"),
    ("memory_mb = 128", "load_timeout_s = nan", "resources.load_timeout_s", 27, "finite"),
    ('argmax = "probabilities"', "absolute = nan", "golden.absolute", 24, "finite"),
    ('argmax = "probabilities"', "relative = inf", "golden.relative", 24, "finite"),
    ('argmax = "probabilities"', "relative = -0.1", "golden.relative", 24, "negative"),
]


@pytest.mark.parametrize(("old", "new", "field", "line", "problem"), FAULTS)
def test_a_fault_names_field_and_line(old: str, new: str, field: str, line: int, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        manifest.parse(GOOD.replace(old, new, 1), source="here/module.toml")
    error = caught.value
    assert error.code == "manifest.invalid"
    assert (error.data["field"], error.data["line"]) == (field, line)
    assert error.message.startswith(f"cannot use here/module.toml, line {line}, field {field}: ")
    assert problem in error.message


OPTIONS = [
    (
        "onnx",
        'providr = "CUDA"',
        "options.providr",
        "it has compile, device, optimization, precision, pr",
    ),
    ("onnx", 'provider = "CUDA, Foo"', "options.provider", "'Foo' is no execution provider; there are ACL, "),
    ("onnx", 'compile = "no"', "options.compile", "Expected `bool`"),
    ("openvino", 'precison = "f32"', "options.precison", "it has device, precision, threads"),
    ("openvino", 'precision = "f99"', "options.precision", "'f99' is not one of f32, f16, bf16"),
    ("openvino", 'device = "NPU,TPU"', "options.device", "'TPU' is no device of OpenVINO"),
    ("openvino", "threads = 0", "options.threads", "at least 1"),
    ("pynq", "core_name = 'x'", "options.core_name", "the engine pynq has no such option"),
    ("pynq", 'input_type = "int4"', "options.input_type", "not one of int8, uint8"),
]


@pytest.mark.parametrize(("engine", "option", "field", "problem"), OPTIONS)
def test_an_option_that_its_engine_does_not_have_is_refused(engine: str, option: str, field: str, problem: str) -> None:
    text = GOOD.replace('"onnx"', f'"{engine}"') + "\n[options]\n" + option + "\n"
    with pytest.raises(InputError) as caught:
        manifest.parse(text)
    assert caught.value.data["field"] == field
    assert text.splitlines()[caught.value.data["line"] - 1] == option
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("engine", "option"),
    [
        ("onnx", 'provider = "TensorRT, cuda,CPUExecutionProvider,MyOwnExecutionProvider"'),
        ("openvino", 'device = "NPU,GPU.1,AUTO:GPU,CPU"'),
        ("python", 'whatever = "the script reads"'),
    ],
)
def test_options_that_an_engine_has(engine: str, option: str) -> None:
    assert manifest.parse(GOOD.replace('"onnx"', f'"{engine}"') + "\n[options]\n" + option + "\n").options


def test_what_is_no_toml_names_the_line() -> None:
    with pytest.raises(InputError, match="cannot read module.toml, line 3") as caught:  # noqa: RUF043
        manifest.parse('format = 1\nname = "x"\nengine = = 1\n')
    assert caught.value.code == "manifest.unreadable"


@given(st.text(max_size=300))
def test_any_text_is_a_manifest_or_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        manifest.parse(text)


@given(st.text(max_size=60))
def test_a_plain_path_stays_in_its_folder(path: str) -> None:
    from pathlib import PurePosixPath

    if manifest.is_plain(path):
        joined = PurePosixPath("/folder") / path
        assert joined.is_relative_to("/folder")
        assert ".." not in joined.parts
        assert "\0" not in path


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\\b", "c:a", "a\nb", "a" * 256, "."]
)
def test_paths_that_are_not_plain(path: str) -> None:
    assert not manifest.is_plain(path)
