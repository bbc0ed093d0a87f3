"""What the spool keeps, sends and forgets: bounded, in order, each record once through any loss."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.rules.spool import Kept, Sending, SpoolPolicy, SpoolSettings, kept
from skerry_hub.rules import marks
from skerry_modules.messages import Stream

SMALL = SpoolSettings(max_bytes=1000, max_record_bytes=400, window=4, window_bytes=600, resend_s=10.0, resend_max_s=40)

appends = st.tuples(st.sampled_from(list(Stream)), st.integers(1, 450), st.booleans())


@given(st.lists(appends, max_size=80))
def test_the_budget_is_kept_and_numbers_have_no_holes(records: list[tuple[Stream, int, bool]]) -> None:
    policy = SpoolPolicy(SMALL)
    rows: dict[int, dict[int, int]] = {int(stream): {} for stream in Stream}
    for stream, size, coalesce in records:
        before = policy.bytes
        replaced = rows[stream].get(policy.next_seq(stream) - 1, 0)
        appended = policy.append(stream, size, coalesce=coalesce)
        for victim, upto in appended.dropped.items():
            assert victim >= stream, "nothing more urgent is dropped for it"
            for seq in [seq for seq in rows[victim] if seq <= upto]:
                del rows[victim][seq]
        if appended.seq:
            assert appended.replaces == (appended.seq in rows[stream])
            rows[stream][appended.seq] = size
        grown = max(0, size - replaced) if appended.replaces else 0
        assert policy.bytes <= max(SMALL.max_bytes, before + grown), "over the budget by a state's growth at most"
        assert policy.bytes == sum(sum(lane.values()) for lane in rows.values())
        for lane, held in rows.items():
            assert sorted(held) == list(range(policy.base(lane), policy.next_seq(lane)))


@given(st.lists(appends, max_size=60), st.integers(0, 2**32))
def test_through_any_loss_the_hub_gets_each_kept_record_once_and_in_order(
    records: list[tuple[Stream, int, bool]], seed: int
) -> None:
    rng = random.Random(seed)
    policy = SpoolPolicy(SMALL)
    bodies: dict[tuple[int, int], int] = {}
    hub: dict[int, int] = {int(stream): 0 for stream in Stream}
    got: list[tuple[int, int]] = []
    now, number = 0.0, 0
    policy.connected(now)
    todo = list(records)
    for _ in range(4000):
        now += rng.uniform(0, 15)
        if todo:
            stream, size, _ = todo.pop()
            appended = policy.append(stream, size)
            number += 1
            if appended.seq:
                bodies[int(stream), appended.seq] = number
        if rng.random() < 0.1:
            policy.disconnected()
            policy.connected(now)
        calm = not todo
        for sending in policy.due(now):
            if not calm and rng.random() < 0.4:
                continue
            verdict = marks.take(hub[sending.stream], sending.seq, sending.base)
            hub[sending.stream] = verdict.mark
            if verdict.verdict is marks.Verdict.TAKE:
                got.append((sending.stream, sending.seq))
        if calm or rng.random() < 0.5:
            policy.acked(hub, now)
        if calm and not policy.records:
            break
    assert policy.records == 0
    assert len(got) == len(set(got))
    for stream in Stream:
        mine = [seq for lane, seq in got if lane == stream]
        assert mine == sorted(mine)
    dropped = sum(policy.dropped.values())
    assert len(got) >= len(records) - dropped


@given(st.lists(appends, min_size=1, max_size=60))
def test_what_is_in_flight_stays_within_the_windows(records: list[tuple[Stream, int, bool]]) -> None:
    policy = SpoolPolicy(SMALL)
    policy.connected(0.0)
    sizes: dict[tuple[int, int], int] = {}
    flying: set[tuple[int, int]] = set()
    for stream, size, _ in records:
        appended = policy.append(stream, size)
        if appended.seq:
            sizes[int(stream), appended.seq] = size
        for sending in policy.due(0.0):
            flying.add((sending.stream, sending.seq))
        flying = {key for key in flying if key[1] >= policy.base(key[0])}
        assert len(flying) <= SMALL.window * len(Stream)
        assert sum(sizes[key] for key in flying) <= max(SMALL.window_bytes, *sizes.values(), 0)


def test_urgent_records_go_first() -> None:
    policy = SpoolPolicy(SMALL)
    for stream in (Stream.METRIC, Stream.SAMPLE, Stream.ALARM):
        policy.append(stream, 10)
    policy.connected(0.0)
    assert [sending.stream for sending in policy.due(0.0)] == [Stream.ALARM, Stream.SAMPLE, Stream.METRIC]


def test_silence_sends_again_from_the_base_with_growing_patience() -> None:
    policy = SpoolPolicy(SMALL)
    policy.append(Stream.ALARM, 10)
    policy.connected(0.0)
    again: list[float] = []
    now = 0.0
    while len(again) < 5:
        if policy.due(now):
            again.append(now)
        assert policy.next_deadline is not None
        now = policy.next_deadline
    assert again == [0.0, 10.0, 30.0, 70.0, 110.0]


def test_a_state_replaces_the_one_before_only_while_that_was_never_sent() -> None:
    policy = SpoolPolicy(SMALL)
    assert policy.append(Stream.STATE, 10, coalesce=True).seq == 1
    second = policy.append(Stream.STATE, 20, coalesce=True)
    assert (second.seq, second.replaces, policy.bytes) == (1, True, 20)
    policy.connected(0.0)
    assert policy.due(0.0) == [Sending(Stream.STATE, 1, 1)]
    third = policy.append(Stream.STATE, 10, coalesce=True)
    assert (third.seq, third.replaces) == (2, False)


def test_after_a_restart_everything_counts_as_sent() -> None:
    policy = SpoolPolicy(SMALL, {int(Stream.STATE): Kept(5, (10, 10))})
    assert policy.append(Stream.STATE, 10, coalesce=True).seq == 7


def test_an_empty_stream_goes_on_from_its_number() -> None:
    held = kept([(3, 4, 10), (3, 5, 20)], {0: 9, 3: 6})
    assert held == {3: Kept(4, (10, 20)), 0: Kept(9)}
    assert SpoolPolicy(SMALL, held).append(0, 10).seq == 9


def test_a_hub_that_knows_numbers_we_never_gave_says_that_the_spool_was_put_back() -> None:
    policy = SpoolPolicy(SMALL)
    policy.append(Stream.SAMPLE, 10)
    acked = policy.acked({int(Stream.SAMPLE): 5}, 0.0)
    assert acked.torn
    assert acked.upto == {int(Stream.SAMPLE): 1}


@settings(max_examples=50)
@given(st.lists(st.dictionaries(st.sampled_from([int(s) for s in Stream]), st.integers(0, 30)), max_size=20))
def test_acknowledgements_in_any_order_never_go_back(acks: list[dict[int, int]]) -> None:
    policy = SpoolPolicy(SMALL)
    for stream in Stream:
        for _ in range(6):
            policy.append(stream, 5)
    policy.connected(0.0)
    for ack in acks:
        policy.due(0.0)
        before = {int(stream): policy.base(stream) for stream in Stream}
        policy.acked(ack, 0.0)
        for stream in Stream:
            assert before[int(stream)] <= policy.base(stream) <= 7
