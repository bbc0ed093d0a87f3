"""Heads that are remembered mean what the parser said they mean, however the bytes come; on both parsers."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.serving import http_parsers
from skerry_agent.serving.exchange import Exchange
from skerry_agent.serving.heads import ENTRIES, HEAD_BYTES, Head, Heads
from skerry_agent.serving.http import HttpConnection
from skerry_agent.serving.settings import ServingSettings


class Memory(asyncio.Transport):
    """Takes every byte at once."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: Any) -> None:
        self.data += bytes(data)

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        pass


class Never(Heads):
    def learn(self, raw: bytes, head: Head) -> None:
        pass


class Front:
    """Answers each request with all that is known of it."""

    def __init__(self, heads: Heads) -> None:
        self.settings = ServingSettings()
        self.connections: set[HttpConnection] = set()
        self.heads = heads
        self.buffered = 0

    def handle(self, exchange: Exchange) -> None:
        one = exchange
        told = (one.method, one.path, one.json, one.timeout_s, one.low, one.key, one.keep, one.keep_header, one.body)
        exchange.reply(200, "", -1, repr(told).encode())


def talk(heads: Heads, pieces: list[bytes]) -> bytes:
    transport = Memory()
    connection = HttpConnection(Front(heads))
    connection.connection_made(transport)
    for piece in pieces:
        connection.data_received(piece)
    return transport.data


def post(body: bytes, *lines: bytes, version: bytes = b"1.1") -> bytes:
    head = (b"POST /v2/models/m/infer HTTP/" + version, b"Host: x", *lines, b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


MESSAGES = [
    post(b"abc"),
    post(b"abd"),
    post(b"\r\n\r\n"),
    post(b""),
    post(b"abcd"),
    post(b"abc", b"Inference-Header-Content-Length: 2"),
    post(b"abc", b"X-Skerry-Timeout-Ms: 5"),
    post(b"abc", b"X-Skerry-Priority: low"),
    post(b"abc", b"X-Skerry-Key: k"),
    post(b"abc", b"Expect: 100-continue"),
    post(b"abc", b"Connection: keep-alive", version=b"1.0"),
    post(b"abc", b"Upgrade: h2c", b"Connection: upgrade"),
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2 HTTP/1.1\nHost: x\n\n",
    b"\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    post(b"abc", b"Connection: close"),
    b"nonsense\r\n\r\n",
]


@pytest.fixture(params=["httptools", "h11"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "h11":
        monkeypatch.setattr(http_parsers, "make_parser", http_parsers.H11)


@pytest.mark.usefixtures("parser")
def test_what_is_remembered_answers_as_the_parser_does() -> None:
    @given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.lists(st.integers(0, 400), max_size=4), st.booleans())
    def check(messages: list[bytes], cuts: list[int], whole: bool) -> None:
        stream = b"".join(messages)
        places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
        pieces = messages if whole else [stream[a:b] for a, b in itertools.pairwise(places) if b > a]
        heads = Heads()
        for message in MESSAGES:  # each as it comes first, on a connection of its own
            assert talk(heads, [message]) == talk(Never(), [message])
        assert talk(heads, pieces) == talk(Never(), pieces)

    check()


@pytest.mark.usefixtures("parser")
def test_only_plain_heads_are_remembered() -> None:
    kept = {message: Heads() for message in MESSAGES}
    for message, heads in kept.items():
        talk(heads, [message])
    remembered = [message for message, heads in kept.items() if heads._known]
    assert {message for message in MESSAGES[:8] if b"Key" not in message} <= set(remembered)
    assert not any(
        mark in message
        for message in remembered
        for mark in (b"Key", b"Expect", b"/1.0", b"Upgrade", b"chunked", b"close", b"\nHost: x\n", b"nonsense")
    )


def test_few_heads_are_kept_and_only_short_ones() -> None:
    heads = Heads()
    for number in range(10 * ENTRIES):
        talk(heads, [post(b"abc", b"X-Number: %d" % number)])
        assert len(heads._known) <= ENTRIES
    heads = Heads()
    talk(heads, [post(b"abc", b"X-Long: " + b"x" * HEAD_BYTES)])
    assert not heads._known
