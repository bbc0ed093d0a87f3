"""What requests to the hub say, in the hub's own words."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry.types import EndpointRoute, Plan
from skerry_modules.errors import InputError


def plan_body(plan: Plan | None) -> dict[str, Any]:
    """A plan as the hub takes it: each wave a count or a percentage."""
    body: dict[str, Any] = {
        key: value for key, value in msgspec.to_builtins(plan or Plan()).items() if value is not None
    }
    if "waves" in body:
        waves = [wave_body(text) for text in body["waves"]]
        body["waves"] = waves if waves[-1] == {"percent": 100.0} else [*waves, {"percent": 100.0}]
    return body


def route_body(route: EndpointRoute) -> dict[str, Any]:
    """One version's part of an endpoint's traffic."""
    return {"module": route.module, "version": route.version, "percent": route.percent}


def wave_body(text: str) -> dict[str, float]:
    """``"3"`` is three devices, ``"25%"`` a quarter of them.

    Raises:
        InputError: ``rollout.invalid``.
    """
    number = text.strip().removesuffix("%")
    try:
        return {"percent": float(number)} if text.strip().endswith("%") else {"count": int(number)}
    except ValueError as error:
        raise InputError(
            "rollout.invalid", f"cannot use the wave {text!r}: write a number of devices or a share such as 25%"
        ) from error
