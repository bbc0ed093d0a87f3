"""The bodies of control frames: what a zygote and a worker are told, and what they tell. msgpack."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry_modules.errors import InputError, PeerError, ResourceError, SkerryError
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Distribution


class Spawn(msgspec.Struct, tag=True, array_like=True):
    """Fork a worker. Its socket, its side socket and the write end of its log come along as descriptors.

    ``data_mb`` (10**6 bytes) is what it may have of its own beyond what the zygote has; 0: no limit.
    """

    serial: int
    data_mb: int
    niceness: int
    affinity: tuple[int, ...]


class Kill(msgspec.Struct, tag=True, array_like=True):
    """The zygote kills, not the agent: only a parent knows that a process id is still its child's."""

    serial: int
    signal: int


class Stand(msgspec.Struct, tag=True, array_like=True):
    """Have a worker yield to all others, or be as they are again: see ``serving.aside``."""

    serial: int
    aside: bool
    processors: int  # that it computes with


class Ready(msgspec.Struct, tag=True, array_like=True):
    version: str


class Broken(msgspec.Struct, tag=True, array_like=True):
    """The engine cannot be imported here."""

    message: str


class Born(msgspec.Struct, tag=True, array_like=True):
    serial: int
    pid: int


class Exited(msgspec.Struct, tag=True, array_like=True):
    """``status`` as ``os.waitstatus_to_exitcode`` gives it: negative is a signal.

    ``name`` is the process's at its end: a pipeline's tells the step that it was in.
    """

    serial: int
    status: int
    name: str = ""


class Load(msgspec.Struct, kw_only=True):
    """A worker's first order."""

    digest: str
    folder: str
    manifest: Manifest
    version: int
    cache: str
    cache_entries: int
    report_s: float
    observe_one_in: int
    capture_rate: float  # −1: as the manifest says
    cache_bytes: int = 1 << 30
    batch_rows: int = -1  # rows to score together, as proven before; 1: none; −1: prove it now


class Lend(msgspec.Struct, array_like=True):
    """Serve a client's connection: requests whose head is this one but for the digits of its length."""

    number: int
    endpoint: bytes
    before: bytes
    after: bytes
    json: int  # length of a body's JSON in front of binary tensors; −1: all of it
    copies: bool  # tell what was asked and answered, for shadows


class Failure(msgspec.Struct):
    """A SkerryError that crosses the socket."""

    family: str
    code: str
    message: str
    data: dict[str, Any]


class Observed(msgspec.Struct):
    """Distributions since the last time, and what the model failed with."""

    inputs: dict[str, Distribution] = {}
    outputs: dict[str, Distribution] = {}
    capped: int = 0  # samples that the cap per minute held back
    steps: dict[str, Distribution] = {}  # microseconds in each step of a pipeline
    failures: dict[str, str] = {}  # by code: the text of the last answer 500


FromZygote = Ready | Broken | Born | Exited
ToZygote = Spawn | Kill | Stand

_FAMILIES: dict[str, type[SkerryError]] = {"input": InputError, "peer": PeerError, "resource": ResourceError}


def failure(error: SkerryError) -> bytes:
    data = {key: value for key, value in error.data.items() if isinstance(value, str | int | float | bool)}
    return msgspec.msgpack.encode(Failure(error.family, error.code, error.message, data))


def raise_failure(body: bytes) -> None:
    """Raise what :func:`failure` packed."""
    found = msgspec.msgpack.decode(body, type=Failure)
    raise _FAMILIES.get(found.family, PeerError)(found.code, found.message, **found.data)
