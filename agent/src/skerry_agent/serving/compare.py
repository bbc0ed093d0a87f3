"""How a shadow's outputs compare with the answer that a client got. In the shadow's worker: the agent has no numpy."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from skerry_agent.golden import errors_of
from skerry_agent.ports import Arrays
from skerry_agent.serving.codec_binary import unpack_bytes
from skerry_modules.manifest import Golden, Manifest
from skerry_modules.messages import Agreement
from skerry_modules.tensors import DATATYPES

_DEFAULT: Final = Golden(file="")


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None
    parameters: dict[str, Any] = {}


class _Answer(msgspec.Struct):
    outputs: list[_Output]


_decoder = msgspec.json.Decoder(_Answer)


def read_answer(json: int, body: bytes) -> Arrays:
    """The outputs of an answer as our own workers write it; ``json`` is the length of its JSON part, −1: all of it."""
    head = body if json < 0 else body[:json]
    offset = max(json, 0)
    found: Arrays = {}
    for output in _decoder.decode(head).outputs:
        size = output.parameters.get("binary_data_size")
        if size is None:
            found[output.name] = _from_json(output)
            continue
        data = body[offset : offset + size]
        offset += size
        if output.datatype == "BYTES":
            found[output.name] = unpack_bytes(output.name, data, output.shape)
        else:
            found[output.name] = np.frombuffer(data, DATATYPES[output.datatype]).reshape(output.shape)
    return found


def _from_json(output: _Output) -> np.ndarray[Any, Any]:
    values = output.data
    if output.datatype == "BYTES":
        array = np.empty(len(values), dtype=object)
        array[:] = [value.encode() for value in values]
        return array.reshape(output.shape)
    if output.datatype.startswith("FP"):  # JSON has no NaN: it was written as null
        values = [np.nan if value is None else value for value in values]
    return np.array(values, dtype=DATATYPES[output.datatype]).reshape(output.shape)


def compare(manifest: Manifest, live: Arrays, outputs: Arrays) -> Agreement:
    """Row by row, over the outputs that the client was given (it may have asked for some only).

    A row agrees where the largest score of each output with scores is at the same place; it is within where each value
    is, by the golden tolerance. An output that the shadow has not, or in another shape, is agreed with nowhere.
    """
    golden = manifest.golden or _DEFAULT
    rows = max((len(array) for array in live.values() if array.ndim), default=1)
    agreed, within = np.ones(rows, dtype=bool), np.ones(rows, dtype=bool)
    scored, worst = False, 0.0
    for name, answered in live.items():
        want, have = answered, outputs.get(name)
        if have is None or have.shape != want.shape:
            agreed[:] = within[:] = False
            continue
        if want.ndim == 0 or len(want) != rows:
            want, have = want.reshape(1, -1), have.reshape(1, -1)
        if not want.size:
            continue
        within &= (errors_of(golden, want, have).reshape(len(want), -1) <= 1.0).all(axis=1)
        if want.dtype.kind != "f":
            continue
        delta = np.abs(have.astype(np.float64) - want.astype(np.float64))
        worst = max(worst, float(np.nan_to_num(delta, nan=0.0, posinf=0.0).max()))
        if want.ndim > 1 and want.shape[-1] > 1 and golden.argmax in ("", name):
            scored = True
            agreed &= (want.argmax(axis=-1) == have.argmax(axis=-1)).reshape(len(want), -1).all(axis=1)
    if not scored:
        agreed = agreed & within
    return Agreement(rows=rows, agreed=int(agreed.sum()), within=int(within.sum()), worst=worst)
