"""The golden file: what its arrays must be, said in one place for those who pack it and for the devices that run it.

It is an ``.npz`` with arrays ``input.<name>`` and ``output.<name>``, one case per leading row. :func:`read` takes it
apart; :func:`check` holds it to the manifest, so that a file which no device could use fails where it is packed and not
a rollout later. Whether a model *answers* as the file says is asked on the device (``skerry_agent.golden``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from skerry_modules import npz
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Tensor
from skerry_modules.tensors import DATATYPES, TensorSpec

Tensors = Mapping[str, Tensor]

_FLOATS: Final = ("FP16", "FP32", "FP64")


def read(path: Path, limits: npz.Limits = npz.LIMITS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(inputs, expected outputs) by tensor name.

    Raises:
        InputError: ``manifest.golden_mismatch``: the file cannot be read within the limits, an array is neither side's,
            or the arrays differ in their number of cases.
    """
    try:
        found = npz.read(path, limits)
    except InputError as error:
        raise InputError("manifest.golden_mismatch", f"cannot use the golden file: {error.message}") from error
    sides: dict[str, dict[str, Tensor]] = {"input": {}, "output": {}}
    for name, tensor in found.items():
        side, dot, key = name.partition(".")
        if side not in sides or not dot:
            raise _mismatch(f"its array {name!r} is neither input.<name> nor output.<name>", array=name)
        sides[side][key] = tensor
    lengths = {tensor.shape[:1] for tensor in found.values()}
    if not all(sides.values()) or len(lengths) != 1 or lengths & {(), (0,)}:
        raise _mismatch("its arrays must all have the same number of cases, at least one, as leading dimension")
    return sides["input"], sides["output"]


def check(manifest: Manifest, path: Path) -> None:
    """Hold a golden file to its manifest: names, datatypes, shapes, the fixed batch, NaN and size.

    Raises:
        InputError: ``manifest.golden_mismatch``, with ``array`` where it is one array's fault.
    """
    inputs, expected = read(path)
    for array, problem in problems(manifest, inputs, expected):
        raise _mismatch(problem, array=array)


def problems(manifest: Manifest, inputs: Tensors, expected: Tensors) -> Iterator[tuple[str, str]]:
    """(array, what is wrong) for all that the manifest does not allow. Expected outputs may be a selection."""
    takes = {spec.name: spec for spec in manifest.inputs}
    gives = {spec.name: spec for spec in manifest.outputs}
    for name in takes.keys() - inputs.keys():
        yield f"input.{name}", f"it has no array 'input.{name}', which the manifest declares"
    for side, tensors, specs in (("input", inputs, takes), ("output", expected, gives)):
        for name, tensor in tensors.items():
            array = f"{side}.{name}"
            if name not in specs:
                known = ", ".join(specs)
                yield array, f"its array {array!r} is no {side} of the manifest, which has {known}"
            else:
                yield from ((array, f"its array {array!r} {problem}") for problem in _against(specs[name], tensor))
    wanted = manifest.golden.argmax if manifest.golden else ""
    if wanted and wanted not in expected:
        yield f"output.{wanted}", f"it has no array 'output.{wanted}', whose arg-max the manifest compares"


def _against(spec: TensorSpec, tensor: Tensor) -> Iterator[str]:
    if tensor.datatype != spec.datatype:
        yield f"is {tensor.datatype}, the manifest says {spec.datatype}"
        return
    batch = next(iter(spec.shape), -1)
    if tensor.shape[1:] != spec.shape[1:] and not spec.accepts((batch, *tensor.shape[1:])):
        yield f"has the shape {list(tensor.shape)}, the manifest says {list(spec.shape)} (any number of cases)"
    elif batch > 0 and tensor.shape[0] % batch:
        yield f"has {tensor.shape[0]} cases, which do not divide by the model's batch of {batch}"
    elif not spec.allow_nan and tensor.datatype in _FLOATS and _has_nan(tensor):
        yield "holds NaN, which the manifest forbids there"


def _has_nan(tensor: Tensor) -> bool:
    import numpy as np  # costs a process 20 MB, and only who packs asks this

    return bool(np.isnan(np.frombuffer(tensor.data, DATATYPES[tensor.datatype])).any())


def _mismatch(problem: str, **data: str) -> InputError:
    return InputError(
        "manifest.golden_mismatch", f"cannot use the golden file: {problem}; write it or the manifest anew", **data
    )
