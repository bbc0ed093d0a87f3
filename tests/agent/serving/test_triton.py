"""A client of the protocol that others wrote: NVIDIA's tritonclient against a real data plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from .harness import Running
from .models import Module, linear_module, manifest

X = np.array([[0.1, -0.2, 0.3, 0.4], [1, 2, 3, 4]], dtype="f4")
ECHO = """
name = "echo"
engine = "python"
model = "main.py"
[[inputs]]
name = "text"
datatype = "BYTES"
shape = [-1]
[[inputs]]
name = "number"
datatype = "INT64"
shape = [-1, 2]
[[outputs]]
name = "text_out"
datatype = "BYTES"
shape = [-1]
[[outputs]]
name = "number_out"
datatype = "INT64"
shape = [-1, 2]
"""


def echo(folder: Path) -> Module:
    folder.mkdir()
    (folder / "main.py").write_text("def run(inputs):\n    return {name + '_out': x for name, x in inputs.items()}\n")
    return Module(folder, manifest(ECHO, memory_mb=200))


class Client(triton.InferenceServerClient):  # type: ignore[misc]
    def __del__(self) -> None:
        """The fixture closes it: the collector may run in the plane's thread, where gevent must not be used."""


@pytest.fixture(scope="module")
def plane(shared: Running, tmp_path_factory: pytest.TempPathFactory) -> Running:
    folder = tmp_path_factory.mktemp("modules")
    shared.serve(linear_module(folder / "linear", tail="[batching]\nmax_rows = 8\n"))
    shared.serve(echo(folder / "echo"))
    return shared


@pytest.fixture(scope="module")
def client(plane: Running) -> Iterator[triton.InferenceServerClient]:
    made = Client(f"127.0.0.1:{plane.plane.port}", concurrency=4)
    yield made
    made.close()


def given(name: str, array: np.ndarray, *, binary: bool) -> triton.InferInput:  # type: ignore[type-arg]
    datatype = {"f": "FP32", "i": "INT64", "O": "BYTES"}[array.dtype.kind]
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_it_finds_the_server_alive_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("linear", "2")
    assert not client.is_model_ready("absent")


def test_it_reads_metadata(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata()
    assert server["name"] == "skerry"
    assert {"binary_tensor_data", "model_repository"} <= set(server["extensions"])
    for version in ("", "1"):
        found = client.get_model_metadata("linear", version)
        assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
        assert found["versions"] == ["1"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_it_scores(plane: Running, client: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    outputs = [triton.InferRequestedOutput("y", binary_data=binary_out)]
    answer = client.infer("linear", [given("x", X, binary=binary_in)], outputs=outputs, request_id="nine")
    np.testing.assert_allclose(answer.as_numpy("y"), plane.call(plane.plane.infer("linear", {"x": X}))["y"], rtol=1e-6)
    assert answer.get_response()["id"] == "nine"
    assert answer.get_response()["model_version"] == "1"


def test_it_scores_by_version_without_naming_outputs(client: triton.InferenceServerClient) -> None:
    answer = client.infer("linear", [given("x", X, binary=True)], model_version="1")
    assert answer.as_numpy("y").shape == (2, 3)


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True), (False, False)])
def test_text_and_numbers_mixed(client: triton.InferenceServerClient, first: bool, second: bool) -> None:
    text = np.array([b"one", b"zwei"], dtype=object)
    number = np.array([[1, -(2**62)], [3, 4]], dtype=np.int64)
    answer = client.infer(
        "echo",
        [given("text", text, binary=first), given("number", number, binary=second)],
        outputs=[
            triton.InferRequestedOutput("number_out", binary_data=first),
            triton.InferRequestedOutput("text_out", binary_data=second),
        ],
    )
    np.testing.assert_array_equal(answer.as_numpy("number_out"), number)
    got = [each.encode() if isinstance(each, str) else each for each in answer.as_numpy("text_out")]
    assert got == list(text)


def test_many_at_once(plane: Running, client: triton.InferenceServerClient) -> None:
    rows = np.random.default_rng(4).normal(size=(40, 1, 4)).astype("f4")
    asked = [client.async_infer("linear", [given("x", row, binary=True)]) for row in rows]
    want = plane.call(plane.plane.infer("linear", {"x": rows.reshape(-1, 4)}))["y"]
    got = np.concatenate([one.get_result().as_numpy("y") for one in asked])
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "version", "array", "status", "words"),
    [
        ("absent", "", X, "404", "absent"),
        ("linear", "7", X, "404", "version 7"),
        ("linear", "", X[:, :3].copy(), "400", "shape"),
        ("linear", "", X.astype("i8"), "400", "INT64"),
        ("linear", "", np.full((1, 4), np.nan, "f4"), "400", "NaN"),
    ],
)
def test_errors_reach_it_in_words(
    client: triton.InferenceServerClient,
    model: str,
    version: str,
    array: np.ndarray,
    status: str,
    words: str,  # type: ignore[type-arg]
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given("x", array, binary=True)], model_version=version)
    assert caught.value.status() == status
    assert words in caught.value.message()


def test_it_reads_the_index(client: triton.InferenceServerClient) -> None:
    found = {entry["name"]: entry for entry in client.get_model_repository_index()}
    assert found["linear"] == {"name": "linear", "version": "1", "state": "READY", "reason": ""}


def test_it_cannot_bring_a_model_of_its_own(client: triton.InferenceServerClient) -> None:
    """Only what a trusted publisher signed runs on a device."""
    with pytest.raises(InferenceServerException, match="signed") as caught:
        client.load_model("linear", config="{}", files={"file:1/model.onnx": b"nobody signed this"})
    assert caught.value.status() == "400"


def test_what_this_device_does_not_hold_cannot_be_loaded(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="holds no version") as caught:
        client.load_model("absent")
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="no such version") as caught:
        client.unload_model("absent")
    assert caught.value.status() == "404"


def test_what_the_hub_wants_is_not_unloaded_by_a_client(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="the hub wants it"):
        client.unload_model("linear")
    assert client.is_model_ready("linear")
