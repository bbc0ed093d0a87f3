"""``skerry-agent score``: one request to the agent's scoring address, over TCP or a Unix socket."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from skerry_agent import control
from skerry_agent.settings import Settings
from skerry_agent.sources.values import flat_values, from_csv, from_json, named
from skerry_modules import npz
from skerry_modules.errors import InputError, PeerError, ResourceError
from skerry_modules.messages import Tensor
from skerry_modules.tensors import TensorSpec

_TIMEOUT_S = 60.0


def find_address(settings: Settings) -> str:
    """The running agent's address (the configured port may be 0), else the configured one."""
    try:
        addresses: str = control.ask(settings.folder, "status")["scoring"]
    except ResourceError:
        addresses = f"http://{settings.serving.http}" if settings.serving.http else f"unix:{settings.serving.socket}"
    first = addresses.split(", ")[0]
    if first in ("nowhere", "unix:"):
        raise InputError("settings.invalid", "cannot score: the agent serves nowhere; set serving.http")
    return first


def score(address: str, module: str, version: int | None, path: Path | None, data: str | None) -> dict[str, Any]:
    """Send one request.

    Returns:
        The protocol's answer, its data flat.

    Raises:
        InputError, PeerError, ResourceError: ``scoring.*``, ``module.unknown``, ``resource.agent_unreachable``.
    """
    target = f"/v2/models/{quote(module, safe='')}"
    if version is not None:
        target += f"/versions/{version}"
    body = _given_body(data)
    if body is None:
        metadata = _call(address, "GET", target)
        specs = tuple(
            TensorSpec(name=one["name"], datatype=one["datatype"], shape=tuple(one["shape"]))
            for one in metadata["inputs"]
        )
        inputs = _inputs(path, data, specs)
        body = {"inputs": [_tensor(name, tensor) for name, tensor in inputs.items()]}
    return _call(address, "POST", f"{target}/infer", msgspec.json.encode(body))


def _given_body(data: str | None) -> dict[str, Any] | None:
    """``--data`` may be a whole request body already."""
    if data is None:
        return None
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise InputError("scoring.invalid_json", f"cannot read --data: {error}") from error
    return value if isinstance(value, dict) and isinstance(value.get("inputs"), list) else None


def _inputs(path: Path | None, data: str | None, specs: tuple[TensorSpec, ...]) -> dict[str, Tensor]:
    if path is None:
        return _from_value(msgspec.json.decode(data or ""), specs, "--data")
    kind = path.suffix.lower()
    try:
        if kind in (".npz", ".npy"):
            arrays = npz.read(path)
            if kind == ".npy" and len(specs) == 1:
                return {specs[0].name: next(iter(arrays.values()))}
            chosen: dict[str, Tensor] = named(arrays, specs, path.name)
            return chosen
        text = path.read_text(encoding="utf-8")
        if kind == ".csv":
            return from_csv(text, specs, path.name)
        return _from_value(msgspec.json.decode(text), specs, path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("request.invalid", f"cannot read {path}: {error}") from error
    except msgspec.DecodeError as error:
        raise InputError("scoring.invalid_json", f"cannot read {path}: {error}") from error


def _from_value(value: Any, specs: tuple[TensorSpec, ...], source: str) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise InputError("scoring.unknown_input", f"cannot read {source}: give an object with each of {names}")
        value = {specs[0].name: value}
    chosen = named(value, specs, source)
    return {spec.name: from_json(chosen[spec.name], spec) for spec in specs}


def _tensor(name: str, tensor: Tensor) -> dict[str, Any]:
    return {"name": name, "datatype": tensor.datatype, "shape": tensor.shape, "data": flat_values(tensor)}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


def _call(address: str, method: str, target: str, body: bytes | None = None) -> dict[str, Any]:
    connection: http.client.HTTPConnection
    if address.startswith("unix:"):
        connection = _UnixConnection(address.removeprefix("unix:"))
    else:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request(method, target, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ResourceError(
            "resource.agent_unreachable",
            f"cannot reach the agent at {address}: {error}; is it running? `skerry-agent status` tells",
        ) from error
    finally:
        connection.close()
    return _answer(response.status, data)


def _answer(status: int, data: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise PeerError("scoring.failed", f"cannot read the answer of the agent (HTTP {status}): {error}") from error
    if status == 200:
        return answer
    message = str(answer.get("error", f"HTTP {status}"))
    if status == 404:
        raise InputError("module.unknown", message)
    if status < 429:
        raise InputError("request.invalid", message)
    if status in (429, 503):
        raise ResourceError("scoring.not_ready" if status == 503 else "scoring.overloaded", message)
    raise PeerError("scoring.failed", message)
