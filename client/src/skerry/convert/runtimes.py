"""Score a model file here as a device would: one thread, no spinning, 32-bit floats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_modules.errors import InputError, ResourceError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Score = Callable[[Mapping[str, Array]], Arrays]
"""Inputs by name to outputs by name, one row a sample."""

BATCH_ROWS: Final = 32
"""Rows scored at once where the batch may vary; a device's golden test takes as many."""


def missing(package: str, extra: str, what: str) -> ResourceError:
    return ResourceError(
        "resource.missing_dependency", f"cannot {what}: {package} is not installed here; `pip install {extra}`"
    )


def open_onnx(path: Path, outputs: tuple[str, ...]) -> Score:
    """Raises:
    InputError: ``convert.unsupported``: ONNX Runtime cannot load it.
    ResourceError: ``resource.missing_dependency``.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise missing("onnxruntime", "'skerry[convert]'", f"run {path.name}") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common base that it exports
        raise unsupported(f"run {path.name} on ONNX Runtime", error) from error
    names = list(outputs)

    def score(inputs: Mapping[str, Array]) -> Arrays:
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:  # as above
            raise unsupported(f"score with {path.name} on ONNX Runtime", error) from error

    return score


def open_openvino(path: Path, outputs: tuple[str, ...]) -> Score:
    """An ONNX file or OpenVINO IR on the CPU, pinned to f32: bf16 would move a softmax by up to 0.13 unseen.

    Raises:
        InputError: ``convert.unsupported``.
        ResourceError: ``resource.missing_dependency``.
    """
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", "'skerry[convert]'", f"run {path.name}") from error
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": 1,
    }
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(str(path)), "CPU", config)
        request = compiled.create_infer_request()
        ports = {name: compiled.output(name) for name in outputs}
    except Exception as error:  # as above
        raise unsupported(f"run {path.name} on OpenVINO", error) from error

    def score(inputs: Mapping[str, Array]) -> Arrays:
        try:
            results = request.infer(dict(inputs), share_inputs=True, share_outputs=False)
            return {name: np.array(results[port]) for name, port in ports.items()}
        except Exception as error:  # as above
            raise unsupported(f"score with {path.name} on OpenVINO", error) from error

    return score


def batches(inputs: Mapping[str, Array], rows: int) -> Iterator[dict[str, Array]]:
    total = len(next(iter(inputs.values())))
    for start in range(0, total, rows):
        yield {name: array[start : start + rows] for name, array in inputs.items()}


def score_all(
    score: Score, inputs: Mapping[str, Array], rows: int, tell: Callable[[int, int], None] = lambda *_: None
) -> Arrays:
    """Every row, ``rows`` at a time.

    Raises:
        InputError: ``convert.unsupported``: an output is not one row for each sample, so nothing can be compared.
    """
    total = len(next(iter(inputs.values())))
    parts: dict[str, list[Array]] = {}
    done = 0
    for batch in batches(inputs, rows):
        count = len(next(iter(batch.values())))
        for name, array in score(batch).items():
            found = np.asarray(array)
            if found.ndim == 0 or len(found) != count:
                raise InputError(
                    "convert.unsupported",
                    f"cannot compare output {name!r}: it has the shape {list(found.shape)} for {count} inputs, not one "
                    "row for each; leave it out of the manifest's outputs",
                )
            parts.setdefault(name, []).append(found)
        done += count
        tell(done, total)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


_OPERATOR: Final = (
    re.compile(r"OpenVINO does not support the following ONNX operations:\s*([\w.:]+)"),
    re.compile(r"No conversion rule found for operations?:\s*([\w.:]+)"),
    re.compile(r"(?:Could not find an implementation for|No Op registered for)\s+([\w.:]+)"),
    re.compile(r"([\w.]+:[\w.]+)\(-?\d+\) is not a registered function/op"),
)


def unsupported(
    what: str, error: Exception, advice: str = "export the model without it, or choose another engine or precision"
) -> InputError:
    """A tool's refusal as an error of ours, with the operator named where the tool names one."""
    text = str(error)
    operator = next((found[1].rstrip(".:") for pattern in _OPERATOR if (found := pattern.search(text))), "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = f"it has no operator {operator}" if operator else "; ".join(lines[-3:])[:500] or type(error).__name__
    return InputError(
        "convert.unsupported",
        f"cannot {what}: {said}; {advice}",
        operator=operator,
    )
