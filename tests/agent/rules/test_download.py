"""Downloads by chunk: nothing asked for twice without need, nothing kept that does not prove itself."""

from __future__ import annotations

import hashlib
import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.rules import effects as fx
from skerry_agent.rules.download import Download, DownloadSettings, Phase
from skerry_agent.rules.fetch import Fetcher
from skerry_agent.rules.reception import Reception
from skerry_modules import chunks

SETTINGS = DownloadSettings(report_chunks=4)


def start(data: bytes, parts: list[int] | None = None) -> tuple[Download, list[fx.Effect]]:
    digest = hashlib.sha256(data).hexdigest()
    download = Download(digest, len(data), SETTINGS, random.Random(1), reception=reception(), now=0.0)
    assert download.start() == [fx.ListParts(digest, len(data))]
    return download, download.listed(parts or [], 0.0)


def reception() -> Reception:
    made = Reception()
    made.up(0.0)
    return made


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
            download._reception.down(now)
            wire.clear()
            download._reception.up(now)
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
    download._reception.down(2.0)
    assert download.next_deadline is None
    download._reception.up(5.0)
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


def test_an_object_that_is_gone_is_given_up_at_once_and_no_other() -> None:
    first, second = "a" * 64, "b" * 64
    fetcher = Fetcher(SETTINGS, random.Random(1))
    fetcher.connected(0.0)
    fetcher.want([(first, 100), (second, 100)], 0.0)
    assert fetcher.gone(first, 0.0) == []  # not asked for yet: what is said of it is old
    for digest in (first, second):
        fetcher.done("ListParts", digest, [], 0.0)
    assert fx.Unsubscribe(first) in fetcher.gone(first, 1.0)
    assert [(one.digest, one.code) for one in fetcher.ended()] == [(first, "install.object_gone")]
    assert fetcher.gone(first, 2.0) == fetcher.gone("c" * 64, 2.0) == []
    assert [one.digest for one in wants(fetcher.tick(2.0))] == [second]


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


# -- several at once


def fetching(*objects: bytes, at_once: int = 4, aside: bool = False) -> Fetcher:
    """All listed as empty by the disk, and subscribed."""
    fetcher = Fetcher(SETTINGS, random.Random(1), at_once)
    fetcher.connected(0.0)
    asked = fetcher.want([(hashlib.sha256(data).hexdigest(), len(data)) for data in objects], 0.0, aside=aside)
    for effect in asked:
        assert isinstance(effect, fx.ListParts)
        fetcher.done("ListParts", effect.digest, [], 0.0)
    return fetcher


def run(fetcher: Fetcher, until: float) -> list[tuple[float, fx.Effect]]:
    """Let the deadlines come."""
    told = []
    while (due := fetcher.next_deadline) is not None and due <= until:
        told += [(due, effect) for effect in fetcher.tick(due)]
    return told


OTHER = random.Random(6).randbytes(40 * chunks.CHUNK_BYTES)
SLOW_S = 600.0


def test_what_stands_in_line_behind_anothers_chunks_is_not_given_up() -> None:
    fetcher = fetching(DATA, OTHER)
    other = hashlib.sha256(OTHER).hexdigest()
    for part in range(20):
        run(fetcher, (part + 1) * SLOW_S)
        assert not fetcher.ended()
        fetcher.chunk(other, part, piece(OTHER, part), (part + 1) * SLOW_S)
    told = run(fetcher, 1e9)
    assert [one.code for one in fetcher.ended()] == ["install.download_timeout"] * 2
    assert {round(when) for when, effect in told if isinstance(effect, fx.Unsubscribe)} == {
        round(20 * SLOW_S + SETTINGS.stall_s)
    }


def test_an_object_that_is_asked_for_late_has_its_own_time() -> None:
    fetcher = fetching(DATA)
    run(fetcher, SETTINGS.stall_s - 100)
    late = hashlib.sha256(OTHER).hexdigest()
    fetcher.want([(late, len(OTHER))], SETTINGS.stall_s - 100)
    fetcher.done("ListParts", late, [], SETTINGS.stall_s - 100)
    run(fetcher, SETTINGS.stall_s + 100)
    assert [one.digest for one in fetcher.ended()] == [hashlib.sha256(DATA).hexdigest()]
    assert fetcher.progress(late) == 0.0
    assert fetcher.next_deadline is not None


def test_time_without_a_link_is_no_silence() -> None:
    fetcher = fetching(DATA)
    for hours in range(10):
        run(fetcher, hours * 3600.0 + 300)
        fetcher.disconnected(hours * 3600.0 + 300)
        assert fetcher.next_deadline is None
        fetcher.connected((hours + 1) * 3600.0)
        if hours < 2:
            assert not fetcher.ended()
    assert [one.code for one in fetcher.ended()] == ["install.download_timeout"]


@given(st.floats(0.5, 14), st.integers(0, 2**32))
def test_on_a_slow_link_nobody_asks_more_often_than_chunks_can_come(gap: float, seed: int) -> None:
    """Each want may be answered by the hub with chunks that are on their way already, which makes the link slower."""
    fetcher = fetching(OTHER, DATA)
    fetcher._rng.seed(seed)
    digest = hashlib.sha256(OTHER).hexdigest()
    told: list[fx.Effect] = []
    for part in range(39):
        now = (part + 1) * gap
        before = [effect for _, effect in run(fetcher, now)]
        told += (before if part > 3 else []) + fetcher.chunk(digest, part, piece(OTHER, part), now)
    asked = [want.digest for want in wants(told)]
    most = 39 / SETTINGS.report_chunks + 39 * gap / SETTINGS.report_s + 2
    assert all(asked.count(one) <= most for one in asked)
    assert len(asked) >= 2 * min(35 * gap // 60, 39 // SETTINGS.report_chunks), "the hub forgets who is silent"


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 4))
def test_what_stands_at_the_side_comes_after_all_else_and_never_takes_all_places(
    kinds: list[bool], places: int
) -> None:
    fetcher = Fetcher(SETTINGS, random.Random(1), places)
    sizes = {f"{n:064}": aside for n, aside in enumerate(kinds)}
    begun: list[str] = []
    for digest, aside in sizes.items():
        begun += [effect.digest for effect in fetcher.want([(digest, 5)], 0.0, aside=aside)]  # type: ignore[union-attr]
    active = list(begun)
    while active:
        assert len(active) <= places
        assert places == 1 or sum(sizes[digest] for digest in active) < places
        waiting = [digest for digest in sizes if digest not in begun]
        assert len(active) == places or all(sizes[digest] for digest in waiting)
        fetcher.done("ListParts", active[0], [0], 0.0)
        more = [e.digest for e in fetcher.done("CompleteObject", active.pop(0), [], 0.0) if isinstance(e, fx.ListParts)]
        assert all(not sizes[digest] for digest in more) or all(sizes[digest] for digest in waiting)
        active += more
        begun += more
    assert sorted(begun) == sorted(sizes)


def test_what_becomes_a_modules_own_goes_first() -> None:
    fetcher = Fetcher(SETTINGS, random.Random(1), 2)
    fetcher.want([("a", 5), ("b", 5), ("c", 5)], 0.0, aside=True)
    assert fetcher.prefer(["c"], 0.0) == [fx.ListParts("c", 5)]
