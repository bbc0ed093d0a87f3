"""Splits: the sticky hash, which versions a split goes to, and how versions move between slots on one device."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.rules import effects as fx
from skerry_agent.rules import routes, split
from skerry_agent.rules.lifecycle import Step
from skerry_agent.rules.records import Record, Slot
from skerry_modules.messages import Desired, Endpoint, Route
from skerry_simulators.world.modules import Behaviour, Module, make

from .bench import Bench, signed

KEYS = [f"user-{number}".encode() for number in range(2000)]
shares = st.floats(0.5, 100)
EXPECTED = "cacaaaaaacaaabaaabaabcbb"


def chosen(parts: dict[str, float], keys: list[bytes] = KEYS) -> list[str]:
    names = list(parts)
    salts = [split.salt_of("e", name, 1) for name in names]
    return [names[split.by_key(key, salts, list(parts.values()))] for key in keys]


# -- the sticky hash


@given(st.dictionaries(st.sampled_from("abcd"), shares, min_size=1), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_a_key_keeps_its_version_in_whatever_order_and_unit_the_split_is_written(
    parts: dict[str, float], rng: object
) -> None:
    names = list(parts)
    rng.shuffle(names)  # type: ignore[attr-defined]
    assert chosen({name: parts[name] for name in names}, KEYS[:300]) == chosen(parts, KEYS[:300])
    assert chosen({name: share * 3 for name, share in parts.items()}, KEYS[:300]) == chosen(parts, KEYS[:300])


@given(st.dictionaries(st.sampled_from("abc"), st.floats(10, 100), min_size=2))
@settings(max_examples=25)
def test_keys_are_shared_out_as_the_split_says(parts: dict[str, float]) -> None:
    found = chosen(parts)
    for name, share in parts.items():
        expected = share / sum(parts.values())
        error = 5 * (expected * (1 - expected) / len(KEYS)) ** 0.5  # five standard deviations of a fair draw
        assert abs(found.count(name) / len(KEYS) - expected) <= error


@given(st.dictionaries(st.sampled_from("abcd"), shares, min_size=2), st.sampled_from("abcd"), st.floats(1.01, 20))
@settings(max_examples=25)
def test_where_one_share_grows_keys_move_only_to_it_and_back_when_it_shrinks(
    parts: dict[str, float], name: str, factor: float
) -> None:
    before, after = chosen(parts), chosen({**parts, name: parts.get(name, 0.5) * factor})
    assert all(new in (old, name) for old, new in zip(before, after, strict=True))


@given(st.floats(1, 99), st.floats(1, 99))
@settings(max_examples=25)
def test_between_two_versions_no_more_moves_than_must(first: float, second: float) -> None:
    before, after = chosen({"a": first, "b": 100 - first}), chosen({"a": second, "b": 100 - second})
    moved = sum(old != new for old, new in zip(before, after, strict=True))
    assert moved == abs(before.count("a") - after.count("a"))


@given(st.floats(0, 1, exclude_max=True), st.lists(shares, min_size=1, max_size=5))
def test_a_draw_falls_in_its_share(draw: float, parts: list[float]) -> None:
    place = split.by_chance(draw, parts)
    whole = sum(parts)
    assert sum(parts[:place]) / whole <= draw + 1e-9
    assert draw <= sum(parts[: place + 1]) / whole + 1e-9


def test_the_hash_is_the_same_for_ever() -> None:
    """A device that is updated must not move its users: these were written down when the rule was made."""
    assert "".join(chosen({"a": 60, "b": 30, "c": 10}, KEYS[:24])) == EXPECTED


# -- which versions a split goes to


def at(version: int, step: Step, *, side: bool = True) -> Slot:
    record = Record(name="m", version=version, digest=str(version), index_size=1, signatures=(), step=step)
    role = "current" if step is Step.SERVE else "candidate"
    roles = {} if step in (Step.FAILED, Step.UNSCHEDULABLE) else {role: record.digest}
    return Slot(name=f"m:{version}" if side else "m", side=side, records={record.digest: record}, **roles)


def route(version: int, percent: float = 100.0) -> Route:
    return Route(module="m", version=version, percent=percent)


steps = st.sampled_from([Step.WANT, Step.LOAD, Step.SERVE, Step.FAILED])


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(1, 100)), min_size=1, max_size=4, unique_by=lambda pair: pair[0]),
    st.lists(st.integers(1, 5), max_size=3, unique=True),
    st.lists(st.integers(1, 5), max_size=2, unique=True),
    st.dictionaries(st.integers(1, 5), steps),
)
def test_a_split_is_whole_or_the_one_before_it(
    parts: list[tuple[int, float]], shadow: list[int], before: list[int], here: dict[int, Step]
) -> None:
    slots = {f"m:{version}": at(version, step) for version, step in here.items()}
    loaded = {str(version) for version, step in here.items() if step is Step.SERVE}
    endpoint = Endpoint(
        name="e",
        routes=tuple(route(version, percent) for version, percent in parts),
        shadow=tuple(route(version) for version in shadow),
        before=tuple(route(version, 100 / len(before)) for version in before),
    )
    made = routes.compute(slots, loaded, (endpoint,))["e"]
    versions = {one.version for one in made.routes}
    assert set(made.digests) | set(made.shadow_digests) <= loaded
    assert not set(made.digests) & set(made.shadow_digests)
    assert not made.routes or sum(one.percent for one in made.routes) == pytest.approx(100)
    ready = {version for version, _ in parts if str(version) in loaded}
    ready_before = {version for version in before if str(version) in loaded}
    coming = any(here.get(version) in (Step.WANT, Step.LOAD) for version, _ in parts)
    if coming and ready_before:
        assert versions == ready_before
    elif ready:
        assert versions == ready
        whole = sum(percent for version, percent in parts if version in ready)
        for one in made.routes:
            assert one.percent == pytest.approx(100 * dict(parts)[one.version] / whole)
    else:
        assert versions == ready_before


# -- one device


def desire(bench: Bench, revision: int, *wanted: Module, sides: tuple[Module, ...] = (), **more: object) -> None:
    document = Desired(
        device="d1",
        revision=revision,
        issued_at=0,
        modules=tuple(module.wanted() for module in wanted),
        sides=tuple(module.wanted(attempt=revision) for module in sides),
        **more,  # type: ignore[arg-type]
    )
    bench.feed(fx.DesiredArrived(signed(document)))
    bench.run(60)


def endpoint(*parts: Route, shadow: tuple[Route, ...] = (), before: tuple[Route, ...] = ()) -> tuple[Endpoint, ...]:
    return (Endpoint(name="e", routes=parts, shadow=shadow, before=before),)


def performed(bench: Bench, name: str, since: int) -> int:
    return bench.performed[since:].count(name)


@pytest.fixture
def versions() -> list[Module]:
    return [make("m", version) for version in range(1, 5)]


def test_side_versions_are_proven_loaded_and_take_their_share(versions: list[Module]) -> None:
    bench = Bench()
    bench.add(*versions)
    one, two, three, _ = versions
    desire(bench, 1, one, sides=(two, three), endpoints=endpoint(route(1, 90), route(2, 10), shadow=(route(3),)))
    assert bench.routes == {"m": (one.digest,), "e": (one.digest, two.digest)}
    assert {one.digest, two.digest, three.digest} <= bench.loaded
    assert bench.steps(3) == ["want", "verify", "download", "install", "load", "golden", "warm", "soak", "serve"]
    assert [(m.version, m.role) for m in bench.state.modules] == [(1, "current"), (2, "side"), (3, "side")]  # type: ignore[union-attr]


def test_a_side_version_becomes_the_current_one_and_back_without_being_loaded_again(versions: list[Module]) -> None:
    bench = Bench()
    bench.add(*versions)
    one, two, _, _ = versions
    desire(bench, 1, one, sides=(two,), endpoints=endpoint(route(1, 50), route(2, 50)))
    mark = len(bench.performed)
    desire(bench, 2, two, sides=(one,), endpoints=endpoint(route(1, 50), route(2, 50)))
    assert bench.routes == {"m": (two.digest,), "e": (one.digest, two.digest)}
    desire(bench, 3, one, sides=(two,), endpoints=endpoint(route(1, 50), route(2, 50)))
    assert bench.routes == {"m": (one.digest,), "e": (one.digest, two.digest)}
    for name in ("Load", "Unload", "Install", "Remove", "SendWant"):
        assert performed(bench, name, mark) == 0, name


def test_the_split_before_goes_on_until_the_new_one_is_whole_and_back_is_instant(versions: list[Module]) -> None:
    bench = Bench()
    bench.add(*versions)
    one, two, three, _ = versions
    desire(bench, 1, sides=(one,), endpoints=endpoint(route(1)))
    bench.faults["Golden", three.digest] = ["hang"]
    desire(bench, 2, sides=(one, two, three), endpoints=endpoint(route(2, 90), route(3, 10), before=(route(1),)))
    assert two.digest in bench.loaded
    assert bench.routes["e"] == (one.digest,)  # 2 is ready, 3 is not
    bench.run(400)
    assert list(bench.routes["e"]) == [two.digest, three.digest]
    mark = len(bench.performed)
    now = bench.now
    desire(bench, 3, sides=(one, two, three), endpoints=endpoint(route(1), before=(route(2, 90), route(3, 10))))
    assert bench.routes["e"] == (one.digest,)
    assert performed(bench, "Load", mark) == 0
    assert now <= bench.now


def test_a_side_version_that_errs_is_taken_out_told_and_tried_again_only_when_asked(versions: list[Module]) -> None:
    bench = Bench()
    bench.add(*versions)
    one, two, _, _ = versions
    desire(bench, 1, one, sides=(two,), endpoints=endpoint(route(1, 80), route(2, 20)))
    for _ in range(5):  # 1 of 5 fails, a few requests at a time
        bench.feed(fx.Traffic(two.digest, 5, 1))
    assert bench.routes["e"] == (one.digest,)
    assert two.digest not in bench.loaded
    assert (bench.reported(2).phase, bench.reported(2).reason) == ("Failed", "run.errors")
    assert "run.errors" in [event.code for event in bench.events]
    desire(bench, 2, one, sides=(), endpoints=endpoint(route(1)))
    desire(bench, 3, one, sides=(two,), endpoints=endpoint(route(1, 80), route(2, 20)))
    assert list(bench.routes["e"]) == [one.digest, two.digest]


def test_a_few_errors_among_many_requests_do_no_harm(versions: list[Module]) -> None:
    bench = Bench()
    bench.add(*versions)
    one, two, _, _ = versions
    desire(bench, 1, one, sides=(two,), endpoints=endpoint(route(1, 80), route(2, 20)))
    for _ in range(100):
        bench.feed(fx.Traffic(two.digest, 50, 1))
    assert bench.routes["e"] == (one.digest, two.digest)


@pytest.mark.parametrize("behaviour", [Behaviour.FORGED, Behaviour.UNSIGNED, Behaviour.TAMPERED])
def test_an_unverified_version_neither_answers_nor_shadows(behaviour: Behaviour, versions: list[Module]) -> None:
    evil = make("m", 9, behaviour)
    bench = Bench()
    bench.add(versions[0], evil)
    desire(bench, 1, versions[0], sides=(evil,), endpoints=endpoint(route(1, 50), route(9, 50)))
    assert bench.routes["e"] == (versions[0].digest,)
    desire(bench, 2, versions[0], sides=(evil,), endpoints=endpoint(route(1), shadow=(route(9),)))
    assert evil.digest not in bench.loaded
    assert bench.reported(9).phase == "Failed"


def test_a_module_takes_its_version_back_from_the_side_when_the_current_one_fails(versions: list[Module]) -> None:
    bench = Bench()
    bench.add(*versions)
    one, two, _, _ = versions
    desire(bench, 1, one)
    desire(bench, 2, two, sides=(one,), endpoints=endpoint(route(1)))
    assert bench.routes == {"m": (two.digest,), "e": (one.digest,)}
    for _ in range(3):
        bench.feed(fx.WorkerExited(two.digest, "signal 11", restarting=True))
    assert bench.routes == {"m": (one.digest,), "e": (one.digest,)}  # at once: it was loaded
    assert bench.reported(2).reason == "run.crash_loop"


def test_after_a_restart_all_of_it_comes_back_with_no_network(versions: list[Module]) -> None:
    bench = Bench()
    bench.add(*versions)
    one, two, three, _ = versions
    desire(bench, 1, one, sides=(two, three), endpoints=endpoint(route(1, 60), route(2, 40), shadow=(route(3),)))
    bench.online = False
    bench.boot()
    bench.run(60)
    assert bench.routes == {"m": (one.digest,), "e": (one.digest, two.digest)}
    assert three.digest in bench.loaded


def test_an_endpoint_that_goes_takes_its_versions_with_it(versions: list[Module]) -> None:
    bench = Bench()
    bench.add(*versions)
    one, two, _, _ = versions
    desire(bench, 1, one, sides=(two,), endpoints=endpoint(route(2)))
    desire(bench, 2, one)
    assert "e" not in bench.routes
    assert bench.loaded == {one.digest}
    assert bench.installed == {one.digest}
