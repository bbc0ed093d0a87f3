"""The protocol over gRPC: tritonclient's gRPC half against a real data plane."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from skerry_agent.serving import grpc_bodies
from skerry_agent.serving.settings import ServingSettings
from skerry_modules.errors import InputError, ResourceError, SkerryError
from skerry_modules.tensors import DATATYPES
from support.processes import wait_until

from .conftest import Start
from .harness import Running
from .models import Module, linear_module, manifest, python_module

X = np.array([[0.1, -0.2, 0.3, 0.4], [1, 2, 3, 4]], dtype="f4")
MIRROR = 'name = "mirror"\nengine = "python"\nmodel = "main.py"\n'


def mirror(folder: Path) -> Module:
    """A module that gives back each input: one of every datatype."""
    folder.mkdir()
    (folder / "main.py").write_text("def run(inputs):\n    return {'o' + name[1:]: x for name, x in inputs.items()}\n")
    text = MIRROR
    for side, letter in (("inputs", "i"), ("outputs", "o")):
        for name in DATATYPES:
            text += f'[[{side}]]\nname = "{letter}_{name}"\ndatatype = "{name}"\nshape = [-1, 2]\n'
    return Module(folder, manifest(text, memory_mb=200))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("grpc")
    one = Running(
        ServingSettings(http="127.0.0.1:0", grpc="127.0.0.1:0", cache=str(folder / "cache"), queue_requests=4)
    )
    one.serve(linear_module(folder / "linear"))
    one.serve(mirror(folder / "mirror"))
    one.serve(
        python_module(folder / "slow", "import time\ndef run(inputs):\n    time.sleep(0.5)\n    return {'y': [1]}\n")
    )
    yield one
    one.close()


@pytest.fixture(scope="module")
def client(plane: Running) -> Iterator[Any]:
    made = triton.InferenceServerClient(f"127.0.0.1:{plane.plane.grpc_port}")
    yield made
    made.close()


def given(name: str, array: np.ndarray[Any, Any], datatype: str = "FP32") -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def test_it_is_alive_ready_and_tells_what_it_has(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("linear", "9")
    assert "model_repository" in client.get_server_metadata(as_json=True)["extensions"]
    found = client.get_model_metadata("linear", as_json=True)
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": ["-1", "3"]}]
    index = client.get_model_repository_index(as_json=True)["models"]
    assert {"name": "linear", "version": "1", "state": "READY"} in index


@pytest.mark.parametrize("version", ["", "1"])
def test_it_scores(plane: Running, client: Any, version: str) -> None:
    answer = client.infer("linear", [given("x", X)], model_version=version, request_id="nine")
    want = plane.call(plane.plane.infer("linear", {"x": X}))["y"]
    np.testing.assert_allclose(answer.as_numpy("y"), want, rtol=1e-6)
    assert (answer.get_response().id, answer.get_response().model_version) == ("nine", "1")


def ask(plane: Running, request: Any) -> Any:
    """Without a client library in between."""
    with grpc.insecure_channel(f"127.0.0.1:{plane.plane.grpc_port}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=grpc_bodies.message("ModelInferResponse").FromString,
        )
        return call(request, timeout=20)


def values(name: str) -> list[Any]:
    if name == "BYTES":
        return [b"one", b"", b"\xff\x00", b"vier"]
    return [True, False, False, True] if name == "BOOL" else [1, 0, 7, 100]


def test_every_datatype_raw_and_in_contents_comes_back(plane: Running) -> None:
    """The protocol forbids mixing raw and typed contents in one request; FP16 has no typed form."""
    request = grpc_bodies.message("ModelInferRequest")(model_name="mirror")
    for name in DATATYPES:
        request.inputs.add(name=f"i_{name}", datatype=name, shape=[2, 2])
    raw = {name: array(name) for name in DATATYPES}
    for name in DATATYPES:
        request.raw_input_contents.append(raw[name])
    answer = ask(plane, request)
    got = {one.name: data for one, data in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    assert got == {f"o_{name}": data for name, data in raw.items()}


def array(name: str) -> bytes:
    if name == "BYTES":
        return b"".join(len(value).to_bytes(4, "little") + value for value in values(name))
    return np.array(values(name), dtype=DATATYPES[name]).tobytes()


@pytest.mark.parametrize("name", [name for name in DATATYPES if name != "FP16"])
def test_typed_contents_are_packed_as_the_raw_ones(name: str) -> None:
    request = grpc_bodies.message("ModelInferRequest")(model_name="m")
    tensor = request.inputs.add(name="i", datatype=name, shape=[2, 2])
    field = "bytes_contents" if name == "BYTES" else grpc_bodies._CONTENTS[name][0]
    getattr(tensor.contents, field).extend(values(name))
    json, body = grpc_bodies.body(request)
    assert body[json:] == array(name)


@pytest.mark.parametrize(("datatype", "numbers"), [("UINT8", [256]), ("INT8", [200]), ("FP16", []), ("NONSENSE", [])])
def test_contents_that_do_not_fit_are_refused(datatype: str, numbers: list[int]) -> None:
    request = grpc_bodies.message("ModelInferRequest")(model_name="m")
    tensor = request.inputs.add(name="i", datatype=datatype, shape=[1])
    getattr(tensor.contents, "uint_contents" if datatype == "UINT8" else "int_contents").extend(numbers)
    with pytest.raises(InputError, match="cannot read input 'i'"):
        grpc_bodies.body(request)


@pytest.mark.parametrize(
    ("model", "array", "status", "code", "words"),
    [
        ("absent", X, "NOT_FOUND", "module.unknown", "absent"),
        ("linear", X[:, :3], "INVALID_ARGUMENT", "scoring.wrong_shape", "shape"),
        ("linear", np.full((1, 4), np.nan, "f4"), "INVALID_ARGUMENT", "scoring.bad_data", "NaN"),
    ],
)
def test_errors_have_a_status_a_code_and_words(
    plane: Running, client: Any, model: str, array: np.ndarray[Any, Any], status: str, code: str, words: str
) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer(model, [given("x", np.ascontiguousarray(array))])
    assert caught.value.status() == f"StatusCode.{status}"
    assert words in caught.value.message()
    request = grpc_bodies.message("ModelInferRequest")(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    with pytest.raises(grpc.RpcError) as error:
        ask(plane, request)
    assert ("x-skerry-code", code) in [tuple(pair) for pair in error.value.trailing_metadata()]


@pytest.mark.parametrize("value", [-1, "soon", True, 0.5])
def test_a_deadline_that_is_no_number_of_microseconds_is_refused(value: Any) -> None:
    request = grpc_bodies.message("ModelInferRequest")(model_name="m")
    assert grpc_bodies.timeout_s(request) is None
    field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
    setattr(request.parameters["timeout"], field, value)
    with pytest.raises(SkerryError) as caught:
        grpc_bodies.timeout_s(request)
    assert caught.value.code == "request.invalid"


def test_a_deadline_and_a_full_queue_are_told_apart(client: Any) -> None:
    row = X[:1]
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("script", [given("x", row)], client_timeout=0.2)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    with pytest.raises(triton.InferenceServerException, match="within the deadline") as caught:
        client.infer("script", [given("x", row)], timeout=200_000)  # the protocol's own, in microseconds
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    results: list[Any] = []
    for _ in range(40):
        client.async_infer("script", [given("x", row)], lambda result, error: results.append(error), client_timeout=30)
    wait_until(lambda: len(results) >= 10)
    full = [error for error in results if error is not None]
    assert {error.status() for error in full} == {"StatusCode.RESOURCE_EXHAUSTED"}


def test_unsigned_models_are_refused(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="signed") as caught:
        client.load_model("linear", config="{}", files={"file:1/model.onnx": b"nobody signed this"})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(triton.InferenceServerException, match="no such version"):
        client.unload_model("absent")


def test_an_address_that_is_taken_is_named(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ResourceError, match=address) as caught:
            start(grpc=address)
        assert caught.value.code == "resource.port_in_use"


def test_the_compiled_messages_are_those_of_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    folder = Path(grpc_bodies.__file__).parent
    out = tmp_path / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={out}"]
    subprocess.run([*command, "open_inference.proto"], check=True, capture_output=True)
    assert out.read_bytes() == (folder / "open_inference.binpb").read_bytes()


def test_no_grpc_costs_no_import() -> None:
    code = "import sys, skerry_agent.app; sys.exit('grpc' in sys.modules or 'google.protobuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
