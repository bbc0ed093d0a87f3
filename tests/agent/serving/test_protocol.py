"""The Open Inference Protocol v2 over real HTTP: metadata, JSON and binary tensors, and what bad requests get."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from skerry_modules.tensors import DATATYPES, NUMPY_OF

from .harness import Running, binary_request, json_request, read_answers
from .models import Module, linear_module, manifest

MIRROR = """
name = "mirror"
engine = "python"
model = "main.py"
"""
X = np.array([[0.1, -0.2, 0.3, 0.4], [1, 2, 3, 4]], dtype="f4")


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
def plane(shared: Running, tmp_path_factory: pytest.TempPathFactory) -> Running:
    folder = tmp_path_factory.mktemp("modules")
    shared.serve(linear_module(folder / "linear"))
    shared.serve(mirror(folder / "mirror"))
    shared.route("empty")
    return shared


def expected(plane: Running) -> np.ndarray[Any, Any]:
    return plane.call(plane.plane.infer("linear", {"x": X}))["y"]


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata_stands_with_and_without_the_slash(plane: Running, path: str) -> None:
    answer = plane.ask("GET", path)
    assert answer.status == 200
    assert answer.json["name"] == "skerry"
    assert "binary_tensor_data" in answer.json["extensions"]


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v2/models/linear/ready", "/v2/models/linear/versions/1/ready"],
)
def test_live_and_ready(plane: Running, path: str) -> None:
    assert plane.ask("GET", path).status == 200


def test_the_device_is_ready_when_all_that_it_serves_can_score(plane: Running) -> None:
    assert plane.ask("GET", "/v2/health/ready").status == 503, "one endpoint has no version"
    plane.do(lambda: plane.plane.forget("empty"))
    try:
        assert plane.ask("GET", "/v2/health/ready").status == 200
        assert plane.ask("GET", "/v2/models/empty").status == 404
    finally:
        plane.route("empty")
    assert plane.ask("GET", "/v2/models/empty").status == 503


@pytest.mark.parametrize("path", ["/v2/models/linear", "/v2/models/linear/versions/1"])
def test_model_metadata_names_the_real_tensors(plane: Running, path: str) -> None:
    answer = plane.ask("GET", path)
    assert answer.json == {
        "name": "linear",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }


def test_repository_index(plane: Running) -> None:
    answer = plane.ask("POST", "/v2/repository/index", b"{}")
    assert {"name": "linear", "version": "1", "state": "READY", "reason": ""} in answer.json


@pytest.mark.parametrize("data", [X.ravel().tolist(), X.tolist()], ids=["flat", "nested"])
def test_json_flat_and_nested_give_the_same(plane: Running, data: Any) -> None:
    body = {"id": "seven", "inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": data}]}
    answer = plane.ask("POST", "/v2/models/linear/infer", body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["id"] == "seven"
    assert (answer.json["model_name"], answer.json["model_version"]) == ("linear", "1")
    (output,) = answer.json["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2, 3])
    np.testing.assert_allclose(np.reshape(output["data"], (2, 3)), expected(plane), rtol=1e-6)


def test_binary_both_ways_and_by_version(plane: Running) -> None:
    body, headers = binary_request({"x": X}, id="b", parameters={"binary_data_output": True})
    answer = plane.ask("POST", "/v2/models/linear/versions/1/infer", body, headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.body[:size])
    assert head["id"] == "b"
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 24}
    got = np.frombuffer(answer.body[size:], "<f4").reshape(2, 3)
    np.testing.assert_array_equal(got, expected(plane))


def test_an_echoed_id_is_never_another_requests(plane: Running) -> None:
    """Headers are remembered by their bytes: what differs by request must not be."""
    for number in ("1", "2", "3"):
        body, headers = binary_request({"x": X}, id=number, parameters={"binary_data_output": True})
        answer = plane.ask("POST", "/v2/models/linear/infer", body, headers)
        assert json.loads(answer.body[: int(answer.headers["inference-header-content-length"])])["id"] == number


def test_all_datatypes_in_json_and_in_binary_and_mixed(plane: Running) -> None:
    arrays = {f"i_{name}": sample(name) for name in DATATYPES}
    binary = {"INT8", "FP16", "BOOL", "FP64"}
    inputs, parts = [], []
    for name, array in arrays.items():
        datatype = name[2:]
        one: dict[str, Any] = {"name": name, "shape": [1, 2], "datatype": datatype}
        if datatype in binary:
            parts.append(array.tobytes())
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            one["data"] = [value.decode() for value in array.ravel()] if datatype == "BYTES" else array.ravel().tolist()
        inputs.append(one)
    outputs = [{"name": f"o_{name}", "parameters": {"binary_data": name == "UINT16"}} for name in reversed(DATATYPES)]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    answer = plane.ask(
        "POST",
        "/v2/models/mirror/infer",
        head + b"".join(parts),
        {"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status == 200, answer.body
    size = int(answer.headers["inference-header-content-length"])
    answered = json.loads(answer.body[:size])["outputs"]
    assert [one["name"] for one in answered] == [f"o_{name}" for name in reversed(DATATYPES)]
    for one in answered:
        want = arrays["i" + one["name"][1:]]
        if one["datatype"] == "UINT16":
            assert answer.body[size:] == want.tobytes()
        elif one["datatype"] == "BYTES":
            assert one["data"] == ["a", "ö"]
        else:
            np.testing.assert_array_equal(np.array(one["data"], NUMPY_OF[one["datatype"]]), want.ravel())


def sample(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        array = np.empty((1, 2), dtype=object)
        array[:] = [[b"a", "ö".encode()]]
        return array
    dtype = np.dtype(NUMPY_OF[datatype])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([[limits.min, limits.max]], dtype)
    return np.array([[1, 0]] if dtype.kind == "b" else [[1.5, -0.25]], dtype)


def test_output_selection(plane: Running) -> None:
    body = json_request({"x": X}, outputs=[{"name": "y", "parameters": {"binary_data": False}}])
    assert [one["name"] for one in plane.ask("POST", "/v2/models/linear/infer", body).json["outputs"]] == ["y"]


def test_the_unix_socket_serves_the_same(plane: Running) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(plane.plane.settings.socket)
        sock.sendall(b"GET /v2/models/linear HTTP/1.1\r\nHost: x\r\n\r\n")
        (answer,) = read_answers(sock, 1)
    assert answer.body == plane.ask("GET", "/v2/models/linear").body


def test_an_ordinary_client_library_scores(plane: Running) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{plane.plane.port}") as client:
        for _ in range(3):
            response = client.post("/v2/models/linear/infer", json=json_request({"x": X}))
            assert response.status_code == 200
            np.testing.assert_allclose(response.json()["outputs"][0]["data"], expected(plane).ravel(), rtol=1e-6)


def test_tensors_without_numpy_take_the_same_path(plane: Running) -> None:
    from skerry_modules.messages import Tensor

    found = plane.call(
        plane.plane.infer_tensors("linear", {"x": Tensor(datatype="FP32", shape=(2, 4), data=X.tobytes())})
    )
    assert found["y"].data == expected(plane).tobytes()


# -- bad requests ------------------------------------------------------------------------------------------------------


def tensor(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}]}


BAD: list[tuple[str, Any, int, str, str]] = [
    ("no JSON", b"{", 400, "scoring.invalid_json", "truncated"),
    ("empty", b"", 400, "scoring.invalid_json", "truncated"),
    ("no UTF-8", b'{"inputs": [{"name": "\xff"}]}', 400, "scoring.invalid_json", "utf"),
    ("deep", b"[" * 100_000, 400, "scoring.invalid_json", "send an Open Inference Protocol v2 body"),
    ("no inputs", {}, 400, "scoring.invalid_json", "inputs"),
    ("unknown input", tensor(name="z"), 400, "scoring.unknown_input", "'x'"),
    ("missing input", {"inputs": []}, 400, "scoring.unknown_input", "'x'"),
    ("input twice", {"inputs": tensor()["inputs"] * 2}, 400, "scoring.unknown_input", "once"),
    ("unknown output", {**tensor(), "outputs": [{"name": "p"}]}, 400, "scoring.unknown_output", "'y'"),
    ("wrong rank", tensor(shape=[4]), 400, "scoring.wrong_shape", "[-1, 4]"),
    ("wrong shape", tensor(shape=[1, 5]), 400, "scoring.wrong_shape", "[1, 5]"),
    ("negative shape", tensor(shape=[-1, 4]), 400, "scoring.wrong_shape", "[-1, 4]"),
    ("wrong datatype", tensor(datatype="FP64"), 400, "scoring.wrong_datatype", "FP32"),
    ("unknown datatype", tensor(datatype="FP8"), 400, "scoring.wrong_datatype", "FP8"),
    ("too few values", tensor(data=[1, 2, 3]), 400, "scoring.bad_data", "4 values"),
    ("too many values", tensor(data=[1] * 5), 400, "scoring.bad_data", "has 5"),
    ("huge shape", tensor(shape=[2**40, 4]), 400, "scoring.bad_data", "values"),
    ("strings", tensor(data=["1", "2", "3", "4"]), 400, "scoring.bad_data", "FP32"),
    ("ragged", tensor(data=[[1, 2], [3, 4, 5]]), 400, "scoring.bad_data", "shape"),
    ("nested wrongly", tensor(data=[[1], [2], [3], [4]]), 400, "scoring.bad_data", "shape"),
    ("null", tensor(data=None), 400, "scoring.bad_data", "FP32"),
    ("no data", {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32"}]}, 400, "scoring.bad_data", "neither"),
    ("overflow", tensor(data=[1e39, 0, 0, 0]), 400, "scoring.bad_data", "range"),
    ("both", tensor(parameters={"binary_data_size": 16}), 400, "scoring.bad_data", "both"),
]


@pytest.mark.parametrize(("body", "status", "code", "text"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_json_requests(plane: Running, body: Any, status: int, code: str, text: str) -> None:
    answer = plane.ask("POST", "/v2/models/linear/infer", body)
    assert (answer.status, answer.code) == (status, code)
    assert list(answer.json) == ["error"]
    assert answer.json["error"].startswith("cannot ")
    assert text in answer.json["error"]


def test_bad_binary_requests(plane: Running) -> None:
    body, headers = binary_request({"x": X})
    head = int(headers["Inference-Header-Content-Length"])
    nan = X.copy()
    nan[1, 2] = np.nan
    declared_wrong = json.dumps(
        {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "parameters": {"binary_data_size": 31}}]}
    ).encode()
    cases = [
        (body[:-1], headers, "scoring.bad_data"),  # truncated
        (body + b"x", headers, "scoring.bad_data"),  # something follows
        (body[:head], headers, "scoring.bad_data"),  # no tensor at all
        (body, {"Inference-Header-Content-Length": str(len(body) + 1)}, "scoring.bad_data"),
        (body, {"Inference-Header-Content-Length": str(head - 1)}, "scoring.invalid_json"),
        (body, {"Inference-Header-Content-Length": "-3"}, "request.invalid"),
        (body, {"Inference-Header-Content-Length": "9" * 30}, "request.invalid"),
        (body, {}, "scoring.invalid_json"),  # the header is missing
        (
            declared_wrong + X.tobytes(),
            {"Inference-Header-Content-Length": str(len(declared_wrong))},
            "scoring.bad_data",
        ),
        (binary_request({"x": nan})[0], headers, "scoring.bad_data"),
    ]
    for data, sent, code in cases * 2:  # a second time from the remembered plan
        answer = plane.ask("POST", "/v2/models/linear/infer", data, sent)
        assert (answer.status, answer.code) == (400, code), (sent, answer)
        assert list(answer.json) == ["error"]
    assert plane.ask("POST", "/v2/models/linear/infer", body, headers).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v2/models/other/infer", 404, "module.unknown"),
        ("GET", "/v2/models/other", 404, "module.unknown"),
        ("GET", "/v2/models/other/ready", 404, "module.unknown"),
        ("POST", "/v2/models/linear/versions/9/infer", 404, "module.unknown"),
        ("POST", "/v2/models/linear/versions/x/infer", 404, "module.unknown"),
        ("POST", "/v2/models/empty/infer", 503, "scoring.not_ready"),
        ("GET", "/v2/models/empty/ready", 503, "scoring.not_ready"),
        ("GET", "/", 404, "request.not_found"),
        ("GET", "/v2/models/linear/versions", 404, "request.not_found"),
        ("GET", "/v1/models/linear", 404, "request.not_found"),
        ("GET", "/v2/models/linear/infer", 405, "request.method_not_allowed"),
        ("DELETE", "/v2/models/linear", 405, "request.method_not_allowed"),
        ("GET", "/v2/%ff%fe/..%2f..", 404, "request.not_found"),
    ],
)
def test_addresses_that_are_not_there(plane: Running, method: str, path: str, status: int, code: str) -> None:
    answer = plane.ask(method, path, b"{}" if method == "POST" else None)
    assert (answer.status, answer.code) == (status, code)
    assert list(answer.json) == ["error"]
    if status == 503:
        assert answer.headers["retry-after"] == "1"


def test_bad_requests_are_no_errors_of_the_model(plane: Running) -> None:
    digest = next(d for d, v in plane.plane._versions.items() if v.manifest.name == "linear")
    plane.do(lambda: plane.plane.take_counters(digest))
    plane.ask("POST", "/v2/models/linear/infer", tensor(name="z"))
    plane.score("linear", X)
    counters = plane.do(lambda: plane.plane.take_counters(digest))
    assert (counters.requests, counters.errors, counters.rejected) == (2, 0, 0)
    assert sum(counters.latency_us.counts) == 2
    assert plane.do(lambda: plane.plane.take_counters(digest)).requests == 0
