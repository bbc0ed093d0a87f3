"""Bodies as inverses of each other: JSON and binary, requests and answers, any datatype, shape and mixture."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry_agent.serving import arrays, frames, tensors
from skerry_agent.serving.codec import PLANS, Codec
from skerry_agent.serving.codec_binary import to_binary
from skerry_agent.serving.frames import Kind
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import DATATYPES, TensorSpec

Array = np.ndarray[Any, Any]
NUMERIC = [name for name in DATATYPES if name != "BYTES"]


@st.composite
def array_of(draw: st.DrawFn, datatype: str) -> Array:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if datatype == "BYTES":
        array = np.empty(shape, dtype=object)
        flat = draw(st.lists(st.text(max_size=5), min_size=array.size, max_size=array.size))
        array.reshape(-1)[:] = [text.encode() for text in flat]
        return array
    dtype = np.dtype(DATATYPES[datatype])
    elements = (
        st.floats(allow_nan=False, allow_infinity=False, width=dtype.itemsize * 8)  # type: ignore[arg-type]
        if dtype.kind == "f"
        else None
    )
    return draw(hnp.arrays(dtype, shape, elements=elements))


tensors_by_name = st.lists(st.sampled_from(list(DATATYPES)), min_size=1, max_size=4).flatmap(
    lambda names: st.fixed_dictionaries({f"t{i}": st.tuples(st.just(n), array_of(n)) for i, n in enumerate(names)})
)


def mirror(given_tensors: dict[str, tuple[str, Array]]) -> Manifest:
    specs = tuple(TensorSpec(name=n, datatype=d, shape=(-1,) * a.ndim) for n, (d, a) in given_tensors.items())
    return Manifest(format=1, name="m", engine="python", model="m.py", inputs=specs, outputs=specs)


def request(given_tensors: dict[str, tuple[str, Array]], binary: dict[str, bool], nested: bool) -> tuple[int, bytes]:
    inputs, parts = [], []
    for name, (datatype, array) in given_tensors.items():
        one: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if binary[name]:
            parts.append(to_binary(array))
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            shown = array if array.dtype.kind != "O" else np.vectorize(bytes.decode, otypes=[object])(array)
            shown = shown if nested and array.ndim and array.size else shown.reshape(-1)
            one["data"] = shown.tolist()
        inputs.append(one)
    head = json.dumps({"inputs": inputs}).encode()
    return (len(head), head + b"".join(parts)) if any(binary.values()) else (-1, head)


def assert_same(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@settings(max_examples=150, deadline=None)
@given(tensors_by_name, st.data())
def test_a_request_means_the_same_in_every_form(
    given_tensors: dict[str, tuple[str, Array]], data: st.DataObject
) -> None:
    codec = Codec(mirror(given_tensors), 1)
    binary = {name: data.draw(st.booleans()) for name in given_tensors}
    length, body = request(given_tensors, binary, data.draw(st.booleans()))
    for _ in range(2):  # the second time from the remembered plan
        parsed = codec.parse(body, length)
        assert list(parsed.plan.outputs) == [(name, False) for name in given_tensors]
        for name, (_, array) in given_tensors.items():
            assert_same(parsed.inputs[name], array)


@settings(max_examples=150, deadline=None)
@given(tensors_by_name)
def test_an_answer_is_read_as_it_was_written(given_tensors: dict[str, tuple[str, Array]]) -> None:
    """The agent's own requests: tensors to a body, parsed, answered in binary, read back."""
    codec = Codec(mirror(given_tensors), 7)
    plain = {name: array for name, (_, array) in given_tensors.items()}
    length, body = tensors.request(arrays.to_tensors(plain))
    parsed = codec.parse(body, length)
    for _ in range(2):
        answer = codec.format("m", parsed.plan, parsed.inputs)
        found = arrays.from_tensors(tensors.response(answer.json, answer.body))
        assert list(found) == list(plain)
        for name, array in plain.items():
            assert_same(found[name], array)


@settings(max_examples=100, deadline=None)
@given(tensors_by_name)
def test_an_answer_in_json_holds_the_same_values(given_tensors: dict[str, tuple[str, Array]]) -> None:
    codec = Codec(mirror(given_tensors), 7)
    plain = {name: array for name, (_, array) in given_tensors.items()}
    length, body = request(given_tensors, dict.fromkeys(given_tensors, True), False)
    answer = codec.format("m", codec.parse(body, length).plan, plain)
    assert answer.json == -1
    again = json.loads(answer.body)
    assert again["model_version"] == "7"
    _, back = request(given_tensors, dict.fromkeys(given_tensors, False), False)
    for output, name in zip(again["outputs"], given_tensors, strict=True):
        assert output["name"] == name
        output.pop("parameters", None)
    parsed = codec.parse(json.dumps({"inputs": again["outputs"]}).encode(), -1)
    reference = codec.parse(back, -1)
    for name in given_tensors:
        assert_same(parsed.inputs[name], reference.inputs[name])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(-1, 220))
def test_any_bytes_are_parsed_or_refused_with_a_code(body: bytes, length: int) -> None:
    specs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    codec = Codec(Manifest(format=1, name="m", engine="python", model="m.py", inputs=specs, outputs=specs), 1)
    with pytest.raises(SkerryError) as caught:
        codec.parse(body, length)
    assert caught.value.code.startswith("scoring.")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_request_is_refused_or_of_the_right_shape(data: st.DataObject) -> None:
    array = np.arange(8, dtype="f4").reshape(2, 4)
    specs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    codec = Codec(Manifest(format=1, name="m", engine="python", model="m.py", inputs=specs, outputs=specs), 1)
    length, body = request({"x": ("FP32", array)}, {"x": data.draw(st.booleans())}, data.draw(st.booleans()))
    damaged = bytearray(body)
    place = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        damaged[place] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[place]
    try:
        parsed = codec.parse(bytes(damaged), length)
    except SkerryError as error:
        assert error.code.startswith("scoring.")  # noqa: PT017 - damage may leave a valid request
    else:
        assert parsed.inputs["x"].shape[1:] == (4,)
        assert parsed.inputs["x"].dtype == np.float32


def test_plans_are_bounded() -> None:
    specs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 1)),)
    codec = Codec(Manifest(format=1, name="m", engine="python", model="m.py", inputs=specs, outputs=specs), 1)
    for rows in range(1, 300):
        length, body = request({"x": ("FP32", np.zeros((rows, 1), "f4"))}, {"x": True}, False)
        codec.parse(body, length)
    assert len(codec._plans) <= 64


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**63), st.integers(-1, 1000), st.binary(max_size=20), st.binary(max_size=300))),
    st.data(),
)
def test_frames_come_out_whole_however_they_are_cut(
    sent: list[tuple[int, int, bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(
        frames.whole(Kind.INFER, number, body, json=length, name=name) for number, length, name, body in sent
    )
    reader, found = frames.Reader(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert [(frame.number, frame.json, frame.name, frame.body) for frame in found] == sent


def test_a_torn_stream_is_a_bug() -> None:
    with pytest.raises(SkerryError, match="torn"):
        list(frames.Reader().feed(b"\xff" * 64))


VALUES = ["[1, 2]", "[3.5,-1e3]", "[]", "[1]", "[[1],[2]]", "[1, [2]]", "[1, null]", '["a", "b"]', "[1e99, 2]", "[1 2]"]
FORMS = [
    '{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": %s}]}',
    '{"inputs": [{"data":%s, "name": "x", "shape": [2], "datatype": "FP32"}], "parameters": {"b": true}}',
    '{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": %s}], "outputs": [{"name": "x"}]}',
    '{"inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP32", "data": %s}]}',
    '{"parameters": {"data": %s}, "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}',
    '{"parameters": {"data": %s}, "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "d\\u0061ta": [1, 2]}]}',
    '{"inputs": [{"name": "x", "parameters": {"a": "\\"data\\""}, "shape": [2], "datatype": "FP32", "data": %s}]}',
    '{"id": "7", "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": %s}]}',
    '{"inputs": [{"name": "data", "shape": [2], "datatype": "FP32", "data": %s}]}',
]


def taking(ndim: int) -> Manifest:
    specs = (TensorSpec(name="x", datatype="FP32", shape=(-1,) * ndim),)
    return Manifest(format=1, name="m", engine="python", model="m.py", inputs=specs, outputs=specs)


def meant(codec: Codec, body: str) -> Any:
    try:
        plan, inputs = codec.parse(body.encode(), -1)
    except InputError as error:
        return error.code, error.message
    told = {name: (array.shape, array.dtype, array.tolist(), array.flags.writeable) for name, array in inputs.items()}
    return told, plan.outputs, plan.id, plan.rows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FORMS), st.sampled_from(VALUES)), min_size=1, max_size=8), st.booleans())
def test_requests_in_json_that_differ_in_their_values_mean_what_each_means_alone(
    asked: list[tuple[str, str]], deep: bool
) -> None:
    manifest = taking(2 if deep else 1)
    codec = Codec(manifest, 1)
    for form, values in asked:
        body = form.replace("%s", values)
        meant(codec, form.replace("%s", VALUES[0]))  # learned, where it is of the kind that is
        assert meant(codec, body) == meant(Codec(manifest, 1), body)


def test_only_the_values_of_a_repeated_request_in_json_are_parsed() -> None:
    codec = Codec(taking(1), 1)
    for form in FORMS[:3]:
        meant(codec, form.replace("%s", "[1, 2]"))
    assert len(codec._forms) == 3
    for number in range(10 * PLANS):
        meant(codec, FORMS[0].replace("%s", "[1, 2]").replace("{", "{" + " " * number, 1))
        assert len(codec._forms) <= PLANS
