"""The receiving half of the spool's numbering: nothing lost, nothing twice, whatever the network does to messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skerry_hub.rules.marks import MAX_NUMBER, Taken, Verdict, take

numbers = st.integers(min_value=0, max_value=50)


def test_first_message_of_a_new_spool_is_taken() -> None:
    assert take(0, 1, 1) == Taken(Verdict.TAKE, 1, 0)


def test_a_jump_of_base_counts_what_the_device_dropped() -> None:
    assert take(4, 9, 9) == Taken(Verdict.TAKE, 9, 4)


def test_numbers_that_no_spool_can_say_are_refused() -> None:
    for seq, base in ((0, 0), (3, 4), (-1, -1), (MAX_NUMBER + 1, 1)):
        assert take(2, seq, base) == Taken(Verdict.INVALID, 2, 0)


@given(numbers, numbers, numbers)
def test_marks_never_go_back_and_only_move_by_taking(mark: int, seq: int, base: int) -> None:
    verdict, after, lost = take(mark, seq, base)
    assert after >= mark
    assert lost >= 0
    assert (after != mark) == (verdict is Verdict.TAKE)
    if verdict is Verdict.TAKE:
        assert after == seq
        assert seq == max(mark + 1, base)


@given(numbers, numbers, numbers)
def test_a_message_is_taken_at_most_once(mark: int, seq: int, base: int) -> None:
    first = take(mark, seq, base)
    again = take(first.mark, seq, base)
    assert again.verdict is not Verdict.TAKE
    if first.verdict is Verdict.TAKE:
        assert again.verdict is Verdict.DUPLICATE


@given(st.data())
def test_any_network_and_any_eviction_end_with_each_record_taken_once_or_counted_lost(data: st.DataObject) -> None:
    """A spool sends over a network that drops, doubles and reorders, and evicts its oldest now and then."""
    total = data.draw(st.integers(1, 30))
    base, mark, lost = 1, 0, 0
    taken: list[int] = []
    evicted = 0
    for _ in range(200):
        if base > total:
            break
        window = [(seq, base) for seq in range(base, min(total, base + 5) + 1)]
        arriving = data.draw(st.lists(st.sampled_from(window), max_size=8))
        for seq, said in arriving:
            verdict, mark, gone = take(mark, seq, said)
            lost += gone
            if verdict is Verdict.TAKE:
                taken.append(seq)
        if data.draw(st.booleans()):  # the acknowledgement arrives
            base = max(base, mark + 1)
        elif base < total and data.draw(st.integers(0, 9)) == 0:
            evicted += base > mark
            base += 1
    for seq in range(base, total + 1):  # a quiet network at last
        verdict, mark, gone = take(mark, seq, base)
        lost += gone
        if verdict is Verdict.TAKE:
            taken.append(seq)
    assert taken == sorted(set(taken))
    assert set(taken) | set(range(1, total + 1)) == set(range(1, total + 1))
    assert len(taken) + evicted >= mark
    if mark == total:
        assert len(taken) + lost == total
