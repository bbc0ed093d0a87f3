"""The lifecycle's fault table: each step × each fault → the chain of steps, the report, what serves in the end.

Every row starts from version 1 serving, asks for version 2 and lets one fault happen at one step.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from skerry_agent.rules import effects as fx
from skerry_agent.rules.lifecycle import ORDER, TABLE, Step
from skerry_modules.messages import ModulePhase
from skerry_simulators.world.modules import Module, make

from .bench import Bench

V1, V2, V3 = make("digits", 1), make("digits", 2), make("digits", 3)
SOAK_S = 60.0
FULL = ["want", "verify", "download", "install", "load", "golden", "warm", "soak", "serve"]
OBJECT = next(sha256 for sha256 in V2.objects if sha256 not in V1.objects and sha256 != V2.digest)

EFFECT = {
    Step.WANT: ("CompleteObject", V2.digest),
    Step.VERIFY: ("ReadIndex", V2.digest),
    Step.DOWNLOAD: ("CompleteObject", OBJECT),
    Step.INSTALL: ("Install", V2.digest),
    Step.LOAD: ("Load", V2.digest),
    Step.GOLDEN: ("Golden", V2.digest),
    Step.WARM: ("Warm", V2.digest),
}
"""The effect that each step waits for."""


def serving_v1() -> Bench:
    bench = Bench()
    bench.add(V1, V2, V3)
    bench.desire(1, V1.wanted())
    bench.run(10)
    assert bench.routes == {"digits": (V1.digest,)}
    bench.chain.clear()
    return bench


def ask_for_v2(bench: Bench) -> None:
    bench.desire(2, V2.wanted(soak_s=SOAK_S))


def check(bench: Bench, chain: list[str], phase: ModulePhase, reason: str, serves: Module) -> None:
    assert bench.steps(2) == chain
    state = bench.reported(2)
    assert (state.phase, state.reason) == (phase, reason)
    assert state.revision == bench.brain.revision
    assert bench.routes == {"digits": (serves.digest,)}
    assert bench.loaded == {serves.digest}
    if phase is ModulePhase.FAILED:
        assert state.message
        assert V2.digest not in bench.installed
        assert OBJECT not in bench.complete
        assert any(event.code == reason and event.version == 2 for event in bench.events)


def upto(step: Step) -> list[str]:
    return FULL[: FULL.index(step) + 1]


def retried(step: Step, again: Step, times: int) -> list[str]:
    """The chain where ``step`` fails ``times`` times, each tried again from ``again``."""
    chain = upto(step)
    for _ in range(times):
        chain = chain if again is step else chain + FULL[FULL.index(again) : FULL.index(step) + 1]
    return chain


FINAL = "trust.bad_signature"
PASSING = "resource.no_memory"


@pytest.mark.parametrize("step", EFFECT, ids=str)
def test_an_error_that_may_pass_is_tried_again_and_the_version_serves(step: Step) -> None:
    bench = serving_v1()
    bench.faults[EFFECT[step]] = [PASSING]
    ask_for_v2(bench)
    bench.run(600)
    chain = retried(step, TABLE[step].again, 1) + FULL[FULL.index(step) + 1 :]
    check(bench, chain, ModulePhase.HEALTHY, "", V2)


@pytest.mark.parametrize("step", EFFECT, ids=str)
def test_an_error_that_stays_ends_in_failed_after_the_attempts(step: Step) -> None:
    bench = serving_v1()
    attempts = TABLE[step].attempts
    bench.faults[EFFECT[step]] = [PASSING] * attempts
    ask_for_v2(bench)
    bench.run(600)
    chain = [*retried(step, TABLE[step].again, attempts - 1), "failed"]
    check(bench, chain, ModulePhase.FAILED, PASSING, V1)
    assert bench.faults[EFFECT[step]] == []


@pytest.mark.parametrize("step", EFFECT, ids=str)
def test_a_final_error_ends_in_failed_at_once(step: Step) -> None:
    bench = serving_v1()
    bench.faults[EFFECT[step]] = [FINAL]
    ask_for_v2(bench)
    bench.run(600)
    check(bench, [*upto(step), "failed"], ModulePhase.FAILED, FINAL, V1)


@pytest.mark.parametrize("step", [s for s in EFFECT if TABLE[s].deadline != "stall"], ids=str)
def test_a_step_that_never_ends_is_late_and_ends_in_failed(step: Step) -> None:
    bench = serving_v1()
    bench.faults[EFFECT[step]] = ["hang"] * TABLE[step].attempts
    ask_for_v2(bench)
    bench.run(6000)
    chain = [*retried(step, TABLE[step].again, TABLE[step].attempts - 1), "failed"]
    check(bench, chain, ModulePhase.FAILED, TABLE[step].late, V1)


@pytest.mark.parametrize("step", [Step.WANT, Step.DOWNLOAD], ids=str)
def test_a_download_that_never_comes_ends_in_failed(step: Step) -> None:
    bench = serving_v1()
    bench.library.pop(EFFECT[step][1])
    ask_for_v2(bench)
    bench.run(2000)
    assert bench.reported(2).phase is ModulePhase.TRANSITIONING
    bench.run(8000)
    check(bench, [*upto(step), "failed"], ModulePhase.FAILED, "install.download_timeout", V1)


@pytest.mark.parametrize("step", [Step.WANT, Step.DOWNLOAD], ids=str)
def test_an_object_that_the_hub_does_not_have_any_more_ends_in_failed_within_seconds(step: Step) -> None:
    bench = serving_v1()
    bench.hub_answers = True
    bench.library.pop(EFFECT[step][1])
    ask_for_v2(bench)
    bench.run(15)
    check(bench, [*upto(step), "failed"], ModulePhase.FAILED, "install.object_gone", V1)
    assert "restore the hub's store" in bench.reported(2).message


def test_one_word_that_comes_late_or_wrongly_fails_nothing() -> None:
    bench = serving_v1()
    ask_for_v2(bench)
    bench.feed(fx.ObjectGone(V2.digest))  # just being asked for: tried again
    bench.feed(fx.ObjectGone(V1.digest))  # held, and served from
    bench.feed(fx.ObjectGone("0" * 64))
    bench.run(SOAK_S + 30)
    assert bench.reported(2).phase is ModulePhase.HEALTHY
    assert bench.routes == {"digits": (V2.digest,)}


def test_what_serves_goes_on_when_the_hub_has_lost_its_files() -> None:
    """Damaged here and gone there: there is the version before to go back to."""
    bench = serving_v1()
    ask_for_v2(bench)
    bench.run(SOAK_S + 30)
    bench.hub_answers = True
    bench.library.pop(OBJECT)
    bench.complete.pop(OBJECT)
    bench.boot()
    bench.run(60)
    assert (bench.reported(2).phase, bench.reported(2).reason) == (ModulePhase.FAILED, "install.object_gone")
    assert bench.routes == {"digits": (V1.digest,)}


def test_offline_the_download_waits_for_as_long_as_it_takes() -> None:
    bench = serving_v1()
    bench.library.pop(OBJECT)
    ask_for_v2(bench)
    bench.online = False
    bench.feed(fx.Disconnected())
    bench.run(90 * 86400)
    assert bench.reported(2).phase is ModulePhase.TRANSITIONING
    bench.add(V2)
    bench.online = True
    bench.feed(fx.Connected())
    bench.run(300)
    check(bench, FULL, ModulePhase.HEALTHY, "", V2)


@pytest.mark.parametrize("moment", ["{}", "after {}"], ids=["before", "after"])
@pytest.mark.parametrize("step", EFFECT, ids=str)
def test_a_power_cut_resumes_and_the_version_serves(step: Step, moment: str) -> None:
    bench = serving_v1()
    name, digest = EFFECT[step]
    bench.faults[moment.format(name), digest] = ["power"]
    ask_for_v2(bench)
    bench.run(600)
    assert bench.boots == 2
    assert bench.steps(2)[-len(FULL) :] == FULL
    assert bench.steps(1)[-1] == "serve"
    state = bench.reported(2)
    assert (state.phase, state.role) == (ModulePhase.HEALTHY, "current")
    assert bench.loaded == {V2.digest}
    assert bench.reported(1).role == "last-good"
    twice = [part for part in bench.asked_bytes if bench.asked_bytes.count(part) > 1]
    assert not twice, "chunks that were on the disk were asked for again"


def test_a_power_cut_in_the_soak_lets_the_version_before_serve_first() -> None:
    bench = serving_v1()
    ask_for_v2(bench)
    bench.run(SOAK_S / 2)
    assert bench.routes == {"digits": (V2.digest,)}
    bench.chain.clear()
    bench.boot()
    order = [entry for entry in bench.chain if entry.endswith((":serve", ":soak"))]
    assert order == ["digits@1:serve", "digits@2:soak"]
    bench.run(600)
    check(bench, FULL, ModulePhase.HEALTHY, "", V2)


@pytest.mark.parametrize("step", [Step.INSTALL, Step.LOAD, Step.GOLDEN, Step.WARM], ids=str)
def test_a_version_that_takes_the_device_down_each_time_is_given_up(step: Step) -> None:
    bench = serving_v1()
    bench.faults[EFFECT[step]] = ["power"] * 50
    ask_for_v2(bench)
    bench.run(600)
    assert bench.boots == 1 + TABLE[step].boots + 1
    assert bench.steps(2)[-1] == "failed"
    state = bench.reported(2)
    assert (state.phase, state.reason) == (ModulePhase.FAILED, "install.interrupted")
    assert bench.routes == {"digits": (V1.digest,)}


@pytest.mark.parametrize("step", [Step.WANT, Step.DOWNLOAD, Step.INSTALL], ids=str)
def test_a_full_disk_ends_in_failed_or_passes_with_time(step: Step) -> None:
    bench = serving_v1()
    effect = "Install" if step is Step.INSTALL else "StoreChunk"
    bench.faults[effect, EFFECT[step][1]] = ["resource.no_space"] * 2
    ask_for_v2(bench)
    bench.run(600)
    assert bench.reported(2).phase is ModulePhase.HEALTHY
    bench = serving_v1()
    bench.faults[effect, EFFECT[step][1]] = ["resource.no_space"] * 30
    ask_for_v2(bench)
    bench.run(600)
    state = bench.reported(2)
    assert (state.phase, state.reason) == (ModulePhase.FAILED, "resource.no_space")
    assert bench.routes == {"digits": (V1.digest,)}


def test_too_little_space_is_found_before_the_first_file_is_asked_for() -> None:
    bench = serving_v1()
    bench.free_disk_mb = 10
    before = len(bench.asked_bytes)
    ask_for_v2(bench)
    bench.run(600)
    asked = {entry.split("/")[0] for entry in bench.asked_bytes[before:]}
    assert asked == {V2.digest}, "only the index may be fetched"
    state = bench.reported(2)
    assert (state.phase, state.reason) == (ModulePhase.FAILED, "resource.no_space")


def test_what_cannot_run_here_is_unschedulable_before_any_file_is_fetched() -> None:
    from skerry_simulators.world.modules import Behaviour

    large = make("digits", 2, Behaviour.TOO_LARGE)
    bench = serving_v1()
    bench.add(large)
    before = len(bench.asked_bytes)
    bench.desire(2, large.wanted())
    bench.run(600)
    assert {entry.split("/")[0] for entry in bench.asked_bytes[before:]} == {large.digest}
    assert bench.steps(2) == ["want", "verify", "unschedulable"]
    state = bench.reported(2)
    assert (state.phase, state.reason) == (ModulePhase.UNSCHEDULABLE, "unschedulable.memory")
    assert "needs 4096 MB, profile leaves 512 MB" in state.message
    assert bench.routes == {"digits": (V1.digest,)}


@pytest.mark.parametrize("step", [*EFFECT, Step.SOAK], ids=str)
def test_a_newer_document_supersedes_a_version_at_any_step(step: Step) -> None:
    bench = serving_v1()
    if step in EFFECT:
        bench.faults[EFFECT[step]] = ["hang"]
    ask_for_v2(bench)
    bench.run(5)
    bench.desire(3, V3.wanted())
    assert bench.steps(2) == [*upto(step), "failed"]
    assert any(event.code == "install.superseded" for event in bench.events)
    bench.run(120)
    assert bench.routes == {"digits": (V3.digest,)}
    assert bench.loaded == {V3.digest}
    assert V2.digest not in bench.installed


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


@pytest.mark.parametrize("step", [Step.GOLDEN, Step.WARM], ids=str)
def test_a_worker_that_dies_while_it_is_tested_is_loaded_again(step: Step) -> None:
    bench = serving_v1()
    bench.faults[EFFECT[step]] = ["hang"]
    ask_for_v2(bench)
    bench.run(5)
    assert bench.steps(2)[-1] == str(step)
    bench.feed(LOST(V2.digest))
    bench.run(300)
    check(bench, retried(step, Step.LOAD, 1) + FULL[FULL.index(step) + 1 :], ModulePhase.HEALTHY, "", V2)


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


def test_a_failed_version_is_tried_again_only_when_its_attempt_rises() -> None:
    bench = serving_v1()
    bench.faults[EFFECT[Step.GOLDEN]] = ["install.golden_failed"]
    ask_for_v2(bench)
    bench.run(60)
    check(bench, [*upto(Step.GOLDEN), "failed"], ModulePhase.FAILED, "install.golden_failed", V1)
    bench.desire(3, V2.wanted(soak_s=SOAK_S))
    bench.boot()
    bench.run(600)
    check(bench, [*upto(Step.GOLDEN), "failed"], ModulePhase.FAILED, "install.golden_failed", V1)
    bench.desire(4, V2.wanted(soak_s=SOAK_S, attempt=1))
    bench.run(600)
    check(bench, [*upto(Step.GOLDEN), "failed", *FULL], ModulePhase.HEALTHY, "", V2)


def test_every_step_that_waits_is_in_this_table() -> None:
    assert set(ORDER) == {*EFFECT, Step.SOAK, Step.SERVE, Step.ROLLBACK}
