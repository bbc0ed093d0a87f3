"""Topics, messages and chunks: what one side writes the other reads, and garbage is the peer's error, nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_modules import chunks, messages, topics
from skerry_modules.errors import InputError, PeerError
from skerry_modules.messages import BODIES, MAX_BYTES, PLAIN, Up

DEVICES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


# -- topics ------------------------------------------------------------------------------------------------------------


@given(DEVICES, st.sampled_from(topics.UP_KINDS), st.sampled_from(topics.DOWN_KINDS), DIGESTS, st.integers(0, 10**9))
def test_every_topic_parses_as_it_was_made(device: str, up: str, down: str, digest: str, part: int) -> None:
    assert topics.parse(topics.up(device, up)) == topics.Topic("up", device=device, kind=up)
    assert topics.parse(topics.down(device, down)) == topics.Topic("down", device=device, kind=down)
    assert topics.parse(topics.presence(device)) == topics.Topic("presence", device=device)
    assert topics.parse(topics.chunk(digest, part)) == topics.Topic("chunk", digest=digest, part=part)
    assert topics.check_device_id(device) == device


PARTS = st.sampled_from(
    ["skerry", "1", "2", "d", "c", "dev", "Dev", "up", "down", "state", "desired", "presence", "+", ""]
)


@given(st.one_of(st.text(max_size=80), st.lists(st.one_of(PARTS, st.text(max_size=4)), max_size=7).map("/".join)))
def test_any_other_topic_is_a_peer_error(text: str) -> None:
    try:
        parsed = topics.parse(text)
    except PeerError as error:
        assert error.code == "message.unknown_topic"  # noqa: PT017 - both outcomes are right, for different texts
        return
    remade = {
        "up": lambda: topics.up(parsed.device, parsed.kind),
        "down": lambda: topics.down(parsed.device, parsed.kind),
        "presence": lambda: topics.presence(parsed.device),
        "chunk": lambda: topics.chunk(parsed.digest, parsed.part),
    }
    assert remade[parsed.direction]() == text


@pytest.mark.parametrize("device", ["", "A", "-a", ".a", "a/b", "a b", "a+", "#", "é", "a" * 65, "a\n"])
def test_a_device_id_that_could_leave_its_topic_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="as a device id: use 1 to 64") as caught:
        topics.check_device_id(device)
    assert caught.value.code == "device.invalid_id"
    with pytest.raises(PeerError):
        topics.parse(f"skerry/1/d/{device}/up/state")


@pytest.mark.parametrize("part", ["01", "-1", "1.0", "", "٣", "1" * 5000])
def test_a_chunk_number_has_one_spelling(part: str) -> None:
    with pytest.raises(PeerError):
        topics.parse(f"skerry/1/c/{'0' * 64}/{part}")


# -- messages ----------------------------------------------------------------------------------------------------------


def any_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Instances of a struct, made from its own type annotations."""
    strategies = {field.name: strategy_for(field.type) for field in msgspec.structs.fields(kind) if field.name != "v"}
    return st.builds(kind, **strategies)


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=12),
    bytes: st.binary(max_size=12),
    bool: st.booleans(),
}


def strategy_for(kind: Any) -> st.SearchStrategy[Any]:
    origin, arguments = getattr(kind, "__origin__", None), getattr(kind, "__args__", ())
    if kind in SCALARS:
        return SCALARS[kind]
    if kind is Any:
        return st.one_of(st.none(), st.booleans(), st.integers(0, 2**40), st.text(max_size=8))
    if origin is tuple:
        return st.lists(strategy_for(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(strategy_for(arguments[0]), strategy_for(arguments[1]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return any_of(kind)
    return st.sampled_from(list(kind))


@given(st.data(), st.sampled_from(sorted(PLAIN)))
@settings(deadline=None)
def test_every_plain_message_round_trips(data: st.DataObject, kind: str) -> None:
    message = data.draw(any_of(PLAIN[kind])) if kind not in ("desired", "ack", "gap") else None
    if kind == "desired":
        message = messages.Signed(1, data.draw(st.binary(max_size=20)))
    if kind == "gap":
        message = messages.Gap(1, "0" * 64, data.draw(st.integers(0, 2**40)), data.draw(st.binary(max_size=20)))
    if kind == "ack":
        message = messages.Ack(1, data.draw(st.binary(max_size=8)), {0: 5, 4: data.draw(st.integers(0, 2**60))})
    assert messages.decode(kind, messages.encode(message)) == message


@given(st.data(), st.sampled_from(sorted(BODIES)))
@settings(deadline=None)
def test_every_spooled_message_round_trips_in_its_envelope(data: st.DataObject, kind: str) -> None:
    body = data.draw(any_of(BODIES[kind]))
    up = Up(1, b"epoch", messages.STREAM_OF[kind].value, 7, 3, 1_700_000_000_000, body)
    assert messages.decode(kind, messages.encode(up)) == up


@given(st.sampled_from(sorted({**BODIES, **PLAIN})), st.binary(max_size=200))
@settings(max_examples=400)
def test_garbage_is_a_peer_error_and_nothing_else(kind: str, payload: bytes) -> None:
    try:
        messages.decode(kind, payload)
    except PeerError as error:
        assert error.code.startswith("message.")  # noqa: PT017 - garbage may happen to be a message


@given(st.data(), st.sampled_from(sorted(BODIES)))
@settings(max_examples=200, deadline=None)
def test_a_damaged_message_is_a_peer_error_and_nothing_else(data: st.DataObject, kind: str) -> None:
    body = data.draw(any_of(BODIES[kind]))
    payload = bytearray(messages.encode(Up(1, b"epoch", 0, 7, 3, 0, body)))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        messages.decode(kind, bytes(payload[: data.draw(st.integers(0, len(payload)))]))
    except PeerError as error:
        assert error.code.startswith("message.")  # noqa: PT017 - the change may be harmless


@pytest.mark.parametrize("kind", sorted(MAX_BYTES))
def test_an_oversized_payload_is_refused_before_it_is_decoded(kind: str) -> None:
    with pytest.raises(PeerError, match=f"the limit is {MAX_BYTES[kind]}") as caught:
        messages.decode(kind, bytes(MAX_BYTES[kind] + 1))
    assert caught.value.code == "message.oversized"


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(PeerError) as caught:
        messages.decode("event", b"\x91" * 60_000)
    assert caught.value.code == "message.malformed"


def test_a_newer_format_is_refused_and_unknown_fields_are_ignored() -> None:
    with pytest.raises(PeerError, match="of format 2: update this side") as caught:
        messages.decode("presence", msgspec.msgpack.encode({"v": 2, "online": True}))
    assert caught.value.code == "message.unsupported_version"
    found = messages.decode("presence", msgspec.msgpack.encode({"v": 1, "online": True, "colour": "red"}))
    assert found == messages.Presence(online=True)


def test_an_unknown_kind_is_a_peer_error() -> None:
    with pytest.raises(PeerError, match="no such kind"):
        messages.decode("gossip", b"")


@given(st.binary(max_size=100))
def test_a_garbled_desired_document_is_a_peer_error(payload: bytes) -> None:
    with pytest.raises(PeerError, match="cannot decode a desired document"):
        messages.decode_desired(payload)


# -- chunks ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.just(total), st.sets(st.integers(0, total - 1)))))
def test_a_bitmap_gives_its_chunks_back(case: tuple[int, set[int]]) -> None:
    total, wanted = case
    bitmap = chunks.encode_bitmap(wanted, total)
    assert len(bitmap) == -(-total // 8)
    assert list(chunks.decode_bitmap(bitmap, total)) == sorted(wanted)


@given(st.binary(max_size=40), st.integers(0, 200))
def test_any_bitmap_names_only_chunks_that_exist(bitmap: bytes, total: int) -> None:
    assert all(0 <= part < total for part in chunks.decode_bitmap(bitmap, total))


@given(st.integers(1, 300), st.lists(st.integers(-2, 302)), st.lists(st.integers(0, 302)))
def test_what_is_lacking_is_what_did_not_come_in_any_order_and_however_often(
    total: int, held: list[int], came: list[int]
) -> None:
    lacking = chunks.Lacking(total, held)
    for part in came:
        lacking.discard(part)
    left = set(range(total)) - set(held) - set(came)
    assert {part for part in range(-2, 303) if part in lacking} == left
    assert (lacking.count, lacking.encode()) == (len(left), chunks.encode_bitmap(left, total))


@given(st.integers(0, 10**12))
def test_chunks_cover_an_object_exactly(size: int) -> None:
    parts = chunks.count(size)
    assert (parts - 1) * chunks.CHUNK_BYTES <= size <= parts * chunks.CHUNK_BYTES
    assert parts >= 1


@given(st.binary(max_size=2000))
def test_a_frame_gives_its_bytes_back(data: bytes) -> None:
    assert bytes(chunks.unframe(chunks.frame(data))) == data


@given(st.binary(max_size=300), st.data())
def test_a_damaged_frame_is_a_peer_error(data: bytes, draw: st.DataObject) -> None:
    framed = bytearray(chunks.frame(data))
    framed[draw.draw(st.integers(0, len(framed) - 1))] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(PeerError):
        chunks.unframe(bytes(framed))
    with pytest.raises(PeerError):
        chunks.unframe(chunks.frame(data)[: draw.draw(st.integers(0, 4))])
