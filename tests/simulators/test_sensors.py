"""Simulated signals show what their formulas say, in the units that they say, and the same again for a seed."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_simulators.sensors import images, vibration
from skerry_simulators.sensors.vibration import CONDITIONS, FAN, Machine

SECONDS = 4


def spectrum(machine: Machine, condition: vibration.Condition, severity: float = 1.0, seed: int = 1) -> tuple:  # type: ignore[type-arg]
    """(frequencies in Hz, amplitudes in g)."""
    samples = int(machine.rate_hz * SECONDS)
    found = vibration.signal(machine, samples, np.random.default_rng(seed), condition=condition, severity=severity)
    return np.fft.rfftfreq(samples, 1 / machine.rate_hz), np.abs(np.fft.rfft(found)) * 2 / samples


def at(machine: Machine, condition: vibration.Condition, hz: float, severity: float = 1.0) -> float:
    frequencies, amplitudes = spectrum(machine, condition, severity)
    near = np.abs(frequencies - hz) < 1.0
    return float(amplitudes[near].max())


def test_a_seed_is_a_signal() -> None:
    first, labels = vibration.windows(30, seed=5)
    again, _ = vibration.windows(30, seed=5)
    other, _ = vibration.windows(30, seed=6)
    assert first.dtype == np.float32
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert np.bincount(labels).tolist() == [10, 10, 10]


def test_a_healthy_machine_shows_its_shaft() -> None:
    quiet = msgspec.structs.replace(FAN, noise_g=0.0)
    assert at(quiet, "healthy", FAN.shaft_hz) == pytest.approx(FAN.shaft_g, rel=0.02)
    assert at(quiet, "healthy", 2 * FAN.shaft_hz) == pytest.approx(0.4 * FAN.shaft_g, rel=0.02)


@pytest.mark.parametrize("rpm", [900.0, 1500.0, 2400.0])
def test_imbalance_grows_with_the_square_of_the_speed(rpm: float) -> None:
    machine = msgspec.structs.replace(FAN, rpm=rpm, noise_g=0.0)
    wanted = FAN.shaft_g + FAN.imbalance_g * (rpm / 1500) ** 2
    assert at(machine, "imbalance", rpm / 60) == pytest.approx(wanted, rel=0.03)


def test_a_damaged_bearing_rings_at_its_resonance_in_the_rhythm_of_the_balls() -> None:
    machine = msgspec.structs.replace(FAN, noise_g=0.0, slip=0.0)
    frequencies, amplitudes = spectrum(machine, "bearing")
    band = (frequencies > 600) & (frequencies < 1200)
    peaks = frequencies[band][np.argsort(amplitudes[band])[-6:]]
    multiples = peaks / machine.ball_pass_hz
    assert np.abs(multiples - np.round(multiples)).max() < 0.02, "a comb of multiples of the ball-pass frequency"
    assert at(machine, "bearing", machine.shaft_hz) == pytest.approx(FAN.shaft_g, rel=0.3)


def test_the_ball_pass_frequency_is_the_textbooks() -> None:
    machine = Machine(rpm=1800, balls=9, ball_to_pitch=0.2, contact_deg=0.0)
    assert machine.ball_pass_hz == pytest.approx(9 / 2 * 30 * 0.8)


@settings(max_examples=30, deadline=None)
@given(severity=st.floats(0.0, 1.0), seed=st.integers(0, 1000), condition=st.sampled_from(CONDITIONS[1:]))
def test_severity_never_makes_it_quieter(severity: float, seed: int, condition: vibration.Condition) -> None:
    machine = msgspec.structs.replace(FAN, noise_g=0.0)
    mild, bad = (
        vibration.signal(machine, 3200, np.random.default_rng(seed), condition=condition, severity=level).std()
        for level in (severity / 2, severity)
    )
    assert bad >= mild - 1e-3


def test_noise_is_what_it_says_in_g() -> None:
    loud = msgspec.structs.replace(FAN, noise_g=0.5, shaft_g=0.0)
    assert vibration.signal(loud, 32_000, np.random.default_rng(0)).std() == pytest.approx(0.5, rel=0.03)


def test_drift_goes_from_nothing_to_all_of_it() -> None:
    drift = vibration.Drift(rpm=100, noise_factor=3.0, gain_factor=0.5, offset_g=0.2)
    assert drift.applied(FAN, 0.0) == FAN
    half, full = drift.applied(FAN, 0.5), drift.applied(FAN, 1.0)
    assert (half.rpm, full.rpm) == (1550, 1600)
    assert full.noise_g == pytest.approx(0.15)
    assert full.gain == pytest.approx(0.5)
    signal = vibration.signal(full, 32_000, np.random.default_rng(0))
    assert signal.mean() == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match="from 0 to 1"):
        drift.applied(FAN, 1.5)


PICTURES = np.random.default_rng(3).uniform(0, 16, (5, 8, 8)).astype(np.float32)


def drifted(drift: images.Drift, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return images.drifted(PICTURES, drift, np.random.default_rng(seed))


def test_no_drift_changes_nothing() -> None:
    assert np.array_equal(drifted(images.Drift()), PICTURES)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    assert np.allclose(drifted(images.Drift(rotation_deg=90.0)), np.rot90(PICTURES, axes=(1, 2)), atol=1e-4)


def test_blur_keeps_a_plain_picture_and_softens_others() -> None:
    plain = np.full((1, 8, 8), 7.0, np.float32)
    assert np.allclose(images.drifted(plain, images.Drift(blur_px=1.5), np.random.default_rng(0)), 7.0)
    assert drifted(images.Drift(blur_px=1.0)).std() < 0.6 * PICTURES.std()


def test_brightness_contrast_and_noise_in_shares_of_the_range() -> None:
    grey = np.full((200, 8, 8), 8.0, np.float32)
    rng = np.random.default_rng(0)
    assert np.allclose(images.drifted(grey, images.Drift(brightness=0.25), rng), 12.0)
    assert np.allclose(images.drifted(grey, images.Drift(contrast=-0.5), rng), 4.0)
    assert images.drifted(grey, images.Drift(noise=0.1), rng).std() == pytest.approx(1.6, rel=0.05)


drifts = st.builds(
    images.Drift,
    blur_px=st.floats(0, 3),
    brightness=st.floats(-2, 2),
    contrast=st.floats(-1, 3),
    rotation_deg=st.floats(-360, 360),
    noise=st.floats(0, 1),
)


@settings(max_examples=50, deadline=None)
@given(drift=drifts, progress=st.floats(0, 1), seed=st.integers(0, 100))
def test_pictures_stay_in_range_and_a_seed_is_a_picture(drift: images.Drift, progress: float, seed: int) -> None:
    now = drift.at(progress)
    first = drifted(now, seed)
    assert first.shape == PICTURES.shape
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 16
    assert first.tobytes() == drifted(now, seed).tobytes()
