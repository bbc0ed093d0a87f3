"""Which setting a module should run with, judged from measured ones alone.

* Engine and threads: of the settings whose p99 for one row is within a tolerance of the best, the cheapest. Cheap is
  CPU time per row first (it is what other modules and the battery lack), then threads, then memory. The p99 compared
  is that of a setting's best round, since what else the machine does only ever adds to it; and the tolerance is
  widened to the best setting's own spread: what the measurement cannot tell apart is not told apart.
* Batch: rows per request that are worth scoring together. The smallest batch within the tolerance of the best
  throughput, of those that keep their p99 under the latency limit, if it beats single rows by :data:`WORTH`.
* Memory: what counted towards the limit at its highest, with a margin, for that engine and those threads, over every
  batch that was measured: ``max_rows`` binds the data plane, not the rows that a client sends at once.

What failed the golden test is never recommended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from skerry_modules.measurement import Measurement, Recommendation, Setting, threads_text, time_text

WORTH: Final = 1.2
"""Times the throughput of single rows that a batch must reach: less is not worth the latency."""
BUSY_PERCENT: Final = 25.0
"""Of the whole machine: what others take beyond this is told with the recommendation."""
FAILED: Final = "failed"


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the recommendation goes by."""

    tolerance: float = 0.10  # of the best p99
    tolerance_max: float = 0.50  # however much the measurement spreads
    latency_ms: float = 1000.0  # p99 of a batch
    margin: float = 0.20  # of the measured peak
    margin_mb: int = 16  # and at least this much


def recommend(found: Sequence[Measurement], wishes: Wishes, *, prefer: str = "") -> Recommendation | None:
    """The recommendation, or None where nothing that was measured passes its golden test.

    Args:
        found: measurements in any order.
        wishes: tolerances and margins.
        prefer: the engine of the manifest, which wins where all else is equal.
    """
    good = [one for one in found if not one.golden.startswith(FAILED)]
    if not good:
        return None
    smallest = min(one.setting.batch for one in good)
    single = [one for one in good if one.setting.batch == smallest]
    best = min(single, key=lambda one: (one.p99_low_us, one.setting))
    tolerance = min(max(wishes.tolerance, best.spread), max(wishes.tolerance_max, wishes.tolerance))
    near = [one for one in single if one.p99_low_us <= best.p99_low_us * (1 + tolerance)]
    chosen = min(near, key=lambda one: _cost(one, prefer))
    same = [one for one in good if _way(one.setting) == _way(chosen.setting)]
    batch = _batch(same, chosen, wishes)
    memory = memory_limit(same, wishes)
    reasons = (
        _why_setting(chosen, best, len(single), len(near), tolerance),
        _why_batch(batch, chosen, wishes),
        _why_memory(same, memory),
        *_doubts(good),
    )
    return Recommendation(
        setting=chosen.setting,
        max_rows=batch.setting.batch,
        memory_mb=memory,
        confirmed=False,
        reasons=reasons,
    )


def memory_limit(found: Sequence[Measurement], wishes: Wishes) -> int:
    """MB that a worker should be allowed for these settings; 0 for none."""
    if not found:
        return 0
    peak = max(one.limit_mb for one in found)
    return max(1, math.ceil(peak + max(peak * wishes.margin, wishes.margin_mb)))


def raised(memory_mb: int) -> int:
    """The next limit to try where a worker did not get by with this one."""
    return math.ceil(memory_mb * 1.5)


def _way(setting: Setting) -> tuple[str, int]:
    return setting.engine, setting.threads


def _cost(one: Measurement, prefer: str) -> tuple[float, int, float, bool, Setting]:
    return one.cpu_us_per_row, one.setting.threads, one.limit_mb, one.setting.engine != prefer, one.setting


def _batch(same: Sequence[Measurement], single: Measurement, wishes: Wishes) -> Measurement:
    allowed = [one for one in same if one.p99_us <= wishes.latency_ms * 1000 and one is not single]
    best = max((one.rows_per_s for one in allowed), default=0.0)
    if best < WORTH * single.rows_per_s:
        return single
    near = [one for one in allowed if one.rows_per_s >= best * (1 - wishes.tolerance)]
    return min(near, key=lambda one: one.setting.batch)


def _why_memory(same: Sequence[Measurement], memory: int) -> str:
    most = max(same, key=lambda one: one.limit_mb)
    rows = max(one.setting.batch for one in same)
    return (
        f"memory: with requests of up to {rows} row{'' if rows == 1 else 's'}, at most {most.limit_mb:.1f} MB counted "
        f"towards the limit; with a margin, {memory} MB"
    )


def _why_setting(chosen: Measurement, best: Measurement, count: int, near: int, tolerance: float) -> str:
    name = f"{chosen.setting.engine} with {threads_text(chosen.setting.threads)}"
    if count == 1:
        return f"{name}: the only way to run it that was measured"
    p99 = time_text(chosen.p99_low_us)
    if chosen is best:
        others = {1: "no other is", 2: "the other one"}.get(near, f"the {near - 1} others")
        within = f"{others} within {tolerance:.0%} of it"
        took = "" if near == 1 else " takes more CPU" if near == 2 else " take more CPU"
        return f"{name}: its p99 of {p99} is the best of {count}; {within}{took}"
    fastest = f"{time_text(best.p99_low_us)} of {best.setting.engine} with {threads_text(best.setting.threads)}"
    return (
        f"{name}: p99 {p99}, within {tolerance:.0%} of the best, {fastest}; of the {near} of {count} within that, it "
        f"takes the least CPU: {chosen.cpu_us_per_row:.0f} µs a row"
    )


def _why_batch(batch: Measurement, single: Measurement, wishes: Wishes) -> str:
    if batch is single:
        return f"batch {single.setting.batch}: no larger one measured gives {WORTH:g} times its rows per second in time"
    return (
        f"batch {batch.setting.batch}: {batch.rows_per_s:.0f} rows/s, {batch.rows_per_s / single.rows_per_s:.1f} times "
        f"batch {single.setting.batch}, at a p99 of {time_text(batch.p99_us)} (limit {wishes.latency_ms:g} ms)"
    )


def _doubts(found: Sequence[Measurement]) -> tuple[str, ...]:
    most = max(one.others_percent for one in found)
    if most < BUSY_PERCENT:
        return ()
    return (f"careful: other work took up to {most:.0f} % of the machine meanwhile; measure again when it is quieter",)
