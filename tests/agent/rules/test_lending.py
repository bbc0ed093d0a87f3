"""What a dead worker had taken and answered of a lent connection: every moment at which it can be killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.rules.lending import (
    ANSWERING,
    SCORING,
    WAITING,
    Counted,
    Notes,
    Verdict,
    after_death,
    is_hanging,
)

LIMIT = 1000


class Life:
    """A worker and its kernel, step by step; ``answered``: requests that the client has whole answers to."""

    def __init__(self) -> None:
        self.state, self.have, self.done, self.sent, self.size, self.began = WAITING, 0, 0, 0, 0, False
        self.taken = self.written = self.answered = 0

    def serve(self, request: int, answer: int, parts: int) -> Iterator[None]:
        """One request as ``serving.guest`` does it; it can be killed at every ``yield``."""
        pieces = [request // parts + (place < request % parts) for place in range(parts)]
        for piece in pieces:
            self.taken, self.began = self.taken + piece, True
            yield
            self.have += piece
            yield
        self.state = SCORING
        yield
        self.size = answer
        yield
        self.state = ANSWERING
        yield
        self.written, self.answered = self.written + answer, self.answered + 1
        yield
        self.done, self.sent = self.done + request, self.sent + answer
        yield
        self.have = 0
        yield
        self.began = False
        yield
        self.state = WAITING
        yield

    @property
    def notes(self) -> Notes:
        return Notes(self.state, self.have, self.done, self.sent, self.size, self.began)


SIZES = st.tuples(st.integers(1, 50), st.integers(1, 90), st.integers(1, 3)).filter(lambda one: one[2] <= one[0])


@given(st.lists(SIZES, min_size=1, max_size=5), st.data())
def test_with_the_kernels_count_every_byte_is_taken_up_once(
    requests: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    life, moments = Life(), []
    for place, (request, answer, parts) in enumerate(requests):
        before = life.taken
        for _ in life.serve(request, answer, parts):
            unanswered = 0 if life.answered > place else life.taken - before
            moments.append((life.notes, Counted(life.taken, life.written), unanswered))
    notes, counted, unanswered = data.draw(st.sampled_from(moments))
    verdict = after_death(notes, counted, False, LIMIT)
    assert (verdict.pending, verdict.torn) == (unanswered, False)
    assert verdict.blamed == (notes.state == SCORING)


@given(st.lists(SIZES, min_size=1, max_size=5), st.data())
def test_without_it_a_request_is_never_answered_twice_and_never_torn_while_scored(
    requests: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    life, moments = Life(), []
    for place, (request, answer, parts) in enumerate(requests):
        before = life.taken
        for _ in life.serve(request, answer, parts):
            out = life.answered > place
            moments.append((life.notes, 0 if out else life.taken - before, out))
    notes, unanswered, out = data.draw(st.sampled_from(moments))
    verdict = after_death(notes, None, False, LIMIT)
    assert verdict.torn or verdict.pending == unanswered
    if notes.state == SCORING:
        assert verdict == Verdict(unanswered, blamed=True)
    # A client that has sent more, or has something to read, has its answer.
    moved = after_death(notes, None, out, LIMIT)
    assert moved.torn or moved.pending == unanswered


@pytest.mark.parametrize(
    ("notes", "counted"),
    [
        (Notes(ANSWERING, 10, 0, 0, 50, True), Counted(10, 20)),  # half an answer went out
        (Notes(ANSWERING, 0, 10, 50, -1, True), Counted(10, 20)),  # the agent has not heard of the rest
        (Notes(WAITING, 0, 0, 0, 0, True), Counted(LIMIT + 1, 0)),  # more than the memory holds
        (Notes(WAITING, 0, 50, 0, 0, True), Counted(20, 0)),  # notes of a process gone mad
        (Notes(SCORING, LIMIT + 1, 0, 0, 0, True), None),
        (Notes(SCORING, -1, 0, 0, 0, True), None),
        (Notes(WAITING, 0, 0, 0, 0, True), None),  # read, and nobody knows how much
        (Notes(WAITING, 5, 0, 0, 0, True), None),  # and here how much more
    ],
)
def test_what_nobody_can_know_is_torn(notes: Notes, counted: Counted | None) -> None:
    assert after_death(notes, counted, False, LIMIT).torn


@pytest.mark.parametrize(
    ("state", "now", "hangs"),
    [(SCORING, 12.9, False), (SCORING, 13.0, True), (WAITING, 99, False), (ANSWERING, 99, False)],
)
def test_only_what_is_being_scored_hangs(state: int, now: float, hangs: bool) -> None:
    assert is_hanging(state, 10.0, now, 3.0) == hangs
