"""The agent's brain as a whole: documents in, effects out, through restarts, lost state and full disks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from skerry_modules.messages import Endpoint, Route
from skerry_simulators.world import modules
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


def test_a_lost_state_brings_everything_back_from_the_document_without_fetching_it_again() -> None:
    bench = Bench()
    v1 = make("digits", 1)
    bench.add(v1)
    bench.desire(1, v1.wanted())
    bench.run(30)
    asked = list(bench.asked_bytes)
    for lost in (None, b"garbage"):
        bench.saved = lost
        bench.boot()
        assert bench.routes == {}
        bench.desire(1, v1.wanted())
        bench.run(30)
        assert bench.routes == {"digits": (v1.digest,)}
    assert bench.asked_bytes == asked


def test_a_changed_hub_key_stops_new_documents_and_not_what_was_proven() -> None:
    bench = Bench()
    v1, v2 = make("digits", 1), make("digits", 2)
    bench.add(v1, v2)
    bench.desire(1, v1.wanted())
    bench.run(30)
    bench.hub_keys = {modules.STRANGER.public.keyid: modules.STRANGER.public}
    bench.boot()
    bench.desire(2, v2.wanted())
    assert bench.routes == {"digits": (v1.digest,)}
    assert {event.code for event in bench.events} >= {"trust.unknown_key"}


def test_documents_are_followed_forward_only_and_each_refusal_is_told_once() -> None:
    bench = Bench()
    v1, v2 = make("digits", 1), make("digits", 2)
    bench.add(v1, v2)
    bench.desire(5, v1.wanted())
    bench.run(30)
    bench.desire(4, v2.wanted())
    bench.desire(5, v1.wanted())
    bench.run(30)
    assert bench.brain.revision == 5
    assert bench.routes == {"digits": (v1.digest,)}
    assert [event.code for event in bench.events if event.code == "desired.stale"] == ["desired.stale"]


def test_a_module_that_is_no_longer_desired_goes_with_all_it_had() -> None:
    bench = Bench()
    v1, v2, other = make("digits", 1), make("digits", 2), make("vibration", 1)
    bench.add(v1, v2, other)
    bench.desire(1, v1.wanted(), other.wanted())
    bench.desire(2, v2.wanted(), other.wanted())
    bench.run(30)
    bench.desire(3, other.wanted())
    bench.run(30)
    assert bench.routes == {"vibration": (other.digest,)}
    assert bench.installed == bench.loaded == {other.digest}
    assert set(bench.complete) == set(other.objects)
    assert bench.state is not None
    assert [module.name for module in bench.state.modules] == ["vibration"]


def test_an_endpoint_splits_its_requests_and_never_goes_without_an_answer() -> None:
    bench = Bench()
    one, two = make("digits", 1), make("vibration", 1)
    bench.add(one, two)
    split = Endpoint(
        name="both",
        routes=(Route(module="digits", version=1, percent=75), Route(module="vibration", version=1, percent=25)),
    )
    bench.faults["Load", two.digest] = ["hang"]
    bench.desire(1, one.wanted(), two.wanted(), endpoints=(split,))
    bench.run(10)
    assert bench.routes["both"] == (one.digest,)
    bench.run(300)
    assert bench.routes["both"] == (one.digest, two.digest)


def test_a_full_disk_holds_decisions_back_until_they_can_be_saved() -> None:
    bench = Bench()
    v1 = make("digits", 1)
    bench.add(v1)
    bench.full = True
    bench.desire(1, v1.wanted())
    bench.performed.clear()
    bench.run(600)
    assert set(bench.performed) == {"Save"}, "nothing may be done that could not be saved"
    bench.full = False
    bench.run(120)
    assert bench.routes == {"digits": (v1.digest,)}


@pytest.mark.parametrize("entry", [{"digest": "../../etc"}, {"index_size": 0}, {"index_size": 2**40}], ids=str)
def test_an_entry_that_cannot_be_meant_fails_and_harms_nothing(entry: dict[str, Any]) -> None:
    bench = Bench()
    v1 = make("digits", 1)
    bench.add(v1)
    bench.desire(1, v1.wanted(), msgspec.structs.replace(make("vibration", 1).wanted(), **entry))
    bench.run(30)
    assert bench.routes == {"digits": (v1.digest,)}
    assert bench.state is not None
    assert [(m.name, m.phase, m.reason) for m in bench.state.modules if m.name == "vibration"] == [
        ("vibration", "Failed", "install.verify_failed")
    ]
