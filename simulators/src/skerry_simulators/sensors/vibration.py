"""An accelerometer on the bearing of a rotating machine: healthy, out of balance, or with a damaged bearing.

What is modelled, with the textbook's formulas (R. B. Randall, "Vibration-based Condition Monitoring", 2011):

* every machine shows its shaft's frequency f = rpm / 60 and twice that, and broadband noise;
* imbalance raises the amplitude at f, with the square of the speed;
* damage on a bearing's outer race strikes at the ball-pass frequency n/2 · f · (1 − d/D · cos φ); each strike rings the
  housing at its resonance and dies away; balls slip, so that the strikes jitter by about a percent;
* a drifting sensor changes its gain and offset, a wearing machine gets noisier.

Signals are accelerations in g (9.80665 m/s²), float32.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np

Condition = Literal["healthy", "imbalance", "bearing"]
CONDITIONS: Final[tuple[Condition, ...]] = get_args(Condition)

Array = np.ndarray[Any, Any]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine and its sensor. Defaults: a small fan with a bearing of eight balls, sampled at 3.2 kHz."""

    rpm: float = 1500.0
    rate_hz: float = 3200.0  # of the sensor
    shaft_g: float = 0.06  # amplitude at the shaft's frequency when in balance
    imbalance_g: float = 0.6  # added at severity 1 and 1,500 rpm
    strike_g: float = 1.2  # a strike's first amplitude at severity 1
    noise_g: float = 0.05  # standard deviation
    balls: int = 8
    ball_to_pitch: float = 0.24  # ball's diameter over the pitch circle's
    contact_deg: float = 0.0
    resonance_hz: float = 900.0  # of the housing
    damping: float = 0.06  # of that resonance, as a fraction of critical
    slip: float = 0.01  # standard deviation of the time between strikes, relative
    gain: float = 1.0  # of the sensor; drifts
    offset_g: float = 0.0  # of the sensor; drifts

    @property
    def shaft_hz(self) -> float:
        return self.rpm / 60.0

    @property
    def ball_pass_hz(self) -> float:
        """Strikes per second of a damaged outer race."""
        angle = math.cos(math.radians(self.contact_deg))
        return self.balls / 2 * self.shaft_hz * (1 - self.ball_to_pitch * angle)


FAN: Final = Machine()


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What has changed once drift is complete; in between it grows linearly."""

    rpm: float = 0.0  # added
    noise_factor: float = 1.0
    gain_factor: float = 1.0
    offset_g: float = 0.0  # added

    def applied(self, machine: Machine, progress: float) -> Machine:
        """``machine`` after a share (0 to 1) of the drift."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be from 0 to 1, not {progress}")
        return msgspec.structs.replace(
            machine,
            rpm=machine.rpm + progress * self.rpm,
            noise_g=machine.noise_g * (1 + progress * (self.noise_factor - 1)),
            gain=machine.gain * (1 + progress * (self.gain_factor - 1)),
            offset_g=machine.offset_g + progress * self.offset_g,
        )


def signal(
    machine: Machine, samples: int, rng: np.random.Generator, *, condition: Condition = "healthy", severity: float = 1.0
) -> Array:
    """One stretch of acceleration.

    Args:
        machine: the machine and its sensor.
        samples: how many, ``machine.rate_hz`` to a second.
        rng: where phases, noise and slip come from.
        condition: what is wrong.
        severity: how badly, 0 (not at all) to 1.

    Returns:
        float32 (samples,), in g.
    """
    seconds = np.arange(samples) / machine.rate_hz
    turns = machine.shaft_hz * seconds + rng.uniform()
    amplitude = machine.shaft_g
    if condition == "imbalance":
        amplitude += machine.imbalance_g * severity * (machine.rpm / 1500.0) ** 2
    total = amplitude * np.sin(2 * np.pi * turns)
    total += 0.4 * machine.shaft_g * np.sin(2 * np.pi * (2 * turns + rng.uniform()))
    if condition == "bearing":
        total += _strikes(machine, seconds, rng, severity)
    total += rng.normal(0.0, machine.noise_g, samples)
    measured: Array = (total * machine.gain + machine.offset_g).astype(np.float32)
    return measured


def _strikes(machine: Machine, seconds: Array, rng: np.random.Generator, severity: float) -> Array:
    """The ringing of all strikes, those shortly before the stretch included."""
    period = 1.0 / machine.ball_pass_hz
    decay = 2 * np.pi * machine.resonance_hz * machine.damping
    length = float(seconds[-1]) if len(seconds) else 0.0
    count = math.ceil(length / period) + 4
    gaps = np.maximum(period * (1 + rng.normal(0.0, machine.slip, count)), period / 10)
    times = np.cumsum(gaps) - (2 + rng.uniform()) * period
    since = seconds[None, :] - times[:, None]
    ringing = np.exp(-decay * np.maximum(since, 0)) * np.sin(2 * np.pi * machine.resonance_hz * since)
    strength = machine.strike_g * severity * rng.uniform(0.8, 1.2, (count, 1))
    total: Array = np.where(since >= 0, strength * ringing, 0.0).sum(axis=0)
    return total


def windows(
    count: int,
    *,
    seed: int,
    machine: Machine = FAN,
    samples: int = 512,
    rpm_spread: float = 0.15,
    severity: tuple[float, float] = (0.02, 1.0),
) -> tuple[Array, Array]:
    """A labelled data set: the conditions in turn, each window with a speed and a severity of its own.

    Args:
        count: of windows.
        seed: the same seed gives the same windows.
        machine: what they are taken from.
        samples: per window.
        rpm_spread: speeds vary by this share up and down, evenly.
        severity: from and to, evenly.

    Returns:
        float32 (count, samples) in g, and int64 (count,): places in :data:`CONDITIONS`.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CONDITIONS)
    rows = np.empty((count, samples), np.float32)
    for row, label in enumerate(labels):
        turning = msgspec.structs.replace(machine, rpm=machine.rpm * rng.uniform(1 - rpm_spread, 1 + rpm_spread))
        rows[row] = signal(turning, samples, rng, condition=CONDITIONS[label], severity=rng.uniform(*severity))
    return rows, labels.astype(np.int64)
