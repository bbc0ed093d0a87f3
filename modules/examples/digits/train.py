"""Train a classifier of handwritten digits and write it as a Skerry module.

Data: the 1,797 handwritten digits that scikit-learn bundles (``load_digits``: the test part of the UCI set "Optical
Recognition of Handwritten Digits", Alpaydin and Kaynak, 1998), so nothing is downloaded. A third is held out before
anything is trained, and written as ``heldout.npz`` for replay on a device; it is not part of the module.

Qualities, for trying out rollouts:

* ``good``: a small network that saw few digits.
* ``better``: a larger one that saw all training digits.
* ``broken``: ``better`` again, golden outputs and card included, but its export takes paper for ink: pre-processing
  that differs between notebook and device is the commonest way for a good model to go wrong. Its golden test must fail.

The same seed on the same machine and library versions gives the same bytes.
"""

from __future__ import annotations

import argparse
import copy
import json
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
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from skerry_modules.histogram import Baseline

HERE = Path(__file__).parent
Quality = Literal["good", "better", "broken"]
EngineName = Literal["onnx", "openvino"]

FULL_INK = 16.0  # pixels are 0 to 16
OPSET = 17  # old enough for every runtime of the shipped profiles
GOLDEN_CASES = 32
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
    network = MLPClassifier((plan["hidden"],), max_iter=plan["epochs"], random_state=seed, learning_rate_init=0.005)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is part of the plan
        network.fit(pixels[:rows] / FULL_INK, labels[:rows])
    return network


def export(network: MLPClassifier, *, inverted: bool = False) -> onnx.ModelProto:
    """ONNX from raw pixels to probabilities; ``inverted`` makes the mistake of ``broken``.

    The scaling is folded into the first layer, because a scaler would be an operator of ``ai.onnx.ml``, which OpenVINO
    does not have; the branch that looks up the label is cut for the same reason.
    """
    folded = copy.deepcopy(network)
    weights = network.coefs_[0]
    folded.coefs_[0] = (-weights if inverted else weights) / FULL_INK
    if inverted:
        folded.intercepts_[0] = network.intercepts_[0] + weights.sum(axis=0)
    whole = to_onnx(
        folded,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={id(folded): {"zipmap": False}},
        target_opset={"": OPSET, "ai.onnx.ml": 3},
    )
    model = select_model_inputs_outputs(whole, ["probabilities"])
    model.graph.name = "digits"
    # The classifier's own domain is no longer used; a runtime without it would refuse the import alone.
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(tensor)
    # Cutting a branch loses the shapes; the manifest is checked against them, so they are stated again.
    for side, name, size in ((model.graph.input, "pixels", 64), (model.graph.output, "probabilities", 10)):
        del side[:]
        side.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]))
    onnx.checker.check_model(model)
    return model


def build(
    out: Path, *, quality: Quality = "better", engine: EngineName = "onnx", name: str = "", seed: int = 0
) -> dict[str, Any]:
    """Train and write the module's folder; returns its card (accuracy on the held-out digits, rows, versions).

    Args:
        out: the folder to write; made if need be.
        quality: see the module's docstring.
        engine: the engine that devices run it on.
        name: the module's name; by default ``digits``, or ``digits-openvino``.
        seed: of the split and the training.
    """
    out.mkdir(parents=True, exist_ok=True)
    train_x, train_y, held_x, held_y = load(seed)
    network = train(train_x, train_y, PLANS["good" if quality == "good" else "better"], seed)
    (out / "model.onnx").write_bytes(
        export(network, inverted=quality == "broken").SerializeToString(deterministic=True)
    )

    golden = held_x[:GOLDEN_CASES]
    expected = network.predict_proba(golden / FULL_INK).astype(np.float32)
    np.savez(out / "golden.npz", **{"input.pixels": golden, "output.probabilities": expected})
    np.savez(out / "heldout.npz", **{"input.pixels": held_x, "label": held_y})

    given = network.predict_proba(train_x / FULL_INK).astype(np.float32)
    (out / "baseline.json").write_bytes(Baseline.from_arrays({"pixels": train_x}, {"probabilities": given}).to_json())

    card = {
        "quality": quality,
        "seed": seed,
        "data": "scikit-learn load_digits",
        "train_rows": PLANS["good"]["rows"] if quality == "good" else len(train_x),
        "heldout_rows": len(held_x),
        "heldout_accuracy": round(float(network.score(held_x / FULL_INK, held_y)), 4),
        "sklearn": sklearn.__version__,
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    write_manifest(out, engine, name)
    return card


def write_manifest(out: Path, engine: str, name: str) -> None:
    """The folder's ``module.toml`` with the engine and name asked for."""
    document = tomlkit.parse((HERE / "module.toml").read_text())
    document["engine"] = engine
    document["name"] = name or ("digits" if engine == "onnx" else f"digits-{engine}")
    (out / "module.toml").write_text(tomlkit.dumps(document))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="folder to write (default: build/ here)")
    parser.add_argument("--quality", choices=get_args(Quality), default="better")
    parser.add_argument("--engine", choices=get_args(EngineName), default="onnx")
    parser.add_argument("--name", default="", help="the module's name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    card = build(
        arguments.out,
        quality=arguments.quality,
        engine=arguments.engine,
        name=arguments.name,
        seed=arguments.seed,
    )
    print(json.dumps({"folder": str(arguments.out), **card}))


if __name__ == "__main__":
    main()
