from __future__ import annotations

import hashlib
import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.rules import effects as fx
from skerry_agent.rules.download import Download, DownloadSettings, Phase
from skerry_modules import chunks

SETTINGS = DownloadSettings(report_chunks=4)


def start(data: bytes, parts: list[int] | None = None, *, connected: bool = True) -> tuple[Download, list[fx.Effect]]:
    digest = hashlib.sha256(data).hexdigest()
    download = Download(digest, len(data), SETTINGS, random.Random(1), connected=connected, now=0.0)
    assert download.start() == [fx.ListParts(digest, len(data))]
    return download, download.listed(parts or [], 0.0)


def wants(effects: list[fx.Effect]) -> list[fx.SendWant]:
    return [effect for effect in effects if isinstance(effect, fx.SendWant)]


def piece(data: bytes, part: int) -> bytes:
    return chunks.frame(data[part * chunks.CHUNK_BYTES : (part + 1) * chunks.CHUNK_BYTES])


DATA = random.Random(5).randbytes(6 * chunks.CHUNK_BYTES + 100)


@given(st.integers(0, 2**32), st.sets(st.integers(0, 6)))
def test_through_any_loss_flip_and_reconnect_each_chunk_is_stored_once_and_nothing_held_is_asked_for(
    seed: int, held: set[int]
) -> None:
    rng = random.Random(seed)
    download, effects = start(DATA, sorted(held))
    stored = set(held)
    now, wire = 0.0, []  # type: float, list[int]
    for round_ in range(3000):
        for effect in effects:
            match effect:
                case fx.SendWant(_, size, bitmap):
                    asked = set(chunks.decode_bitmap(bitmap, chunks.count(size)))
                    assert not asked & stored
                    wire += sorted(asked)
                case fx.StoreChunk(_, part, _, data):
                    assert part not in stored
                    assert data == chunks.unframe(piece(DATA, part))
                    stored.add(part)
                case fx.CompleteObject():
                    assert stored == set(range(7))
                    download.checked()
                    return
        effects = []
        calm = round_ > 300
        now += rng.uniform(0, 3)
        if not calm and rng.random() < 0.1:
            effects += download.disconnected(now)
            wire.clear()
            effects += download.connected(now)
        elif wire and rng.random() < 0.7:
            part = wire.pop(rng.randrange(len(wire)))
            payload = bytearray(piece(DATA, part))
            if not calm and rng.random() < 0.2:
                payload[rng.randrange(len(payload))] ^= 1
            if calm or rng.random() < 0.7:
                effects += download.chunk(part, bytes(payload), now)
        else:
            effects += download.tick(now)
    raise AssertionError("the download does not come to its end")


def test_a_reconnect_subscribes_and_asks_again() -> None:
    download, effects = start(DATA)
    assert effects == [fx.Subscribe(download.digest)]
    assert len(wants(download.tick(1.0))) == 1
    assert download.disconnected(2.0) == []
    assert download.connected(5.0) == [fx.Subscribe(download.digest)]
    assert len(wants(download.tick(6.0))) == 1


def test_silence_asks_again_with_growing_patience_until_it_gives_up() -> None:
    download, _ = start(DATA)
    asked: list[float] = []
    while not download.ended:
        due = download.next_deadline
        assert due is not None
        asked += [due for _ in wants(download.tick(due))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert 2 < gaps[0] < 4
    assert all(gap < 1.2 * SETTINGS.quiet_max_s + 1e-6 for gap in gaps)
    assert download.reason[0] == "install.download_timeout"
    assert SETTINGS.stall_s <= asked[-1] + 1.2 * SETTINGS.quiet_max_s


def test_progress_is_reported_by_wants_so_that_the_hub_can_pace_itself() -> None:
    download, _ = start(DATA)
    download.tick(1.0)
    effects = [effect for part in range(4) for effect in download.chunk(part, piece(DATA, part), 1.1)]
    (want,) = wants(effects)
    assert list(chunks.decode_bitmap(want.bitmap, 7)) == [4, 5, 6]


def test_the_end_is_told_to_the_hub() -> None:
    download, _ = start(b"small")
    assert download.chunk(0, chunks.frame(b"small"), 1.0)[-1] == fx.CompleteObject(download.digest, 5)
    assert download.checked() == [fx.Unsubscribe(download.digest), fx.SendWant(download.digest, 5, b"")]
    assert download.phase is Phase.DONE


def test_what_is_whole_on_the_disk_is_checked_and_not_asked_for() -> None:
    download, effects = start(DATA, list(range(7)))
    assert effects == [fx.CompleteObject(download.digest, len(DATA))]


def test_a_damaged_whole_is_asked_for_again_a_limited_number_of_times() -> None:
    download, _ = start(b"small")
    for attempt in range(SETTINGS.damaged_tries):
        assert not download.ended, attempt
        effects = download.chunk(0, chunks.frame(b"SMALL"), 1.0)
        assert isinstance(effects[-1], fx.CompleteObject)
        download.failed("CompleteObject", "package.digest_mismatch", "differs", 1.0)
    assert download.reason[0] == "package.digest_mismatch"


@given(st.integers(-5, 20), st.binary(max_size=200))
def test_garbage_is_never_stored(part: int, payload: bytes) -> None:
    download, _ = start(DATA)
    assert download.chunk(part, payload, 1.0) == []
    assert download.chunk(part, b"\x01" + payload, 1.0) == []


def test_a_chunk_of_the_wrong_length_is_not_stored() -> None:
    download, _ = start(DATA)
    assert download.chunk(0, chunks.frame(b"short"), 1.0) == []
    assert download.flipped == 1
