"""ONNX to OpenVINO IR. A QDQ model keeps its int8: OpenVINO reads the ranges and runs them in int8 kernels."""

from __future__ import annotations

from pathlib import Path

from skerry.convert.runtimes import missing, unsupported
from skerry_modules import onnx_model
from skerry_modules.errors import InputError


def to_ir(source: Path, target: Path, *, half: bool = False) -> None:
    """Write ``target`` (.xml) and its weights beside it (.bin).

    Args:
        source: an ONNX file.
        target: the ``.xml`` to write.
        half: keep weights as 16-bit floats: half the size, computed in 32 bits all the same. OpenVINO's own default
            is to do so unasked, which is why it is said here both ways.

    Raises:
        InputError: ``convert.unsupported`` with the operator that OpenVINO does not have.
        ResourceError: ``resource.missing_dependency``.
    """
    check_operators(source)
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", "'skerry[convert]'", "convert to OpenVINO IR") from error
    try:
        openvino.save_model(openvino.convert_model(str(source)), str(target), compress_to_fp16=half)
    except Exception as error:  # its errors have no common base that it exports
        raise unsupported("convert the model to OpenVINO IR", error) from error


def check_operators(source: Path) -> None:
    """Refuse what OpenVINO cannot have, before it says so in its own words.

    Raises:
        InputError: ``convert.unsupported``.
    """
    foreign = [name for name in onnx_model.read(source).operators if name.startswith("ai.onnx.ml.")]
    if foreign:
        raise InputError(
            "convert.unsupported",
            f"cannot convert the model to OpenVINO IR: OpenVINO has no operator {', '.join(foreign)}; "
            "convert it to onnx, which runs trees and the like as they are",
            operator=foreign[0],
        )
