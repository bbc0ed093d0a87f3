"""What the demo claims, checked against what was seen. A pure rule: facts in, claims out."""

from __future__ import annotations

from typing import Final

import msgspec

from skerry.types import Device, RolloutDetail
from skerry_simulators.demo.traffic import Tally

GOOD, BETTER, BROKEN = 1, 2, 3
GOLDEN_FAILED: Final = "install.golden_failed"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen at the end. Numbers by device id."""

    devices: tuple[Device, ...]
    module_of: dict[str, str]
    rollouts: dict[int, tuple[RolloutDetail, ...]]  # by version
    tallies: tuple[Tally, ...]
    telemetry: dict[str, int]
    health: dict[str, int]
    samples: dict[str, int]
    golden_failures: tuple[str, ...]  # devices that told of one
    parquet_files: int
    parquet_rows: int


class Claim(msgspec.Struct, frozen=True):
    """One thing that the demo shows, and whether it did."""

    name: str
    ok: bool
    detail: str


def claims(facts: Facts) -> list[Claim]:
    """Every claim of the demo."""
    return [
        _rolled_out(facts, GOOD),
        _rolled_out(facts, BETTER),
        _stopped_at_the_canary(facts),
        _serving(facts),
        _nothing_dropped(facts),
        _better(facts),
        _arrived("telemetry", facts.telemetry, facts.devices),
        _arrived("health", facts.health, facts.devices),
        _arrived("samples", facts.samples, facts.devices),
        Claim(
            "samples are written as Parquet",
            facts.parquet_files > 0 and facts.parquet_rows > 0,
            f"{facts.parquet_rows} rows in {facts.parquet_files} files",
        ),
    ]


def _rolled_out(facts: Facts, version: int) -> Claim:
    rollouts = facts.rollouts.get(version, ())
    states = {f"{one.module}:{one.version}": one.state for one in rollouts}
    proven = [device.device for one in rollouts for device in one.devices if device.step == "succeeded"]
    ok = set(states.values()) == {"succeeded"} and sorted(proven) == sorted(device.id for device in facts.devices)
    return Claim(
        f"version {version} is proven on every device",
        ok,
        ", ".join(f"{name} {state}" for name, state in states.items()),
    )


def _stopped_at_the_canary(facts: Facts) -> Claim:
    rollouts = facts.rollouts.get(BROKEN, ())
    if len(rollouts) != 1:
        return Claim("version 3 stops at the canary and is rolled back", False, "there is no such rollout")
    rollout = rollouts[0]
    tried = [one for one in rollout.devices if one.assigned_at]
    reasons = {one.device: one.reason for one in tried}
    canary = {one.device for one in rollout.devices if one.wave == 0}
    ok = (
        rollout.state == "rolled-back"
        and set(reasons) == canary
        and set(reasons.values()) == {GOLDEN_FAILED}
        and set(facts.golden_failures) == canary
        and len(rollout.devices) > len(canary)
    )
    seen = ", ".join(f"{device}: {reason}" for device, reason in reasons.items())
    untouched = len(rollout.devices) - len(tried)
    return Claim(
        "version 3 stops at the canary and is rolled back",
        ok,
        f"{rollout.state}; {seen or 'nobody'}; {untouched} untouched",
    )


def _serving(facts: Facts) -> Claim:
    wrong = []
    for device in facts.devices:
        current = [one for one in device.modules if one.role == "current"]
        names = [f"{one.module}:{one.version} {one.phase}" for one in current]
        if names != [f"{facts.module_of[device.id]}:{BETTER} Healthy"]:
            wrong.append(f"{device.id} has {', '.join(names) or 'none'}")
    count = len(facts.devices)
    return Claim("version 2 serves everywhere", not wrong, "; ".join(wrong) or f"healthy on {count} of {count} devices")


def _nothing_dropped(facts: Facts) -> Claim:
    total = sum(tally.requests for tally in facts.tallies)
    failed = sum(tally.failed for tally in facts.tallies)
    both = all(tally.answered.get(GOOD) and tally.answered.get(BETTER) for tally in facts.tallies)
    why = next((failure for tally in facts.tallies for failure in tally.failures), "")
    slowest = max((tally.slowest_ms for tally in facts.tallies), default=0.0)
    detail = f"{failed} of {total} requests failed while versions changed; slowest {slowest:.0f} ms"
    return Claim("no request is dropped", total > 0 and failed == 0 and both, f"{detail}; {why}" if why else detail)


def _better(facts: Facts) -> Claim:
    pairs = {tally.device: (tally.accuracy(GOOD), tally.accuracy(BETTER)) for tally in facts.tallies}
    text = ", ".join(f"{device} {before:.1%} → {after:.1%}" for device, (before, after) in pairs.items())
    better = bool(pairs) and all(after > before for before, after in pairs.values())
    return Claim("version 2 is the better one, on live digits", better, text)


def _arrived(what: str, counts: dict[str, int], devices: tuple[Device, ...]) -> Claim:
    ok = all(counts.get(device.id, 0) > 0 for device in devices)
    return Claim(f"{what} from every device", ok, ", ".join(f"{device} {count}" for device, count in counts.items()))
