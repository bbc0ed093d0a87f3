"""The data plane's pure rules: who is sent, blamed and late; which rows are kept."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from skerry_agent.rules.dispatch import Dispatch, Ticket
from skerry_agent.rules.sampling import FAR, WINDOW_S, Policy, Window, decide, gap
from skerry_agent.serving import oip

WINDOW, QUEUE, LIMIT_S = 3, 5, 10.0


def dispatch() -> Dispatch:
    return Dispatch(window=WINDOW, window_bytes=100, queue_requests=QUEUE, queue_bytes=300, run_limit_s=LIMIT_S)


class DispatchMachine(RuleBasedStateMachine):
    """Any history of offers, answers, crashes and deadlines; every request ends in exactly one way."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = dispatch()
        self.now = 0.0
        self.number = 0
        self.open: dict[int, Ticket] = {}
        self.blamed: dict[int, int] = {}
        self.worker: list[int] = []  # what a real worker has in its socket

    @rule(size=st.integers(0, 120), patience=st.floats(0.5, 20))
    def offer(self, size: int, patience: float) -> None:
        self.number += 1
        ticket = Ticket(self.number, None, size, self.now + patience)
        room = len(self.rules.waiting) < QUEUE
        if self.rules.offer(ticket):
            assert room
            self.open[self.number] = ticket

    @rule(size=st.integers(0, 120), patience=st.floats(0.5, 20))
    def board(self, size: int, patience: float) -> None:
        self.number += 1
        ticket = Ticket(self.number, None, size, self.now + patience)
        idle = self.rules.idle
        if self.rules.board(ticket, self.now):
            self.open[self.number] = ticket
            self.worker.append(ticket.number)
        else:
            assert not idle

    @rule()
    def send(self) -> None:
        for ticket in self.rules.send(self.now):
            assert not ticket.done
            self.worker.append(ticket.number)

    @precondition(lambda self: self.worker)
    @rule()
    def answer(self) -> None:
        number = self.worker.pop(0)
        ticket = self.rules.answered(number, self.now)
        if ticket is not None:
            self.end(ticket)
        else:
            assert number not in self.open

    @rule()
    def crash(self) -> None:
        if self.worker:
            self.blamed[self.worker[0]] = self.blamed.get(self.worker[0], 0) + 1
        head = self.worker[:1]
        self.worker = []
        for ticket in self.rules.crashed(2):
            assert [ticket.number] == head
            assert self.blamed[ticket.number] == 2
            self.end(ticket)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        self.rules.forget(ticket)
        assert ticket not in self.rules.waiting
        self.end(ticket)

    @rule(step=st.floats(0.1, 8))
    def wait(self, step: float) -> None:
        self.now += step
        for ticket in self.rules.expired(self.now):
            assert ticket.deadline <= self.now
            self.end(ticket)
        if self.rules.hangs(self.now):
            assert self.worker
            self.crash()

    def end(self, ticket: Ticket) -> None:
        ticket.done = True
        assert self.open.pop(ticket.number) is ticket  # once

    @invariant()
    def nobody_is_forgotten(self) -> None:
        held = [ticket.number for ticket in (*self.rules.flying.values(), *self.rules.waiting) if not ticket.done]
        assert sorted(held) == sorted(self.open)
        assert len(self.rules) == len(self.open)

    @invariant()
    def the_window_holds_and_the_head_is_the_workers(self) -> None:
        assert list(self.rules.flying) == self.worker
        assert len(self.worker) <= WINDOW
        sizes = [ticket.size for ticket in self.rules.flying.values()]
        assert len(sizes) <= 1 or sum(sizes) <= 100

    @invariant()
    def the_queues_bytes_are_counted(self) -> None:
        assert self.rules._waiting_bytes == sum(ticket.size for ticket in self.rules.waiting)
        assert self.rules._flying_bytes == sum(ticket.size for ticket in self.rules.flying.values())

    @invariant()
    def there_is_always_a_next_look(self) -> None:
        assert not self.open or self.rules.next_look() is not None
        assert all(ticket.deadline > self.now for ticket in self.open.values())


DispatchMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDispatch = DispatchMachine.TestCase


def test_only_the_head_is_blamed_and_the_others_keep_their_order() -> None:
    rules = dispatch()
    tickets = [Ticket(number, None, 1, 100.0) for number in range(1, 6)]
    for ticket in tickets:
        assert rules.offer(ticket)
    assert [ticket.number for ticket in rules.send(0.0)] == [1, 2, 3]
    assert rules.crashed(2) == []
    assert [ticket.number for ticket in rules.send(1.0)] == [1, 2, 3]
    assert rules.crashed(2) == [tickets[0]]
    assert [ticket.number for ticket in rules.send(2.0)] == [2, 3, 4]
    assert [ticket.kills for ticket in tickets] == [2, 0, 0, 0, 0]


def test_a_hang_is_the_time_with_the_worker_not_the_time_in_the_queue() -> None:
    rules = dispatch()
    for number in (1, 2):
        rules.offer(Ticket(number, None, 1, 100.0))
    rules.send(0.0)
    rules.answered(1, 9.0)
    assert not rules.hangs(11.0)
    assert rules.hangs(19.0)


def test_a_queue_takes_one_request_of_any_size() -> None:
    rules = dispatch()
    assert rules.offer(Ticket(1, None, 10_000, 1.0))
    assert not rules.offer(Ticket(2, None, 10_000, 1.0))
    assert [ticket.number for ticket in rules.send(0.0)] == [1]


policies = st.builds(Policy, st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
scores = st.one_of(st.none(), st.floats(0, 1), st.just(float("nan")))


@settings(max_examples=200, deadline=None)
@given(policies, st.lists(st.tuples(st.floats(0, 20), st.booleans(), scores), max_size=60))
def test_sampling_keeps_to_its_policy(policy: Policy, rows: list[tuple[float, bool, float | None]]) -> None:
    window, now, kept_at = Window(), 0.0, []
    for step, drawn, score in rows:
        now += step
        before = window
        window, kept = decide(policy, window, now, drawn, score)
        low = policy.low_confidence > 0 and score is not None and not score >= policy.low_confidence
        if kept is None:
            assert not (low or drawn) or window.capped == before.capped + 1 or window.capped == 1
            continue
        assert low or drawn
        assert kept == (("low_confidence", 1.0) if low else ("random", policy.rate))
        kept_at.append(now)
    for start in kept_at:  # the cap holds in every window that begins with a kept row
        if start == kept_at[0]:
            assert sum(start <= at < start + WINDOW_S for at in kept_at) <= policy.max_per_minute


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_samples_are_unbiased_by_their_probability(rate: float) -> None:
    source, policy, window, weight = random.Random(7), Policy(rate, 0.5, 10**9), Window(), 0.0
    scores = [source.random() for _ in range(20_000)]
    wait = gap(rate, source.random())
    for score in scores:
        wait -= 1
        drawn = wait == 0
        if drawn:
            wait = gap(rate, source.random())
        window, kept = decide(policy, window, 0.0, drawn, score)
        if kept is not None and kept.probability:
            weight += 1 / kept.probability
    expected = len(scores) if rate else sum(score < 0.5 for score in scores)
    assert weight == pytest.approx(expected, rel=0.05)


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_a_gap_is_at_least_one_row_and_for_ever_where_nothing_is_kept(rate: float, draw: float) -> None:
    assert 1 <= gap(rate, draw) <= FAR
    assert gap(0.0, draw) == FAR
    assert gap(1.0, draw) == 1


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_gaps_are_as_if_each_row_had_drawn(rate: float) -> None:
    source = random.Random(11)
    gaps = [gap(rate, source.random()) for _ in range(20_000)]
    for rows in (1, 2, 5):
        assert sum(one > rows for one in gaps) / len(gaps) == pytest.approx((1 - rate) ** rows, abs=0.02)


@pytest.mark.parametrize("rows", [1, 5000])
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_deadline_is_found_on_either_side_of_the_values(rows: int, first: bool) -> None:
    parameters = {"parameters": {"timeout": 250_000}}
    inputs = {"inputs": [{"name": "timeout", "data": [0.125] * 4 * rows}]}
    body = json.dumps({**parameters, **inputs} if first else {**inputs, **parameters}).encode()
    assert oip.timeout_s(body, -1) == 0.25
    assert oip.timeout_s(body + b"tensors", len(body)) == 0.25
    assert oip.timeout_s(json.dumps(inputs).encode(), -1) is None
    assert oip.timeout_s(body[:-1], -1) is None, "what is no JSON is for the worker to say"
