"""The scoring client against a real data plane: numpy in, numpy out, and every way it can go wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import skerry
from agent.serving.harness import Running
from agent.serving.models import linear_module, python_module
from skerry_agent.serving.counters import merge
from skerry_agent.serving.settings import ServingSettings
from skerry_modules import oip
from skerry_modules.arrays import as_declared, from_piece, to_piece
from skerry_modules.channel import Channel
from skerry_modules.messages import Agreement, Route
from skerry_modules.tensors import DATATYPES, TensorSpec
from support.processes import wait_until

SLOW = """
import time
def run(inputs):
    x = inputs["x"]
    if x[0, 0] == 7:
        raise RuntimeError("seven is no number")
    time.sleep(float(x[0, 1]))
    return {"y": x.sum(axis=1)}
"""

ADD = "def run(inputs):\n    return {{'y': inputs['x'].sum(axis=1) + {}}}\n"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("plane")
    one = Running(
        ServingSettings(
            http="127.0.0.1:0",
            socket=str(folder / "s.sock"),
            cache=str(folder / "cache"),
            max_body_bytes=1 << 20,
            idle_timeout_s=0.4,
            sweep_s=0.05,
            queue_requests=1,
            window=1,
        )
    )
    one.serve(linear_module(folder / "linear"))
    one.serve(python_module(folder / "slow", SLOW, name="slow"))
    yield one
    one.close()


@pytest.fixture(params=["tcp", "unix"])
def url(request: pytest.FixtureRequest, plane: Running) -> str:
    return f"http://127.0.0.1:{plane.plane.port}" if request.param == "tcp" else f"unix:{plane.plane.settings.socket}"


def test_arrays_go_in_and_come_out(url: str, plane: Running) -> None:
    x = np.random.default_rng(3).normal(size=(5, 4)).astype("f4")
    with skerry.Endpoint(url, "linear") as endpoint:
        answer = endpoint.score({"x": x})["y"]
        assert answer.dtype == np.float32
        expected = plane.score("linear", x).json["outputs"][0]
        assert answer.shape == tuple(expected["shape"])
        assert np.allclose(answer.ravel(), expected["data"], atol=1e-6)
        answer[0, 0] = 2.0  # the caller's own
        assert np.array_equal(endpoint(x.tolist()), endpoint(x.astype("f8")))
        assert endpoint.score({"x": x}, outputs=["y"]).keys() == {"y"}
        assert endpoint(np.asfortranarray(x)).tolist() == endpoint(x).tolist()
        assert endpoint.ready()


def test_metadata_is_the_models_own(url: str) -> None:
    found = skerry.Endpoint(url, "linear").metadata()
    assert (found.name, found.versions, found.platform) == ("linear", ("1",), "onnx_onnxv1")
    assert [(spec.name, spec.datatype, spec.shape) for spec in found.inputs] == [("x", "FP32", (-1, 4))]
    assert [spec.name for spec in found.outputs] == ["y"]
    assert skerry.Endpoint(url, "linear", version=1)(np.zeros((1, 4), "f4")).shape == (1, 3)


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"z": np.zeros((1, 4), "f4")}, "scoring.unknown_input"),
        ({"x": np.zeros((1, 5), "f4")}, "scoring.wrong_shape"),
        ({"x": np.zeros((1, 4), "c8")}, "scoring.wrong_datatype"),
        ({"x": [["a", "b", "c", "d"]]}, "scoring.wrong_datatype"),
        ({"x": np.full((1, 4), np.nan, "f4")}, "scoring.bad_data"),
        ({"x": [[1, 2, 3, 4], [1]]}, "scoring.bad_data"),
        ({"x": np.zeros((100_000, 4), "f4")}, "request.too_large"),
    ],
)
def test_wrong_input_says_the_servers_own_code(inputs: dict[str, Any], code: str, url: str) -> None:
    with skerry.Endpoint(url, "linear") as endpoint, pytest.raises(skerry.InputError, match="cannot") as error:
        endpoint.score(inputs)
    assert error.value.code == code


def test_what_is_not_there(url: str, tmp_path: Path) -> None:
    with pytest.raises(skerry.InputError) as unknown:
        skerry.Endpoint(url, "nobody")(np.zeros((1, 4)))
    assert unknown.value.code == "module.unknown"
    assert not skerry.Endpoint(url, "nobody").ready()
    away = skerry.Endpoint(f"unix:{tmp_path}/none.sock", "linear", retries=1)
    assert not away.ready()
    with pytest.raises(skerry.ResourceError, match="is it running") as error:
        away.metadata()
    assert error.value.code == "resource.agent_unreachable"


@pytest.mark.parametrize("bad", ["device:8090", "ftp://device", "http://", "unix:", "http://device:port"])
def test_an_address_that_is_none(bad: str) -> None:
    with pytest.raises(skerry.InputError, match="cannot use the address") as error:
        skerry.Endpoint(bad, "x")
    assert error.value.code == "settings.invalid"


def test_a_model_that_fails(url: str) -> None:
    with skerry.Endpoint(url, "slow") as endpoint:
        with pytest.raises(skerry.PeerError) as error:
            endpoint([[7, 0, 0, 0]])
        assert error.value.code == "scoring.failed"
        assert endpoint([[1, 0, 0, 0]]).tolist() == [1.0]


def test_a_deadline_is_kept(url: str) -> None:
    with skerry.Endpoint(url, "slow") as endpoint:
        began = time.monotonic()
        with pytest.raises(skerry.ResourceError) as error:
            endpoint.score({"x": [[0, 0.6, 0, 0]]}, timeout_s=0.1)
        assert error.value.code == "scoring.deadline"
        assert time.monotonic() - began < 5  # it did not wait for the default
        assert endpoint([[2, 0, 0, 0]]).tolist() == [2.0]


def test_a_full_queue_is_asked_again_when_the_server_says(url: str, plane: Running) -> None:
    """One request is scored, one waits: a third is answered 429 with Retry-After: 1."""
    patient, hasty = skerry.Endpoint(url, "slow"), skerry.Endpoint(url, "slow", retries=0)
    hasty.metadata()
    version = next(one for one in plane.plane._versions.values() if one.manifest.name == "slow")
    threads = []
    for taken in (1, 2):
        threads.append(threading.Thread(target=patient, args=([[0, 0.5, 0, 0]],)))
        threads[-1].start()
        wait_until(lambda taken=taken: plane.do(lambda: len(version._dispatch)) == taken)  # type: ignore[misc]
    with pytest.raises(skerry.ResourceError) as error:
        hasty([[1, 0, 0, 0]])
    assert error.value.code == "scoring.overloaded"
    assert patient([[3, 0, 0, 0]]).tolist() == [3.0]
    for thread in threads:
        thread.join()


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(url: str, plane: Running) -> None:
    with skerry.Endpoint(url, "linear", retries=0) as endpoint:
        endpoint(np.zeros((1, 4)))
        assert len(endpoint._scorer.channel._idle) == 1
        end = time.monotonic() + 10
        while plane.do(lambda: len(plane.plane._front.connections)) and time.monotonic() < end:
            time.sleep(0.05)
        assert endpoint(np.zeros((1, 4))).shape == (1, 3)


def test_connections_are_kept_and_shared_by_threads(url: str) -> None:
    endpoint = skerry.Endpoint(url, "linear")
    rows = np.random.default_rng(1).normal(size=(8, 1, 4)).astype("f4")
    alone = [endpoint(row) for row in rows]
    assert len(endpoint._scorer.channel._idle) == 1
    found: dict[int, Any] = {}

    def ask(place: int) -> None:
        for _ in range(20):
            found[place] = endpoint(rows[place])

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[place], alone[place]) for place in range(2))
    endpoint.close()


# -- shared memory -----------------------------------------------------------------------------------------------------


def segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("skerry-*")}


def test_large_inputs_go_through_shared_memory_and_leave_nothing(plane: Running) -> None:
    url, before = f"unix:{plane.plane.settings.socket}", segments()
    rows = np.random.default_rng(4).normal(size=(200_000, 4)).astype("f4")  # 3.2 MB: a body may have 1 MB
    with skerry.Endpoint(url, "linear", shared_memory=True) as endpoint:
        found = endpoint(rows)
        assert len(segments() - before) == 1
        assert np.allclose(found[-50:], skerry.Endpoint(url, "linear")(rows[-50:]), atol=1e-6)
        assert np.allclose(endpoint(rows[:60_000] * 2)[:9], endpoint(rows[:9] * 2), atol=1e-6)
        with pytest.raises(skerry.InputError, match="holds NaN"):
            endpoint(np.full((9000, 4), np.nan, "f4"))
        assert endpoint(rows[:9000]).shape == (9000, 3)
    assert segments() <= before
    with pytest.raises(skerry.InputError, match="needs a unix: address"):
        skerry.Endpoint("http://127.0.0.1:1", "linear", shared_memory=True)


def test_what_a_killed_client_left_is_swept_and_what_lives_is_not(plane: Running) -> None:
    url = f"unix:{plane.plane.settings.socket}"
    code = f"""
import os, numpy as np, skerry
e = skerry.Endpoint({url!r}, "linear", shared_memory=True)
e(np.zeros((9000, 4), "f4"))
os.kill(os.getpid(), 9)
"""
    with skerry.Endpoint(url, "linear", shared_memory=True) as living:
        living(np.zeros((9000, 4), "f4"))
        mine = segments()
        subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
        left = segments() - mine
        assert left
        with skerry.Endpoint(url, "linear", shared_memory=True):
            assert not left & segments()
            assert mine & segments()
        assert living(np.ones((9000, 4), "f4")).shape == (9000, 3)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"shared_memory_region": "../etc/passwd"}, "no name of a region"),
        ({"shared_memory_region": 7}, "no name of a region"),
        ({"shared_memory_region": "skerry-" + "0" * 32}, "cannot be opened"),
        ({"shared_memory_region": "skerry-" + "1" * 32}, "bytes, 16 are told"),
        ({"shared_memory_region": "skerry-" + "2" * 32}, "cannot be opened"),
        ({"shared_memory_region": "skerry-" + "1" * 32, "shared_memory_byte_size": 15}, "needs 16 bytes"),
        ({"shared_memory_region": "skerry-" + "1" * 32, "shared_memory_offset": -1}, "whole numbers"),
        ({"shared_memory_region": "skerry-" + "1" * 32, "binary_data_size": 16}, "data besides"),
    ],
)
def test_a_region_that_is_none_is_refused(parameters: dict[str, Any], text: str, plane: Running) -> None:
    short, link = Path("/dev/shm/skerry-" + "1" * 32), Path("/dev/shm/skerry-" + "2" * 32)
    short.write_bytes(b"x" * 15)
    link.symlink_to("/etc/hostname")
    try:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
        given = {"shared_memory_byte_size": 16} | parameters
        answer = plane.ask("POST", "/v2/models/linear/infer", {"inputs": [tensor | {"parameters": given}]})
    finally:
        short.unlink()
        link.unlink()
    assert (answer.status, answer.code) == (400, "scoring.bad_data")
    assert text in answer.json["error"]


def test_a_region_is_not_quarantined_for_what_it_once_held() -> None:
    piece = to_piece(np.zeros((9000, 4), "f4"))
    bodies = {oip.region_request({"x": piece}, None, "skerry-" + "3" * 32, turn) for turn in range(5)}
    assert len(bodies) == 5


def test_what_went_through_shared_memory_is_not_copied_to_a_shadow(plane: Running, tmp_path: Path) -> None:
    """The client may have overwritten it: the comparison would be of another input."""
    live, shadow = (linear_module(tmp_path / str(number), name="seen", version=number) for number in (1, 2))
    for module in (live, shadow):
        plane.load(module)
    routes = [(Route(module="seen", version=module.version, percent=100.0),) for module in (live, shadow)]
    plane.do(lambda: plane.plane.set_routes("seen", routes[0], (live.digest,), routes[1], (shadow.digest,)))
    with skerry.Endpoint(f"unix:{plane.plane.settings.socket}", "seen", shared_memory=True) as endpoint:
        for scale in range(5):
            endpoint(np.full((9000, 4), scale, "f4"))
        endpoint([[1, 2, 3, 4]])
    found = Agreement()

    def compared() -> bool:
        nonlocal found
        for part in plane.do(lambda: plane.plane.take_counters(shadow.digest)).parts:
            found = merge(found, part.agreement)
        return bool(found.rows)

    wait_until(compared)
    assert (found.rows, found.agreed, found.dropped) == (1, 1, 0)
    for module in (live, shadow):
        plane.unload(module)


def test_a_key_goes_to_one_version(url: str, plane: Running, tmp_path: Path) -> None:
    modules = [python_module(tmp_path / str(n), ADD.format(n), name="keyed", version=n) for n in (1, 2)]
    for module in modules:
        plane.load(module)
    plane.route("keyed", *((module, 50.0) for module in modules))
    with skerry.Endpoint(url, "keyed") as endpoint:
        found = {key: {float(endpoint(np.zeros((1, 4)), key=key)[0]) for _ in range(4)} for key in "abcdefghijkl"}
        assert all(len(answers) == 1 for answers in found.values())
        assert {answers.pop() for answers in found.values()} == {1.0, 2.0}
        with pytest.raises(skerry.InputError, match="printable ASCII"):
            endpoint(np.zeros((1, 4)), key="x\r\nX-Skerry-Timeout-Ms: 1")
    for module in modules:
        plane.unload(module)


# -- a server that keeps to nothing ------------------------------------------------------------------------------------


def answering(*answers: bytes) -> tuple[str, threading.Thread]:
    """A server that gives these bytes to one connection after the other and closes each."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", thread


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "scoring.failed"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "scoring.failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "resource.agent_unreachable"),
        (b"", "resource.agent_unreachable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "scoring.failed"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", "module.unknown"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "scoring.failed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "scoring.failed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "scoring.failed"),
    ],
)
def test_a_server_that_does_not_keep_to_the_protocol(answer: bytes, code: str) -> None:
    url, thread = answering(answer)
    with pytest.raises(skerry.SkerryError) as error:
        skerry.Endpoint(url, "m", retries=0, timeout_s=5).metadata()
    thread.join()
    assert error.value.code == code


def test_chunks_are_read() -> None:
    body = b'{"name":"m"}'
    chunks = b"5\r\n" + body[:5] + b"\r\n%x;note\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n"
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    url, thread = answering(head + chunks)
    assert skerry.Endpoint(url, "m").metadata().name == "m"
    thread.join()


def test_an_answer_cut_short_is_no_answer() -> None:
    meta = b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1]}],"outputs":[]}'
    head = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]}'
    first = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(meta), meta)
    second = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n%babcd" % (
        len(head),
        len(head) + 4,
        head,
    )
    url, thread = answering(first, second)
    with pytest.raises(skerry.PeerError, match="4 bytes of tensors came, 8 were announced"):
        skerry.Endpoint(url, "m").score({"x": np.zeros(1)})
    thread.join()


# -- pure rules --------------------------------------------------------------------------------------------------------

ARRAYS = st.sampled_from([code for name, code in DATATYPES.items() if name != "BYTES"]).flatmap(
    lambda code: hnp.arrays(np.dtype(code), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_an_array_comes_back_as_it_went(array: Any) -> None:
    piece = to_piece(array)
    back = from_piece("y", oip.Piece(piece.datatype, piece.shape, bytearray(piece.data)))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(object, hnp.array_shapes(max_dims=3, max_side=3), elements=st.binary(max_size=9)))
def test_bytes_come_back_as_they_went(array: Any) -> None:
    assert from_piece("y", to_piece(array)).tolist() == array.tolist()


@given(st.sampled_from([name for name in DATATYPES if name != "BYTES"]), ARRAYS)
def test_a_conversion_never_changes_a_whole_number(datatype: str, array: Any) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=tuple(-1 for _ in array.shape))
    with np.errstate(all="ignore"):
        try:
            made = as_declared(array, spec)
        except skerry.InputError:
            return
    assert made.dtype == np.dtype(DATATYPES[datatype])
    if array.dtype.kind in "iub" and made.dtype.kind in "iub":
        assert made.tolist() == array.tolist()
    assert not (array.dtype.kind == "f" and made.dtype.kind in "iub")


@given(
    st.sampled_from([400, 404, 413, 429, 500, 503]),
    st.sampled_from(["", "scoring.overloaded", "scoring.deadline"]),
    st.sampled_from(["", "0", "1", "3600", "soon", "-1"]),
    st.integers(0, 100),
    st.floats(0, 100),
)
def test_a_retry_is_only_for_what_may_pass_and_never_after_the_deadline(
    status: int, code: str, after: str, attempt: int, remaining: float
) -> None:
    delay = oip.retry_delay(status, code, after, attempt, remaining)
    if status not in (429, 503) or code == "scoring.deadline":
        assert delay is None
    if delay is not None:
        assert 0 <= delay < remaining
        assert not after.isdigit() or delay == int(after)


def test_requests_that_repeat_are_written_once_and_the_memory_is_bounded() -> None:
    bodies = oip.Bodies()
    for rows in range(3 * oip.REMEMBERED):
        piece = to_piece(np.zeros((rows + 1, 2), "f4"))
        assert bodies.request({"x": piece}) is bodies.request({"x": piece})
    assert len(bodies._requests) <= oip.REMEMBERED


def test_the_address_of_a_model_is_quoted() -> None:
    assert oip.path("a/b c", 3, "infer") == "/v2/models/a%2Fb%20c/versions/3/infer"
    assert Channel("http://u:p@device/base/").url == "http://u:p@device/base/"
