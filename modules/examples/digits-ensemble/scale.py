"""The pre-processing step: ink from 0..16, as the scanner gives it, to 0..1, as the network was trained on it."""

import numpy as np

FULL_INK = np.float32(16)


def run(inputs):
    """``pixels`` (n, 64) to ``ink`` (n, 64)."""
    return {"ink": inputs["pixels"] / FULL_INK}
