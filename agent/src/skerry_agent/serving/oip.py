"""The Open Inference Protocol's addresses, statuses and metadata: what the front answers without a worker.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md). An error's body is
exactly ``{"error": "…"}``; our stable code travels in the header ``X-Skerry-Code``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec

from skerry_modules.errors import InputError, SkerryError
from skerry_modules.manifest import Manifest

STATUS_OF: Final[dict[str, int]] = {
    "scoring.invalid_json": 400,
    "scoring.unknown_input": 400,
    "scoring.unknown_output": 400,
    "scoring.wrong_shape": 400,
    "scoring.wrong_datatype": 400,
    "scoring.bad_data": 400,
    "request.invalid": 400,
    "module.unknown": 404,
    "request.not_found": 404,
    "request.method_not_allowed": 405,
    "request.too_large": 413,
    "scoring.overloaded": 429,
    "scoring.failed": 500,
    "scoring.quarantined": 500,
    "internal.bug": 500,
    "scoring.not_ready": 503,
    "scoring.deadline": 503,
}
"""The HTTP status of each code that scoring can end with."""

REASONS: Final[dict[int, bytes]] = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}

PLATFORMS: Final = {
    "onnx": "onnx_onnxv1",
    "openvino": "openvino_ir",
    "pynq": "pynq_overlay",
    "python": "python_script",
    "pipeline": "skerry_pipeline",
}


EXTENSIONS: Final = ("binary_tensor_data", "model_repository")


class Target(NamedTuple):
    """What an address means. ``verb``: a key of :data:`METHOD_OF`, or empty: nothing."""

    verb: str
    model: str = ""
    version: str = ""


NOWHERE: Final = Target("")
_FIXED: Final = {
    ("v2",): Target("server"),
    ("v2", "health", "live"): Target("live"),
    ("v2", "health", "ready"): Target("ready"),
    ("v2", "repository", "index"): Target("index"),
}
_ACTIONS: Final[dict[tuple[str, ...], str]] = {(): "model", ("ready",): "model_ready", ("infer",): "infer"}
_CONTROLS: Final[dict[tuple[str, ...], str]] = {("load",): "load", ("unload",): "unload"}
METHOD_OF: Final = {
    "server": b"GET",
    "live": b"GET",
    "ready": b"GET",
    "model": b"GET",
    "model_ready": b"GET",
    "infer": b"POST",
    "index": b"POST",
    "load": b"POST",
    "unload": b"POST",
}


@lru_cache(maxsize=512)
def target(path: bytes) -> Target:
    """An address (with or without a query) into what it means."""
    text = path.partition(b"?")[0].decode("latin-1")
    parts = tuple(unquote(part) for part in text.split("/")[1:])
    if parts and not parts[-1]:  # /v2/ and /v2 are the same
        parts = parts[:-1]
    if parts in _FIXED:
        return _FIXED[parts]
    actions = _ACTIONS
    if parts[:2] == ("v2", "repository"):
        actions, parts = _CONTROLS, ("v2", *parts[2:])
    if len(parts) < 3 or parts[:2] != ("v2", "models"):
        return NOWHERE
    model, rest, version = parts[2], parts[3:], ""
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    verb = actions.get(rest)
    return Target(verb, model, version) if verb else NOWHERE


_TIMEOUT: Final = b'"timeout"'
_EDGE: Final = 16 * 1024
"""Of a longer JSON only so much is searched at either end: values stand between, and this is the agent's own thread."""


class _Asked(msgspec.Struct):
    parameters: dict[str, msgspec.Raw] = {}


_asked = msgspec.json.Decoder(_Asked).decode
_whole = msgspec.json.Decoder(int).decode


def timeout_s(body: bytes, json: int) -> float | None:
    """The deadline that a request's ``parameters.timeout`` asks for, as Triton's schedule policy extension has it.

    Most requests have none, and cost one search for the word.

    Args:
        json: length of the JSON part, or −1: all of it.

    Returns:
        Seconds (the protocol's value is in microseconds); None: it has none, or 0.

    Raises:
        InputError: ``request.invalid``: it is no whole number of microseconds.
    """
    end = json if json >= 0 else len(body)
    if end <= 2 * _EDGE:
        if body.find(_TIMEOUT, 0, end) < 0:
            return None
    elif body.find(_TIMEOUT, 0, _EDGE) < 0 and body.find(_TIMEOUT, end - _EDGE, end) < 0:
        return None
    try:
        found = _asked(body[:json] if json >= 0 else body).parameters.get("timeout")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the worker says what is wrong with it
    return None if found is None else _microseconds(bytes(found))


def _microseconds(raw: bytes) -> float | None:
    try:
        value = _whole(raw)
    except msgspec.DecodeError:
        value = -1
    if value < 0:
        raise InputError(
            "request.invalid",
            f"cannot read parameters.timeout {raw[:40].decode(errors='replace')}: give whole microseconds, as 250000",
        )
    return value / 1e6 or None


def status_of(error: SkerryError) -> int:
    """The HTTP status of any error: by its code, else by whose fault it is."""
    status = STATUS_OF.get(error.code)
    if status is None:
        fault = error.code.partition(".")[0]
        status = 400 if fault == "trust" or error.family == "input" else 503 if error.family == "resource" else 500
    return status


def error_body(message: str) -> bytes:
    """Exactly the protocol's error."""
    return msgspec.json.encode({"error": message})


def server_metadata(agent: str) -> bytes:
    return msgspec.json.encode({"name": "skerry", "version": agent, "extensions": EXTENSIONS})


def model_metadata(name: str, versions: list[int], manifest: Manifest) -> bytes:
    """Names, datatypes and shapes (−1: varies) as the manifest declares them, which loading has checked."""
    tensors: dict[str, list[dict[str, Any]]] = {
        side: [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]
        for side, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs))
    }
    return msgspec.json.encode(
        {
            "name": name,
            "versions": [str(version) for version in versions],
            "platform": PLATFORMS[manifest.engine],
            **tensors,
        }
    )
