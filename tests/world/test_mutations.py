"""The invariants can fail: for each rule that we break on purpose, the worlds soon find it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from skerry_agent.rules import lifecycle, reconcile, steps, verify
from skerry_agent.rules.brain import Brain
from skerry_agent.rules.download import Download
from skerry_agent.rules.lifecycle import Step
from skerry_agent.rules.machine import Machine
from skerry_agent.rules.records import Slot
from skerry_agent.rules.steps import Steps
from skerry_hub.rules import marks
from skerry_hub.rules import rollout as rollouts
from skerry_modules import messages
from skerry_modules.messages import Ack, Desired, Signed
from skerry_simulators.world.device import Device
from skerry_simulators.world.hub import Hub
from skerry_simulators.world.world import World

ENOUGH = 300
"""Seeds within which each broken rule must be found."""


def found(sign: str, *, device_class: type[Device] = Device, hub_class: type[Hub] = Hub) -> None:
    """Assert that some world breaks a rule in the words ``sign``."""
    others: set[str] = set()
    for seed in range(ENOUGH):
        outcome = World(seed, device_class=device_class, hub_class=hub_class).run()
        if sign in outcome.violation:
            return
        others.add(outcome.violation)
    raise AssertionError(f"{ENOUGH} worlds did not notice: {sign!r}; they said {sorted(others)}")


def _no_op(*_: Any) -> None:
    return None


def _believe(payload: bytes, *_: Any) -> Desired:
    signed: Signed = messages.decode("desired", payload)
    return messages.decode_desired(signed.payload)


def _skip(step: Step) -> Callable[..., None]:
    def skipped(self: Any, slot: Any, record: Any, live: Any, now: float) -> None:
        self._enter(slot, record, lifecycle.TABLE[step].then, now)

    return skipped


def test_an_agent_that_does_not_verify_signatures_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.indexes, "verify_index", _no_op)
    found("which no trusted publisher signed")


def test_an_agent_that_believes_any_document_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "read_desired", _believe)
    found("a document that its hub never issued")


def test_an_agent_that_goes_back_to_older_documents_is_found() -> None:
    class Forgetful(Brain):
        def _desired_arrived(self, payload: bytes, now: float) -> None:
            if self.desired is not None:
                self.desired = msgspec.structs.replace(self.desired, revision=0)
            super()._desired_arrived(payload, now)

    found("went back from revision", device_class=type("D", (Device,), {"brain_class": Forgetful}))


def test_an_agent_that_skips_the_golden_test_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "_golden", _skip(Step.GOLDEN))
    found("before its golden test")


def test_an_agent_that_skips_the_soak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "_soak", _skip(Step.SOAK))
    found("for proven")


def test_an_agent_that_never_undoes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "collect", _no_op)
    found("which nothing needs")


def test_an_agent_that_forgets_to_save_is_found() -> None:
    class Careless(Device):
        def _perform(self, effect: Any) -> bool:
            return False if type(effect).__name__ == "Save" and self.boots == 1 else super()._perform(effect)

    found("went back from revision", device_class=Careless)


def test_an_agent_that_does_not_try_again_after_a_failure_that_may_pass_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stuck(self: Any, slot: Any, record: Any, code: str, message: str, now: float) -> None:
        live = self.live(record.digest)
        live.running, live.due = "", None

    monkeypatch.setattr(Steps, "_fail", stuck)
    found("no end")


def test_an_agent_that_asks_for_what_it_holds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Download.listed
    monkeypatch.setattr(Download, "listed", lambda self, parts, now: original(self, [], now))
    found("which it holds")


def test_an_agent_that_keeps_no_files_of_what_it_can_go_back_to_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = reconcile.unneeded

    def careless(objects: set[str], slots: Mapping[str, Slot]) -> list[str]:
        kept = {
            name: msgspec.structs.replace(slot, records={d: r for d, r in slot.records.items() if d != slot.last_good})
            for name, slot in slots.items()
        }
        return original(objects, kept)

    monkeypatch.setattr(reconcile, "unneeded", careless)
    found("which it needs")


def test_an_agent_that_stores_what_it_holds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Download.chunk

    def twice(self: Download, part: int, payload: bytes, now: float) -> list[Any]:
        effects = original(self, part, payload, now)
        return [*effects[:1], *effects]

    monkeypatch.setattr(Download, "chunk", twice)
    found("again")


def test_a_preflight_that_never_refuses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "obstacles", lambda *_: [])
    found("too-large")


def test_a_hub_that_acknowledges_before_its_commit_is_found() -> None:
    class Hasty(Hub):
        def store(self, changed: dict[tuple[str, bytes, int], int], taken: list[tuple[str, Any]]) -> None:
            for (device, epoch, stream), mark in changed.items():
                self._world.network.down(device, "ack", messages.encode(Ack(1, epoch, {stream: mark})))
            super().store(changed, taken)

    found("acknowledged samples are lost", hub_class=Hasty)


def test_a_hub_that_takes_duplicates_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(mark: int, seq: int, base: int) -> marks.Taken:
        return marks.Taken(marks.Verdict.TAKE, max(mark, seq), 0)

    monkeypatch.setattr(marks, "take", greedy)
    found("a sample is kept twice")


def test_a_hub_that_forgets_its_marks_is_found() -> None:
    class Amnesiac(Hub):
        def restart(self) -> None:
            if not self.up:
                self.db.marks.clear()
            super().restart()

    found("a sample is kept twice", hub_class=Amnesiac)


def test_a_rollout_that_takes_silence_for_success_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def gullible(*_: Any) -> tuple[rollouts.DeviceStep, str, str]:
        return rollouts.DeviceStep.SUCCEEDED, "", ""

    monkeypatch.setattr(rollouts, "_proof", gullible)
    found("which never proved the version")
