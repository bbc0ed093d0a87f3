"""HTTP itself, byte by byte: pipelining, chunks, limits, slow and broken clients; on both parsers and both loops."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_agent.serving import http_parsers
from skerry_agent.serving.settings import ServingSettings

from .harness import Answer, Running, json_request, read_answers
from .models import linear_module

BODY = json.dumps(json_request({"x": np.ones((1, 4), "f4")})).encode()


@pytest.fixture(scope="module", params=["httptools", "h11"])
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("plane")
    patch = pytest.MonkeyPatch()
    factory: Any = asyncio.new_event_loop
    if request.param == "h11":  # what a device without wheels of httptools and uvloop has
        patch.setattr(http_parsers, "make_parser", http_parsers.H11)
    else:
        import uvloop

        factory = uvloop.new_event_loop
    settings = ServingSettings(
        http="127.0.0.1:0",
        max_body_bytes=100_000,
        max_header_bytes=4096,
        max_pipelined=4,
        max_connections=20,
        header_timeout_s=0.4,
        body_timeout_s=0.4,
        idle_timeout_s=1.5,
        write_timeout_s=0.5,
        sweep_s=0.05,
    )
    one = Running(settings, factory)
    one.serve(linear_module(folder / "linear"))
    yield one
    one.close()
    patch.undo()


def request(body: bytes = BODY, *headers: str, version: str = "1.1", path: str = "/v2/models/linear/infer") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: x", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def talk(plane: Running, data: bytes, count: int = 1) -> list[Answer]:
    with plane.raw() as sock:
        sock.sendall(data)
        return read_answers(sock, count)


def with_id(number: int) -> bytes:
    return request(json.dumps({**json.loads(BODY), "id": str(number)}).encode())


def test_pipelined_requests_are_answered_in_order(plane: Running) -> None:
    data = b"".join(with_id(number) for number in range(30))
    answers = talk(plane, data, 30)
    assert [answer.json["id"] for answer in answers] == [str(number) for number in range(30)]


@pytest.mark.parametrize("step", [1, 7, 64])
def test_pieces_of_any_size_make_the_same_request(plane: Running, step: int) -> None:
    data = with_id(1) + with_id(2)
    with plane.raw() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), step):
            sock.sendall(data[start : start + step])
        assert [answer.json["id"] for answer in read_answers(sock, 2)] == ["1", "2"]


def test_a_connection_is_kept_and_closed_when_asked(plane: Running) -> None:
    with plane.raw() as sock:
        for _ in range(3):
            sock.sendall(request())
            assert read_answers(sock, 1)[0].status == 200
        sock.sendall(request(BODY, "Connection: close"))
        (answer,) = read_answers(sock, 1)
        assert answer.headers["connection"] == "close"
        assert sock.recv(10) == b""


@pytest.mark.parametrize(("headers", "kept"), [((), False), (("Connection: keep-alive",), True)])
def test_http_1_0(plane: Running, headers: tuple[str, ...], kept: bool) -> None:
    with plane.raw() as sock:
        sock.sendall(request(BODY, *headers, version="1.0"))
        (answer,) = read_answers(sock, 1)
        assert answer.status == 200
        assert answer.headers["connection"] == ("keep-alive" if kept else "close")


def test_chunked_bodies_and_expect_continue(plane: Running) -> None:
    half = len(BODY) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:half], BODY[half:])) + b"0\r\n\r\n"
    (answer,) = talk(plane, request(chunks, "Transfer-Encoding: chunked"))
    assert answer.status == 200
    with plane.raw() as sock:
        sock.sendall(request(b"", "Expect: 100-continue", f"Content-Length: {len(BODY)}"))
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(BODY)
        assert read_answers(sock, 1)[0].status == 200


def test_head_has_no_body_and_a_wrong_method_is_told_the_right_one(plane: Running) -> None:
    head = b"HEAD /v2/models/linear HTTP/1.1\r\nHost: x\r\n\r\n"
    wrong = b"HEAD /v2/models/linear/infer HTTP/1.1\r\nHost: x\r\n\r\n"
    with plane.raw() as sock:
        sock.sendall(head + wrong + with_id(7))
        data = b""
        while b'"id":"7"' not in data:
            data += sock.recv(65536)
    first, second, third, _ = data.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 405")
    assert b"Allow: POST" in second
    assert third.startswith(b"HTTP/1.1 200")


def test_offers_of_other_protocols_are_not_taken(plane: Running) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(offer).encode() + b"\r\n\r\n"
    answers = talk(plane, request(BODY, *offer) + get + with_id(3), 3)
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[2].json["id"] == "3"
    (refused,) = talk(plane, request(b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked", *offer) + get, 2)
    assert refused.status == 400  # never two requests out of one


def test_a_client_that_takes_no_answer_is_cut_off(plane: Running) -> None:
    big = json.dumps(json_request({"x": np.ones((800, 4), "f4")})).encode()
    with plane.raw() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(3)
        try:
            for _ in range(1000):
                sock.sendall(request(big))
        except OSError:
            pass
        assert plane.score("linear", np.ones((1, 4))).status == 200
        end = time.monotonic() + 10
        while len(plane.plane._front.connections) and time.monotonic() < end:
            time.sleep(0.05)
        assert not plane.plane._front.connections


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413_even_while_it_is_still_sent(plane: Running, chunked: bool) -> None:
    big = b"x" * 300_000
    data = (
        request(b"%x\r\n%b\r\n0\r\n\r\n" % (len(big), big), "Transfer-Encoding: chunked") if chunked else request(big)
    )
    (answer,) = talk(plane, data)
    assert (answer.status, answer.code) == (413, "request.too_large")
    assert list(answer.json) == ["error"]
    assert "100000 bytes" in answer.json["error"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS it is\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (request(BODY, "Content-Length: -1"), 400),
        (request(BODY, "Content-Length: 5", "Content-Length: 6"), 400),
        (request(BODY, "Content-Encoding: gzip"), 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 8000 + b"\r\n\r\n", 431),
    ],
    ids=["tls", "short", "negative", "two lengths", "gzip", "long head"],
)
def test_what_is_no_request_is_refused_and_closed(plane: Running, data: bytes, status: int) -> None:
    with plane.raw() as sock:
        sock.sendall(data)
        answers = read_answers(sock, 2)
    assert [answer.status for answer in answers] in ([status], [400])  # h11 counts a long head as no request
    assert answers[0].headers["connection"] == "close"
    assert list(answers[0].json) == ["error"]


def test_requests_before_the_broken_one_are_answered(plane: Running) -> None:
    answers = talk(plane, with_id(1) + with_id(2) + b"nonsense\r\n\r\n", 4)
    assert [answer.status for answer in answers] == [200, 200, 400]


@pytest.mark.parametrize("sent", [b"POST /v2/mod", request()[:-5]], ids=["head", "body"])
def test_a_slow_client_meets_its_limit_and_no_other_does(plane: Running, sent: bytes) -> None:
    with plane.raw() as slow:
        slow.sendall(sent)
        assert plane.score("linear", np.ones((1, 4))).status == 200
        (answer,) = read_answers(slow, 2)
        assert (answer.status, answer.code) == (408, "request.invalid")


def test_a_client_that_drips_is_no_better(plane: Running) -> None:
    with plane.raw() as slow:
        began = time.monotonic()
        try:
            for byte in request():
                slow.sendall(bytes([byte]))
                time.sleep(0.05)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert time.monotonic() - began < len(request()) * 0.05 * 0.8


def test_an_idle_connection_is_closed(plane: Running) -> None:
    with plane.raw() as sock:
        assert sock.recv(1) == b""


def test_connections_over_the_limit_are_told_so(plane: Running) -> None:
    sockets = [plane.raw() for _ in range(30)]
    try:
        refused = [answer for sock in sockets[22:] for answer in read_answers(sock, 1)]
        assert {answer.status for answer in refused} == {503}
    finally:
        for sock in sockets:
            sock.close()
    for _ in range(50):
        answer = plane.score("linear", np.ones((1, 4)))
        if answer.status == 200:
            break
        time.sleep(0.05)
    assert answer.status == 200


def test_bytes_that_wait_are_given_back(plane: Running) -> None:
    for _ in range(5):
        with plane.raw() as sock:
            sock.sendall(request()[:-5])
    plane.score("linear", np.ones((1, 4)))
    for _ in range(100):
        if plane.plane._front.buffered == 0:
            break
        time.sleep(0.02)
    assert plane.plane._front.buffered == 0


def test_a_taken_port_and_a_stale_socket(plane: Running, tmp_path: Path) -> None:
    from skerry_modules.errors import ResourceError

    with pytest.raises(ResourceError) as caught:
        Running(ServingSettings(http=f"127.0.0.1:{plane.plane.port}"))
    assert caught.value.code == "resource.port_in_use"
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
        with pytest.raises(ResourceError, match="another process"):
            Running(ServingSettings(http="", socket=str(path)))
    Running(ServingSettings(http="", socket=str(path))).close()  # its owner is gone
    path.write_text("a file of somebody's")
    with pytest.raises(ResourceError, match="another file"):
        Running(ServingSettings(http="", socket=str(path)))
    assert path.read_text() == "a file of somebody's"
