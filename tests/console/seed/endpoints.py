"""An endpoint of the seeded fleet: a split, a shadow that mostly agrees, the way back, and a device left out."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry_modules import messages
from skerry_modules.histogram import Histogram
from skerry_modules.messages import Agreement, Route

MINUTE = 60_000
NO_REASON = {"reason": "", "message": ""}


def endpoints(now: int) -> list[dict[str, Any]]:
    """Rows of ``endpoint``."""
    return [
        {
            "name": "digits",
            "target": "site=lab",
            "split": _routes((2, 90.0), (3, 10.0)),
            "shadow": _routes((4, 100.0)),
            "before": _routes((2, 100.0)),
            "revision": 2,
            "changed_by": "mara",
            "reason": "a tenth of the gates",
            "created_at": now - 300 * MINUTE,
            "changed_at": now - 20 * MINUTE,
        }
    ]


def members(devices: list[str]) -> list[dict[str, Any]]:
    """Rows of ``endpoint_device``: the lab's cameras have it, its gates cannot."""
    text = "digits:4 needs 312 MB, profile leaves 256 MB"
    return [
        {"endpoint": "digits", "device": device}
        | ({"reason": "unschedulable.memory", "message": text} if device.startswith("gate") else NO_REASON)
        for device in devices
        if device.startswith(("cam-lab", "gate-lab"))
    ]


def loaded(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of ``device_module``: where the endpoint is, digits:2 is loaded beside the current version and answers."""
    side = {"role": "side", "step": "serve"}
    return [
        row | side if row["device"].startswith("cam-lab") and (row["module"], row["version"]) == ("digits", 2) else row
        for row in modules
    ]


def telemetry(now: int, device: str) -> list[dict[str, Any]]:
    """A window of each version behind it."""
    found = Agreement(rows=240, agreed=236, within=229, worst=0.31, dropped=2)
    return [
        _window(now, device, 2, "live", 216, 410.0),
        _window(now, device, 3, "live", 24, 380.0),
        _window(now, device, 4, "shadow", 238, 395.0, found),
    ]


def _window(
    now: int, device: str, version: int, role: str, requests: int, us: float, agreement: Agreement | None = None
) -> dict[str, Any]:
    histogram = Histogram()
    for _ in range(requests):
        histogram.add(us)
    body = messages.Telemetry(
        module="digits",
        version=version,
        digest="d" * 64,
        endpoint="digits",
        start=now - MINUTE,
        end=now,
        requests=requests,
        latency_us=histogram.to_wire(),
        role=role,
        agreement=agreement or Agreement(),
    )
    return {
        "device": device,
        "module": "digits",
        "version": version,
        "endpoint": "digits",
        "start_ms": now - MINUTE,
        "end_ms": now,
        "requests": requests,
        "errors": 0,
        "rejected": 0,
        "p50_us": us,
        "p99_us": us,
        "body": messages.encode(body),
        "role": role,
    }


def _routes(*parts: tuple[int, float]) -> str:
    return msgspec.json.encode(
        [Route(module="digits", version=version, percent=share) for version, share in parts]
    ).decode()
