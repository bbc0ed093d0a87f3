"""Profiles of the seeded versions, in the shape that devices send."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry_modules.measurement import Measurement, ModuleProfile, Recommendation, Setting, Unmeasured

MINUTE = 60_000


def profiles(now: int) -> list[dict[str, Any]]:
    """Rows of ``module_profile``: digits:3 from two machines, the FPGA's from a simulated board."""
    pi = _profile("digits", "onnx", (1, 2, 4), now - 90 * MINUTE, "Cortex-A76", 4)
    other = Setting(engine="openvino", threads=1)
    why = "cannot use the engine openvino: No module named 'openvino'; install skerry[openvino]"
    pi = msgspec.structs.replace(pi, unmeasured=(Unmeasured(setting=other, code="unschedulable.engine", message=why),))
    board = msgspec.structs.replace(
        _profile("digits-fpga", "pynq", (1,), now - 30 * MINUTE, "x86-64", 2), simulated=True
    )
    laptop = _profile("digits", "openvino", (1,), now - 300 * MINUTE, "a laptop", 8)
    return [
        _row("digits", 3, "press-harbour-04", "raspberry-pi-5", pi),
        _row("digits", 3, "", "", laptop),
        _row("digits-fpga", 1, "board-lab-01", "simulated-fpga", board),
    ]


def _profile(module: str, engine: str, threads: tuple[int, ...], at: int, machine: str, cores: int) -> ModuleProfile:
    found = tuple(_measurement(engine, count, batch) for count in threads for batch in (1, 8))
    best = Recommendation(
        setting=found[0].setting,
        max_rows=8,
        memory_mb=23,
        confirmed=True,
        reasons=("1 thread: its p99 is the best", "batch 8: 4,000 rows/s, 4.0 times batch 1", "memory: at most 7 MB"),
    )
    return ModuleProfile(
        module=module,
        version=3,
        digest="0" * 64,
        device="",
        profile="",
        machine=machine,
        cores=cores,
        at=at,
        took_s=9.0,
        niceness=19,
        inputs="golden",
        simulated=False,
        memory_mb=24,
        measurements=found,
        unmeasured=(),
        recommendation=best,
    )


def _measurement(engine: str, threads: int, batch: int) -> Measurement:
    took = 900.0 + 40 * threads + 30 * batch
    return Measurement(
        setting=Setting(engine=engine, threads=threads, batch=batch),
        engine_version="1",
        runs=1000,
        rounds=5,
        p50_us=took,
        p90_us=took * 1.1,
        p99_us=took * 1.4,
        p99_low_us=took * 1.3,
        max_us=took * 2,
        spread=0.031,
        rows_per_s=batch * 1e6 / took,
        cpu_percent=98.0,
        cpu_us_per_row=took / batch,
        others_percent=4.0,
        first_load_ms=31.0,
        load_ms=11.0,
        peak_mb=61.0,
        steady_mb=9.0,
        limit_mb=6.8,
        golden="passed",
    )


def _row(name: str, version: int, device: str, profile: str, found: ModuleProfile) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "device": device,
        "profile": profile,
        "simulated": found.simulated,
        "memory_mb": found.memory_mb,
        "body": msgspec.json.encode(found).decode(),
        "measured_by": "lena",
        "at": found.at,
    }
