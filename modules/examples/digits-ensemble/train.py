"""Train two different classifiers of handwritten digits and write them as one Skerry module: an ensemble.

A small neural network and a random forest err on different digits, so that the mean of their probabilities is right
more often than either. The module is a pipeline of four steps (see ``module.toml``): a script scales the pixels for the
network, both models score, and a built-in combiner takes the mean. No step of it needs another process or a network
call on the device.

Data: the 1,797 handwritten digits that scikit-learn bundles (``load_digits``), so nothing is downloaded. A third is
held out before anything is trained, and written as ``heldout.npz`` for replay on a device; it is not part of the
module.

The same seed on the same machine and library versions gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import sklearn
import tomlkit
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skerry_modules.histogram import Baseline

HERE = Path(__file__).parent
EngineName = Literal["onnx", "openvino"]

FULL_INK = 16.0  # pixels are 0 to 16
OPSET = 17  # old enough for every runtime of the shipped profiles
GOLDEN_CASES = 32


def load(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and held-out digits: pixels (float32, n by 64, 0 to 16) and labels of both, classes balanced."""
    digits = load_digits()
    pixels, labels = digits.data.astype(np.float32), digits.target.astype(np.int64)
    train_x, held_x, train_y, held_y = train_test_split(
        pixels, labels, test_size=1 / 3, random_state=seed, stratify=labels
    )
    return train_x, train_y, held_x, held_y


def train(pixels: np.ndarray, labels: np.ndarray, seed: int) -> tuple[MLPClassifier, RandomForestClassifier]:
    """The network on ink from 0 to 1, the forest on pixels."""
    network = MLPClassifier((32,), max_iter=60, random_state=seed, learning_rate_init=0.005)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is part of the plan
        network.fit(pixels / FULL_INK, labels)
    forest = RandomForestClassifier(50, max_depth=12, random_state=seed)
    return network, forest.fit(pixels, labels)


def export(model: Any, tensor: str) -> onnx.ModelProto:
    """ONNX from ``tensor`` (n by 64) to probabilities; the branch that looks up the label is cut."""
    whole = to_onnx(
        model,
        initial_types=[(tensor, FloatTensorType([None, 64]))],
        options={id(model): {"zipmap": False}},
        target_opset={"": OPSET, "ai.onnx.ml": 3},
    )
    made = select_model_inputs_outputs(whole, ["probabilities"])
    made.graph.name = "digits"
    domains = {node.domain for node in made.graph.node}
    del made.opset_import[:]  # a runtime without a domain would refuse its mere import
    made.opset_import.append(helper.make_opsetid("", OPSET))
    if "ai.onnx.ml" in domains:
        made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    used = {name for node in made.graph.node for name in node.input}
    for unused in [one for one in made.graph.initializer if one.name not in used]:
        made.graph.initializer.remove(unused)
    # Cutting a branch loses the shapes; the manifest is checked against them, so they are stated again.
    for side, name, size in ((made.graph.input, tensor, 64), (made.graph.output, "probabilities", 10)):
        del side[:]
        side.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]))
    onnx.checker.check_model(made)
    return made


def build(out: Path, *, engine: EngineName = "onnx", name: str = "", seed: int = 0) -> dict[str, Any]:
    """Train and write the module's folder; returns its card (accuracies on the held-out digits, rows, versions).

    Args:
        out: the folder to write; made if need be.
        engine: of the network's step. The forest stays with ONNX Runtime: OpenVINO has no trees.
        name: the module's name; by default ``digits-ensemble``.
        seed: of the split and the training.
    """
    out.mkdir(parents=True, exist_ok=True)
    train_x, train_y, held_x, held_y = load(seed)
    network, forest = train(train_x, train_y, seed)
    for file, model in (("network.onnx", export(network, "ink")), ("forest.onnx", export(forest, "pixels"))):
        (out / file).write_bytes(model.SerializeToString(deterministic=True))
    shutil.copyfile(HERE / "scale.py", out / "scale.py")

    def score(pixels: np.ndarray) -> np.ndarray:
        both = network.predict_proba(pixels / FULL_INK), forest.predict_proba(pixels)
        return np.mean(both, axis=0).astype(np.float32)

    golden = held_x[:GOLDEN_CASES]
    np.savez(out / "golden.npz", **{"input.pixels": golden, "output.probabilities": score(golden)})
    np.savez(out / "heldout.npz", **{"input.pixels": held_x, "label": held_y})
    baseline = Baseline.from_arrays({"pixels": train_x}, {"probabilities": score(train_x)})
    (out / "baseline.json").write_bytes(baseline.to_json())

    card = {
        "seed": seed,
        "data": "scikit-learn load_digits",
        "train_rows": len(train_x),
        "heldout_rows": len(held_x),
        "heldout_accuracy": round(float((score(held_x).argmax(axis=1) == held_y).mean()), 4),
        "network_accuracy": round(float(network.score(held_x / FULL_INK, held_y)), 4),
        "forest_accuracy": round(float(forest.score(held_x, held_y)), 4),
        "sklearn": sklearn.__version__,
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    write_manifest(out, engine, name)
    return card


def write_manifest(out: Path, engine: str, name: str) -> None:
    """The folder's ``module.toml`` with the network's engine and the name asked for."""
    document = tomlkit.parse((HERE / "module.toml").read_text())
    for step in document["steps"]:
        if step["name"] == "network":
            step["engine"] = engine
    document["name"] = name or document["name"]
    (out / "module.toml").write_text(tomlkit.dumps(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="folder to write (default: build/ here)")
    parser.add_argument("--engine", choices=get_args(EngineName), default="onnx", help="of the network's step")
    parser.add_argument("--name", default="", help="the module's name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    card = build(arguments.out, engine=arguments.engine, name=arguments.name, seed=arguments.seed)
    print(json.dumps({"folder": str(arguments.out), **card}))


if __name__ == "__main__":
    main()
