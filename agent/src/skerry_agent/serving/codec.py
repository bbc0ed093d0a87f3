"""The Open Inference Protocol's request and response bodies, inside a worker: JSON, binary tensors, and both mixed.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md) and
https://github.com/triton-inference-server/server (docs/protocol/extension_binary_data.md).

A client that sends binary tensors repeats the same JSON header byte for byte, so a header that was checked once is
remembered as a *plan* (where each tensor lies), and the same for the answer's header: the common case parses no JSON.

Does not handle: the classification, schedule-policy and shared-memory extensions of Triton (its regions are registered;
``regions`` has a way without).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from skerry_agent.ports import Arrays
from skerry_agent.serving import regions
from skerry_agent.serving.codec_binary import as_it_is, check_nan, holds_nan, to_binary, unpack_bytes
from skerry_agent.serving.codec_json import (
    DATA,
    PLAN_BYTES,
    Input,
    around_values,
    bad,
    flat,
    flats,
    from_json,
    quick_reader,
    to_json,
)
from skerry_modules.errors import InputError
from skerry_modules.manifest import Manifest
from skerry_modules.tensors import DATATYPES, ITEM_BYTES, TensorSpec, datatype_of

Array = np.ndarray[Any, Any]

PLANS: Final = 64
"""Headers that are remembered."""
MAX_RANK: Final = 32
_RECORD_BYTES: Final = 16 * 1024
"""Larger bodies are not read as one: what that copies would cost more than it saves."""


class _Wanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Body(msgspec.Struct):
    inputs: list[Input]
    id: str = ""
    outputs: list[_Wanted] | None = None
    parameters: dict[str, Any] = {}


class _Place(NamedTuple):
    """A binary tensor within the body, counted from the end of the JSON."""

    name: str
    datatype: str
    dtype: np.dtype[Any] | None  # None: BYTES
    shape: tuple[int, ...]
    start: int
    size: int
    check_nan: bool


class Plan(NamedTuple):
    """A request's header, understood."""

    places: tuple[_Place, ...]
    literal: Arrays  # inputs that stood in the JSON
    outputs: tuple[tuple[str, bool], ...]  # (name, binary), in the order to answer
    id: str
    rows: int
    record: np.dtype[Any] | None = None  # a whole body, where several can be read as one array


class _Form(NamedTuple):
    """A request in JSON without the values of its one input."""

    given: Input
    plan: Plan
    read: Callable[[bytes], Array | None] | None


class Request(NamedTuple):
    plan: Plan
    inputs: Arrays


class Answer(NamedTuple):
    json: int  # length of the JSON part; -1: all is JSON
    body: bytes


class Codec:
    """Bodies of one model version."""

    def __init__(self, manifest: Manifest, version: int) -> None:
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._outputs = {spec.name: spec for spec in manifest.outputs}
        self._version = str(version)
        self._decoder = msgspec.json.Decoder(_Body)
        self._plans: dict[bytes, Plan] = {}
        self._forms: dict[tuple[bytes, bytes], _Form] = {}
        self._heads: dict[tuple[Any, ...], bytes] = {}
        self._last: tuple[str, Plan | None, Any, Any, bytes] = ("", None, None, None, b"")  # of the answer before
        self._around: tuple[str, str, Any, Any, bytes, bytes] = ("", "", None, None, b"", b"")  # of that in JSON

    # -- requests

    def parse(self, body: bytes, json: int) -> Request:
        """A request body into arrays.

        Args:
            body: as it came.
            json: length of its JSON part where binary tensors follow (the header
                ``Inference-Header-Content-Length``), or −1.

        Raises:
            InputError: ``scoring.*`` with what to mend.
        """
        if json < 0:
            plan = self._repeated(body) or self._plan(body, 0)
            return Request(plan, plan.literal)
        if json > len(body):
            raise InputError(
                "scoring.bad_data",
                f"cannot read the request: its header says {json} bytes of JSON but the body has {len(body)}; "
                "send the whole body",
            )
        head = body[:json]
        plan = self._plans.get(head)  # type: ignore[assignment]
        if plan is None:
            plan = self._plan(head, len(body) - json)
            if json <= PLAN_BYTES and not plan.literal and not plan.id:
                plan = plan._replace(record=_record(plan, json, len(body)))
                if len(self._plans) >= PLANS:
                    self._plans.clear()
                self._plans[head] = plan
        return Request(plan, self._cut(plan, body, json))

    def parse_alike(self, bodies: Sequence[bytes], json: int) -> Request | None:
        """Requests that differ in the values of their tensors alone, read as one.

        Args:
            bodies: one or more; ``json`` is that of each.

        Returns:
            The plan of each, and the inputs of all, one after the other. None: they are not so alike, or something is
            wrong with one of them; :meth:`parse` says what.
        """
        if json < 0:
            return self._repeated_alike(bodies)
        first = bodies[0]
        head, size = first[:json], len(first)
        plan = self._plans.get(head)
        if plan is None or plan.record is None or plan.record.itemsize != size:
            return None
        for body in bodies:
            if len(body) != size or not body.startswith(head):
                return None
        records = np.frombuffer(b"".join(bodies), plan.record)
        inputs: Arrays = {}
        for place in plan.places:
            inputs[place.name] = array = records[place.name].reshape((-1, *place.shape[1:]))
            if place.check_nan and holds_nan(array):
                return None
        return Request(plan, inputs)

    def _plan(self, head: bytes, tail: int) -> Plan:
        try:
            request = self._decoder.decode(head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(
                "scoring.invalid_json", f"cannot read the request: {error}; send an Open Inference Protocol v2 body"
            ) from error
        self._check_names(request)
        places: list[_Place] = []
        literal: Arrays = {}
        start = rows = 0
        for given in request.inputs:
            spec = self._inputs[given.name]
            check_declared(given, spec)
            region = "shared_memory_region" in given.parameters
            size = None if region else binary_size(given)
            if region:
                literal[given.name] = array = _from_region(given)
                if not spec.allow_nan:
                    check_nan(given.name, array)
            elif size is None:
                literal[given.name] = from_json(given)
            else:
                places.append(_place(given, spec, start, size))
                start += size
            rows = max(rows, given.shape[0] if given.shape else 1)
        if start > tail or (tail and start != tail):
            raise InputError(
                "scoring.bad_data",
                f"cannot read the request: its binary_data_size sum to {start} bytes but {tail} bytes follow the JSON; "
                "send all tensors, in the order of inputs",
            )
        plan = Plan(tuple(places), literal, self._wanted(request), request.id, rows)
        if len(literal) == len(request.inputs) == 1 and not plan.id:
            self._learn(head, request.inputs[0], plan)
        return plan

    def _learn(self, body: bytes, given: Input, plan: Plan) -> None:
        """Remember a request in JSON but for the values of its one input."""
        found = around_values(body)
        if found is None or found[1] != bytes(given.data) or given.datatype == "BYTES":
            return
        around = b"".join(found[0])
        if around.count(DATA) == 1 and b"\\" not in around:  # so it is the input's, and no other of that name
            if len(self._forms) >= PLANS:
                self._forms.clear()
            kept = msgspec.structs.replace(given, data=msgspec.Raw())
            self._forms[found[0]] = _Form(kept, plan._replace(literal={}), quick_reader(kept))

    def _repeated(self, body: bytes) -> Plan | None:
        """The plan of a request in JSON that differs from an earlier one in its values alone: only they are parsed."""
        found = around_values(body)
        form = self._forms.get(found[0]) if found is not None else None
        if form is None or found is None:
            return None
        array = None
        if form.read is not None:
            array = form.read(found[1])
        else:
            with contextlib.suppress(InputError):
                array = flat(form.given, found[1])
        if array is None:
            return None  # parsed whole, it gives the error that fits
        return Plan((), {form.given.name: array}, form.plan.outputs, "", form.plan.rows)

    def _repeated_alike(self, bodies: Sequence[bytes]) -> Request | None:
        """As :meth:`_repeated` for several of one form: their values are parsed at once."""
        found = [around_values(body) for body in bodies]
        around = found[0][0] if found[0] is not None else None
        form = self._forms.get(around) if around is not None else None
        if form is None or not form.given.shape or len(bodies[0]) > _RECORD_BYTES:
            return None
        lists = [one[1] for one in found if one is not None and one[0] == around]
        array = flats(form.given, lists) if len(lists) == len(bodies) else None
        if array is None:
            return None
        return Request(form.plan, {form.given.name: array})

    def _check_names(self, request: _Body) -> None:
        names = [given.name for given in request.inputs]
        if len(names) != len(set(names)) or set(names) != set(self._inputs):
            raise InputError(
                "scoring.unknown_input",
                f"cannot score: the request gives inputs {', '.join(map(repr, names)) or '(none)'}; "
                f"the model takes each of {', '.join(map(repr, self._inputs))} once",
            )

    def _wanted(self, request: _Body) -> tuple[tuple[str, bool], ...]:
        binary = request.parameters.get("binary_data_output", False) is True
        if not request.outputs:
            return tuple((name, binary) for name in self._outputs)
        wanted = []
        for output in request.outputs:
            if output.name not in self._outputs:
                raise InputError(
                    "scoring.unknown_output",
                    f"cannot score: the request asks for output {output.name!r}; "
                    f"the model gives {', '.join(map(repr, self._outputs))}",
                )
            wanted.append((output.name, output.parameters.get("binary_data", binary) is True))
        return tuple(dict(wanted).items())

    def _cut(self, plan: Plan, body: bytes, json: int) -> Arrays:
        arrays = dict(plan.literal)
        for place in plan.places:
            start = json + place.start
            if start + place.size > len(body):
                raise InputError(
                    "scoring.bad_data",
                    f"cannot read input {place.name!r}: its {place.size} bytes are cut short; send the whole body",
                )
            if place.dtype is None:
                arrays[place.name] = unpack_bytes(place.name, body[start : start + place.size], place.shape)
                continue
            array: Array = np.ndarray(place.shape, place.dtype, body, start)
            if place.check_nan:
                check_nan(place.name, array)
            arrays[place.name] = array
        if plan.places and json + plan.places[-1].start + plan.places[-1].size != len(body):
            raise InputError(
                "scoring.bad_data", "cannot read the request: bytes follow the last tensor; send what inputs declare"
            )
        return arrays

    # -- answers

    def format(self, name: str, plan: Plan, outputs: Arrays) -> Answer:
        """A response body.

        Args:
            name: the model or endpoint that was asked, echoed as ``model_name``.

        Raises:
            InputError: ``scoring.bad_data``: a ``BYTES`` output is no UTF-8 and must be asked for in binary.
            KeyError: the model did not give a declared output (the caller reports the model).
        """
        last = self._last
        if plan is last[1] and name == last[0]:  # one client that asks on, or many alike
            array = outputs[plan.outputs[0][0]]
            if array.dtype == last[2] and array.shape == last[3]:
                return Answer(len(last[4]), last[4] + array.tobytes())
        if not all(binary for _, binary in plan.outputs):
            return self._format_mixed(name, plan, outputs)
        arrays = [outputs[key] for key, _ in plan.outputs]
        parts = [to_binary(array) for array in arrays]
        key = (
            name,
            plan.id,
            tuple((array.dtype.str, array.shape, len(part)) for array, part in zip(arrays, parts, strict=True)),
            plan.outputs,
        )
        head = self._heads.get(key)
        if head is None:
            head = self._head(name, plan, outputs, dict(zip((k for k, _ in plan.outputs), parts, strict=True)))
            if not plan.id:
                if len(self._heads) >= PLANS:
                    self._heads.clear()
                self._heads[key] = head
        if len(arrays) == 1 and not plan.id and not plan.literal and as_it_is(arrays[0].dtype):
            self._last = (name, plan, arrays[0].dtype, arrays[0].shape, head)
        return Answer(len(head), b"".join((head, *parts)))

    def format_alike(self, name: str, plan: Plan, outputs: Arrays, count: int) -> list[Answer]:
        """As :meth:`format` for requests of one plan that were scored together.

        Args:
            outputs: the whole batch, one entry per row, of ``count`` requests of ``plan.rows`` rows each.
        """
        rows, (key, binary) = plan.rows, plan.outputs[0]
        array = outputs[key]
        if len(plan.outputs) > 1 or binary or array.dtype.kind in "OSU" or not array.size:
            starts = range(0, rows * count, rows)
            return [self.format(name, plan, {k: a[at : at + rows] for k, a in outputs.items()}) for at in starts]
        # One output in JSON: only the values differ.
        values, encode = array.reshape(count, -1).tolist(), msgspec.json.encode
        before, _, after = self.format(name, plan, {key: array[:rows]}).body.rpartition(encode(values[0]))
        return [Answer(-1, before + encode(each) + after) for each in values]

    def _format_mixed(self, name: str, plan: Plan, outputs: Arrays) -> Answer:
        if len(plan.outputs) == 1 and not plan.id:
            return Answer(-1, self._format_values(name, plan, outputs))
        parts = {key: to_binary(outputs[key]) for key, binary in plan.outputs if binary}
        head = self._head(name, plan, outputs, parts)
        return Answer(len(head), b"".join((head, *parts.values()))) if parts else Answer(-1, head)

    def _format_values(self, name: str, plan: Plan, outputs: Arrays) -> bytes:
        """An answer of one output in JSON: what stands around its values is mostly that of the answer before."""
        key = plan.outputs[0][0]
        array, last = outputs[key], self._around
        if name == last[0] and key == last[1] and array.dtype == last[2] and array.shape == last[3]:
            return b"".join((last[4], msgspec.json.encode(to_json(key, array)), last[5]))
        body = self._head(name, plan, outputs, {})
        before, _, after = body.rpartition(msgspec.json.encode(to_json(key, array)))
        self._around = (name, key, array.dtype, array.shape, before, after)
        return body

    def _head(self, name: str, plan: Plan, outputs: Arrays, parts: dict[str, bytes]) -> bytes:
        listed = []
        for key, binary in plan.outputs:
            array = outputs[key]
            one: dict[str, Any] = {"name": key, "datatype": datatype_of(array.dtype), "shape": array.shape}
            if binary:
                one["parameters"] = {"binary_data_size": len(parts[key])}
            else:
                one["data"] = to_json(key, array)
            listed.append(one)
        body: dict[str, Any] = {"model_name": name, "model_version": self._version, "outputs": listed}
        if plan.id:
            body["id"] = plan.id
        return msgspec.json.encode(body)


def _record(plan: Plan, json: int, size: int) -> np.dtype[Any] | None:
    """A body of so many bytes as one element of an array; None where bodies cannot be read together."""
    places = plan.places
    if not places or size > _RECORD_BYTES or plan.rows == 0:
        return None
    if any(place.dtype is None or place.shape[:1] != (plan.rows,) for place in places):
        return None
    return np.dtype(
        {
            "names": [place.name for place in places],
            "formats": [(place.dtype, place.shape) for place in places],
            "offsets": [json + place.start for place in places],
            "itemsize": size,
        }
    )


def check_declared(given: Input, spec: TensorSpec) -> None:
    """Whether a declared datatype and shape are the model's."""
    if given.datatype != spec.datatype:
        raise InputError(
            "scoring.wrong_datatype",
            f"cannot score: input {given.name!r} is {given.datatype} but the model takes {spec.datatype}",
        )
    if len(given.shape) > MAX_RANK or any(size < 0 for size in given.shape) or not spec.accepts(given.shape):
        raise InputError(
            "scoring.wrong_shape",
            f"cannot score: input {given.name!r} has shape {list(given.shape)} but the model takes {list(spec.shape)} "
            "(-1: any)",
        )


def binary_size(given: Input) -> int | None:
    """The declared bytes of a tensor that follows the JSON; None: its data stands in the JSON."""
    size = given.parameters.get("binary_data_size")
    if size is None:
        if not bytes(given.data):
            raise bad(given.name, "it has neither data nor binary_data_size")
        return None
    if bytes(given.data):
        raise bad(given.name, "it has both data and binary_data_size")
    if type(size) is not int or size < 0:
        raise bad(given.name, f"its binary_data_size {size!r} is not a whole number")
    return size


def _from_region(given: Input) -> Array:
    if bytes(given.data) or "binary_data_size" in given.parameters:
        raise bad(given.name, "it has a shared_memory_region and data besides")
    if given.datatype == "BYTES":
        raise bad(given.name, "BYTES cannot come in shared memory")
    return regions.read(given.name, given.parameters, np.dtype(DATATYPES[given.datatype]), given.shape)


def _place(given: Input, spec: TensorSpec, start: int, size: int) -> _Place:
    if given.datatype == "BYTES":
        return _Place(given.name, "BYTES", None, given.shape, start, size, False)
    needed = math.prod(given.shape) * ITEM_BYTES[given.datatype]
    if size != needed:
        raise bad(given.name, f"its shape needs {needed} bytes but binary_data_size says {size}")
    dtype = np.dtype(DATATYPES[given.datatype])
    return _Place(given.name, given.datatype, dtype, given.shape, start, size, not spec.allow_nan and dtype.kind == "f")
