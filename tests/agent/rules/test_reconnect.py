"""When a link is tried again: soon after a short outage, and never all devices at once."""

from __future__ import annotations

import bisect
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.rules.reconnect import STEADY_S, Reconnect

FIRST_S, MAX_S = 1.0, 60.0


def comes_back(
    rng: random.Random, outage_s: float, *, spread_s: float = 0.0, max_s: float = MAX_S
) -> tuple[float, int]:
    """(when a device is back, attempts that failed); its steady connection was lost at 0 with all the others'."""
    link = Reconnect(FIRST_S, max_s, rng)
    link.spread_s = spread_s
    now, failed = link.pause(stood_s=STEADY_S), 0
    while now < outage_s:
        failed += 1
        now += link.pause(tried_s=0.0)
    return now, failed


@given(st.integers(), st.floats(0.0, 600.0))
def test_nobody_stays_away_for_longer_again_than_the_outage_lasted(seed: int, outage_s: float) -> None:
    back, _ = comes_back(random.Random(seed), outage_s)
    assert back - outage_s <= max(FIRST_S, min(outage_s, MAX_S))


@given(
    st.integers(),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)), max_size=30),
    st.floats(0.1, 5),
    st.floats(0, 500),
)
def test_a_pause_is_never_above_its_ceiling_nor_that_above_the_longest(
    seed: int, story: list[tuple[float, float]], first_s: float, spread_s: float
) -> None:
    link = Reconnect(first_s, MAX_S, random.Random(seed))
    link.spread_s = spread_s
    for stood_s, tried_s in story:
        pause = link.pause(stood_s=stood_s, tried_s=tried_s)
        assert 0 <= pause <= MAX_S
        assert min(MAX_S, max(first_s, spread_s)) <= link.ceiling <= MAX_S
        if stood_s >= STEADY_S:
            assert pause <= min(MAX_S, max(first_s, spread_s))


@pytest.mark.parametrize("outage_s", [0.0, 3.0, 45.0, 600.0])
def test_ten_thousand_that_the_hub_spoke_to_come_back_at_its_pace(outage_s: float) -> None:
    """40 s are what the hub says to 10,000 devices at 500 a second."""
    dice = random.Random(7)
    back = sorted(comes_back(random.Random(dice.random()), outage_s, spread_s=40.0)[0] for _ in range(10_000))
    most = max(bisect.bisect_left(back, start + 1.0) - place for place, start in enumerate(back))
    assert most < 600  # 500, and what chance adds
    assert back[len(back) // 2] - outage_s < 30


def test_a_dead_broker_is_not_hammered_and_not_forgotten() -> None:
    attempts = sorted(comes_back(random.Random(seed), 3600.0)[1] for seed in range(200))
    assert attempts[-1] < 180  # one in 30 s, in the mean, after the first minute
    assert attempts[0] > 90


def test_two_that_throw_each_other_out_do_so_ever_more_slowly() -> None:
    link = Reconnect(FIRST_S, MAX_S, random.Random(1))
    ceilings = []
    for _ in range(12):
        link.pause(stood_s=0.5)
        ceilings.append(link.ceiling)
    assert ceilings == sorted(ceilings)
    assert ceilings[-1] == MAX_S
    link.pause(stood_s=STEADY_S)
    assert link.ceiling <= 2 * FIRST_S
