"""The examples are what their READMEs say: reproducible, good enough, proven on every engine, broken where meant."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from examples.parts import HERE, built, read, script
from skerry_agent import engines, golden
from skerry_modules import package, profiles
from skerry_modules.compatibility import obstacles
from skerry_modules.histogram import Baseline

# (example, build options, least accuracy on held-out rows)
BUILDS = [
    pytest.param("digits", {"quality": "good"}, 0.85, id="digits-good"),
    pytest.param("digits", {"quality": "better"}, 0.96, id="digits-better"),
    pytest.param("digits-fpga", {"quality": "good"}, 0.85, id="fpga-good", marks=pytest.mark.pynq),
    pytest.param("digits-fpga", {"quality": "better"}, 0.96, id="fpga-better", marks=pytest.mark.pynq),
    pytest.param("vibration", {}, 0.88, id="vibration"),
    pytest.param("digits-ensemble", {}, 0.97, id="ensemble"),
]


@pytest.mark.parametrize(("name", "options", "least"), BUILDS)
def test_a_build_packs_and_reaches_its_accuracy(name: str, options: dict[str, Any], least: float) -> None:
    folder, card = built(name, **options)
    index, _ = package.build_index(folder, read(folder))
    assert card["heldout_accuracy"] >= least
    names = {entry.path for entry in index.files}
    assert {"module.toml", "golden.npz", "baseline.json", "card.json"} <= names
    assert "heldout.npz" not in names, "the replay data is no part of the module"
    assert json.loads((folder / "card.json").read_text()) == card


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {"quality": "better"}),
        ("vibration", {}),
        ("digits-ensemble", {}),
        pytest.param("digits-fpga", {"quality": "better"}, marks=pytest.mark.pynq),
    ],
)
def test_the_same_seed_gives_the_same_bytes(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = built(name, **options)
    script(name).build(tmp_path, **options)
    first, second = (package.build_index(place, read(place))[0] for place in (folder, tmp_path))
    assert package.index_bytes(first) == package.index_bytes(second)


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    folder, _ = built("digits", quality="good")
    script("digits").build(tmp_path, quality="good", seed=7)
    assert (tmp_path / "model.onnx").read_bytes() != (folder / "model.onnx").read_bytes()


def test_held_out_rows_were_not_trained_on() -> None:
    train_x, _, held_x, held_y = script("digits").load()
    assert len(train_x) + len(held_x) == 1797
    assert np.bincount(held_y).min() > 50, "every digit is held out in its share"
    # The data itself has a few identical images, so rows are compared as (multi)sets with that in mind.
    trained = {row.tobytes() for row in train_x}
    assert sum(row.tobytes() in trained for row in held_x) < 5


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("name", "options"), [("digits", {"quality": "good"}), ("digits", {"quality": "better"}), ("vibration", {})]
)
def test_the_golden_test_passes_on_every_engine(
    name: str, options: dict[str, Any], engine: str, tmp_path: Path
) -> None:
    folder, _ = built(name, engine=engine, **options)
    manifest = read(folder)
    assert manifest.engine == engine
    assert manifest.name == (name if engine == "onnx" else f"{name}-openvino")
    model = engines.get(engine).load(folder, manifest, tmp_path)
    try:
        report = golden.run(manifest, folder, model.run)
        assert report.passed, report.message
        heldout = np.load(folder / "heldout.npz")
        scored = model.run({manifest.inputs[0].name: heldout[f"input.{manifest.inputs[0].name}"]})
        right = scored["probabilities"].argmax(axis=1) == heldout["label"]
        card = json.loads((folder / "card.json").read_text())
        assert right.mean() == pytest.approx(card["heldout_accuracy"], abs=0.005)
    finally:
        model.close()


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_the_ensemble_is_better_than_either_of_its_models(engine: str, tmp_path: Path) -> None:
    """With ``openvino`` two runtimes stand in one process; the forest stays with ONNX Runtime."""
    folder, card = built("digits-ensemble", engine=engine)
    assert card["heldout_accuracy"] > max(card["network_accuracy"], card["forest_accuracy"])
    manifest = read(folder)
    assert [step.kind for step in manifest.steps] == ["python", engine, "onnx", "mean"]
    model = engines.get("pipeline").load(folder, manifest, tmp_path)
    try:
        report = golden.run(manifest, folder, model.run)
        assert report.passed, report.message
        heldout = np.load(folder / "heldout.npz")
        scored = model.run({"pixels": heldout["input.pixels"]})["probabilities"]
        right = scored.argmax(axis=1) == heldout["label"]
        assert right.mean() == pytest.approx(card["heldout_accuracy"], abs=0.005)
    finally:
        model.close()


def test_the_ensembles_forest_is_named_where_it_cannot_run() -> None:
    folder, _ = built("digits-ensemble")
    index, _ = package.build_index(folder, read(folder))
    onnx = next(name for name, profile in profiles.shipped().items() if profile.engine("onnx"))
    assert not obstacles(index.manifest, index.facts, profiles.get(onnx))
    manifest = msgspec.structs.replace(
        index.manifest,
        steps=tuple(msgspec.structs.replace(s, engine=s.engine and "openvino") for s in index.manifest.steps),
    )
    refusing = next(name for name, profile in profiles.shipped().items() if profile.engine("openvino"))
    texts = [one.message for one in obstacles(manifest, index.facts, profiles.get(refusing))]
    assert any(
        text.startswith("step 'forest' uses ai.onnx.ml.TreeEnsembleClassifier, which openvino") for text in texts
    )


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_broken_is_broken_on_the_device_and_fine_on_paper(engine: str, tmp_path: Path) -> None:
    folder, card = built("digits", quality="broken", engine=engine)
    manifest = read(folder)
    assert card["heldout_accuracy"] > 0.96
    model = engines.get(engine).load(folder, manifest, tmp_path)
    try:
        report = golden.run(manifest, folder, model.run)
    finally:
        model.close()
    assert not report.passed
    assert report.failed == report.cases
    assert "choose another class" in report.message


@pytest.mark.parametrize("name", ["digits", "vibration"])
def test_no_operator_needs_more_than_a_plain_runtime(name: str) -> None:
    folder, _ = built(name, **({"quality": "better"} if name == "digits" else {}))
    index, _ = package.build_index(folder, read(folder))
    assert not [operator for operator in index.facts.operators if "." in operator]
    assert index.facts.opset == 17


@pytest.mark.parametrize(("name", "feature"), [("digits", "pixels"), ("vibration", "acceleration")])
def test_the_baseline_is_that_of_the_training_data(name: str, feature: str) -> None:
    folder, card = built(name, **({"quality": "better"} if name == "digits" else {}))
    baseline = Baseline.from_json((folder / "baseline.json").read_bytes())
    assert baseline.rows == card["train_rows"]
    assert [one.tensor for one in baseline.inputs] == [feature]
    assert {one.tensor for one in baseline.outputs} == {"probabilities"}


@pytest.mark.pynq
def test_a_simulated_bitstream_never_reaches_a_real_board() -> None:
    folder, _ = built("digits-fpga", quality="better")
    manifest = read(folder)
    index, _ = package.build_index(folder, manifest)
    refused = {name for name, profile in profiles.shipped().items() if obstacles(manifest, index.facts, profile)}
    assert refused == set(profiles.shipped()) - {"simulated-fpga"}


def test_train_is_a_plain_script(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "digits" / "train.py"), "--out", str(tmp_path / "out"), "--quality", "good"]
    done = subprocess.run([*command, "--name", "numbers"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout)["quality"] == "good"
    assert read(tmp_path / "out").name == "numbers"
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (
        built("digits", quality="good")[0] / "model.onnx"
    ).read_bytes()


@pytest.mark.parametrize(
    ("name", "quality"),
    [
        ("digits", "good"),
        ("digits", "better"),
        pytest.param("digits-fpga", "good", marks=pytest.mark.pynq),
        pytest.param("digits-fpga", "better", marks=pytest.mark.pynq),
    ],
)
def test_the_readme_tells_the_accuracy(name: str, quality: str) -> None:
    _, card = built(name, quality=quality)
    row = next(
        line for line in (HERE / name / "README.md").read_text().splitlines() if line.startswith(f"| `{quality}`")
    )
    _like_the_readme(row, card["heldout_accuracy"])


@pytest.mark.parametrize("which", ["network", "forest", "heldout"])
def test_the_ensembles_readme_tells_the_accuracies(which: str) -> None:
    _, card = built("digits-ensemble")
    label = "both, averaged" if which == "heldout" else which
    text = (HERE / "digits-ensemble" / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| {label}"))
    _like_the_readme(row, card[f"{which}_accuracy"])


def _like_the_readme(row: str, accuracy: float) -> None:
    told = float(re.findall(r"([0-9.]+) %", row)[0])
    # Another CPU's arithmetic may tip a digit or two; a README that was not written anew tips more.
    assert told == pytest.approx(100 * accuracy, abs=0.6)
