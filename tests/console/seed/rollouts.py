"""Rollouts of the seeded fleet, one in every state that people meet, and what devices and the audit log say of them."""

from __future__ import annotations

import json
import math
from typing import Any

from console.seed.fleet import MINUTE
from console.seed.models import MODELS, digest

PLAN = {
    "waves": [{"count": 2}, {"percent": 30.0}, {"percent": 100.0}],
    "soak_s": 60.0,
    "wave_pause_s": 0.0,
    "failure_threshold": 0.5,
    "device_timeout_s": 3600.0,
    "offline_timeout_s": 86400.0,
    "on_failure": "rollback",
}
ON_THE_WAY = ("succeeded", "assigned")
STEPS = ("download", "verify", "golden", "soak")


def rollouts(now: int, fleet: list[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
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


def modules(now: int, fleet: list[Any], progress: list[dict[str, Any]]) -> list[dict[str, Any]]:
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


def assignments(now: int, fleet: list[Any], progress: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the hub wants of devices: what a rollout at work has brought or is bringing, else the version before."""
    new = {line["device"]: line["rollout"] for line in progress if line["rollout"] > 4 and line["step"] in ON_THE_WAY}
    rows = []
    for device, tags in fleet:
        module, version = ("digits-fpga", 1) if tags["kind"] == "fpga" else ("digits", 4 if device["id"] in new else 3)
        rows.append(
            {
                "device": device["id"],
                "module": module,
                "version": version,
                "soak_s": 60.0,
                "attempt": 0,
                "rollout": new.get(device["id"], 1),
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


def audit(now: int, fleet: list[Any], rollouts: list[dict[str, Any]], progress: list[dict[str, Any]]) -> list[Any]:
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
