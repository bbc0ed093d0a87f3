"""The devices of the seeded fleet."""

from __future__ import annotations

import json
import random
from typing import Any

MINUTE = 60_000
SITES = ("lab", "harbour", "plant-3")
KINDS = (
    ("cam", "raspberry-pi-5", "onnx", "aarch64"),
    ("gate", "intel-n100", "openvino", "x86_64"),
    ("press", "generic-x86_64", "onnx", "x86_64"),
    ("fpga", "kria-kv260", "pynq", "aarch64"),
)


def devices(rng: random.Random, now: int, count: int) -> list[tuple[dict[str, Any], dict[str, str]]]:
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
