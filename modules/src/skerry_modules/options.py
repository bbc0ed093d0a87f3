"""What a manifest may set under ``[options]``, by engine.

An option that no engine reads would be without effect and without a word, so a misspelt one is refused where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args, get_type_hints

import msgspec

PROVIDER: Final = "ExecutionProvider"
"""How the names of ONNX Runtime's execution providers end; a manifest may leave it out."""

_NAMES: Final = (
    "ACL ArmNN Azure CANN CPU CUDA CoreML Dml Dnnl MIGraphX Nnapi NvTensorRTRTX OpenVINO QNN ROCM Rknpu Tensorrt "
    "VSINPU VitisAI WebGpu Xnnpack"
)
_PROVIDERS: Final[dict[str, str]] = {name.lower(): name + PROVIDER for name in re.findall(r"\S+", _NAMES)}
_DEVICE = re.compile(r"((CPU|GPU|NPU)(\.[0-9]+)*|(AUTO|HETERO|MULTI|BATCH)(:.+)?)")


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class OnnxOptions(_Options, frozen=True, kw_only=True):
    """Of the engine ``onnx``."""

    provider: str = ""  # execution providers, the best first, as "TensorRT,CUDA"; empty: the firmware profile's
    device: str = "CPU"  # of the provider OpenVINO
    precision: Literal["f32", "f16"] = "f32"  # of the providers TensorRT and OpenVINO
    compile: bool = True  # large models to an optimised one, once on each device
    optimization: Literal["all", "extended", "basic", "none"] = "all"
    threads: int | None = None  # in place of resources.threads


class OpenVinoOptions(_Options, frozen=True, kw_only=True):
    """Of the engine ``openvino``."""

    device: str = ""  # the best first, as "NPU,GPU"; empty: the firmware profile's
    precision: Literal["f32", "f16", "bf16"] = "f32"
    threads: int | None = None


class PynqOptions(_Options, frozen=True, kw_only=True):
    """Of the engine ``pynq``.

    ``core`` is the IP that must be told how many rows come and started for each transfer (an HLS core: ``rows`` at
    ``rows_register``, then ``ap_start``); empty where the design runs freely. A design with a register that identifies
    it names ``identity_register`` (its offset in ``core``) and ``identity``.
    """

    dma: str = "axi_dma_0"
    core: str = ""
    rows_register: int = 0x10
    identity_register: int = -1  # −1: the design has none
    identity: int = 0
    rows_per_transfer: int = 64
    row_alignment: int = 4  # bytes that each row on the stream is padded to
    input_type: Literal["int8", "uint8", "int16", "uint16", "int32"] = "int8"
    input_scale: float = 1.0  # real = scale × (integer − zero)
    input_zero: int = 0
    output_type: Literal["int8", "uint8", "int16", "uint16", "int32"] = "int32"
    output_scale: float = 1.0
    output_zero: int = 0
    softmax: bool = False  # over the last axis, after scaling
    transfer_timeout_s: float = 2.0
    lock_timeout_s: float = 10.0  # how long to wait for the version before to leave the board


_OF: Final[dict[str, type[_Options]]] = {"onnx": OnnxOptions, "openvino": OpenVinoOptions, "pynq": PynqOptions}


def problems(engine: str, options: Mapping[str, Any], where: str = "options") -> list[tuple[str, str]]:
    """What is wrong with an engine's options: (field, problem) pairs. A ``python`` script's are its own affair."""
    kind = _OF.get(engine)
    if kind is None:
        return []
    hints = get_type_hints(kind)
    found = [
        (f"{where}.{name}", f"the engine {engine} has no such option; it has {', '.join(sorted(hints))}")
        for name in options
        if name not in hints
    ]
    for name, value in options.items():
        problem = _problem(name, value, hints[name], engine) if name in hints else ""
        if problem:
            found.append((f"{where}.{name}", problem))
    return found


def _problem(name: str, value: Any, hint: Any, engine: str) -> str:
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        choices = [choice for choice in get_args(hint) if isinstance(choice, str)]
        return f"{value!r} is not one of {', '.join(choices)}" if choices else str(error)
    if name == "threads" and value < 1:
        return "must be at least 1"
    parts = names(value) if name in ("device", "provider") else ()
    if name == "provider":
        unknown = [part for part in parts if not provider(part).endswith(PROVIDER)]
        known = ", ".join(one.removesuffix(PROVIDER) for one in _PROVIDERS.values())
        return f"{unknown[0]!r} is no execution provider; there are {known}" if unknown else ""
    unknown = [part for part in parts if not _DEVICE.fullmatch(part)]
    return f"{unknown[0]!r} is no device of OpenVINO; there are CPU, GPU, NPU and AUTO" if unknown else ""


def names(text: str) -> tuple[str, ...]:
    """The parts of a list such as ``"NPU, GPU"``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def provider(name: str) -> str:
    """ONNX Runtime's own name of an execution provider: ``cuda`` is ``CUDAExecutionProvider``."""
    return _PROVIDERS.get(name.lower().removesuffix(PROVIDER.lower()), name)
