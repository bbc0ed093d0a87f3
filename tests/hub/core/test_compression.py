"""Large pages and JSON go out compressed to whoever takes it; live events and files go out as they are, and at once."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from skerry_hub import compression
from skerry_hub.compression import MIN_BYTES, THREAD_BYTES, TYPES, Compressed, accepts_gzip
from skerry_hub.settings import Settings
from skerry_hub.tables import Device

from .parts import served

OTHERS = ("text/event-stream", "application/octet-stream", "application/vnd.apache.parquet", "")


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("gzip, deflate, br", True),
        ("br;q=1.0, GZIP;q=0.8, *;q=0.1", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, br", False),
        ("x-gzip-like", False),
    ],
)
def test_who_takes_gzip(header: str, taken: bool) -> None:
    assert accepts_gzip(header) is taken


class Wire:
    """What left the middleware, message by message, and how much of it had left at each send of the application."""

    def __init__(self, kind: str, parts: list[bytes], accept: str, extra: list[tuple[bytes, bytes]]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left: list[int] = []
        self._kind, self._parts, self._extra = kind, parts, extra
        headers = [(b"accept-encoding", accept.encode())]
        asyncio.run(Compressed(self._app)({"type": "http", "headers": headers}, self._receive, self._send))

    async def _app(self, _scope: Any, _receive: Any, send: Any) -> None:
        size = str(sum(map(len, self._parts))).encode()
        head = [(b"content-type", self._kind.encode()), (b"content-length", size), *self._extra]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        self.left.append(len(self.sent))
        for number, part in enumerate(self._parts, 1):
            more = number < len(self._parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})
            self.left.append(len(self.sent))

    async def _receive(self) -> Any:
        raise AssertionError("nobody asks")

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        whole = b"".join(message["body"] for message in self.sent[1:])
        return gzip.decompress(whole) if self.headers.get("content-encoding") == "gzip" else whole


SIZES = st.sampled_from([0, 1, MIN_BYTES - 1, MIN_BYTES, THREAD_BYTES - 1, THREAD_BYTES, 200_000])


@given(
    st.sampled_from([*sorted(TYPES), "text/html; charset=utf-8", *OTHERS]),
    st.lists(st.tuples(SIZES, st.binary(min_size=1, max_size=5)), min_size=1, max_size=3),
    st.sampled_from(["gzip", "gzip;q=0", "br"]),
    st.sampled_from([[], [(b"etag", b'"1"')], [(b"content-encoding", b"br")]]),
)
def test_the_reader_gets_what_was_written(
    kind: str, parts: list[tuple[int, bytes]], accept: str, extra: list[tuple[bytes, bytes]]
) -> None:
    bodies = [(seed * size)[:size] for size, seed in parts]
    wire = Wire(kind, bodies, accept, extra)
    whole = b"".join(bodies)
    assert wire.body == whole
    assert wire.headers["content-length"] == str(sum(len(message["body"]) for message in wire.sent[1:]))
    squeezed = wire.headers.get("content-encoding") == "gzip"
    text = kind.partition(";")[0] in TYPES and not extra
    assert squeezed == (text and accept == "gzip" and len(bodies) == 1 and len(whole) >= MIN_BYTES)
    assert ("vary" in wire.headers) == text
    if not text:  # nothing waits for what follows it
        assert wire.left == list(range(1, len(bodies) + 2))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A hub with 300 devices behind a real server."""
    settings = Settings(data=str(tmp_path_factory.mktemp("hub")), broker="mqtt://127.0.0.1:9", port=0)
    with served(settings) as (hub, url):
        rows = [{"id": f"dev-{number:03}", "profile": "generic-x86_64", "created_at": 1} for number in range(300)]
        with hub.db.session() as session:
            session.execute(insert(Device), rows)
        yield url


@pytest.mark.parametrize("path", ["/api/v1/devices?limit=300", "/devices"])
def test_a_fleet_is_sent_in_a_fifth_of_its_bytes_and_reads_the_same(address: str, path: str) -> None:
    plain = httpx.get(address + path, headers={"Accept-Encoding": "identity"})
    small = httpx.get(address + path, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert int(small.headers["content-length"]) * 5 < int(plain.headers["content-length"])
    assert plain.headers["vary"] == small.headers["vary"]
    assert "Accept-Encoding" in plain.headers["vary"]  # a cache must not give the one for the other
    if path.startswith("/api"):
        assert small.json() == plain.json()


def test_live_events_and_assets_are_not_touched(address: str) -> None:
    with httpx.stream("GET", f"{address}/live?topics=fleet", headers={"Accept-Encoding": "gzip"}, timeout=10) as stream:
        assert "content-encoding" not in stream.headers
        assert next(stream.iter_text()).startswith("retry:")  # the first event is there before there is a second
    page = httpx.get(f"{address}/devices").text
    asset = page[page.index("/assets/") :].partition('"')[0]
    assert "content-encoding" not in httpx.get(address + asset, headers={"Accept-Encoding": "gzip"}).headers


def test_a_large_answer_is_compressed_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    where: list[str] = []
    real = compression._squeeze
    monkeypatch.setattr(
        compression, "_squeeze", lambda body: (where.append(threading.current_thread().name), real(body))[1]
    )
    for size in (THREAD_BYTES - 1, THREAD_BYTES):
        assert Wire("application/json", [b"x" * size], "gzip", []).body == b"x" * size
    assert where[0] == threading.main_thread().name != where[1]
