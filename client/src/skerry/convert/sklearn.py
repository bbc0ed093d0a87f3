"""scikit-learn estimators to ONNX, by skl2onnx.

A classifier becomes ``probabilities``, a regressor ``prediction``; the original is the estimator itself, as
``predict_proba`` or ``predict`` answer. One matrix of floats goes in: a pipeline that takes columns of several types is
exported with ``skl2onnx.to_onnx`` and its own types, and converted from there.

A file of an estimator is a pickle, and a pickle is a program: loading it does whatever its author wrote.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry.convert.runtimes import Array, Arrays, Score, missing, unsupported
from skerry_modules.errors import InputError

SUFFIXES: Final = (".pkl", ".pickle", ".joblib")
OPSET: Final = 17
ML_OPSET: Final = 3
"""Both are old enough for every runtime of the shipped profiles."""
_REPLACED: Final = ("LinearClassifier", "LinearRegressor", "Normalizer", "Scaler")
"""Operators of ``ai.onnx.ml`` for which skl2onnx can write plain matrix operators, which every engine and the
quantiser know."""


def load(path: Path, *, trust: bool) -> Any:
    """The estimator of a pickle.

    Raises:
        InputError: ``convert.untrusted`` unless trusted; ``convert.unsupported`` if it does not load or is none.
        ResourceError: ``resource.missing_dependency``.
    """
    if not trust:
        raise InputError(
            "convert.untrusted",
            f"cannot load {path.name}: a pickle is a program, and loading it runs whatever its author put in. If it is "
            "yours, say --trust-pickle; better, call skerry.convert.from_sklearn(estimator, …) where it was trained",
        )
    try:
        import joblib
    except ImportError as error:
        raise missing("scikit-learn", "'skerry[convert,train]'", f"load {path.name}") from error
    try:
        estimator = joblib.load(path)
    except Exception as error:  # a pickle raises what it likes
        raise unsupported(
            f"load {path.name}", error, "load it with the versions of Python and packages that wrote it"
        ) from error
    if not hasattr(estimator, "fit"):
        raise InputError(
            "convert.unsupported", f"cannot convert {path.name}: it holds a {type(estimator).__name__}, no estimator"
        )
    return estimator


def name_of(estimator: Any) -> str:
    """What it is: of a pipeline, its last step."""
    steps = getattr(estimator, "steps", None)
    return type(steps[-1][1] if steps else estimator).__name__


def export(estimator: Any, target: Path, *, input_name: str, plain: bool) -> tuple[str, Score, tuple[str, ...]]:
    """Write the estimator as ONNX.

    Args:
        estimator: a fitted classifier with ``predict_proba``, or a regressor.
        target: the file to write.
        input_name: what the input shall be called.
        plain: use plain matrix operators where there is a choice.

    Returns:
        The output's name, a function that scores with the estimator itself, and the classes' names (or none).

    Raises:
        InputError: ``convert.unsupported``.
        ResourceError: ``resource.missing_dependency``.
    """
    try:
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
        from sklearn.base import is_classifier, is_regressor
    except ImportError as error:
        raise missing("scikit-learn or skl2onnx", "'skerry[convert,train]'", "convert an estimator") from error
    classifier, features = is_classifier(estimator), getattr(estimator, "n_features_in_", None)
    _check(estimator, classifier=classifier, regressor=is_regressor(estimator), features=features)
    try:
        model = to_onnx(
            estimator,
            initial_types=[(input_name, FloatTensorType([None, features]))],
            options={id(estimator): {"zipmap": False}} if classifier else None,
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
            black_op=set(_REPLACED) if plain else None,
        )
    except Exception as error:  # skl2onnx's errors have no common base
        raise unsupported(f"convert a {type(estimator).__name__} to ONNX", error) from error
    name = "probabilities" if classifier else _renamed(model, "prediction")
    model.graph.name = "model"
    target.write_bytes(model.SerializeToString(deterministic=True))
    classes = tuple(str(one) for one in estimator.classes_) if classifier else ()
    return name, _scorer(estimator, input_name, name, classifier=classifier), classes


def _check(estimator: Any, *, classifier: bool, regressor: bool, features: Any) -> None:
    kind = type(estimator).__name__
    if features is None:
        raise InputError("convert.unsupported", f"cannot convert the {kind}: it is not fitted, or takes no matrix")
    if not classifier and not regressor:
        raise InputError(
            "convert.unsupported", f"cannot convert the {kind}: it is neither a classifier nor a regressor"
        )
    if classifier and not hasattr(estimator, "predict_proba"):
        raise InputError(
            "convert.unsupported",
            f"cannot convert the {kind}: it gives no probabilities; wrap it in "
            "sklearn.calibration.CalibratedClassifierCV, or choose one with predict_proba",
        )
    if classifier and isinstance(estimator.classes_, list):
        raise InputError("convert.unsupported", f"cannot convert the {kind}: it answers several questions at once")


def _renamed(model: Any, name: str) -> str:
    """Give the only output a name of ours (skl2onnx calls a regressor's ``variable``)."""
    (output,) = model.graph.output
    for node in model.graph.node:
        for index, produced in enumerate(node.output):
            if produced == output.name:
                node.output[index] = name
        for index, read in enumerate(node.input):
            if read == output.name:
                node.input[index] = name
    output.name = name
    return name


def _scorer(estimator: Any, input_name: str, output_name: str, *, classifier: bool) -> Score:
    ask = estimator.predict_proba if classifier else estimator.predict
    named = hasattr(estimator, "feature_names_in_")

    def score(inputs: Mapping[str, Array]) -> Arrays:
        matrix = inputs[input_name]
        with warnings.catch_warnings():
            if named:  # it was fitted on a table; the matrix has the same columns in the same order
                warnings.filterwarnings("ignore", message="X does not have valid feature names")
            found = np.asarray(ask(matrix), dtype=np.float32)
        return {output_name: found.reshape(len(matrix), -1)}

    return score
