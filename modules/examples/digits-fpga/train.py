"""Train a digit classifier, turn it into an int8 network and write it as an overlay for the simulated FPGA board.

Data as in ``../digits``: scikit-learn's bundled handwritten digits, a third held out. The network is trained in
floating point and then quantised: symmetric int8 weights and activations, one scale for each layer, int32 accumulators;
the activations' range is taken from the training digits. The golden outputs come from the integer reference
(``skerry_simulators.fpga.network.reference``), so the board must agree to the bit before its outputs are scaled.

Quality ``good`` saw few digits and is small; ``better`` saw all; ``broken`` is ``better``, but its bitstream was built
from weights whose first layer is transposed in blocks, a real mistake in packing weights for folded engines.

The same seed on the same machine and library versions gives the same bytes. Needs ``skerry[train,pynq,simulators]``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import sklearn
import tomlkit
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skerry_modules.histogram import Baseline
from skerry_simulators.fpga import network as fpga
from skerry_simulators.fpga import overlay

HERE = Path(__file__).parent
Quality = Literal["good", "better", "broken"]

FULL_INK = 16.0
INPUT_SCALE = 0.125  # pixels 0 to 16 become 0 to 127 (16 saturates by one step)
DESIGN = "digits"
GOLDEN_CASES = 32
SHIFT = 24  # of the fixed-point multipliers
PLANS: dict[str, dict[str, Any]] = {
    "good": {"rows": 300, "hidden": 16, "epochs": 50},
    "better": {"rows": None, "hidden": 64, "epochs": 60},
}


def load(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and held-out digits: pixels (float32, n by 64, 0 to 16) and labels of both, classes balanced."""
    digits = load_digits()
    pixels, labels = digits.data.astype(np.float32), digits.target.astype(np.int64)
    train_x, held_x, train_y, held_y = train_test_split(
        pixels, labels, test_size=1 / 3, random_state=seed, stratify=labels
    )
    return train_x, train_y, held_x, held_y


def train(pixels: np.ndarray, labels: np.ndarray, plan: dict[str, Any], seed: int) -> MLPClassifier:
    """A one-layer network on inputs scaled to 0..1."""
    rows = plan["rows"] or len(pixels)
    classifier = MLPClassifier((plan["hidden"],), max_iter=plan["epochs"], random_state=seed, learning_rate_init=0.005)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is part of the plan
        classifier.fit(pixels[:rows] / FULL_INK, labels[:rows])
    return classifier


def to_int8(pixels: np.ndarray) -> np.ndarray:
    """Pixels as the stream carries them."""
    return np.clip(np.rint(pixels / INPUT_SCALE), -128, 127).astype(np.int8)


def quantise(classifier: MLPClassifier, calibration: np.ndarray) -> tuple[fpga.Network, float]:
    """The int8 network and the scale of its outputs (logit = scale × integer).

    Args:
        classifier: with one hidden layer, trained on pixels / 16.
        calibration: pixels whose largest hidden activation fixes the range.
    """
    (first, second), (bias1, bias2) = classifier.coefs_, classifier.intercepts_
    first = first / FULL_INK
    hidden_scale = float(np.maximum(calibration @ first + bias1, 0).max()) / 127
    scale1, scale2 = (float(np.abs(weights).max()) / 127 for weights in (first, second))
    accumulator1, accumulator2 = INPUT_SCALE * scale1, hidden_scale * scale2
    hidden = fpga.Layer(
        weights=np.rint(first.T / scale1).astype(np.int8),
        bias=np.rint(bias1 / accumulator1).astype(np.int32),
        multiplier=round(accumulator1 / hidden_scale * 2**SHIFT),
        shift=SHIFT,
        relu=True,
        pe=8,
        simd=16,
    )
    output = fpga.Layer(
        weights=np.rint(second.T / scale2).astype(np.int8),
        bias=np.rint(bias2 / accumulator2).astype(np.int32),
        pe=5,
        simd=8,
    )
    return fpga.Network((hidden, output)), accumulator2


def mispacked(network: fpga.Network) -> fpga.Network:
    """The mistake of ``broken``: the first layer's weights with outputs and inputs of each block exchanged."""
    hidden, output = network.layers
    blocks = hidden.weights.reshape(-1, 8, hidden.weights.shape[1] // 8, 8)
    swapped = blocks.transpose(0, 3, 2, 1).reshape(hidden.weights.shape)
    wrong = fpga.Layer(swapped, hidden.bias, hidden.multiplier, hidden.shift, hidden.relu, hidden.pe, hidden.simd)
    return fpga.Network((wrong, output))


def probabilities(network: fpga.Network, scale: float, pixels: np.ndarray) -> np.ndarray:
    """What a device must answer, float32 (n, 10)."""
    logits = fpga.reference(network, to_int8(pixels)).astype(np.float64) * scale
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def build(out: Path, *, quality: Quality = "better", name: str = "", seed: int = 0) -> dict[str, Any]:
    """Train, quantise and write the module's folder; returns its card.

    Args:
        out: the folder to write; made if need be.
        quality: see the module's docstring.
        name: the module's name; by default ``digits-fpga``.
        seed: of the split and the training.
    """
    out.mkdir(parents=True, exist_ok=True)
    train_x, train_y, held_x, held_y = load(seed)
    classifier = train(train_x, train_y, PLANS["good" if quality == "good" else "better"], seed)
    network, scale = quantise(classifier, train_x)
    identity = overlay.write(out, DESIGN, mispacked(network) if quality == "broken" else network)

    golden = held_x[:GOLDEN_CASES]
    answers = probabilities(network, scale, golden)
    np.savez(out / "golden.npz", **{"input.pixels": golden, "output.probabilities": answers})
    np.savez(out / "heldout.npz", **{"input.pixels": held_x, "label": held_y})
    given = probabilities(network, scale, train_x)
    (out / "baseline.json").write_bytes(Baseline.from_arrays({"pixels": train_x}, {"probabilities": given}).to_json())

    correct = probabilities(network, scale, held_x).argmax(axis=1)
    float_correct = classifier.predict(held_x / FULL_INK)
    card = {
        "quality": quality,
        "seed": seed,
        "data": "scikit-learn load_digits",
        "heldout_rows": len(held_x),
        "heldout_accuracy": round(float((correct == held_y).mean()), 4),
        "float_accuracy": round(float((float_correct == held_y).mean()), 4),
        "agreement_with_float": round(float((correct == float_correct).mean()), 4),
        "sklearn": sklearn.__version__,
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    write_manifest(out, name, identity=identity, scale=scale)
    return card


def write_manifest(out: Path, name: str, *, identity: int, scale: float) -> None:
    """The folder's ``module.toml`` with what training found."""
    document = tomlkit.parse((HERE / "module.toml").read_text())
    document["name"] = name or "digits-fpga"
    options: Any = document["options"]
    options["identity"] = identity
    options["input_scale"] = INPUT_SCALE
    options["output_scale"] = scale
    (out / "module.toml").write_text(tomlkit.dumps(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="folder to write (default: build/ here)")
    parser.add_argument("--quality", choices=get_args(Quality), default="better")
    parser.add_argument("--name", default="", help="the module's name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    card = build(arguments.out, quality=arguments.quality, name=arguments.name, seed=arguments.seed)
    print(json.dumps({"folder": str(arguments.out), **card}))


if __name__ == "__main__":
    main()
