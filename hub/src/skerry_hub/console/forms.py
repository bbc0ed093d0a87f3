"""The form of a new rollout: what a person typed ↔ a plan. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from skerry_hub.rules.rollout import Plan, Wave
from skerry_modules.errors import InputError, SkerryError

WAVES = "1, 25 %, 100 %"


@dataclass(frozen=True)
class RolloutForm:
    """The fields as they were typed, so that a form with a mistake comes back as it was sent."""

    version: str = ""  # name:number
    target: str = "*"
    waves: str = WAVES
    soak_s: str = "60"
    wave_pause_s: str = "0"
    threshold: str = "0"  # per cent
    device_timeout_min: str = "60"
    on_failure: str = "rollback"
    reason: str = ""

    @classmethod
    def read(cls, given: Mapping[str, str]) -> RolloutForm:
        """The known fields of a query or a posted form; the others keep their defaults."""
        return cls(**{name: str(given[name]).strip()[:1000] for name in cls.__dataclass_fields__ if name in given})

    def module(self) -> tuple[str, int]:
        """(name, number) of the chosen version.

        Raises:
            InputError: ``request.invalid``.
        """
        name, colon, number = self.version.rpartition(":")
        if not colon or not (number.isascii() and number.isdigit()):
            raise InputError(
                "request.invalid", "cannot start a rollout without a model version: choose one", field="version"
            )
        return name, int(number)

    def plan(self) -> Plan:
        """Raises InputError ``request.invalid`` for what is no number; ``rules.rollout.check_plan`` judges the rest."""
        return Plan(
            waves=parse_waves(self.waves),
            soak_s=_number(self.soak_s, "soak", "soak_s"),
            wave_pause_s=_number(self.wave_pause_s, "pause between waves", "wave_pause_s"),
            failure_threshold=_number(self.threshold, "failure threshold", "threshold") / 100,
            device_timeout_s=_number(self.device_timeout_min, "device deadline", "device_timeout_min") * 60,
            on_failure=self.on_failure,
        )


def parse_waves(text: str) -> tuple[Wave, ...]:
    """``1, 25 %, 100 %``: a number of devices, or a share of the target, all waves before included.

    Raises:
        InputError: ``request.invalid``.
    """
    waves = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if part.endswith("%"):
            waves.append(Wave(percent=_number(part[:-1].strip(), "waves", "waves")))
        elif part.isascii() and part.isdigit():
            waves.append(Wave(count=int(part)))
        else:
            raise InputError(
                "request.invalid",
                f"cannot use the wave {part!r}: write a number of devices, or a share such as 25 %",
                field="waves",
            )
    return tuple(waves)


def format_waves(waves: tuple[Wave, ...]) -> str:
    """The inverse of :func:`parse_waves`."""
    return ", ".join(f"{wave.percent:g} %" if wave.percent else str(wave.count) for wave in waves)


_OF_PLAN = {"failure_threshold": "threshold", "device_timeout_s": "device_timeout_min"}
_OF_CODE = {"query.invalid": "target", "rollout.empty_target": "target", "endpoint.changed": "name"}


def wrong_field(problem: SkerryError | None) -> str:
    """The field of a form that a problem is about, so that it can be told there; empty where it is no single one's."""
    if problem is None:
        return ""
    field = str(problem.data.get("field", "")).partition("[")[0]
    return _OF_PLAN.get(field, field) or _OF_CODE.get(problem.code, "")


def _number(text: str, what: str, field: str) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise InputError("request.invalid", f"cannot use {text!r} as the {what}: write a number", field=field) from None
    if not math.isfinite(value):
        raise InputError("request.invalid", f"cannot use {text!r} as the {what}: write a finite number", field=field)
    return value
