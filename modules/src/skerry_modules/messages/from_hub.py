"""What the hub tells devices: the desired document, acknowledgements, commands, and what only one of them lacks."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry_modules.messages.base import FORMAT
from skerry_modules.trust import Signature


class _Map(msgspec.Struct, frozen=True, omit_defaults=True):
    pass


class DesiredModule(_Map, frozen=True, kw_only=True):
    """One module version that should serve. ``index_size`` is the size of the object that ``digest`` names.

    ``memory_mb``: what it was measured to need on such a device, in place of what its manifest declares; 0: unknown.
    """

    name: str
    version: int
    digest: str
    index_size: int
    signatures: tuple[Signature, ...]
    soak_s: float = 0.0
    attempt: int = 0  # a higher number asks a device that gave up to try again
    memory_mb: int = 0


class Route(_Map, frozen=True, kw_only=True):
    """A share of an endpoint's requests. Percentages of one endpoint sum to 100; a shadow's stands by itself."""

    module: str
    version: int
    percent: float = 100.0


class Endpoint(_Map, frozen=True, kw_only=True):
    """A name that clients call. Without one, each module's own name is an endpoint to its current version.

    ``before`` is the split that was in force until now: it goes on until every version of ``routes`` is ready here or
    has failed here, and its versions stay loaded, so that going back is instant.
    """

    name: str
    routes: tuple[Route, ...]
    shadow: tuple[Route, ...] = ()
    before: tuple[Route, ...] = ()


class Settings(_Map, frozen=True, kw_only=True):
    """Agent settings that the hub may change; all have defaults on the device."""

    telemetry_s: float = 0.0  # 0: the device's own setting
    health_s: float = 0.0
    capture_rate: float = -1.0  # −1: as the manifest says


class Desired(_Map, frozen=True, kw_only=True):
    """Everything that one device should be. The newest revision that verifies wins.

    ``modules`` holds one version per name, the one that becomes the module's current version. ``sides`` are further
    versions, of the same modules or of others, that are proven and kept loaded for ``endpoints``, and change no
    module's current version. (A field of its own: a device that does not know it goes on with ``modules``.)
    """

    device: str
    revision: int
    issued_at: int
    modules: tuple[DesiredModule, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    settings: Settings = Settings()
    sides: tuple[DesiredModule, ...] = ()


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """A signed document: DSSE signatures over ``payload`` (msgpack of a :class:`Desired`)."""

    v: int
    payload: bytes
    signatures: tuple[Signature, ...] = ()


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """The hub's durable marks of one spool: stream → highest number committed.

    ``again``: the hub has come back, and may have missed what was said meanwhile: greet it anew, and send again what
    it has not acknowledged, without waiting for its silence to tell. ``epoch`` and ``marks`` may be empty then.
    ``spread_s``: over how long the fleet has to spread itself when it reconnects, in seconds; 0: nothing is said of it.
    ``gone``: objects that the device asked for and may have, and that the hub does not have any more.
    """

    v: int
    epoch: bytes
    marks: dict[int, int]
    again: bool = False
    spread_s: int = 0
    gone: tuple[str, ...] = ()


class Gap(msgspec.Struct, frozen=True, array_like=True):
    """A chunk for one device alone, on its own topic: ``data`` is framed as on the object's."""

    v: int
    digest: str
    part: int
    data: bytes


class Command(_Map, frozen=True, kw_only=True, omit_defaults=False):
    """Something to do once. The device answers with a :class:`Result` that names ``id``."""

    v: int = FORMAT
    id: str
    name: str
    arguments: dict[str, Any] = {}
    deadline_s: float = 60.0


class Taken(_Map, frozen=True, kw_only=True, omit_defaults=False):
    """What the hub still lacks of a batch part's result: a bitmap of its chunks, said after they were stored.

    ``over``: nothing more of it is needed: all of it is kept, or another device was faster, or the job has ended. With
    no ``digest`` it means whatever the device has of the part.
    """

    v: int = FORMAT
    job: int
    part: int
    digest: str
    bitmap: bytes = b""
    over: bool = False
