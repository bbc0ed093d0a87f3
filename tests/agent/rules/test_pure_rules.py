"""Properties of the small rules: judging, undoing, health, reconciling, routing, records, the gate."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.rules import lifecycle, reconcile, records, routes, verify
from skerry_agent.rules.health import Crashes, Errors, HealthSettings, Soak
from skerry_agent.rules.lifecycle import ORDER, TABLE, TERMINAL, LifecycleSettings, Step, Undo
from skerry_agent.rules.reconcile import Keep, Retire, Start, Supersede
from skerry_agent.rules.records import Record, Saved, Slot
from skerry_modules.errors import CODES, PeerError
from skerry_modules.messages import Desired, DesiredModule, Endpoint, Route
from skerry_simulators.world import modules
from skerry_simulators.world.modules import Behaviour, make

from .bench import document, signed

codes = st.sampled_from(sorted(CODES))
steps = st.sampled_from(list(ORDER))


@given(steps, codes)
def test_every_failure_ends_after_a_limited_number_of_tries_with_a_declared_reason(step: Step, code: str) -> None:
    for failures in range(1, TABLE[step].attempts + 1):
        verdict = lifecycle.judge(step, code, failures)
        assert verdict.reason in CODES
        if verdict.final:
            return
        assert ORDER.index(verdict.to) <= ORDER.index(step)
    raise AssertionError("it never ends")


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), max_size=40), st.booleans())
def test_errors_are_judged_alike_however_requests_are_cut_into_reports(
    reports: list[tuple[int, float]], failing: bool
) -> None:
    """A version that always fails is told of once, from the twentieth request on; one that never does, never."""
    limits = HealthSettings(crash_window_s=1e9)
    errors, now, seen, told = Errors(limits), 0.0, 0, 0
    for requests, pause in reports:
        now += pause
        seen += requests
        told += bool(errors.traffic(requests, requests if failing else 0, now))
        assert (errors.until is not None) == (failing and seen >= limits.error_requests)
    assert told == (1 if errors.until is not None else 0)


@pytest.mark.parametrize(
    ("step", "code", "reason"),
    [
        (Step.LOAD, "board.stale_memory", "board.stale_memory"),
        (Step.GOLDEN, "board.hang", "board.hang"),
        (Step.LOAD, "scoring.failed", "install.load_failed"),
    ],
)
def test_what_a_board_has_is_the_reason_and_not_only_that_it_did_not_load(step: Step, code: str, reason: str) -> None:
    assert lifecycle.judge(step, code, TABLE[step].attempts) == lifecycle.Verdict(Step.FAILED, reason)


@given(steps)
def test_undo_takes_back_every_step_before_the_last_first(step: Step) -> None:
    done = [TABLE[s].undo for s in ORDER[: ORDER.index(step) + 1] if TABLE[s].undo is not Undo.NOTHING]
    assert lifecycle.undo(step) == list(dict.fromkeys(reversed(done)))


@given(steps, steps)
def test_a_retreat_undoes_no_more_than_the_whole(step: Step, to: Step) -> None:
    if ORDER.index(to) <= ORDER.index(step) and to in TABLE:
        ways = lifecycle.retreat(step, to)
        assert ways == lifecycle.undo(step)[: len(ways)]


def test_a_retreat_to_load_stops_the_worker_and_keeps_the_files() -> None:
    assert lifecycle.retreat(Step.GOLDEN, Step.LOAD) == [Undo.UNLOAD]
    assert lifecycle.retreat(Step.INSTALL, Step.DOWNLOAD) == [Undo.REMOVE_FOLDER, Undo.STOP_DOWNLOAD]
    assert lifecycle.retreat(Step.VERIFY, Step.WANT) == [Undo.STOP_DOWNLOAD]


@given(st.integers(1, 200))
def test_pauses_grow_up_to_their_limit(failures: int) -> None:
    limits = LifecycleSettings()
    pause = lifecycle.backoff(failures, limits)
    assert limits.backoff_s <= pause <= limits.backoff_max_s
    assert pause <= lifecycle.backoff(failures + 1, limits)


@given(st.lists(st.floats(0, 1000), max_size=40))
def test_a_loop_is_so_many_crashes_within_the_window(times: list[float]) -> None:
    settings = HealthSettings()
    crashes = Crashes(settings)
    seen: list[float] = []
    for time in sorted(times):
        crashes.add("signal 11", time)
        seen.append(time)
        within = [t for t in seen if t + settings.crash_window_s > time]
        assert crashes.looping(time) == (len(within) >= settings.crash_limit)
    last = crashes.forgotten_at
    if last is not None:
        assert crashes.recent(last) == 0
        assert crashes.forgotten_at is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30))
def test_a_soak_fails_exactly_when_the_share_of_errors_is_over_its_limit(windows: list[tuple[int, int]]) -> None:
    settings = HealthSettings()
    soak = Soak(60, settings, 0.0)
    for requests, errors in windows:
        soak.traffic(requests, min(requests, errors))
    bad = soak.requests >= settings.error_requests and soak.errors / soak.requests > settings.error_rate + 1e-12
    assert bool(soak.failure()) == bad


wanted_modules = st.builds(
    DesiredModule,
    name=st.sampled_from(["m", "n"]),
    version=st.integers(1, 3),
    digest=st.sampled_from(["a" * 64, "b" * 64, "c" * 64]),
    index_size=st.just(10),
    signatures=st.just(()),
    attempt=st.integers(0, 2),
)


@st.composite
def slots(draw: st.DrawFn) -> Slot:
    digests = draw(st.permutations(["a" * 64, "b" * 64, "c" * 64]))
    slot = Slot(name="m")
    for role, digest in zip(("current", "last_good", "candidate"), digests, strict=True):
        if draw(st.booleans()):
            setattr(slot, role, digest)
        step = draw(st.sampled_from(list(Step)))
        if getattr(slot, role) or (draw(st.booleans()) and step in TERMINAL):
            slot.records[digest] = Record(
                name="m",
                version=1,
                digest=digest,
                index_size=10,
                signatures=(),
                step=step,
                attempt=draw(st.integers(0, 2)),
            )
    return slot


@given(wanted_modules, slots())
def test_reconciling_never_gives_up_what_serves_for_what_is_not_proven(wanted: DesiredModule, slot: Slot) -> None:
    decisions = reconcile.decide(wanted, slot)
    assert len([d for d in decisions if isinstance(d, Start | Keep)]) <= 1
    assert not any(isinstance(d, Retire) for d in decisions)
    for decision in decisions:
        if isinstance(decision, Supersede):
            assert decision.digest == slot.candidate
            assert decision.digest != wanted.digest
    record = slot.records.get(wanted.digest)
    if record is not None and record.step in TERMINAL and wanted.attempt <= record.attempt:
        assert not any(isinstance(d, Start) for d in decisions), "a failed version is tried again without a new attempt"


@given(st.lists(wanted_modules, max_size=4), st.sets(st.sampled_from(["m", "n", "o"])))
def test_reconciling_knows_every_module_of_either_side_once(wanted: list[DesiredModule], have: set[str]) -> None:
    here = {name: Slot(name=name) for name in have}
    decisions = reconcile.reconcile(Desired(device="d", revision=1, issued_at=0, modules=tuple(wanted)), here)
    started = [d.wanted.name for d in decisions if isinstance(d, Start | Keep)]
    retired = [d.name for d in decisions if isinstance(d, Retire)]
    assert sorted(started) == sorted({module.name for module in wanted})
    assert sorted(retired) == sorted(have - {module.name for module in wanted})


def serving(name: str, digest: str) -> Slot:
    record = Record(name=name, version=1, digest=digest, index_size=1, signatures=(), step=Step.SERVE)
    return Slot(name=name, current=digest, records={digest: record})


@given(
    st.lists(st.tuples(st.sampled_from(["m", "n", "gone"]), st.floats(0.1, 100)), max_size=5),
    st.sets(st.sampled_from(["a", "b"])),
)
def test_shares_sum_to_a_hundred_over_what_is_loaded(parts: list[tuple[str, float]], loaded: set[str]) -> None:
    here = {"m": serving("m", "a"), "n": serving("n", "b")}
    split = Endpoint(
        name="split", routes=tuple(Route(module=name, version=1, percent=percent) for name, percent in parts)
    )
    table = routes.compute(here, loaded, (split,))
    assert set(table) == {"m", "n", "split"}
    for endpoint in table.values():
        assert set(endpoint.digests) <= loaded
        assert not endpoint.routes or sum(route.percent for route in endpoint.routes) == pytest.approx(100)


@given(slots())
def test_the_saved_state_comes_back_as_it_was(slot: Slot) -> None:
    saved = Saved(desired=b"x", slots={"m": slot})
    assert records.decode(records.encode(saved)) == saved


@given(st.binary(max_size=300))
def test_a_damaged_saved_state_is_none_and_no_crash(state: bytes) -> None:
    decoded = records.decode(state)
    assert decoded is None or decoded.format == records.FORMAT


def test_a_saved_state_of_a_newer_format_is_not_misread() -> None:
    assert records.decode(msgspec.msgpack.encode({"format": records.FORMAT + 1})) is None


KEYS = {modules.HUB.public.keyid: modules.HUB.public}
PUBLISHERS = {modules.PUBLISHER.public.keyid: modules.PUBLISHER.public}


@given(st.binary(max_size=400))
def test_the_gate_refuses_garbage_with_a_code(payload: bytes) -> None:
    with pytest.raises(PeerError):
        verify.read_desired(payload, "d1", KEYS)
    with pytest.raises(PeerError):
        verify.read_index(payload, "0" * 64, "m", (), PUBLISHERS)


@given(st.integers(0, 400), st.integers(0, 7))
def test_the_gate_refuses_a_document_with_any_bit_flipped(at: int, bit: int) -> None:
    payload = bytearray(document(1, make("digits", 1).wanted()))
    payload[at % len(payload)] ^= 1 << bit
    try:
        desired = verify.read_desired(bytes(payload), "d1", KEYS)
    except PeerError:
        return
    # Flips outside what is signed (a name in the signature's list, say) may pass; what is signed may not change.
    assert desired == verify.read_desired(document(1, make("digits", 1).wanted()), "d1", KEYS)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (signed(Desired(device="d1", revision=1, issued_at=0), modules.STRANGER), "trust.unknown_key"),
        (document(1, device="d2"), "message.wrong_device"),
    ],
    ids=["forged", "misdirected"],
)
def test_the_gate_refuses_documents_of_others(payload: bytes, code: str) -> None:
    with pytest.raises(PeerError) as caught:
        verify.read_desired(payload, "d1", KEYS)
    assert caught.value.code == code
    assert ("hub.key in this device's configuration" in caught.value.message) == (code == "trust.unknown_key")


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (Behaviour.UNSIGNED, "trust.unsigned"),
        (Behaviour.FORGED, "trust.unknown_key"),
        (Behaviour.TAMPERED, "trust.bad_signature"),
    ],
)
def test_the_gate_refuses_modules_that_no_trusted_publisher_signed(behaviour: Behaviour, code: str) -> None:
    module = make("digits", 1, behaviour)
    with pytest.raises(PeerError) as caught:
        verify.read_index(module.index, module.digest, "digits", module.signatures, PUBLISHERS)
    assert caught.value.code == code
    assert ("hub.publishers in this device's configuration" in caught.value.message) == (code == "trust.unknown_key")


def test_the_gate_refuses_another_module_put_in_a_modules_place() -> None:
    module = make("vibration", 1)
    with pytest.raises(PeerError, match="signed as vibration"):
        verify.read_index(module.index, module.digest, "digits", module.signatures, PUBLISHERS)
