"""What the seeded fleet has said lately: health, telemetry, events and samples."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec

from console.seed.models import digest
from skerry_modules import messages
from skerry_modules.histogram import Histogram
from skerry_modules.messages import Distribution


def health(rng: random.Random, now: int, fleet: list[Any], minutes: int) -> list[dict[str, Any]]:
    rows = []
    for index, (device, _) in enumerate(fleet):
        if not device["online"]:
            continue
        for step in range(minutes * 2):
            at = now - (minutes * 2 - step) * 30_000 + 29_000
            cpu = 22 + 9 * math.sin(step / 11 + index) + rng.random() * 8 + (35 if step % 47 == 3 else 0)
            used = int(2.1e9 + 4e7 * math.sin(step / 31 + index) + rng.random() * 3e7)
            temperature = 48 + 5 * math.sin(step / 19 + index) + rng.random()
            body = messages.Health(
                boot=device["boot"],
                uptime_s=86_400.0 * 3 + step * 30,
                cpu_percent=cpu,
                load1=cpu / 40,
                memory_used=used,
                memory_total=8_000_000_000,
                disk_used=11_300_000_000,
                disk_total=31_900_000_000,
                temperature_c=temperature,
                agent_memory=39_400_000,
                workers_memory=61_000_000 + 200_000 * (step % 9),
                network_in=44_000 + step,
                network_out=9_100 + step,
                spool_records=step % 5,
                spool_bytes=2_000 * (step % 5),
            )
            rows.append(
                {
                    "device": device["id"],
                    "at": at,
                    "cpu_percent": cpu,
                    "memory_used": used,
                    "memory_total": 8_000_000_000,
                    "disk_used": 11_300_000_000,
                    "disk_total": 31_900_000_000,
                    "temperature_c": temperature,
                    "body": messages.encode(body),
                }
            )
    return rows


def latency(rng: random.Random, requests: int, middle_us: float) -> Distribution:
    """Counts over the standard log2 edges, around ``middle_us``."""
    histogram = Histogram()
    for _ in range(min(requests, 40)):
        histogram.add(middle_us * math.exp(rng.gauss(0, 0.35)))
    return histogram.to_wire()


def pipeline_window(now: int, device: str) -> dict[str, Any]:
    """One window of a pipeline, with the times of its steps."""
    wires = {"detrend": [40.0] * 9, "net": [900.0] * 9}
    steps = {}
    for name, times in wires.items():
        histogram = Histogram()
        for value in times:
            histogram.add(value)
        steps[name] = histogram.to_wire()
    body = messages.Telemetry(
        module="vibration", version=2, digest=digest("vibration2"), endpoint="vibration", start=now - 30_000, end=now,
        requests=9, latency_us=steps["net"], steps=steps,
    )  # fmt: skip
    return {
        "device": device, "module": "vibration", "version": 2, "endpoint": "vibration", "start_ms": now - 30_000,
        "end_ms": now, "requests": 9, "errors": 0, "rejected": 0, "p50_us": 900.0, "p99_us": 950.0,
        "body": messages.encode(body),
    }  # fmt: skip


def telemetry(rng: random.Random, now: int, fleet: list[Any], minutes: int) -> list[dict[str, Any]]:
    rows = [pipeline_window(now - minutes * 60_000, fleet[0][0]["id"])]
    for step in range(minutes * 2):
        for index, (device, tags) in enumerate(fleet):
            if not device["online"]:
                continue
            module, version = ("digits-fpga", 1) if tags["kind"] == "fpga" else ("digits", 3)
            end = now - (minutes * 2 - step) * 30_000 + 28_000
            requests = int(300 + 120 * math.sin(step / 17) + 60 * rng.random()) * (2 if tags["kind"] == "gate" else 1)
            middle = {"cam": 640.0, "gate": 210.0, "press": 410.0, "fpga": 95.0}[tags["kind"]] * (
                1 + 0.15 * math.sin(step / 9 + index)
            )
            errors = rng.randint(0, 3) if step % 37 == 5 else 0
            wire = latency(rng, requests, middle)
            body = messages.Telemetry(
                module=module,
                version=version,
                digest=digest(f"{module}{version}"),
                endpoint=module,
                start=end - 30_000,
                end=end,
                requests=requests,
                errors=errors,
                latency_us=wire,
            )
            rows.append(
                {
                    "device": device["id"],
                    "module": module,
                    "version": version,
                    "endpoint": module,
                    "start_ms": end - 30_000,
                    "end_ms": end,
                    "requests": requests,
                    "errors": errors,
                    "rejected": 0,
                    "p50_us": middle,
                    "p99_us": middle * 2.4,
                    "body": messages.encode(body),
                }
            )
    return rows


def events(now: int, fleet: list[Any]) -> list[dict[str, Any]]:
    kinds = (
        ("info", "module.current", "digits:3 serves", "digits", 3),
        ("warning", "spool.dropped", "212 metric records were dropped: the spool reached 64 MB", "", 0),
        ("error", "install.golden_failed", "digits:4 failed its golden test: 17 of 64 cases differ", "digits", 4),
        ("info", "agent.started", "agent 0.1.0 started, boot after power loss", "", 0),
        ("critical", "run.crash_loop", "the worker of vibration:2 crashed 5 times in 60 s", "vibration", 2),
        ("info", "download.done", "digits:4 is here: 214 kB in 4 chunks", "digits", 4),
    )
    rows = []
    for index in range(120):
        severity, code, message, module, version = kinds[(index * index + index // 7) % len(kinds)]
        device = fleet[(index * 7) % len(fleet)][0]["id"]
        at = now - (120 - index) * 47_000
        rows.append(
            {
                "device": device,
                "at": at,
                "received_at": at + 300,
                "severity": severity,
                "code": code,
                "message": message,
                "module": module,
                "version": version,
                "data": "{}",
            }
        )
    return rows


def samples(rng: random.Random, now: int, fleet: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for index in range(140):
        device = fleet[(index * 5) % len(fleet)][0]["id"]
        image = bytes(rng.randrange(17) for _ in range(64))
        sample = messages.Sample(
            id=f"{index:032x}",
            module="digits",
            version=3,
            digest=digest("digits3"),
            at=now - index * 25_000,
            inputs={"image": messages.Tensor(datatype="UINT8", shape=(1, 64), data=image)},
        )
        rows.append(
            {
                "id": sample.id,
                "device": device,
                "module": "digits",
                "version": 3,
                "digest": sample.digest,
                "at": sample.at,
                "received_at": sample.at + 900,
                "reason": ("random", "low_confidence")[index % 3 == 0],
                "probability": (0.01, 1.0)[index % 3 == 0],
                "body": msgspec.msgpack.encode(sample) if index < 60 else None,
                "file": "" if index < 60 else f"samples/digits/3/2026-11-20/{index // 40:04d}.parquet",
            }
        )
    return rows
