from __future__ import annotations

from skerry_simulators.world.modules import make

from .bench import Bench

FRESH = ["want", "verify", "download", "install", "load", "golden", "warm", "soak", "serve"]


def test_a_module_goes_from_wanted_to_served() -> None:
    bench = Bench()
    v1 = make("digits", 1)
    bench.add(v1)
    bench.desire(1, v1.wanted())
    bench.run(30)
    assert bench.steps(1) == FRESH
    assert bench.routes == {"digits": (v1.digest,)}
    state = bench.reported(1)
    assert (state.phase, state.role, state.step, state.reason, state.revision) == ("Healthy", "current", "serve", "", 1)


def test_the_next_version_soaks_while_the_one_before_stays_warm_and_is_kept_as_last_good() -> None:
    bench = Bench()
    v1, v2 = make("digits", 1), make("digits", 2)
    bench.add(v1, v2)
    bench.desire(1, v1.wanted())
    bench.run(30)
    bench.desire(
        2,
        v1.wanted(),
    )
    bench.desire(3, v2.wanted(soak_s=60))
    bench.run(20)
    assert bench.routes["digits"] == (v2.digest,)
    assert bench.loaded == {v1.digest, v2.digest}
    bench.run(60)
    assert bench.loaded == {v2.digest}
    assert (bench.reported(1).role, bench.reported(2).role) == ("last-good", "current")


def test_what_an_older_version_holds_already_is_not_asked_for_again() -> None:
    bench = Bench()
    v1, v2 = make("digits", 1), make("digits", 2)
    bench.add(v1, v2)
    bench.desire(1, v1.wanted())
    bench.run(30)
    bench.desire(2, v2.wanted())
    bench.run(30)
    assert len(bench.asked_bytes) == len(set(bench.asked_bytes))
    assert bench.reported(2).phase == "Healthy"


def test_a_restart_without_network_serves_again() -> None:
    bench = Bench()
    v1 = make("digits", 1)
    bench.add(v1)
    bench.desire(1, v1.wanted())
    bench.run(30)
    bench.online = False
    bench.now = 5.0
    bench.boot()
    assert bench.routes == {"digits": (v1.digest,)}
    assert bench.reported(1).phase == "Healthy"
