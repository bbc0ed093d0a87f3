"""Bodies and errors of the Open Inference Protocol v2 from the client's side: pure, without numpy.

Tensors travel in the binary form (JSON first, then little-endian bytes), which is several times faster than JSON for
anything larger than a few hundred values. A client repeats the same shapes: the JSON of a request is remembered by
names, datatypes and shapes, and that of an answer by its bytes, so that the common case writes and parses no JSON.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md) and
https://github.com/triton-inference-server/server (docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from skerry_modules.errors import CODES, BugError, InputError, PeerError, ResourceError, SkerryError
from skerry_modules.tensors import TensorSpec

REMEMBERED: Final = 64
"""Heads that are remembered, each way."""
REMEMBER_BYTES: Final = 4096
"""Longer heads are parsed each time."""

LOW_PRIORITY: Final = b"X-Skerry-Priority: low\r\n"
"""A request with this header waits until no other does, and is told how live traffic fares."""

Buffer = bytes | bytearray | memoryview


class Piece(NamedTuple):
    """One tensor by value: ``data`` is little-endian, row-major; ``BYTES`` as length-prefixed (uint32) strings."""

    datatype: str
    shape: tuple[int, ...]
    data: Buffer


class Answer(NamedTuple):
    """What a model answered. ``version`` is the module version that scored."""

    version: str
    outputs: dict[str, Piece]


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a name on a device takes and gives. −1 in a shape: varies."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] = {}


class _Head(msgspec.Struct):
    outputs: list[_Output]
    model_version: str = ""


class _Place(NamedTuple):
    name: str
    datatype: str
    shape: tuple[int, ...]
    start: int
    end: int


class _Plan(NamedTuple):
    version: str
    places: tuple[_Place, ...]
    size: int


class Bodies:
    """Request and answer bodies, with a memory of those that repeat. Safe to share between threads: a race costs one
    more parse, never a wrong answer."""

    def __init__(self) -> None:
        self._requests: dict[Any, bytes] = {}
        self._answers: dict[bytes, _Plan] = {}

    def request(self, inputs: Mapping[str, Piece], outputs: Sequence[str] | None = None) -> bytes:
        """The JSON part of a request whose tensors follow in the order of ``inputs``; all outputs in binary."""
        key = (
            tuple((name, p.datatype, p.shape, len(p.data)) for name, p in inputs.items()),
            outputs and tuple(outputs),
        )
        head = self._requests.get(key)
        if head is None:
            head = _request(inputs, outputs)
            if len(self._requests) >= REMEMBERED:
                self._requests.clear()
            self._requests[key] = head
        return head

    def answer(self, json: int, body: bytearray) -> Answer:
        """An answer's body; the pieces are views of it.

        Args:
            json: length of its JSON part (``Inference-Header-Content-Length``), or −1: all of it.

        Raises:
            PeerError: ``scoring.failed``: what answers does not keep to the protocol.
        """
        head = bytes(body[:json]) if json >= 0 else bytes(body)
        plan = self._answers.get(head)
        if plan is None:
            plan = _plan(head)
            if len(head) <= REMEMBER_BYTES:
                if len(self._answers) >= REMEMBERED:
                    self._answers.clear()
                self._answers[head] = plan
        if len(body) - len(head) != plan.size:
            raise _broken(f"{len(body) - len(head)} bytes of tensors came, {plan.size} were announced")
        view, offset = memoryview(body), len(head)
        return Answer(
            plan.version,
            {p.name: Piece(p.datatype, p.shape, view[offset + p.start : offset + p.end]) for p in plan.places},
        )


def _request(inputs: Mapping[str, Piece], outputs: Sequence[str] | None) -> bytes:
    body: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "shape": piece.shape,
                "datatype": piece.datatype,
                "parameters": {"binary_data_size": len(piece.data)},
            }
            for name, piece in inputs.items()
        ],
        "parameters": {"binary_data_output": True},
    }
    if outputs:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    return msgspec.json.encode(body)


def region_request(inputs: Mapping[str, Piece], outputs: Sequence[str] | None, region: str, turn: int) -> bytes:
    """A request whose tensors are in shared memory, one after the other. ``turn`` makes each body another one: a body
    that ended two workers is refused from then on, and these are told apart by nothing else."""
    start, listed = 0, []
    for name, piece in inputs.items():
        parameters = {
            "shared_memory_region": region,
            "shared_memory_offset": start,
            "shared_memory_byte_size": len(piece.data),
        }
        listed.append({"name": name, "shape": piece.shape, "datatype": piece.datatype, "parameters": parameters})
        start += len(piece.data)
    body: dict[str, Any] = {"inputs": listed, "parameters": {"binary_data_output": True, "skerry_turn": turn}}
    if outputs:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    return msgspec.json.encode(body)


def _plan(head: bytes) -> _Plan:
    try:
        found = msgspec.json.decode(head, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _broken(str(error)) from error
    places, start = [], 0
    for output in found.outputs:
        size = output.parameters.get("binary_data_size")
        if type(size) is not int or size < 0:
            raise _broken(f"output {output.name!r} did not come in binary")
        places.append(_Place(output.name, output.datatype, output.shape, start, start + size))
        start += size
    return _Plan(found.model_version, tuple(places), start)


def _broken(problem: str) -> PeerError:
    return PeerError(
        "scoring.failed", f"cannot read the answer: {problem}; does an Open Inference Protocol server answer there?"
    )


def path(model: str, version: str | int | None = None, action: str = "") -> str:
    """The address of a model, of one of its versions, or of an ``action`` (infer, ready) on it."""
    found = f"/v2/models/{quote(model, safe='')}"
    if version not in (None, ""):
        found += f"/versions/{quote(str(version), safe='')}"
    return f"{found}/{action}" if action else found


def metadata(body: bytes | bytearray) -> Metadata:
    """Raises PeerError ``scoring.failed``."""
    try:
        return msgspec.json.decode(body, type=Metadata)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _broken(str(error)) from error


_CODE_OF: Final = {
    400: "request.invalid",
    404: "module.unknown",
    413: "request.too_large",
    429: "scoring.overloaded",
    503: "scoring.not_ready",
}


def error_of(status: int, code: str, body: bytes | bytearray) -> SkerryError:
    """The error that a server answered with: its own code where it says one, else by the status."""
    try:
        message = str(msgspec.json.decode(body, type=dict[str, Any])["error"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        message = f"cannot score: the server answered {status}: {bytes(body[:200]).decode(errors='replace')}"
    if code not in CODES:
        code = _CODE_OF.get(status, "request.invalid" if status < 500 else "scoring.failed")
    if code == "internal.bug":
        return BugError(code, message)
    if status in (429, 503):
        return ResourceError(code, message)
    return InputError(code, message) if status < 500 else PeerError(code, message)


def retry_delay(status: int, code: str, retry_after: str, attempt: int, remaining: float) -> float | None:
    """Seconds to wait before a request is sent again; None: give up and raise.

    Only what may pass by itself is tried again: a full queue (429) and a version that starts (503). A deadline that
    passed would pass again.

    Args:
        retry_after: the header's value, in seconds; empty or unreadable: 50 ms, doubled with each attempt.
        attempt: 0 after the first.
        remaining: seconds left until the caller's own deadline.
    """
    if status not in (429, 503) or code == "scoring.deadline":
        return None
    delay = float(retry_after) if retry_after.isdigit() and len(retry_after) < 7 else 0.05 * 2 ** min(attempt, 6)
    return delay if delay < remaining else None
