"""Inside a measuring worker: load the module, prove it, score it under load, and read the process's own accounts.

One client asks as fast as answers come, which is how a worker scores: one request after the other. What is timed is
the scoring itself, in the worker; HTTP, and the way between the processes, come on top and are the same for every
module (see docs/benchmarks.md). Times are taken while nothing else of ours runs in the process. Memory is sampled in a
thread of its own while the module loads and warms up, since the kernel keeps no high-water mark of what counts
towards ``RLIMIT_DATA``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_agent import engines, golden, memory
from skerry_agent.ports import Arrays, LoadedModel
from skerry_agent.profiling.orders import Measure, Measured, Refused, Timed
from skerry_modules.errors import SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import DATATYPES

ROUNDS: Final = 5
"""A setting's runs are cut into so many rounds: how much their medians differ is the spread."""
WARM_SHARE: Final = 0.2
"""Of a setting's seconds, spent scoring before anything counts."""
WARM_RUNS: Final = 3
MIN_RUNS: Final = 10
MAX_RUNS: Final = 200_000
OVERTIME: Final = 4.0
"""Times its seconds that a slow model may take to come to :data:`MIN_RUNS`."""
SAMPLE_S: Final = 0.004
_MB: Final = 1e6


class LimitWatch:
    """The largest growth of what counts towards the memory limit, since it was made."""

    def __init__(self) -> None:
        self._base = memory.status_bytes("VmData:")
        self._peak = 0
        self._stop = threading.Event()

    def look(self) -> None:
        self._peak = max(self._peak, memory.status_bytes("VmData:") - self._base)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Look every few milliseconds meanwhile."""
        self._stop.clear()
        thread = threading.Thread(target=self._sample, daemon=True)
        self.look()
        before = memory.status_bytes("VmData:")
        thread.start()
        self._base += max(0, memory.status_bytes("VmData:") - before)  # the thread's own stack is no need of the module
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self.look()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.look()

    @property
    def peak_mb(self) -> float:
        return round(self._peak / _MB, 3)


def run(order: Measure) -> Measured:
    """Everything that one worker measures.

    Raises:
        SkerryError: the module does not load.
        MemoryError: the worker has reached its limit.
    """
    watch = LimitWatch()
    folder = Path(order.folder)
    engine = engines.get(order.manifest.engine)
    with watch.sampling():
        began = time.perf_counter()
        model = engine.load(folder, order.manifest, Path(order.cache))
        load_ms = (time.perf_counter() - began) * 1000
        report = golden.run(order.manifest, folder, model.run)
    inputs, kind = _inputs(order.manifest, folder)
    found = Measured(
        engine_version=engines.version_of(order.manifest),
        load_ms=round(load_ms, 3),
        limit_mb=watch.peak_mb,
        golden="none" if not report.cases else "passed" if report.passed else f"failed: {report.message}"[:300],
        inputs=kind,
        simulated=is_simulated(order.manifest.engine),
    )
    for batch in order.batches:
        try:
            found.timed.append(_score(model, rows_of(inputs, batch), batch, order.seconds, watch))
        except SkerryError as error:
            found.refused.append(Refused(batch=batch, code=error.code, message=error.message[:300]))
    found.limit_mb = watch.peak_mb
    model.close()
    return found


def _score(model: LoadedModel, inputs: Arrays, batch: int, seconds: float, watch: LimitWatch) -> Timed:
    with watch.sampling():
        _warm(model, inputs, seconds * WARM_SHARE)
    others, usage, began = _machine(), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    rounds = [_round(model, inputs, seconds / ROUNDS) for _ in range(ROUNDS if seconds else 1)]
    took = time.perf_counter() - began
    used = _cpu(resource.getrusage(resource.RUSAGE_SELF)) - _cpu(usage)
    watch.look()
    every = np.concatenate([np.asarray(one) for one in rounds]) * 1e6
    medians = [statistics.median(one) for one in rounds]
    p50, p90, p99 = np.percentile(every, (50, 90, 99))
    rows = batch * len(every)
    return Timed(
        batch=batch,
        runs=len(every),
        rounds=len(rounds),
        p50_us=round(float(p50), 2),
        p90_us=round(float(p90), 2),
        p99_us=round(float(p99), 2),
        p99_low_us=round(min(float(np.percentile(one, 99)) for one in rounds) * 1e6, 2),
        max_us=round(float(every.max()), 2),
        spread=round((max(medians) - min(medians)) / statistics.median(medians), 4),
        rows_per_s=round(rows / took, 2),
        cpu_percent=round(100 * used / took, 1),
        cpu_us_per_row=round(1e6 * used / rows, 3),
        others_percent=_others(others, _machine(), used),
        peak_mb=round(memory.status_bytes("VmHWM:") / _MB, 3),
        steady_mb=round(memory.private_bytes() / _MB, 3),
        limit_mb=watch.peak_mb,
    )


def _warm(model: LoadedModel, inputs: Arrays, seconds: float) -> None:
    end = time.perf_counter() + seconds
    for _ in range(WARM_RUNS):
        model.run(inputs)
    while time.perf_counter() < end:
        model.run(inputs)


def _round(model: LoadedModel, inputs: Arrays, seconds: float) -> list[float]:
    """Seconds of each run; a slow model gets its few runs, within reason."""
    times: list[float] = []
    clock, score = time.perf_counter, model.run
    began = last = clock()
    least = -(-MIN_RUNS // ROUNDS)
    while len(times) < MAX_RUNS // ROUNDS:
        score(inputs)
        now = clock()
        times.append(now - last)
        last = now
        past = now - began
        if past >= seconds and (len(times) >= least or past >= seconds * OVERTIME):
            break
    return times


# -- inputs


def _inputs(manifest: Manifest, folder: Path) -> tuple[Arrays, str]:
    """Rows to score: the golden cases, else numbers from 0 to 1 (zeros for whole numbers and texts)."""
    if manifest.golden is not None:
        cases, _ = golden.load(folder / manifest.golden.file)
        return cases, "golden"
    return {spec.name: _made(spec.datatype, spec.shape) for spec in manifest.inputs}, "made up"


def _made(datatype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    sizes = tuple(1 if size < 0 else size for size in shape)
    if datatype == "BYTES":
        array = np.empty(sizes, dtype=object)
        array.fill(b"")
        return array
    kind = np.dtype(DATATYPES[datatype])
    if kind.kind == "f":
        return np.random.default_rng(1).random(sizes).astype(kind)
    return np.zeros(sizes, dtype=kind)


def rows_of(inputs: Arrays, batch: int) -> Arrays:
    """So many rows of each array, from its start and over again."""
    return {
        name: np.ascontiguousarray(array[np.arange(batch) % len(array)]) if array.ndim else array
        for name, array in inputs.items()
    }


# -- the process's and the machine's accounts


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def _machine() -> tuple[float, float]:
    """(busy, all) CPU seconds of the machine since it started; zeros where it does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle = ticks[3] + ticks[4]
        hertz = os.sysconf("SC_CLK_TCK")
        return (sum(ticks) - idle) / hertz, sum(ticks) / hertz
    return 0.0, 0.0


def _others(before: tuple[float, float], after: tuple[float, float], own: float) -> float:
    """Percent of the whole machine that everything else used meanwhile; −1 where it does not tell."""
    passed = after[1] - before[1]
    if passed <= 0:
        return -1.0
    return round(100 * max(0.0, after[0] - before[0] - own) / passed, 1)


def is_simulated(engine: str) -> bool:
    """Whether the engine's board is a simulated one: it says so by its name."""
    if engine != "pynq":
        return False
    from pynq import Device

    return "simulated" in str(getattr(Device.active_device, "name", "")).lower()
