"""Equal events are counted, not repeated."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.events import MAX_KEYS, Repeats
from skerry_modules.messages import Event, Severity


def event(code: str = "message.malformed", module: str = "") -> Event:
    return Event(severity=Severity.WARNING, code=code, message="m", module=module)


def test_a_flood_becomes_a_few_and_a_count() -> None:
    repeats = Repeats(60.0)
    passed = [repeats.admit(event(), number * 0.001) for number in range(1000)]
    assert sum(one is not None for one in passed) == 3
    later = repeats.admit(event(), 61.0)
    assert later is not None
    assert later.data == {"repeated": 997}


def test_others_are_not_held_back() -> None:
    repeats = Repeats(60.0)
    for _ in range(10):
        repeats.admit(event(), 0.0)
    assert repeats.admit(event("trust.unsigned"), 0.0)
    assert repeats.admit(event(module="digits"), 0.0)


@given(st.lists(st.tuples(st.integers(0, 600), st.floats(0, 5)), max_size=300))
def test_memory_stays_bounded_and_the_first_of_each_while_passes(steps: list[tuple[int, float]]) -> None:
    repeats = Repeats(10.0)
    now, last = 0.0, dict[int, float]()
    for key, pause in steps:
        now += pause
        passed = repeats.admit(event(str(key)), now)
        if key not in last or now - last[key] >= 10.0:
            assert passed
        last[key] = now
        assert len(repeats._seen) <= MAX_KEYS
