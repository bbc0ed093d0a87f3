"""A believable fleet in a database: what the console's pages are looked at and tested with.

Sixty devices on three sites, three models, six rollouts (one in every state that people meet), an hour of health and
telemetry. Deterministic for a given ``now``. Used by the tests and by ``scripts/screenshots.py --seeded``.
"""

from __future__ import annotations

import json
import math
import random
from typing import Any

import msgspec
from sqlalchemy import Engine, insert
from sqlmodel import SQLModel

from console import seed_batches, seed_endpoints, seed_environments, seed_measured
from skerry_hub import tables as t
from skerry_modules import messages
from skerry_modules.histogram import Histogram
from skerry_modules.messages import Distribution

MINUTE = 60_000
SITES = ("lab", "harbour", "plant-3")
KINDS = (
    ("cam", "raspberry-pi-5", "onnx", "aarch64"),
    ("gate", "intel-n100", "openvino", "x86_64"),
    ("press", "generic-x86_64", "onnx", "x86_64"),
    ("fpga", "kria-kv260", "pynq", "aarch64"),
)
MODELS: dict[str, dict[str, Any]] = {
    "digits": {
        "description": "Handwritten digits, 8×8 grey images",
        "engine": "onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64], "description": "grey levels 0 to 16"}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
        "profiles": [],
        "versions": 4,
    },
    "digits-fpga": {
        "description": "The same digits as int8 for PYNQ boards",
        "engine": "pynq",
        "inputs": [{"name": "image", "datatype": "INT8", "shape": [-1, 64]}],
        "outputs": [{"name": "scores", "datatype": "INT32", "shape": [-1, 10]}],
        "profiles": ["kria-kv260", "pynq-z2"],
        "versions": 1,
    },
    "vibration": {
        "description": "Bearing wear from accelerometer windows",
        "engine": "onnx",
        "inputs": [{"name": "window", "datatype": "FP32", "shape": [-1, 256, 3], "unit": "g"}],
        "outputs": [
            {"name": "wear", "datatype": "FP32", "shape": [-1, 1], "unit": "µm"},
            {"name": "class", "datatype": "INT64", "shape": [-1], "labels": ["good", "worn", "broken"]},
        ],
        "profiles": [],
        "versions": 2,
    },
}
PIPELINE: dict[tuple[str, int], dict[str, Any]] = {
    ("vibration", 2): {
        "engine": "pipeline",
        "model": "",
        "outputs": [
            {**MODELS["vibration"]["outputs"][0], "from": "net.wear"},
            {**MODELS["vibration"]["outputs"][1], "from": "net.class"},
        ],
        "steps": [
            {
                "name": "detrend",
                "engine": "onnx",
                "model": "detrend.onnx",
                "from": {"window": "input.window"},
                "inputs": MODELS["vibration"]["inputs"],
                "outputs": MODELS["vibration"]["inputs"],
            },
            {
                "name": "net",
                "engine": "onnx",
                "model": "model.onnx",
                "from": {"window": "detrend.window"},
                "inputs": MODELS["vibration"]["inputs"],
                "outputs": MODELS["vibration"]["outputs"],
            },
        ],
    }
}
"""What differs in versions that are pipelines."""
COMMITS = ("9f1c2ab04d7e", "5be0a91c77f3", "c40d1f88a2b6", "1d77e0f9c350")


def digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def seed(engine: Engine, now: int, *, devices: int = 60, minutes: int = 60) -> None:
    """Create all tables and fill them. ``now`` is ms since 1970; ``minutes`` of series end there."""
    SQLModel.metadata.create_all(engine)
    rng = random.Random(7)
    fleet = _devices(rng, now, devices)
    with engine.begin() as connection:

        def put(table: type[SQLModel], rows: list[dict[str, Any]]) -> None:
            if rows:
                connection.execute(insert(table), rows)

        put(t.Device, [row for row, _ in fleet])
        put(t.DeviceTag, [{"device": row["id"], "key": k, "value": v} for row, tags in fleet for k, v in tags.items()])
        for table, rows in _models(now).items():
            put(table, rows)
        for rows_by_table in (
            seed_environments.rows(now),
            seed_batches.rows(now, [row["id"] for row, _ in fleet]),
        ):
            for table, rows in rows_by_table.items():
                put(table, rows)
        rollouts, progress = _rollouts(now, fleet)
        put(t.DeviceModule, seed_endpoints.loaded(_modules(now, fleet, progress)))
        put(t.Assignment, _assignments(now, fleet))
        put(t.ModuleProfileRow, seed_measured.profiles(now))
        put(t.Endpoint, seed_endpoints.endpoints(now))
        put(t.EndpointDevice, seed_endpoints.members([row["id"] for row, _ in fleet]))
        put(t.TelemetryRow, seed_endpoints.telemetry(now, fleet[0][0]["id"]))
        put(t.Rollout, rollouts)
        put(t.RolloutDevice, progress)
        put(t.HealthRow, _health(rng, now, fleet, minutes))
        put(t.TelemetryRow, _telemetry(rng, now, fleet, minutes))
        put(t.EventRow, _events(now, fleet))
        put(t.SampleRow, _samples(rng, now, fleet))
        put(t.Audit, _audit(now, fleet, rollouts, progress))


def _devices(rng: random.Random, now: int, count: int) -> list[tuple[dict[str, Any], dict[str, str]]]:
    fleet = []
    for index in range(count):
        kind, profile, engine, architecture = KINDS[(0, 0, 1, 0, 2, 1, 0, 3)[index % 8]]
        site = SITES[index % 3]
        name = f"{kind}-{site}-{index:02d}"
        online = index % 13 != 9
        facts = {"architecture": architecture, "python": "3.11", "engines": {engine: "1.31.1"}, "memory_mb": 8000}
        seen = now - rng.randint(500, 9_000) if online else now - rng.randint(20, 600) * MINUTE
        row = {
            "id": name,
            "profile": profile,
            "secret": "",
            "description": f"{kind} at {site}",
            "online": online,
            "boot": f"b{index:03d}",
            "epoch": "00",
            "agent": "0.1.0",
            "facts": json.dumps(facts),
            "desired_revision": 12,
            "reported_revision": 12 if index % 11 else 11,
            "seen_at": seen,
            "presence_at": seen,
            "created_at": now - 40 * 24 * 60 * MINUTE + index * MINUTE,
        }
        tags = {
            "site": site,
            "line": str(1 + index % 4),
            "kind": kind,
            **({"ring": "canary"} if index % 20 == 0 else {}),
        }
        fleet.append((row, tags))
    return fleet


def _models(now: int) -> dict[type[SQLModel], list[dict[str, Any]]]:
    found: dict[type[SQLModel], list[dict[str, Any]]] = {
        t.Model: [],
        t.ModelVersion: [],
        t.VersionFile: [],
        t.VersionTag: [],
    }
    for order, (name, facts) in enumerate(MODELS.items()):
        found[t.Model].append(
            {
                "name": name,
                "description": facts["description"],
                "last_version": facts["versions"],
                "created_at": now - (30 - order) * 1440 * MINUTE,
            }
        )
        for version in range(1, facts["versions"] + 1):
            manifest = {
                "format": 1,
                "name": name,
                "engine": facts["engine"],
                "model": "model.onnx",
                "inputs": facts["inputs"],
                "outputs": facts["outputs"],
                "description": facts["description"],
                "release": f"2026.{version}",
                "license": "Apache-2.0",
                "resources": {"memory_mb": 180, "threads": 1},
                "targets": {"profiles": facts["profiles"]},
                "golden": {
                    "file": "golden.npz",
                    "absolute": 1e-4,
                    "relative": 1e-3,
                    "argmax": facts["outputs"][0]["name"],
                },
                "baseline": {"file": "baseline.json"},
                "capture": {"rate": 0.01, "low_confidence": 0.6, "max_per_minute": 30},
            } | PIPELINE.get((name, version), {})
            at = now - (26 - 5 * version - order) * 1440 * MINUTE
            found[t.ModelVersion].append(
                {
                    "name": name,
                    "version": version,
                    "digest": digest(f"{name}{version}"),
                    "index_size": 1480,
                    "size": 214_332 + 9_000 * version,
                    "engine": manifest["engine"],
                    "manifest": json.dumps(manifest),
                    "facts": json.dumps(
                        {"opset": 17, "operators": ["Add", "Gemm", "Relu", "Softmax"], "size_bytes": 201_004}
                    ),
                    "signatures": "[]",
                    "signer": "ed25519:4f0c9a1b",
                    "git_commit": COMMITS[version % 4] * 3,
                    "git_branch": "main",
                    "git_remote": "https://git.example.org/vision/digits.git",
                    "git_dirty": version == 3,
                    "created_by": ("mira", "jonas")[version % 2],
                    "reason": (
                        "retrained with harbour night images",
                        "first version",
                        "wider hidden layer",
                        "fewer false alarms on line 2",
                    )[version % 4],
                    "created_at": at,
                }
            )
            for path, size in (
                ("model.onnx", 201_004),
                ("module.toml", 812),
                ("golden.npz", 9_120),
                ("baseline.json", 3_396),
            ):
                found[t.VersionFile].append(
                    {
                        "name": name,
                        "version": version,
                        "path": path,
                        "sha256": digest(f"{name}{version}{path}"),
                        "size": size,
                    }
                )
            tags = {
                "stage": "production" if version == facts["versions"] - 1 else "candidate",
                "accuracy": f"0.9{60 + 7 * version}",
            }
            found[t.VersionTag] += [{"name": name, "version": version, "key": k, "value": v} for k, v in tags.items()]
    return found


def _module(
    now: int, device: str, module: str, version: int, phase: str, step: str, role: str, **more: Any
) -> dict[str, Any]:
    return {
        "device": device,
        "module": module,
        "version": version,
        "digest": digest(f"{module}{version}"),
        "phase": phase,
        "step": step,
        "role": role,
        "reason": "",
        "message": "",
        "since": now - 3 * 60 * MINUTE,
        "revision": 12,
        "progress": 0.0,
        "reported_at": now - 4_000,
        **more,
    }


STEPS = ("download", "verify", "golden", "soak")


def _modules(now: int, fleet: list[Any], progress: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What devices report, in step with the rollouts: see ``_rollouts``."""
    rows = []
    way = {line["device"]: line for line in progress if line["rollout"] >= 4 and line["step"] != "skipped"}
    for index, (device, tags) in enumerate(fleet):
        name = device["id"]
        if tags["kind"] == "fpga":
            rows.append(_module(now, name, "digits-fpga", 1, "Healthy", "serve", "current"))
            continue
        line = way.get(name, {"step": "pending", "reason": "", "message": ""})
        new = line["step"] == "succeeded"
        rows.append(_module(now, name, "digits", 4 if new else 3, "Healthy", "serve", "current"))
        rows.append(_module(now, name, "digits", 3 if new else 2, "Healthy", "", "last-good"))
        if line["step"] == "assigned":
            step = STEPS[index % 4]
            more = {"since": now - 40_000, "progress": 0.15 + index % 7 / 10, "revision": 13}
            rows.append(_module(now, name, "digits", 4, "Transitioning", step, "candidate", **more))
        elif line["step"] in ("failed", "rolled-back"):
            why = {"reason": line["reason"], "message": line["message"], "since": line["finished_at"]}
            rows.append(_module(now, name, "digits", 4, "Failed", "golden", "candidate", **why))
        if tags["kind"] == "press":
            broken = {"reason": "run.crash_loop", "message": "the worker crashed 5 times in 60 s (signal 11)"}
            bad = index == 12
            rows.append(
                _module(
                    now,
                    name,
                    "vibration",
                    2,
                    "Unhealthy" if bad else "Healthy",
                    "serve",
                    "current",
                    **(broken if bad else {}),
                )
            )
    return rows


def _assignments(now: int, fleet: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for device, tags in fleet:
        module, version = ("digits-fpga", 1) if tags["kind"] == "fpga" else ("digits", 3)
        rows.append(
            {
                "device": device["id"],
                "module": module,
                "version": version,
                "soak_s": 60.0,
                "attempt": 0,
                "rollout": 1,
                "at": now - MINUTE,
            }
        )
        if tags["kind"] == "press":
            rows.append(
                {
                    "device": device["id"],
                    "module": "vibration",
                    "version": 2,
                    "soak_s": 60.0,
                    "attempt": 0,
                    "rollout": 3,
                    "at": now - MINUTE,
                }
            )
    return rows


PLAN = {
    "waves": [{"count": 2}, {"percent": 30.0}, {"percent": 100.0}],
    "soak_s": 60.0,
    "wave_pause_s": 0.0,
    "failure_threshold": 0.5,
    "device_timeout_s": 3600.0,
    "offline_timeout_s": 86400.0,
    "on_failure": "rollback",
}


def _rollouts(now: int, fleet: list[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    def matching(key: str, value: str) -> list[str]:
        wanted = [device["id"] for device, tags in fleet if tags.get(key) == value and tags["kind"] != "fpga"]
        return wanted if key != "kind" else [device["id"] for device, tags in fleet if tags["kind"] == value]

    everything = [device["id"] for device, tags in fleet if tags["kind"] != "fpga"]
    why_back = "2 of 2 devices of wave 1 failed; 50 % may"
    shapes: list[tuple[str, int, str, str, int, list[str], str, str]] = [
        ("digits", 3, "*", "succeeded", 2, everything, "", "weekly model"),
        ("digits-fpga", 1, "kind=fpga", "succeeded", 2, matching("kind", "fpga"), "", "first version on the boards"),
        (
            "vibration",
            2,
            "kind=press",
            "aborted",
            1,
            matching("kind", "press"),
            "wrong calibration file",
            "fewer false alarms",
        ),
        ("digits", 4, "site=plant-3", "rolled-back", 0, matching("site", "plant-3"), why_back, "night images"),
        ("digits", 4, "site=harbour", "paused", 1, matching("site", "harbour"), "", "night images, second try"),
        ("digits", 4, "site=lab", "running", 1, matching("site", "lab"), "", "night images, the lab first"),
    ]
    rollouts, progress = [], []
    for number, (module, version, target, state, wave, members, message, reason) in enumerate(shapes, start=1):
        start = now - (7 - number) * (7 - number) * 90 * MINUTE + 70 * MINUTE
        done = state in ("succeeded", "aborted", "rolled-back")
        rollouts.append(
            {
                "id": number,
                "module": module,
                "version": version,
                "target": target,
                "plan": json.dumps(PLAN),
                "state": state,
                "wave": wave,
                "wave_started_at": start + 9 * MINUTE,
                "message": message,
                "created_by": "mira",
                "reason": reason,
                "created_at": start,
                "finished_at": start + 31 * MINUTE if done else 0,
            }
        )
        for place, device in enumerate(members):
            mine = 0 if place < 2 else 1 if place < math.ceil(0.3 * len(members)) else 2
            progress.append(_progress(number, state, device, mine, place, start))
    return rollouts, progress


def _progress(rollout: int, state: str, device: str, wave: int, place: int, start: int) -> dict[str, Any]:
    step, reason, message = "succeeded", "", ""
    if state == "rolled-back":
        step = "rolled-back" if wave == 0 else "skipped"
        if wave == 0:
            reason, message = (
                "install.golden_failed",
                "17 of 64 golden cases differ, by up to 0.31 where 0.0001 is allowed",
            )
    elif state == "aborted":
        step = "succeeded" if wave == 0 else "rolled-back" if place % 2 else "skipped"
    elif state in ("running", "paused"):
        step = ("succeeded", "assigned", "pending")[wave]
        if wave == 1 and place % 3 == 0:
            step, reason, message = (
                "failed",
                "install.load_timeout",
                "the model did not load within 60 s; free memory was 41 MB",
            )
        if wave == 2 and place % 7 == 0:
            step, reason, message = "unschedulable", "unschedulable.memory", "needs 180 MB, profile leaves 128 MB"
    elif place == 7:
        step, reason, message = "failed", "rollout.offline", "not seen for 24 h"
    ended = step not in ("assigned", "pending", "skipped")
    return {
        "rollout": rollout,
        "device": device,
        "wave": wave,
        "step": step,
        "previous": 2,
        "revision": 12,
        "reason": reason,
        "message": message,
        "assigned_at": 0 if step in ("pending", "skipped", "unschedulable") else start + wave * 8 * MINUTE,
        "finished_at": start + wave * 8 * MINUTE + 95_000 + 1_700 * place if ended else 0,
    }


def _health(rng: random.Random, now: int, fleet: list[Any], minutes: int) -> list[dict[str, Any]]:
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


def _telemetry(rng: random.Random, now: int, fleet: list[Any], minutes: int) -> list[dict[str, Any]]:
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


def _events(now: int, fleet: list[Any]) -> list[dict[str, Any]]:
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


def _samples(rng: random.Random, now: int, fleet: list[Any]) -> list[dict[str, Any]]:
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


def _audit(now: int, fleet: list[Any], rollouts: list[dict[str, Any]], progress: list[dict[str, Any]]) -> list[Any]:
    rows: list[dict[str, Any]] = []

    def note(at: int, actor: str, action: str, subject: str, reason: str = "", **data: Any) -> None:
        rows.append(
            {"at": at, "actor": actor, "action": action, "subject": subject, "reason": reason, "data": json.dumps(data)}
        )

    note(now - 40 * 1440 * MINUTE, "mira", "key.add", "ed25519:4f0c9a1b", "Jonas's signing key")
    for device, _ in fleet[:10]:
        note(device["created_at"], "mira", "device.register", device["id"])
    for name, facts in MODELS.items():
        for version in range(1, facts["versions"] + 1):
            note(
                now - (26 - 5 * version) * 1440 * MINUTE, "jonas", "version.register", f"{name}:{version}", "retrained"
            )
    for row in rollouts:
        number, start = row["id"], row["created_at"]
        name = f"{row['module']}:{row['version']}"
        note(start, "mira", "rollout.create", f"rollout:{number}", row["reason"])
        for wave in range(row["wave"] + 1):
            began = f"rollout {number} begins wave {wave + 1}"
            note(start + wave * 8 * MINUTE, "hub", "rollout.wave", f"rollout:{number}", message=began)
        for line in progress:
            if line["rollout"] == number and line["finished_at"] and number >= 3:
                text = f"{line['device']} {line['step']} {name}" + (f": {line['reason']}" if line["reason"] else "")
                action = f"rollout.device-{line['step']}"
                note(line["finished_at"], "hub", action, f"rollout:{number}", message=text, device=line["device"])
        if row["state"] == "paused":
            note(start + 14 * MINUTE, "mira", "rollout.pause", f"rollout:{number}", "waiting for the night shift")
    return sorted(rows, key=lambda row: row["at"])
