"""Pictures that get worse: a lens out of focus, a lamp that fades, a camera that tilts, a sensor that gets noisy.

Made for the small pictures of the digits example (8×8, ink from 0 to 16), but of any size and range. Rotation is
bilinear about the centre; what turns in from outside is 0. Blur is a normalised Gaussian of up to 3 pixels' radius.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

Array = np.ndarray[Any, Any]

_RADIUS: Final = 3
_SHARP_PX: Final = 0.05  # a Gaussian this narrow has nothing left at the next pixel; a narrower one divides by zero


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What has changed once drift is complete; in between it grows linearly. All zero: nothing changes."""

    blur_px: float = 0.0  # the Gaussian's standard deviation, pixels
    brightness: float = 0.0  # added, as a share of the full range
    contrast: float = 0.0  # −1 to …: values are scaled by 1 + contrast about 0
    rotation_deg: float = 0.0  # counter-clockwise
    noise: float = 0.0  # standard deviation, as a share of the full range

    def at(self, progress: float) -> Drift:
        """The drift after a share (0 to 1) of its way."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be from 0 to 1, not {progress}")
        return Drift(**{name: getattr(self, name) * progress for name in self.__struct_fields__})


def drifted(images: Array, drift: Drift, rng: np.random.Generator, *, full: float = 16.0) -> Array:
    """Pictures after ``drift``.

    Args:
        images: (n, height, width), values 0 to ``full``.
        drift: what has changed.
        rng: where the noise comes from.
        full: the largest value.

    Returns:
        float32, the same shape and range.
    """
    result = images.astype(np.float64)
    if drift.rotation_deg:
        result = _rotated(result, drift.rotation_deg)
    if drift.blur_px:
        result = _blurred(result, drift.blur_px)
    result = result * (1 + drift.contrast) + drift.brightness * full
    if drift.noise:
        result = result + rng.normal(0.0, drift.noise * full, result.shape)
    return np.clip(result, 0.0, full).astype(np.float32)


def _rotated(images: Array, degrees: float) -> Array:
    height, width = images.shape[1:]
    angle = np.deg2rad(degrees)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    # Where each pixel comes from; y points down, so counter-clockwise as seen turns the source the other way.
    from_x = np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2
    from_y = np.sin(angle) * x + np.cos(angle) * y + (height - 1) / 2
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    from_x, from_y = np.clip(from_x + 1, 0, width + 1), np.clip(from_y + 1, 0, height + 1)
    left, top = np.minimum(from_x.astype(int), width), np.minimum(from_y.astype(int), height)
    right_share, low_share = from_x - left, from_y - top
    upper = padded[:, top, left] * (1 - right_share) + padded[:, top, left + 1] * right_share
    lower = padded[:, top + 1, left] * (1 - right_share) + padded[:, top + 1, left + 1] * right_share
    result: Array = upper * (1 - low_share) + lower * low_share
    return result


def _blurred(images: Array, deviation: float) -> Array:
    places = np.arange(-_RADIUS, _RADIUS + 1)
    kernel = np.exp(-(places**2) / (2 * max(deviation, _SHARP_PX) ** 2))
    kernel /= kernel.sum()
    result = images
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (_RADIUS, _RADIUS)
        padded = np.pad(result, pad, mode="edge")  # the world goes on beyond the picture's edge
        size = images.shape[axis]
        result = sum(
            (weight * np.take(padded, range(step, step + size), axis=axis) for step, weight in enumerate(kernel)),
            start=np.zeros_like(images),
        )
    return result
