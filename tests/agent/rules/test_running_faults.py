"""What goes wrong with a version that takes requests, in its soak or proven: who serves then, and what is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from skerry_agent.rules import effects as fx
from skerry_agent.rules.lifecycle import Step
from skerry_modules.messages import ModulePhase

from .bench import Bench
from .stages import FULL, OBJECT, SOAK_S, V1, V2, ask_for_v2, check, serving_v1, upto


def soak_trouble(*events: Callable[[str], fx.Event]) -> Bench:
    bench = serving_v1()
    ask_for_v2(bench)
    bench.run(5)
    assert bench.routes == {"digits": (V2.digest,)}
    assert bench.loaded == {V1.digest, V2.digest}, "the version before stays warm"
    for event in events:
        bench.feed(event(V2.digest))
    return bench


CRASH = lambda digest: fx.WorkerExited(digest, "signal 11")  # noqa: E731
LOST = lambda digest: fx.WorkerExited(digest, "signal 9", restarting=False)  # noqa: E731
HANG = lambda digest: fx.WorkerExited(digest, "hang")  # noqa: E731
ERRORS = lambda digest: fx.Traffic(digest, 100, 6)  # noqa: E731


@pytest.mark.parametrize(
    "events", [(CRASH, CRASH), (CRASH, HANG), (LOST,), (ERRORS,)], ids=["crashes", "hang", "lost", "errors"]
)
def test_trouble_in_the_soak_routes_back_at_once(events: tuple[Callable[[str], fx.Event], ...]) -> None:
    bench = soak_trouble(*events)
    check(bench, [*upto(Step.SOAK), "rollback", "failed"], ModulePhase.FAILED, "install.soak_failed", V1)


@pytest.mark.parametrize(
    "events", [(CRASH,), (lambda d: fx.Traffic(d, 100, 5),), (lambda d: fx.Traffic(d, 19, 19),)],
    ids=["one-crash", "errors-at-the-limit", "too-few-to-judge"],
)  # fmt: skip
def test_what_the_soak_lets_pass(events: tuple[Callable[[str], fx.Event], ...]) -> None:
    bench = soak_trouble(*events)
    assert bench.steps(2)[-1] == "soak"
    assert bench.routes == {"digits": (V2.digest,)}


def test_a_few_requests_that_all_fail_are_judged_at_the_soaks_end() -> None:
    bench = soak_trouble(lambda digest: fx.Traffic(digest, 3, 3))
    bench.run(2 * SOAK_S)
    check(bench, [*upto(Step.SOAK), "rollback", "failed"], ModulePhase.FAILED, "install.soak_failed", V1)


def v2_proven() -> Bench:
    bench = serving_v1()
    ask_for_v2(bench)
    bench.run(2 * SOAK_S)
    assert bench.loaded == {V2.digest}
    return bench


@pytest.mark.parametrize(
    ("event", "before", "code"),
    [(CRASH, "run.crashed", "run.crash_loop"), (HANG, "run.hang", "run.hang")],
    ids=["crash", "hang"],
)
def test_a_crash_loop_of_the_serving_version_falls_back_to_last_good(
    event: Callable[[str], fx.Event], before: str, code: str
) -> None:
    bench = v2_proven()
    bench.feed(event(V2.digest))
    bench.feed(event(V2.digest))
    assert bench.routes == {"digits": (V2.digest,)}
    state = bench.reported(2)
    assert (state.phase, state.reason) == (ModulePhase.UNHEALTHY, before)
    bench.feed(event(V2.digest))
    check(bench, [*FULL, "rollback", "failed"], ModulePhase.FAILED, code, V1)
    assert bench.reported(1).role == "current"


def test_the_failing_version_keeps_the_traffic_until_last_good_is_ready() -> None:
    bench = v2_proven()
    bench.faults["Golden", V1.digest] = ["hang"]
    for _ in range(3):
        bench.feed(CRASH(V2.digest))
    assert bench.steps(2)[-1] == "rollback"
    assert bench.routes == {"digits": (V2.digest,)}
    bench.run(1000)
    check(bench, [*FULL, "rollback", "failed"], ModulePhase.FAILED, "run.crash_loop", V1)


def test_each_way_to_die_is_told_once_in_a_while() -> None:
    """A hang that was told must not hide the crash that follows it."""
    bench = v2_proven()
    before = len(bench.events)
    for event in (HANG, CRASH):
        bench.feed(event(V2.digest))
        bench.run(1)
    for event in (HANG, HANG):
        bench.run(130)
        bench.feed(event(V2.digest))
        bench.feed(event(V2.digest))
    hang = ("run.hang", "the worker ended (hang); another takes its place")
    crash = ("run.crashed", "the worker ended (signal 11); another takes its place")
    told = [(event.code, event.message) for event in bench.events[before:]]
    assert told == [hang, crash, hang, hang]


def test_crashes_that_are_far_apart_are_no_loop_and_are_forgotten() -> None:
    bench = v2_proven()
    for _ in range(5):
        bench.feed(CRASH(V2.digest))
        assert bench.reported(2).phase is ModulePhase.UNHEALTHY
        bench.run(130)
        assert bench.reported(2).phase is ModulePhase.HEALTHY
    assert bench.routes == {"digits": (V2.digest,)}


def test_a_crash_loop_with_nothing_to_go_back_to_serves_on_as_well_as_it_goes() -> None:
    bench = serving_v1()
    for _ in range(4):
        bench.feed(CRASH(V1.digest))
    assert bench.routes == {"digits": (V1.digest,)}
    assert bench.reported(1).phase is ModulePhase.UNHEALTHY
    bench.loaded.discard(V1.digest)
    bench.feed(LOST(V1.digest))
    assert bench.routes == {"digits": ()}
    bench.run(120)
    assert bench.routes == {"digits": (V1.digest,)}
    bench.run(200)
    assert bench.reported(1).phase is ModulePhase.HEALTHY


def test_a_serving_version_that_errs_is_unhealthy_until_it_is_well_or_long_silent() -> None:
    bench = serving_v1()
    for calm in (lambda: bench.feed(fx.Traffic(V1.digest, 100, 0)), lambda: bench.run(130)):
        bench.feed(fx.Traffic(V1.digest, 100, 50))
        state = bench.reported(1)
        assert (state.phase, state.reason) == (ModulePhase.UNHEALTHY, "scoring.failed")
        calm()
        assert bench.reported(1).phase is ModulePhase.HEALTHY


def test_what_was_proven_here_is_only_not_ready_after_a_restart_and_gone_when_it_is_taken_off() -> None:
    bench = serving_v1()
    bench.routes.clear()
    bench.faults["Load", V1.digest] = ["hang"]
    bench.boot()
    assert bench.routes == {"digits": ()}, "503, and not: there is no such model"
    bench.run(130)
    assert bench.routes == {"digits": (V1.digest,)}
    bench.desire(2)
    assert bench.routes == {}, "404, and not: ask again soon"


def test_a_version_that_is_asked_seldom_is_unhealthy_too_when_it_fails() -> None:
    bench = serving_v1()
    for _ in range(20):  # one request each two seconds, as when each hangs for so long
        assert bench.reported(1).phase is ModulePhase.HEALTHY
        bench.feed(fx.Traffic(V1.digest, 1, 1))
        bench.run(2)
    assert (bench.reported(1).phase, bench.reported(1).reason) == (ModulePhase.UNHEALTHY, "scoring.failed")
    (event,) = [event for event in bench.events if event.code == "run.errors"]
    assert event.message == "it failed on 20 of 20 requests (100.0 %); the limit is 5 %"
    for _ in range(10):  # it goes on so, for longer than errors are remembered
        bench.run(60)
        bench.feed(fx.Traffic(V1.digest, 1, 1))
    assert bench.reported(1).phase is ModulePhase.UNHEALTHY
    assert [event.code for event in bench.events].count("run.errors") == 1, "told once"


def test_what_a_version_is_unhealthy_for_is_what_happened_of_late() -> None:
    bench = serving_v1()
    bench.feed(HANG(V1.digest))
    assert (bench.reported(1).reason, bench.reported(1).message) == ("run.hang", "its worker ended of late (hang)")
    bench.run(130)
    assert bench.reported(1).phase is ModulePhase.HEALTHY
    bench.feed(fx.Traffic(V1.digest, 100, 50))
    state = bench.reported(1)
    assert (state.reason, state.message) == ("scoring.failed", "it failed on more than 5% of its requests of late")
    bench.feed(CRASH(V1.digest))
    assert bench.reported(1).reason == "run.crashed", "once is no loop"


def test_a_worker_that_dies_again_and_again_does_not_fill_the_spool() -> None:
    bench = serving_v1()
    bench.events.clear()
    for _ in range(500):
        bench.feed(CRASH(V1.digest))
        bench.run(0.1)
    assert 1 <= len(bench.events) <= 4  # in 50 s: the crash, and that there is nothing to go back to


def test_a_proven_version_that_fails_alone_is_revived() -> None:
    bench = serving_v1()
    bench.faults["Load", V1.digest] = ["install.load_failed"] * 2
    bench.boot()
    bench.run(60)
    state = bench.reported(1)
    assert (state.phase, state.reason) == (ModulePhase.FAILED, "install.load_failed")
    bench.run(700)
    assert bench.routes == {"digits": (V1.digest,)}
    assert bench.reported(1).phase is ModulePhase.HEALTHY


@pytest.mark.parametrize("what", ["index", "file"])
def test_a_damaged_file_at_a_restart_is_fetched_again_while_last_good_serves(what: str) -> None:
    bench = v2_proven()
    sha256 = V2.digest if what == "index" else OBJECT
    bench.complete[sha256] = bench.complete[sha256][:-1] + b"?"
    bench.online = False
    bench.chain.clear()
    bench.boot()
    bench.run(60)
    assert bench.routes == {"digits": (V1.digest,)}, "offline, the version before serves"
    bench.online = True
    bench.feed(fx.Connected())
    bench.run(600)
    assert bench.routes == {"digits": (V2.digest,)}
    assert bench.reported(2).phase is ModulePhase.HEALTHY
