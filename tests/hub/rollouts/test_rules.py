"""The rollout rule: tables of what devices say and do, and properties over random fleets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_hub.rules.rollout import (
    ACTIVE,
    Assign,
    DeviceProgress,
    DeviceReport,
    DeviceStep,
    Note,
    Plan,
    Rollout,
    RolloutState,
    Wave,
    abort,
    advance,
    assign_waves,
    check_plan,
    pause,
    resume,
)
from skerry_modules.errors import InputError
from skerry_modules.messages import ModulePhase, ModuleState

S, D = RolloutState, DeviceStep
SECOND = 1000


def module(version: int, phase: str = "Healthy", role: str = "current", reason: str = "") -> ModuleState:
    return ModuleState(
        name="m", version=version, digest="0" * 64, phase=ModulePhase(phase), role=role, reason=reason, message="why"
    )


def report(
    *states: ModuleState, revision: int = 100, online: bool = True, seen: int = 0, since: int = 0
) -> DeviceReport:
    return DeviceReport(online=online, seen_at=seen, reported_revision=revision, online_since=since, modules=states)


def make(devices: int = 4, **plan: Any) -> Rollout:
    chosen = Plan(**{"waves": (Wave(count=1), Wave(percent=100.0)), "soak_s": 1.0, **plan})
    names = [f"d{number}" for number in range(devices)]
    waves = assign_waves(chosen, names)
    progress = tuple(
        DeviceProgress(device=name, wave=wave, previous=1) for name, wave in zip(names, waves, strict=True)
    )
    return Rollout(id=7, module="m", version=2, plan=chosen, devices=progress)


def perform(rollout: Rollout, actions: list[Any], revision: int) -> Rollout:
    """What the driver does: carry out each assignment and note the revision that carries it."""
    assigned = {action.device for action in actions if isinstance(action, Assign)}
    devices = tuple(
        msgspec.structs.replace(one, revision=revision) if one.device in assigned else one for one in rollout.devices
    )
    return msgspec.structs.replace(rollout, devices=devices)


def run(rollout: Rollout, reports: dict[str, DeviceReport], now: int, revision: int = 1) -> tuple[Rollout, list[Any]]:
    after, actions = advance(rollout, reports, now)
    return perform(after, actions, revision), actions


def steps(rollout: Rollout) -> list[str]:
    return [str(one.step) for one in rollout.devices]


def test_canary_first_then_the_rest_then_success() -> None:
    rollout, actions = run(make(), {}, 1000)
    assert [action.device for action in actions if isinstance(action, Assign)] == ["d0"]
    assert steps(rollout) == ["assigned", "pending", "pending", "pending"]

    rollout, actions = run(rollout, {"d0": report(module(2, "Transitioning", "candidate"))}, 2000)
    assert not actions

    proven = {f"d{number}": report(module(2)) for number in range(4)}
    rollout, actions = run(rollout, {"d0": proven["d0"]}, 3000, revision=2)
    assert [action.device for action in actions if isinstance(action, Assign)] == ["d1", "d2", "d3"]
    rollout, _ = run(rollout, proven, 4000)
    assert rollout.state is S.SUCCEEDED
    assert steps(rollout) == ["succeeded"] * 4


def test_a_report_of_an_older_revision_proves_nothing() -> None:
    rollout, _ = run(make(), {}, 1000, revision=5)
    rollout, _ = run(rollout, {"d0": report(module(2), revision=4)}, 2000)
    assert steps(rollout)[0] == "assigned"


def test_a_healthy_candidate_in_soak_proves_nothing() -> None:
    rollout, _ = run(make(), {}, 1000)
    rollout, _ = run(rollout, {"d0": report(module(2, "Healthy", "candidate"))}, 2000)
    assert steps(rollout)[0] == "assigned"


def test_a_failing_canary_turns_the_rollout_back_and_nobody_else_is_touched() -> None:
    rollout, _ = run(make(), {}, 1000)
    rollout, actions = run(rollout, {"d0": report(module(2, "Failed", "", "install.golden_failed"))}, 2000, revision=2)
    assert Assign("d0", 1, 0.0) in actions
    assert rollout.state is S.ROLLING_BACK
    assert steps(rollout) == ["rolling-back", "skipped", "skipped", "skipped"]
    back = report(module(1), module(2, "Failed", "", "install.golden_failed"), revision=2)
    rollout, actions = run(rollout, {"d0": back}, 3000)
    assert rollout.state is S.ROLLED_BACK
    assert rollout.devices[0].reason == "install.golden_failed"
    assert any(isinstance(action, Note) and action.code == "rollout.rolled-back" for action in actions)


def test_stop_leaves_proven_devices_on_the_new_version() -> None:
    rollout, _ = run(make(3, on_failure="stop"), {}, 1000)
    good = {"d0": report(module(2))}
    rollout, _ = run(rollout, good, 2000, revision=2)
    rollout, actions = run(rollout, {**good, "d1": report(module(2, "Failed"), revision=2)}, 3000, revision=3)
    assert {action.device for action in actions if isinstance(action, Assign)} == {"d1", "d2"}
    old = report(module(1), revision=3)
    rollout, _ = run(rollout, {**good, "d1": old, "d2": old}, 4000)
    assert rollout.state is S.FAILED
    assert steps(rollout) == ["succeeded", "rolled-back", "rolled-back"]


def test_a_device_that_fails_after_it_was_proven_counts() -> None:
    rollout, _ = run(make(), {}, 1000)
    rollout, _ = run(rollout, {"d0": report(module(2))}, 2000, revision=2)
    rollout, _ = run(rollout, {"d0": report(module(2, "Failed", "", "run.crash_loop"), module(1))}, 3000, revision=3)
    assert rollout.state is S.ROLLING_BACK
    assert rollout.devices[0].reason == "run.crash_loop"


def test_the_threshold_lets_a_share_fail() -> None:
    rollout, _ = run(make(4, waves=(Wave(percent=100.0),), failure_threshold=0.25), {}, 1000)
    bad, good = report(module(2, "Failed")), report(module(2))
    rollout, _ = run(rollout, {"d0": bad}, 2000)
    assert rollout.state is S.RUNNING
    done, _ = run(rollout, {"d0": bad, "d1": good, "d2": good, "d3": good}, 3000)
    assert done.state is S.SUCCEEDED
    tripped, _ = run(rollout, {"d0": bad, "d1": bad}, 3000, revision=2)
    assert tripped.state is S.ROLLING_BACK


@pytest.mark.parametrize(
    ("online", "seen", "since", "elapsed_s", "reason"),
    [
        pytest.param(True, 0, 0, 60, "", id="online and within the time"),
        pytest.param(True, 0, 0, 62, "rollout.device_timeout", id="online and silent on the version"),
        pytest.param(True, 0, 50 * SECOND, 62, "", id="came back only now: its time starts then"),
        pytest.param(False, 30 * SECOND, 0, 500, "", id="offline, but not yet for too long"),
        pytest.param(False, 0, 0, 1002, "rollout.offline", id="offline for too long"),
    ],
)
def test_silence_ends_in_a_reason(online: bool, seen: int, since: int, elapsed_s: int, reason: str) -> None:
    rollout, _ = run(make(1, device_timeout_s=60.0, offline_timeout_s=1000.0), {}, 0)
    silent = report(revision=1, online=online, seen=seen, since=since)
    rollout, _ = run(rollout, {"d0": silent}, elapsed_s * SECOND, revision=2)
    assert rollout.devices[0].reason == reason


def test_a_wave_goes_on_without_a_device_that_was_away_but_not_without_one_that_fell_silent() -> None:
    plan = {"waves": (Wave(count=2), Wave(percent=100.0))}
    rollout, _ = run(make(3, **plan), {}, 1000)
    proven = report(module(2))
    fell_silent, _ = run(rollout, {"d0": proven, "d1": report(online=False, seen=1500)}, 2000, revision=2)
    assert steps(fell_silent) == ["succeeded", "assigned", "pending"]
    was_away, _ = run(rollout, {"d0": proven, "d1": report(online=False, seen=500)}, 2000, revision=2)
    assert steps(was_away) == ["succeeded", "assigned", "assigned"]


def test_a_wave_of_which_nobody_answered_holds() -> None:
    rollout, _ = run(make(2), {}, 1000)
    rollout, _ = run(rollout, {"d0": report(online=False, seen=500)}, 2000)
    assert steps(rollout) == ["assigned", "pending"]


def test_a_device_that_cannot_run_it_is_no_answer_and_no_failure() -> None:
    rollout = make(2)
    cannot = DeviceProgress(device="z", wave=0, step=D.UNSCHEDULABLE, reason="unschedulable.engine")
    rollout = msgspec.structs.replace(rollout, devices=(*rollout.devices, cannot))
    rollout, actions = run(rollout, {}, 1000)
    assert any(isinstance(action, Note) and "wave 1 with 1 devices" in action.message for action in actions)
    rollout, _ = run(rollout, {"d0": report(online=False, seen=500)}, 2000)
    assert steps(rollout) == ["assigned", "pending", "unschedulable"]
    rollout, _ = run(rollout, {"d0": report(module(2))}, 3000)
    rollout, _ = run(rollout, {"d0": report(module(2)), "d1": report(module(2))}, 4000)
    assert rollout.state is S.SUCCEEDED


def test_a_large_wave_begins_in_batches() -> None:
    rollout = make(7, waves=(Wave(percent=100.0),))
    sizes = []
    for _ in range(4):
        rollout, actions = advance(rollout, {}, 1000, batch=3)
        rollout = perform(rollout, actions, 1)
        sizes.append(sum(isinstance(action, Assign) for action in actions))
    assert sizes == [3, 3, 1, 0]


def test_the_next_wave_waits_for_the_pause_between_waves() -> None:
    rollout, _ = run(make(2, wave_pause_s=10.0), {}, 1000)
    proven = {"d0": report(module(2))}
    rollout, _ = run(rollout, proven, 2000)
    rollout, _ = run(rollout, proven, 11_999)
    assert steps(rollout) == ["succeeded", "pending"]
    rollout, _ = run(rollout, proven, 12_000)
    assert steps(rollout) == ["succeeded", "assigned"]


def test_paused_starts_nothing_new_but_still_turns_back() -> None:
    rollout, _ = run(make(), {}, 1000)
    rollout = pause(rollout)
    rollout, _ = run(rollout, {"d0": report(module(2))}, 2000)
    assert steps(rollout) == ["succeeded", "pending", "pending", "pending"]
    broken, _ = run(rollout, {"d0": report(module(2, "Failed"))}, 3000, revision=2)
    assert broken.state is S.ROLLING_BACK
    rollout, _ = run(resume(rollout), {"d0": report(module(2))}, 3000, revision=2)
    assert steps(rollout) == ["succeeded", "assigned", "assigned", "assigned"]


@pytest.mark.parametrize(("rollback", "last"), [(False, ["succeeded", "rolling-back"]), (True, ["rolling-back"] * 2)])
def test_abort_sends_unproven_devices_back(rollback: bool, last: list[str]) -> None:
    rollout, _ = run(make(2), {}, 1000)
    rollout, _ = run(rollout, {"d0": report(module(2))}, 2000, revision=2)
    rollout, actions = abort(rollout, rollback=rollback, now=3000)
    assert steps(rollout) == last
    rollout = perform(rollout, actions, 3)
    old = report(module(1), revision=3)
    rollout, _ = run(rollout, {"d0": old if rollback else report(module(2)), "d1": old}, 4000)
    assert rollout.state is S.ABORTED


def test_where_there_was_no_version_before_going_back_means_gone() -> None:
    rollout = make(1)
    rollout = msgspec.structs.replace(
        rollout, devices=tuple(msgspec.structs.replace(one, previous=None) for one in rollout.devices)
    )
    rollout, _ = run(rollout, {}, 1000)
    rollout, actions = run(rollout, {"d0": report(module(2, "Failed"))}, 2000, revision=2)
    assert Assign("d0", None, 0.0) in actions
    rollout, _ = run(rollout, {"d0": report(revision=2)}, 3000)
    assert rollout.state is S.ROLLED_BACK


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        (pause, S.PAUSED),
        (pause, S.SUCCEEDED),
        (resume, S.RUNNING),
        (lambda r: abort(r, rollback=True, now=0), S.SUCCEEDED),
        (lambda r: abort(r, rollback=True, now=0), S.ABORTED),
    ],
)
def test_a_verb_in_the_wrong_state_says_so(verb: Any, state: RolloutState) -> None:
    with pytest.raises(InputError, match=f"cannot .* rollout 7: it is {state}") as caught:
        verb(msgspec.structs.replace(make(), state=state))
    assert caught.value.code == "rollout.wrong_state"


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (Plan(waves=()), "waves"),
        (Plan(waves=(Wave(count=1),)), "waves"),
        (Plan(waves=(Wave(count=1, percent=5.0), Wave(percent=100.0))), "waves[0]"),
        (Plan(waves=(Wave(), Wave(percent=100.0))), "waves[0]"),
        (Plan(waves=(Wave(percent=50.0), Wave(percent=20.0), Wave(percent=100.0))), "waves[1].percent"),
        (Plan(waves=(Wave(percent=120.0),)), "waves[0].percent"),
        (Plan(failure_threshold=1.5), "failure_threshold"),
        (Plan(failure_threshold=float("nan")), "failure_threshold"),
        (Plan(soak_s=-1.0), "soak_s"),
        (Plan(device_timeout_s=float("inf")), "device_timeout_s"),
        (Plan(on_failure="shrug"), "on_failure"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_with_its_field(plan: Plan, field: str) -> None:
    with pytest.raises(InputError, match="cannot roll out with this plan") as caught:
        check_plan(plan)
    assert caught.value.data["field"] == field


plans = st.builds(
    Plan,
    waves=st.lists(st.integers(1, 6).map(lambda n: Wave(count=n)), max_size=3).map(
        lambda waves: (*waves, Wave(percent=100.0))
    ),
    soak_s=st.just(1.0),
    failure_threshold=st.sampled_from([0.0, 0.2, 0.5]),
    device_timeout_s=st.just(30.0),
    offline_timeout_s=st.just(60.0),
    on_failure=st.sampled_from(["rollback", "stop"]),
)


@given(plans, st.integers(0, 40))
def test_every_device_has_a_wave_and_waves_are_contiguous(plan: Plan, count: int) -> None:
    waves = assign_waves(plan, [str(number) for number in range(count)])
    assert len(waves) == count
    assert waves == sorted(waves)
    assert sorted(set(waves)) == list(range(len(set(waves))))


@settings(max_examples=150, deadline=None)
@given(st.data(), plans, st.integers(1, 8))
def test_a_random_fleet_always_ends_and_a_bad_version_never_passes_its_wave(
    data: st.DataObject, plan: Plan, count: int
) -> None:
    rollout = make(count, **msgspec.structs.asdict(plan))
    bad = data.draw(st.booleans(), label="every device finds the version bad")
    fates = [
        data.draw(st.sampled_from(["fail", "silent"] if bad else ["good", "good", "fail", "silent", "away"]))
        for _ in range(count)
    ]
    now, revisions = 0, dict.fromkeys((one.device for one in rollout.devices), 0)
    for turn in range(400):
        now += 1000
        reports = {}
        for one, fate in zip(rollout.devices, fates, strict=True):
            wanted = one.previous if one.step is D.ROLLING_BACK else rollout.version
            if fate == "away":
                reports[one.device] = report(online=False, revision=0)
            elif one.step in (D.PENDING, D.SKIPPED):
                reports[one.device] = report(module(1), revision=0)
            elif wanted == rollout.version and fate == "silent":
                reports[one.device] = report(revision=revisions[one.device])
            elif wanted == rollout.version and fate == "fail":
                reports[one.device] = report(module(1), module(2, "Failed", ""), revision=revisions[one.device])
            else:
                reports[one.device] = report(module(wanted or 1), revision=revisions[one.device])
        before = rollout
        rollout, actions = run(rollout, reports, now, revision=turn + 1)
        revisions |= {action.device: turn + 1 for action in actions if isinstance(action, Assign)}
        again, more = advance(rollout, {}, before.wave_started_at) if rollout.state not in ACTIVE else (rollout, [])
        assert (again, more) == (rollout, []), "an ended rollout moves no more"
        if rollout.state not in ACTIVE:
            break
    assert rollout.state not in ACTIVE, f"never ended: {rollout}"
    if bad:
        touched = {one.wave for one in rollout.devices if one.step not in (D.SKIPPED, D.PENDING)}
        assert touched == {0}
        assert rollout.state in (S.ROLLED_BACK, S.FAILED)
    assert not any(one.step in (D.PENDING, D.ASSIGNED, D.ROLLING_BACK) for one in rollout.devices)


@settings(max_examples=100, deadline=None)
@given(plans, st.integers(1, 6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_advancing_twice_on_the_same_reports_does_nothing_more(plan: Plan, count: int, good: list[bool]) -> None:
    rollout, _ = run(make(count, **msgspec.structs.asdict(plan)), {}, 1000)
    reports = {
        one.device: report(module(2) if good[number % 6] else module(2, "Failed"), revision=1)
        for number, one in enumerate(rollout.devices)
    }
    once, _ = run(rollout, reports, 2000, revision=9)
    twice, actions = advance(once, reports, 2000)
    assert twice == once
    assert actions == []
