"""The console's pure parts: numbers for people, the rollout form, series, and which nudge concerns a page."""

from __future__ import annotations

import asyncio
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_hub.bus import Bus
from skerry_hub.console import format as text
from skerry_hub.console import live
from skerry_hub.console.forms import RolloutForm, format_waves, parse_waves, wrong_field
from skerry_hub.console.queries import batches, log
from skerry_hub.console.queries.fleet import search
from skerry_hub.console.queries.paging import Page, clamp
from skerry_hub.console.queries.rollouts import ORDER, WENT_BACK, Happening, shown, together, wave_state
from skerry_hub.console.series import Series
from skerry_hub.rules.rollout import DeviceStep, Plan, RolloutState, Wave, check_plan
from skerry_hub.tables import Audit, BatchRow
from skerry_modules import messages
from skerry_modules.errors import InputError
from skerry_modules.histogram import Histogram


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "–"), (0, "0"), (0.42, "0.42"), (12.34, "12.3"), (7.5, "7.50"), (1204.4, "1,204"), (60, "60")],
)
def test_numbers_have_three_digits(value: float | None, said: str) -> None:
    assert text.number(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(-1, "–"), (0, "0 B"), (812, "812 B"), (214_332, "214 kB"), (1_300_000_000, "1.30 GB"), (8e9, "8 GB")],
)
def test_sizes_have_units(value: int, said: str) -> None:
    assert text.size(value) == said


@pytest.mark.parametrize(("value", "said"), [(95, "95 µs"), (1240, "1.24 ms"), (2_100_000, "2.10 s"), (None, "–")])
def test_latencies_have_units(value: float | None, said: str) -> None:
    assert text.microseconds(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(1.5, "1.50 s"), (45, "45 s"), (300, "5 min"), (7800, "2 h 10 min"), (273_600, "3 d 4 h")]
)
def test_spans_have_units(value: float, said: str) -> None:
    assert text.seconds(value) == said


@pytest.mark.parametrize(
    ("delta_s", "said"),
    [
        (0, "just now"),
        (12, "12 s ago"),
        (200, "3 min ago"),
        (7200, "2 h ago"),
        (200_000, "2 d ago"),
        (-300, "in 5 min"),
    ],
)
def test_times_are_relative(delta_s: int, said: str) -> None:
    now = 1_700_000_000_000
    assert text.ago(now - delta_s * 1000, now) == said


def test_never_is_a_time_too() -> None:
    assert text.ago(0, 5) == "never"


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("rollout.create", "Created"),
        ("rollout.wave", "Wave begins"),
        ("rollout.device-rolled-back", "Device rolled back"),
        ("rollout.turning-back", "Turning back"),
    ],
)
def test_a_timeline_says_what_was_done(action: str, said: str) -> None:
    assert text.deed(action) == said


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_share_is_never_rounded_to_nothing_or_all(part: int, more: int) -> None:
    said = text.share(part, part + more)
    assert (said == "0 %") == (part == 0)
    assert (said == "100 %") == (part > 0 and more == 0)


@settings(deadline=None)
@given(st.text(st.sampled_from("a<&>\"'-./"), max_size=30))
def test_breakable_names_stay_escaped(name: str) -> None:
    from markupsafe import escape

    assert str(text.breakable(name)).replace("<wbr>", "") == str(escape(name))


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"version": "digits"}, "version"),
        ({"waves": "two"}, "waves"),
        ({"waves": "x %"}, "waves"),
        ({"waves": "1"}, "waves"),
        ({"waves": "60 %, 20 %, 100 %"}, "waves"),
        ({"soak_s": "-1"}, "soak_s"),
        ({"wave_pause_s": "inf"}, "wave_pause_s"),
        ({"threshold": "130"}, "threshold"),
        ({"device_timeout_min": "0"}, "device_timeout_min"),
    ],
)
def test_a_mistake_names_its_field(typed: dict[str, str], field: str) -> None:
    form = RolloutForm.read({"version": "digits:3", **typed})

    def use() -> None:
        form.module()
        check_plan(form.plan())

    with pytest.raises(InputError) as raised:
        use()
    assert wrong_field(raised.value) == field


def test_not_every_problem_is_one_fields() -> None:
    assert wrong_field(None) == ""
    assert wrong_field(InputError("rollout.conflict", "cannot roll out: another one runs")) == ""
    assert wrong_field(InputError("query.invalid", "cannot use the tag query")) == "target"


waves = st.lists(
    st.builds(Wave, count=st.integers(1, 10_000)) | st.builds(Wave, percent=st.integers(1, 100).map(float)), max_size=6
)


@settings(deadline=None)
@given(waves)
def test_waves_are_read_as_they_are_written(given_waves: list[Wave]) -> None:
    assert parse_waves(format_waves(tuple(given_waves))) == tuple(given_waves)


@pytest.mark.parametrize("typed", ["one", "5 %%", "-3", "1;2", "½"])
def test_a_wave_that_is_none_is_named(typed: str) -> None:
    with pytest.raises(InputError, match="cannot use") as caught:
        parse_waves(typed)
    assert caught.value.code == "request.invalid"


def test_the_forms_defaults_are_a_possible_plan() -> None:
    plan = RolloutForm(version="digits:3").plan()
    check_plan(plan)
    assert plan.waves == (Wave(count=1), Wave(percent=25), Wave(percent=100))
    assert RolloutForm(version="digits:3").module() == ("digits", 3)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*RolloutForm.__dataclass_fields__, "other"]), st.text(max_size=20)))
def test_any_form_gives_a_plan_or_says_why_not(given_form: dict[str, str]) -> None:
    form = RolloutForm.read(given_form)
    try:
        plan: Plan | InputError = form.plan()
    except InputError as error:
        plan = error
    assert isinstance(plan, Plan) or plan.code == "request.invalid"


@pytest.mark.parametrize("typed", ["", "digits", "digits:", "digits:x", ":"])
def test_a_form_without_a_version_says_so(typed: str) -> None:
    with pytest.raises(InputError, match="choose one"):
        RolloutForm(version=typed).module()


def test_search_takes_tags_and_parts_of_ids_together() -> None:
    tags, word = search("site=lab cam-")
    assert str(tags) == "site=lab"
    assert word == "cam-"
    assert search("*") == search("")


@settings(deadline=None)
@given(st.integers(-5, 10_000), st.integers(0, 10_000), st.integers(1, 100))
def test_a_page_number_is_always_one_that_exists(number: int, total: int, size: int) -> None:
    page: Page[None] = Page(rows=[], number=clamp(number, total, size), total=total, size=size)
    assert 1 <= page.number <= page.pages


@pytest.mark.parametrize(
    ("state", "current", "number", "said"),
    [
        ("running", 1, 0, "succeeded"),
        ("running", 1, 1, "running"),
        ("running", 1, 2, "pending"),
        ("rolled-back", 0, 1, "skipped"),
        ("rolled-back", 0, 0, "rolled-back"),
        ("succeeded", 1, 1, "succeeded"),
        ("failed", 1, 1, "failed"),
    ],
)
def test_a_wave_is_said_as_it_is(state: str, current: int, number: int, said: str) -> None:
    assert wave_state(state, current, number, {}) == said


@settings(deadline=None)
@given(st.sampled_from(RolloutState), st.integers(0, 3), st.integers(0, 3))
def test_every_wave_of_every_rollout_has_a_state(state: RolloutState, current: int, number: int) -> None:
    assert wave_state(state, current, number, {"went-back": 1})


def test_one_that_fails_is_told_from_those_that_go_back_with_it() -> None:
    assert shown("rolled-back", has_reason=True) == "failed"
    assert shown("rolled-back", has_reason=False) == WENT_BACK
    assert shown("unschedulable", has_reason=True) == "unschedulable"


@given(st.sampled_from(DeviceStep), st.booleans())
def test_every_step_is_shown_in_the_bars(step: DeviceStep, has_reason: bool) -> None:
    assert shown(step, has_reason) in ORDER


@given(st.lists(st.tuples(st.sampled_from(["wave", "device-failed", "device-succeeded"]), st.booleans()), max_size=20))
def test_a_timeline_put_together_loses_nobody(kinds: list[tuple[str, bool]]) -> None:
    story = [
        Happening(9 - place, "hub", kind, "", [f"d{place}"] if one else []) for place, (kind, one) in enumerate(kinds)
    ]
    expected = [name for happening in story for name in happening.devices]
    found = together(story)
    assert [name for happening in found for name in happening.devices] == expected
    assert sum(not happening.devices for happening in found) == sum(not one for _, one in kinds)


# -- series --------------------------------------------------------------------------------------------------------

NOW = 1_700_000_000_000
windows = st.lists(
    st.tuples(st.integers(1, 500_000), st.integers(1, 60_000), st.integers(0, 1_000)), min_size=1, max_size=30
)


def body(values: list[float]) -> bytes:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return messages.encode(
        messages.Telemetry(
            module="m", version=1, digest="d", endpoint="m", start=0, end=0, latency_us=histogram.to_wire()
        )
    )


@settings(deadline=None)
@given(windows)
def test_no_request_is_lost_or_counted_twice(given_windows: list[tuple[int, int, int]]) -> None:
    series = Series(5_000, 240)
    series.move(NOW)
    for ago, length, requests in given_windows:
        series.add(NOW - ago - length, NOW - ago, requests, 0, b"")
    total = sum(series.shown(NOW + 600_000).rate) * 5
    assert math.isclose(total, sum(requests for _, _, requests in given_windows), rel_tol=1e-3, abs_tol=0.5)


def test_devices_with_other_rhythms_add_up_to_a_flat_line() -> None:
    series = Series(5_000, 120)
    series.move(NOW)
    for length in (2_000, 7_000, 30_000):
        for start in range(NOW - 600_000, NOW - length, length):
            series.add(start, start + length, length // 100, 0, b"")  # each 10 requests per second
    rate = series.shown(NOW).rate[8:-8]
    assert min(rate) == pytest.approx(30, rel=0.01)
    assert max(rate) == pytest.approx(30, rel=0.01)


def test_what_is_not_yet_complete_is_not_shown() -> None:
    series = Series(5_000, 120)
    series.move(NOW)
    series.add(NOW - 60_000, NOW - 30_000, 300, 0, b"")
    points = series.shown(NOW)
    assert points.times[-1] + 5_000 <= NOW - 25_000
    assert not points.empty


def test_latency_is_merged_and_not_averaged() -> None:
    series = Series(5_000, 120)
    series.move(NOW)
    generator = random.Random(1)
    fast = [generator.uniform(90, 110) for _ in range(990)]
    slow = [generator.uniform(9_000, 11_000) for _ in range(30)]
    series.add(NOW - 60_000, NOW - 55_001, 990, 0, body(fast))
    series.add(NOW - 60_000, NOW - 55_001, 30, 0, body(slow))
    points = series.shown(NOW)
    place = next(index for index, value in enumerate(points.p50) if value is not None)
    expected = np.quantile(fast + slow, [0.5, 0.99])
    assert points.p50[place] == pytest.approx(expected[0], rel=0.2)
    assert points.p99[place] == pytest.approx(expected[1], rel=0.25)


def test_time_moves_on_and_what_is_old_is_forgotten() -> None:
    series = Series(5_000, 12)
    series.move(NOW)
    series.add(NOW - 10_000, NOW - 5_000, 100, 5, b"not msgpack")
    assert not series.shown(NOW + 5_000).empty
    series.move(NOW + 3_600_000)
    assert series.shown(NOW + 3_600_000).empty


@pytest.mark.parametrize(
    ("action", "subject", "address"),
    [
        ("rollout.pause", "rollout:6", "/rollouts/6"),
        ("device.tags", "cam-01", "/devices/cam-01"),
        ("device.remove", "cam-01", ""),
        ("endpoint.set", "digits", "/endpoints/digits"),
        ("endpoint.delete", "digits", ""),
        ("version.register", "digits:3", "/models/digits/versions/3"),
        ("batch.cancel", "7", "/batches/7"),
        ("key.add", "ed25519:4f0c", ""),
    ],
)
def test_an_audit_entry_leads_to_what_it_is_about(action: str, subject: str, address: str) -> None:
    assert log.address(Audit(at=1, actor="mira", action=action, subject=subject)) == address


@pytest.mark.parametrize(
    ("progress", "state", "left"),
    [(0.5, "running", 60.0), (0.75, "running", 20.0), (0.01, "running", 0), (1, "done", 0)],
)
def test_how_long_a_batch_job_takes_is_told_when_it_can_be(progress: float, state: str, left: float) -> None:
    row = BatchRow(
        module="m", version=1, target="*", source="upload", input="i", rows=1, part_rows=1, state=state,
        progress=progress, created_by="mira", created_at=0, started_at=1_000,
    )  # fmt: skip
    assert batches.left_s(row, 61_000) == pytest.approx(left)


# -- the live connection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topics", "nudged", "said"),
    [
        ("fleet,events", {"events"}, True),
        ("fleet", {"device:a", "samples"}, False),
        ("rollout:*", {"rollout:12"}, True),
        ("rollout:1", {"rollout:12"}, False),
        ("device:a", {"device:a.b"}, False),
        ("", {"fleet"}, False),
    ],
)
def test_only_what_concerns_a_page_refreshes_it(topics: str, nudged: set[str], said: bool) -> None:
    assert live.wanted(topics, frozenset(nudged)) is said


def test_many_nudges_become_few_events_and_a_closed_bus_ends_the_stream() -> None:
    async def scenario() -> tuple[list[str], float]:
        bus = Bus()
        heard: list[str] = []

        async def listen() -> None:
            heard.extend([part async for part in live.events(bus, "fleet")])

        task = asyncio.create_task(listen())
        began = time.monotonic()
        await asyncio.sleep(0.05)
        for _ in range(200):
            bus.publish("fleet", "device:a")
            await asyncio.sleep(0.001)
        bus.close()
        await asyncio.wait_for(task, 5)
        return heard, time.monotonic() - began

    heard, took = asyncio.run(scenario())
    assert heard[0].startswith("retry:")
    assert 1 <= sum("event: live" in part for part in heard) <= 2 + took / live.MIN_GAP_S


def test_a_quiet_connection_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TICK_S", 0.02)

    async def scenario() -> str:
        stream = live.events(Bus(), "fleet")
        await anext(stream)
        said = await asyncio.wait_for(anext(stream), 5)
        await stream.aclose()
        return said

    assert "event: tick" in asyncio.run(scenario())
