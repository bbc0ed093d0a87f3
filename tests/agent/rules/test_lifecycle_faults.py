"""The lifecycle's fault table: each step × each fault → the chain of steps, the report, what serves in the end.

Every row starts from version 1 serving, asks for version 2 and lets one fault happen at one step.
"""

from __future__ import annotations

import pytest

from skerry_agent.rules import effects as fx
from skerry_agent.rules.lifecycle import ORDER, TABLE, Step
from skerry_modules.messages import ModulePhase
from skerry_simulators.world.modules import make

from .stages import EFFECT, FULL, OBJECT, SOAK_S, V1, V2, V3, ask_for_v2, check, retried, serving_v1, upto

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


@pytest.mark.parametrize("step", [Step.GOLDEN, Step.WARM], ids=str)
def test_a_worker_that_dies_while_it_is_tested_is_loaded_again(step: Step) -> None:
    bench = serving_v1()
    bench.faults[EFFECT[step]] = ["hang"]
    ask_for_v2(bench)
    bench.run(5)
    assert bench.steps(2)[-1] == str(step)
    bench.feed(fx.WorkerExited(V2.digest, "signal 9", restarting=False))
    bench.run(300)
    check(bench, retried(step, Step.LOAD, 1) + FULL[FULL.index(step) + 1 :], ModulePhase.HEALTHY, "", V2)


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
