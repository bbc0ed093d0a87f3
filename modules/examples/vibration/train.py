"""Train a vibration monitor on the seeded sensor simulation and write it as a Skerry module.

Input: 512 samples (160 ms at 3.2 kHz) of acceleration in g. The model holds its own signal processing, so that a device
needs nothing but the runtime: Hann window and discrete Fourier transform as one matrix product, power in each of 128
bands of 12.5 Hz, logarithm, then a small network. Output: probabilities of healthy, imbalance, bearing.

Data: ``skerry_simulators.sensors.vibration``. It is a simulation: the accuracy says that the module works from sensor
to score, not that it would find the faults of a real machine.

The same seed on the same machine and library versions gives the same bytes. Needs ``skerry[train]``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import sklearn
import tomlkit
from onnx import TensorProto, helper, numpy_helper
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from skerry_modules.histogram import Baseline
from skerry_simulators.sensors import vibration

HERE = Path(__file__).parent
EngineName = Literal["onnx", "openvino"]

SAMPLES = 512
BANDS = 128
FLOOR = 1e-6  # power, g²: keeps the logarithm of silence finite
OPSET = 17
TRAIN_WINDOWS, HELD_WINDOWS = 1800, 600
GOLDEN_CASES = 30
HIDDEN, EPOCHS = 32, 60


def fourier() -> np.ndarray:
    """float32 (512, 512): Hann-windowed cosines of 256 frequencies, then sines, normalised to amplitude."""
    window = np.hanning(SAMPLES)
    angles = 2 * np.pi * np.outer(np.arange(SAMPLES), np.arange(1, SAMPLES // 2 + 1)) / SAMPLES
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return (waves * window[:, None] * 2 / window.sum()).astype(np.float32)


def banding() -> np.ndarray:
    """float32 (512, 128): adds the squares of two neighbouring frequencies' cosines and sines to a band's power."""
    band = np.arange(SAMPLES // 2) // (SAMPLES // 2 // BANDS)
    one = (band[:, None] == np.arange(BANDS)).astype(np.float32)
    return np.concatenate([one, one])


def features(acceleration: np.ndarray) -> np.ndarray:
    """float32 (n, 128): log power in each band, as the model computes it."""
    return np.log((acceleration @ fourier()) ** 2 @ banding() + np.float32(FLOOR))


def train(acceleration: np.ndarray, labels: np.ndarray, seed: int) -> tuple[MLPClassifier, np.ndarray, np.ndarray]:
    """The network and its features' mean and deviation."""
    found = features(acceleration)
    mean, deviation = found.mean(axis=0), found.std(axis=0)
    network = MLPClassifier((HIDDEN,), max_iter=EPOCHS, random_state=seed, alpha=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is part of the plan
        network.fit((found - mean) / deviation, labels)
    return network, mean, deviation


def export(network: MLPClassifier, mean: np.ndarray, deviation: np.ndarray) -> onnx.ModelProto:
    """ONNX from acceleration to probabilities, of plain operators that every runtime has."""
    (first, second), (bias1, bias2) = network.coefs_, network.intercepts_
    folded = first / deviation[:, None]  # the standardisation goes into the first layer
    constants = {
        "fourier": fourier(),
        "banding": banding(),
        "floor": np.array([FLOOR], np.float32),
        "first": folded.astype(np.float32),
        "bias1": (bias1 - mean @ folded).astype(np.float32),
        "second": second.astype(np.float32),
        "bias2": bias2.astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["acceleration", "fourier"], ["waves"]),
        helper.make_node("Mul", ["waves", "waves"], ["squares"]),
        helper.make_node("MatMul", ["squares", "banding"], ["power"]),
        helper.make_node("Add", ["power", "floor"], ["positive"]),
        helper.make_node("Log", ["positive"], ["features"]),
        helper.make_node("MatMul", ["features", "first"], ["weighted1"]),
        helper.make_node("Add", ["weighted1", "bias1"], ["layer1"]),
        helper.make_node("Relu", ["layer1"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["weighted2"]),
        helper.make_node("Add", ["weighted2", "bias2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "vibration",
        [helper.make_tensor_value_info("acceleration", TensorProto.FLOAT, ["batch", SAMPLES])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(vibration.CONDITIONS)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, producer_name="skerry-example", opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 8  # that of opset 17: older runtimes refuse a newer one
    onnx.checker.check_model(model)
    return model


def build(out: Path, *, engine: EngineName = "onnx", name: str = "", seed: int = 0) -> dict[str, Any]:
    """Train and write the module's folder; returns its card.

    Args:
        out: the folder to write; made if need be.
        engine: the engine that devices run it on.
        name: the module's name; by default ``vibration``, or ``vibration-openvino``.
        seed: of the simulation and the training.
    """
    out.mkdir(parents=True, exist_ok=True)
    train_x, train_y = vibration.windows(TRAIN_WINDOWS, seed=seed, samples=SAMPLES)
    held_x, held_y = vibration.windows(HELD_WINDOWS, seed=seed + 1_000_000, samples=SAMPLES)
    network, mean, deviation = train(train_x, train_y, seed)
    model = export(network, mean, deviation)
    (out / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))

    def score(acceleration: np.ndarray) -> np.ndarray:
        return network.predict_proba((features(acceleration) - mean) / deviation).astype(np.float32)

    golden = held_x[:GOLDEN_CASES]
    np.savez(out / "golden.npz", **{"input.acceleration": golden, "output.probabilities": score(golden)})
    np.savez(out / "heldout.npz", **{"input.acceleration": held_x, "label": held_y})
    baseline = Baseline.from_arrays({"acceleration": train_x}, {"probabilities": score(train_x)})
    (out / "baseline.json").write_bytes(baseline.to_json())
    card = {
        "seed": seed,
        "data": "simulated: skerry_simulators.sensors.vibration",
        "train_rows": len(train_x),
        "heldout_rows": len(held_x),
        "heldout_accuracy": round(float((score(held_x).argmax(axis=1) == held_y).mean()), 4),
        "sklearn": sklearn.__version__,
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    write_manifest(out, engine, name)
    return card


def write_manifest(out: Path, engine: str, name: str) -> None:
    """The folder's ``module.toml`` with the engine and name asked for."""
    document = tomlkit.parse((HERE / "module.toml").read_text())
    document["engine"] = engine
    document["name"] = name or ("vibration" if engine == "onnx" else f"vibration-{engine}")
    (out / "module.toml").write_text(tomlkit.dumps(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="folder to write (default: build/ here)")
    parser.add_argument("--engine", choices=get_args(EngineName), default="onnx")
    parser.add_argument("--name", default="", help="the module's name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    card = build(arguments.out, engine=arguments.engine, name=arguments.name, seed=arguments.seed)
    print(json.dumps({"folder": str(arguments.out), **card}))


if __name__ == "__main__":
    main()
