"""The rules of batch jobs: who gets which part, what an end means, what is sent when, and what crosses the wire."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.jobs.folders import allowed
from skerry_agent.rules.upload import ASK, Upload, UploadSettings
from skerry_hub.rules import batch as rules
from skerry_hub.rules.batch import BatchLimits, JobState, Part, PartState, Place
from skerry_modules import chunks
from skerry_modules.batches import ResultFrame, RowError, decode_frames, encode_frame
from skerry_modules.errors import InputError, PeerError
from skerry_modules.messages import Tensor

DEVICES = ("a", "b", "c")
LIMITS = BatchLimits(attempts=6, failures=3, pause_s=1.0, pause_max_s=4.0)
PLACES = st.lists(
    st.builds(
        Place, device=st.sampled_from(DEVICES), online=st.booleans(), serves=st.booleans(), parts=st.integers(0, 3)
    ),
    unique_by=lambda one: one.device,
)
PARTS = st.lists(
    st.builds(
        Part,
        number=st.integers(0, 50),
        state=st.sampled_from(PartState),
        only=st.sampled_from(("", *DEVICES)),
        refused=st.lists(st.sampled_from(DEVICES), unique=True).map(tuple),
        retry_at=st.integers(0, 20),
    ),
    unique_by=lambda one: one.number,
)


@given(PARTS, PLACES, st.integers(0, 20), st.integers(1, 3))
def test_parts_go_to_devices_that_can_score_them(
    parts: list[Part], places: list[Place], now: int, at_once: int
) -> None:
    found = rules.give(parts, places, now, at_once=at_once)
    by_number, by_name = {one.number: one for one in parts}, {one.device: one for one in places}
    assert len({number for number, _ in found}) == len(found), "each part once"
    has = {name: one.parts + sum(device == name for _, device in found) for name, one in by_name.items()}
    for number, device in found:
        part, place = by_number[number], by_name[device]
        assert part.state is PartState.QUEUED
        assert part.retry_at <= now
        assert part.only in ("", device)
        assert device not in part.refused
        assert place.online
        assert place.serves
        assert has[device] <= at_once
    usable = {one.device for one in places if one.online and one.serves}
    left = {name for name in usable if not has[name]}
    for part in parts:  # nobody idles beside a part that it could have
        if part.state is PartState.QUEUED and part.retry_at <= now and part.number not in dict(found):
            assert not {one for one in left if part.only in ("", one) and one not in part.refused}
    waiting = [part for part in parts if part.state is PartState.QUEUED and part.retry_at <= now]
    ahead = sum(max(0, has[name] - max(1, by_name[name].parts)) for name in usable)
    assert not ahead or len(waiting) - len(found) >= len(usable) - 1, "the last parts wait for whoever is ready first"


@pytest.mark.parametrize(
    ("parts", "has", "found"),
    [
        (4, {"a": 0}, "aa"),
        (4, {"a": 1}, "a"),
        (4, {"a": 2}, ""),
        (1, {"a": 1}, "a"),  # nobody else could take it sooner
        (1, {"a": 1, "b": 1}, ""),
        (2, {"a": 1, "b": 1}, "a"),
        (2, {"a": 0, "b": 0}, "ab"),
        (6, {"a": 0, "b": 0}, "abab"),
        (3, {"a": 1, "b": 0}, "ba"),
    ],
)
def test_a_part_is_given_ahead_where_nobody_waits_for_it(parts: int, has: dict[str, int], found: str) -> None:
    places = [Place(device=name, online=True, serves=True, parts=number) for name, number in has.items()]
    given_to = rules.give([Part(number=number) for number in range(parts)], places, 0, at_once=2)
    assert sorted(device for _, device in given_to) == sorted(found)
    assert [number for number, _ in given_to] == list(range(len(found))), "in their order"


CODES = st.sampled_from(
    ["command.no_answer", "command.interrupted", "resource.no_space", "scoring.unknown_input", "batch.not_allowed", ""]
)


@given(st.sampled_from(("", "a")), st.lists(CODES, min_size=40, max_size=40), st.randoms(use_true_random=False))
def test_a_part_that_is_never_scored_comes_to_an_end(only: str, codes: list[str], rng: random.Random) -> None:
    part, now, given_out = Part(number=0, only=only), 0, 0
    for code in codes:
        if part.state is not PartState.QUEUED:
            break
        now = max(now, part.retry_at)
        places = [Place(device=one, online=True, serves=True) for one in DEVICES]
        rng.shuffle(places)
        found = rules.give([part], places, now, at_once=LIMITS.at_once)
        assert found, "somebody can always take it"
        part = rules.given(part, found[0][1])
        given_out += 1
        before = now
        part = rules.ended_badly(part, code or "scoring.failed", "why", now, devices=DEVICES, limits=LIMITS)
        assert part.retry_at <= before + LIMITS.pause_max_s * 1000
    assert part.state is PartState.FAILED
    assert part.code
    assert given_out <= LIMITS.attempts + LIMITS.failures


@pytest.mark.parametrize(
    ("code", "only", "state", "refused"),
    [
        ("command.no_answer", "", PartState.QUEUED, ()),
        ("resource.no_space", "", PartState.QUEUED, ("a",)),
        ("resource.no_space", "a", PartState.QUEUED, ()),
        ("scoring.unknown_input", "", PartState.FAILED, ()),
        ("scoring.unknown_input", "a", PartState.FAILED, ()),
        ("batch.not_allowed", "a", PartState.FAILED, ()),
    ],
)
def test_what_an_end_means(code: str, only: str, state: PartState, refused: tuple[str, ...]) -> None:
    part = rules.given(Part(number=0, only=only), "a")
    after = rules.ended_badly(part, code, "why", 1000, devices=DEVICES, limits=LIMITS)
    assert (after.state, after.refused) == (state, refused)
    assert rules.dooms(after) == (code == "scoring.unknown_input" and not only)


def test_where_each_device_has_failed_on_a_part_it_is_tried_again_after_a_pause() -> None:
    part = Part(number=0)
    for failures in range(1, LIMITS.failures):
        part = rules.ended_badly(rules.given(part, "a"), "batch.failed", "killed", 1000, devices=["a"], limits=LIMITS)
        assert (part.state, part.failures, part.refused) == (PartState.QUEUED, failures, ())
        assert part.retry_at > 1000
    part = rules.ended_badly(rules.given(part, "a"), "batch.failed", "killed", 1000, devices=["a"], limits=LIMITS)
    assert (part.state, part.code, part.message) == (PartState.FAILED, "batch.failed", "killed")


@given(PARTS, st.booleans())
def test_a_job_ends_when_no_part_is_open(parts: list[Part], more: bool) -> None:
    found = rules.ending(parts, more=more)
    open_ = more or any(part.state in rules.OPEN for part in parts)
    assert (found is None) == open_
    if not open_:
        assert (found is JobState.FAILED) == any(part.state is PartState.FAILED for part in parts)


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1)), max_size=20))
def test_progress_is_a_share(parts: list[tuple[int, float]]) -> None:
    assert 0.0 <= rules.progress(parts) <= 1.0 + 1e-9
    assert rules.progress([(units, 1.0) for units, _ in parts]) == pytest.approx(1.0 if parts else 0.0)


# -- the way of a result -----------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 12 * chunks.CHUNK_BYTES), st.integers(0, 2**32))
def test_a_result_arrives_whatever_is_lost_on_the_way(size: int, seed: int) -> None:
    rng = random.Random(seed)
    upload = Upload(size, UploadSettings(window=3, quiet_s=1.0, quiet_max_s=4.0), connected=False)
    total, have, now = chunks.count(size), set[int](), 0.0
    upload.linked(True)
    for step in range(4000):
        if upload.over:
            break
        loss = 0.3 if step < 400 else 0.0
        if step < 400 and rng.random() < 0.03:
            upload.linked(False)
            assert upload.due(now) == []
            upload.linked(True)
        heard = False
        for number in upload.due(now):
            if rng.random() < loss:
                continue
            heard = True
            if number != ASK:
                have.add(number)
        if heard and rng.random() >= loss:
            lacks = chunks.encode_bitmap((one for one in range(total) if one not in have), total)
            upload.taken(lacks, len(have) == total, now)
        now += rng.choice([0.01, 0.3, 1.5])
    assert upload.over
    assert upload.progress == 1.0


def test_no_more_than_the_window_is_on_its_way() -> None:
    upload = Upload(10 * chunks.CHUNK_BYTES, UploadSettings(window=4), connected=True)
    assert upload.due(0.0) == [ASK]
    assert upload.due(0.1) == [], "asked already"
    upload.taken(chunks.encode_bitmap(range(10), 10), over=False, now=0.2)
    assert upload.due(0.2) == [0, 1, 2, 3]
    assert upload.due(0.3) == []
    upload.taken(chunks.encode_bitmap(range(2, 10), 10), over=False, now=0.4)
    assert upload.due(0.4) == [4, 5]
    assert upload.due(100.0) == [ASK], "silence: what is lacking is asked again"


FRAMES = st.lists(
    st.builds(
        ResultFrame,
        file=st.text(max_size=5),
        rows=st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
        outputs=st.dictionaries(
            st.text(max_size=3),
            st.builds(Tensor, datatype=st.just("FP32"), shape=st.just((1,)), data=st.binary(max_size=8)),
        ),
        errors=st.lists(st.builds(RowError, row=st.integers(-1, 9), code=st.text(), reason=st.text())).map(tuple),
    ),
    max_size=4,
)


@given(FRAMES, st.data())
def test_frames_come_back_and_damage_is_seen(frames: list[ResultFrame], data: st.DataObject) -> None:
    encoded = b"".join(map(encode_frame, frames))
    assert list(decode_frames(io.BytesIO(encoded))) == frames
    if encoded:
        cut = data.draw(st.integers(1, len(encoded) - 1))
        whole = list(map(len, map(encode_frame, frames)))
        if cut not in [sum(whole[:number]) for number in range(len(whole))]:
            with pytest.raises(PeerError):
                list(decode_frames(io.BytesIO(encoded[:cut])))


@pytest.mark.parametrize("path", ["/etc/passwd", "../agent.toml", "out/../../x", "link/x"])
def test_paths_outside_are_not_scored(tmp_path: Path, path: str) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (tmp_path / "x").write_text("1")
    (inputs / "link").symlink_to(tmp_path)
    with pytest.raises(InputError) as caught:
        allowed(path, [inputs])
    assert caught.value.code == "batch.not_allowed"


def test_paths_inside_are(tmp_path: Path) -> None:
    inputs, more = tmp_path / "inputs", tmp_path / "more"
    for folder in (inputs, more):
        folder.mkdir()
        (folder / "x.csv").write_text("1")
    assert allowed("x.csv", [inputs, more]) == inputs / "x.csv"
    assert allowed(str(more / "x.csv"), [inputs, more]) == more / "x.csv"
    with pytest.raises(InputError) as caught:
        allowed("y.csv", [inputs, more])
    assert caught.value.code == "batch.input"
