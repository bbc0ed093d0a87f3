"""The operators that profiles say OpenVINO refuses are those that the installed OpenVINO refuses."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
import openvino
import pytest
from onnx import TensorProto, helper

from skerry_modules import profiles

WITH_OPENVINO = [profile for profile in profiles.shipped().values() if profile.engine("openvino")]
LISTED = sorted({name for profile in WITH_OPENVINO for name in profile.engine("openvino").unsupported_operators})  # type: ignore[union-attr]


@cache
def _core() -> Any:
    return openvino.Core()


def refused(domain: str, name: str) -> bool:
    """Whether OpenVINO's front end has no rule for an operator. Wrong inputs fail later, with other words."""
    node = helper.make_node(name, ["x", "x", "x"], ["y"], domain=domain)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 22)]
    if domain:
        imports.append(helper.make_opsetid(domain, 3 if domain == "ai.onnx.ml" else 1))
    model = helper.make_model(helper.make_graph([node], "one", [x], [y]), opset_imports=imports)
    model.ir_version = 10
    full = f"{domain}.{name}" if domain else name
    try:
        _core().read_model(model.SerializeToString(), b"")
    except RuntimeError as error:
        return f"No conversion rule found for operations: {full}" in str(error)
    return False


@pytest.mark.parametrize("operator", LISTED)
def test_a_listed_operator_is_refused(operator: str) -> None:
    domain, _, name = operator.rpartition(".")
    assert refused(domain, name)


def test_no_operator_of_ai_onnx_ml_is_missing_from_the_list() -> None:
    every = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == "ai.onnx.ml"}
    found = {f"ai.onnx.ml.{name}" for name in every if refused("ai.onnx.ml", name)}
    assert found == {name for name in LISTED if name.startswith("ai.onnx.ml.")}


def test_all_profiles_list_the_same() -> None:
    lists = {profile.engine("openvino").unsupported_operators for profile in WITH_OPENVINO}  # type: ignore[union-attr]
    assert len(lists) == 1
