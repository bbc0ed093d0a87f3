"""PyTorch programs exported by ``torch.export`` to ONNX, by torch's own exporter.

torch is not among the extras: it is larger than all the rest together, and only this reads its files. Where it is not
installed, export to ONNX where it is (``torch.onnx.export``) and convert that.

``torch.export.load`` unpickles weights and constants, so a ``.pt2`` is a program as much as a pickle is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry.convert.runtimes import Array, Arrays, Score, missing, unsupported
from skerry_modules.errors import InputError

SUFFIX: Final = ".pt2"
OPSET: Final = 18
"""The oldest that torch's exporter writes without translating back."""
HOW: Final = (
    "`pip install torch onnxscript` (https://pytorch.org/get-started), or run torch.onnx.export where torch is "
    "and convert the ONNX"
)


def load(path: Path, *, trust: bool) -> Any:
    """The exported program of a ``.pt2``.

    Raises:
        InputError: ``convert.untrusted`` unless trusted, ``convert.unsupported``.
        ResourceError: ``resource.missing_dependency`` with what to install.
    """
    if not trust:
        raise InputError(
            "convert.untrusted",
            f"cannot load {path.name}: torch.export.load unpickles parts of it, and a pickle is a program that runs "
            "when loaded. If it is yours, say --trust-pickle; or export it to ONNX and convert that",
        )
    torch = _torch(f"load {path.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations of its own format
            return torch.export.load(str(path))
    except Exception as error:  # torch raises what it likes
        raise unsupported(
            f"load {path.name} as an exported program", error, "write it with torch.export.save"
        ) from error


def export(program: Any, target: Path) -> tuple[tuple[str, ...], Score]:
    """Write an exported program as ONNX.

    Returns:
        The outputs' names, and a function that scores with the program itself.

    Raises:
        InputError: ``convert.unsupported``.
        ResourceError: ``resource.missing_dependency``.
    """
    torch = _torch("convert an exported program")
    if not hasattr(program, "module") or not hasattr(program, "graph_signature"):
        raise InputError(
            "convert.unsupported",
            f"cannot convert a {type(program).__name__}: give torch.export.export(model.eval(), example_inputs)",
        )
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            made = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, verbose=False)
            made.save(str(target), external_data=False)
    except ImportError as error:
        raise missing("onnxscript", "onnxscript", "export with torch") from error
    except Exception as error:  # as above
        raise unsupported("export the program to ONNX", error) from error
    finally:
        logger.setLevel(level)
    from skerry_modules import onnx_model

    model = onnx_model.read(target)
    inputs, outputs = (tuple(spec.name for spec in specs) for specs in (model.inputs, model.outputs))
    return outputs, _scorer(torch, program, inputs, outputs)


def _scorer(torch: Any, program: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Score:
    module = program.module()

    def score(arrays: Mapping[str, Array]) -> Arrays:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the converted model is scored; threads that spin would slow what is timed next
        try:
            with torch.no_grad():
                found = module(*(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in inputs))
        finally:
            torch.set_num_threads(threads)
        flat = list(found) if isinstance(found, (tuple, list)) else [found]
        return {name: tensor.numpy() for name, tensor in zip(outputs, flat, strict=True)}

    return score


def _torch(what: str) -> Any:
    try:
        import torch
    except ImportError as error:
        made = missing("torch", "torch", what)
        raise type(made)(made.code, f"cannot {what}: torch is not installed here; {HOW}") from error
    return torch
