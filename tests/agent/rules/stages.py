"""Version 1 serves, version 2 is asked for: where the lifecycle's fault tables begin, and how a row ends."""

from __future__ import annotations

from skerry_agent.rules.lifecycle import Step
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
