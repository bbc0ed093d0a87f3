"""scikit-learn estimators: from memory, and from files, which are programs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from skerry import convert
from skerry_modules import onnx_model, package
from skerry_modules.errors import InputError

from . import models
from .test_converting import prove

QUICK = convert.Options(timing_s=0.01)


def linear() -> Any:
    pixels, labels, _, _ = models.digits()
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(pixels, labels)


@pytest.mark.parametrize(
    ("to", "precision"), [("onnx", "f32"), ("openvino", "f32"), ("onnx", "int8-static"), ("onnx", "int8-dynamic")]
)
def test_a_pipeline_is_judged_by_the_estimator_itself(to: Any, precision: Any, tmp_path: Path) -> None:
    _, _, pixels, labels = models.digits()
    estimator = linear()
    report = convert.from_sklearn(
        estimator,
        tmp_path / "linear",
        input_name="pixels",
        samples=pixels,
        labels=labels,
        to=to,
        precision=precision,
        options=convert.Options(timing_s=0.01, min_agreement=0.98, max_delta=0.4),
    )
    assert report.before.engine.startswith("scikit-learn ")
    assert report.name == "logisticregression"
    if precision == "f32":
        assert report.before.accuracy == pytest.approx(estimator.score(pixels, labels), abs=1e-6)
        assert report.verdict.max_delta < 1e-5
    manifest = package.read_folder(tmp_path / "linear")
    assert manifest.inputs[0].name == "pixels"
    assert manifest.outputs[0].labels == tuple("0123456789")
    assert prove(tmp_path / "linear", tmp_path / "cache").passed
    with np.load(tmp_path / "linear" / "golden.npz") as golden:
        said = estimator.predict_proba(golden["input.pixels"])
        np.testing.assert_allclose(golden["output.probabilities"], said, atol=1e-6)


def test_trees_stay_with_onnx_runtime(tmp_path: Path) -> None:
    train, truth, pixels, labels = models.digits()
    forest = RandomForestClassifier(10, random_state=0).fit(train, truth)
    report = convert.from_sklearn(forest, tmp_path / "onnx", samples=pixels, labels=labels, options=QUICK)
    assert report.verdict.agreement == 1
    assert "ai.onnx.ml.TreeEnsembleClassifier" in onnx_model.read(tmp_path / "onnx" / "model.onnx").operators
    with pytest.raises(InputError, match=r"OpenVINO has no operator ai\.onnx\.ml\.TreeEnsembleClassifier"):
        convert.from_sklearn(forest, tmp_path / "ir", to="openvino", samples=pixels, options=QUICK)
    with pytest.raises(InputError, match="hold no weights that int8 applies to"):
        convert.from_sklearn(forest, tmp_path / "int8", precision="int8-dynamic", samples=pixels, options=QUICK)


def test_a_regressor_gives_a_prediction_and_a_bar_to_declare(tmp_path: Path) -> None:
    table, truth = load_diabetes(return_X_y=True)
    ridge = Ridge().fit(table, truth)
    matrix = table.astype(np.float32)
    report = convert.from_sklearn(ridge, tmp_path / "ridge", samples=matrix.tolist(), options=QUICK)
    assert [(one.name, one.decides) for one in report.verdict.outputs] == [("prediction", "")]
    golden = package.read_folder(tmp_path / "ridge").golden
    assert golden is not None
    assert (golden.argmax, golden.min_pass) == ("", 1.0)
    assert prove(tmp_path / "ridge", tmp_path / "cache").passed
    with pytest.raises(convert.GateFailed, match="'prediction' differs"):
        convert.from_sklearn(ridge, tmp_path / "int8", precision="int8-static", samples=matrix, options=QUICK)
    accepted = convert.Options(timing_s=0, max_delta=5.0)  # of a progression that spans 25 to 346
    assert convert.from_sklearn(
        ridge, tmp_path / "int8", precision="int8-static", samples=matrix, options=accepted
    ).verdict.max_delta < 5.0  # fmt: skip


@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (LinearSVC(), "wrap it in sklearn.calibration.CalibratedClassifierCV"),
        (KMeans(3, n_init=1), "neither a classifier nor a regressor"),
        (LogisticRegression(), "it is not fitted"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_estimators_without_an_answer_to_compare(estimator: Any, text: str, tmp_path: Path) -> None:
    pixels, labels, held, _ = models.digits()
    if "not fitted" not in text:
        estimator.fit(pixels[:200], labels[:200])
    with pytest.raises(InputError, match=text) as refused:
        convert.from_sklearn(estimator, tmp_path / "out", samples=held, options=QUICK)
    assert refused.value.code == "convert.unsupported"


class Trap:
    """What a hostile file does: loading it runs a program."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib", ".pt2"])
def test_a_pickle_is_not_opened_unless_trusted(suffix: str, tmp_path: Path) -> None:
    trap = (tmp_path / "model").with_suffix(suffix)
    trap.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match="is a program") as refused:
        convert.convert(trap, tmp_path / "out", options=QUICK)
    assert refused.value.code == "convert.untrusted"
    assert "--trust-pickle" in refused.value.message
    assert not (tmp_path / "sprung").exists()


def test_a_trusted_pickle_converts_and_what_is_none_is_said(tmp_path: Path) -> None:
    rows = models.heldout(tmp_path / "rows.npz")
    joblib.dump(linear(), tmp_path / "Linear Digits.joblib")
    unnamed = convert.Options(timing_s=0, trust_pickle=True)
    with pytest.raises(InputError, match=r"no array 'x', only pixels, .*--input-name"):
        convert.convert(tmp_path / "Linear Digits.joblib", tmp_path / "no", samples=rows, options=unnamed)
    options = msgspec.structs.replace(unnamed, input_name="pixels")
    report = convert.convert(tmp_path / "Linear Digits.joblib", tmp_path / "out", samples=rows, options=options)
    assert (report.name, report.origin.kind, report.origin.of) == ("linear-digits", "scikit-learn", "file")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InputError, match="it holds a list, no estimator"):
        convert.convert(tmp_path / "list.pkl", tmp_path / "no", samples=rows, options=options)
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(linear())[:100])
    with pytest.raises(InputError, match=r"cannot load cut\.pkl"):
        convert.convert(tmp_path / "cut.pkl", tmp_path / "no", samples=rows, options=options)
