"""Every payload that crosses the broker, as typed structs, and the two functions that encode and decode them.

Rules:

* msgpack. What is an array on the wire starts with the format version; what is a map has it as ``v``.
* A reader ignores fields that it does not know, so that a newer side can add some. A version above
  :data:`FORMAT` is refused: it means that old readers would misread.
* Whatever fails to decode becomes a :class:`~skerry_modules.errors.PeerError`; nothing else leaves here.

Streams and sequence numbers (what makes delivery end to end):

* A device keeps what it sends in its spool. The spool has an ``epoch`` (random, made when the spool is made) and
  numbers the records of each *stream* 1, 2, 3, …; a stream is a priority. Within a stream order is kept.
* Each message carries ``base``: the lowest number still in the spool. The hub takes a message only if its number
  is ``max(mark + 1, base)``, and moves its ``mark``; lower ones are duplicates, higher ones came out of order and
  are dropped. After its own durable commit it acknowledges its marks, and the device forgets up to there. A device
  that hears nothing sends again from ``base``. What the spool had to drop shows as a jump of ``base`` and is counted.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, Final, Generic, TypeVar

import msgspec

from skerry_modules.compatibility import DeviceFacts
from skerry_modules.errors import PeerError
from skerry_modules.trust import Signature

FORMAT: Final = 1

T = TypeVar("T")


class Stream(IntEnum):
    """Priorities of the spool, most urgent first; also the numbering's scope."""

    ALARM = 0
    STATE = 1
    RESULT = 2
    SAMPLE = 3
    METRIC = 4


class ModulePhase(StrEnum):
    """What a module's state is, as people and rollouts read it."""

    TRANSITIONING = "Transitioning"
    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    UNSCHEDULABLE = "Unschedulable"
    FAILED = "Failed"


class Severity(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class _Map(msgspec.Struct, frozen=True, omit_defaults=True):
    pass


# -- device → hub, spooled: an envelope around one body -----------------------------------------------------------


class Up(msgspec.Struct, Generic[T], frozen=True, array_like=True, gc=False):
    """The envelope. ``at`` is the device's wall clock in ms since 1970: a label, never a judge of order."""

    v: int
    epoch: bytes
    stream: int
    seq: int
    base: int
    at: int
    body: T


class ModuleState(_Map, frozen=True, kw_only=True):
    """One module version on one device.

    ``step`` is the lifecycle step (see ``skerry_agent.rules.lifecycle``), ``reason`` a code of ``errors.CODES`` or
    empty, ``since`` ms, ``revision`` the desired revision it refers to, ``progress`` 0–1 of a long step.
    ``role``: ``current`` (serves), ``candidate`` (on its way), ``last-good`` (kept to go back to), ``side`` (kept
    loaded for endpoints beside the current version), or empty.
    """

    name: str
    version: int
    digest: str
    phase: ModulePhase
    step: str = ""
    role: str = ""
    reason: str = ""
    message: str = ""
    since: int = 0
    revision: int = 0
    progress: float = 0.0


class State(_Map, frozen=True, kw_only=True):
    """All modules of one device; a newer one replaces an older one that is still unsent."""

    device: str
    boot: str
    revision: int
    modules: tuple[ModuleState, ...] = ()


class Distribution(_Map, frozen=True, kw_only=True):
    """A mergeable histogram on the wire: see ``skerry_modules.histogram``. ``edges`` empty: the standard log2 edges."""

    counts: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()
    below: int = 0
    above: int = 0
    null: int = 0
    infinite: int = 0
    total: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0


class Agreement(_Map, frozen=True, kw_only=True):
    """How a shadow's answers compare with the live ones, in rows; ``within`` is by the shadow's golden tolerance.

    ``agreed``: rows whose largest score is at the same place (rows of models without scores: that are ``within``).
    ``worst``: the largest absolute difference met. ``dropped``: requests that were not scored in shadow, because the
    shadow was busy. ``failed``: requests that the shadow could not score.
    """

    rows: int = 0
    agreed: int = 0
    within: int = 0
    worst: float = 0.0
    dropped: int = 0
    failed: int = 0


class Telemetry(_Map, frozen=True, kw_only=True):
    """What one module version did in one window for one endpoint in one role (``live`` or ``shadow``).

    Counts, latency in µs, and distributions by feature or score (of all its endpoints, in the busiest one's row).

    ``p50_us`` and ``p99_us`` are the device's own estimates from ``latency_us`` (−1: none), so that the hub need not
    open the distribution of every window that it stores.
    """

    module: str
    version: int
    digest: str
    endpoint: str
    start: int
    end: int
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    p50_us: float = -1.0
    p99_us: float = -1.0
    latency_us: Distribution = Distribution()
    inputs: dict[str, Distribution] = {}
    outputs: dict[str, Distribution] = {}
    role: str = "live"
    agreement: Agreement = Agreement()
    steps: dict[str, Distribution] = {}  # of a pipeline: microseconds in each step, by its name; of all endpoints too


class Health(_Map, frozen=True, kw_only=True):
    """The device itself. Percentages are 0–100 of all cores; bytes are plain bytes; missing is −1."""

    boot: str
    uptime_s: float
    cpu_percent: float = -1.0
    load1: float = -1.0
    memory_used: int = -1
    memory_total: int = -1
    disk_used: int = -1
    disk_total: int = -1
    temperature_c: float = -1.0
    agent_memory: int = -1
    workers_memory: int = -1
    network_in: int = -1
    network_out: int = -1
    spool_records: int = 0
    spool_bytes: int = 0
    spool_dropped: dict[str, int] = {}
    clock_offset_ms: int = 0


class Tensor(_Map, frozen=True, kw_only=True):
    """One tensor by value: little-endian, row-major bytes; ``BYTES`` as length-prefixed (uint32) strings."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


class Sample(_Map, frozen=True, kw_only=True):
    """One captured row. ``probability`` is the chance with which the policy kept it (for unbiased estimates)."""

    id: str
    module: str
    version: int
    digest: str
    at: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor] = {}
    reason: str = "random"
    probability: float = 1.0
    config: str = ""
    endpoint: str = ""


class Event(_Map, frozen=True, kw_only=True):
    """Something worth a person's eye. ``code`` is stable and dotted; ``data`` is small."""

    severity: Severity
    code: str
    message: str
    module: str = ""
    version: int = 0
    data: dict[str, Any] = {}


class Result(_Map, frozen=True, kw_only=True):
    """How a command ended, or, with ``progress`` below 1, how far it is."""

    command: str
    ok: bool
    name: str = ""  # the command's
    progress: float = 1.0
    code: str = ""
    message: str = ""
    data: dict[str, Any] = {}


# -- device → hub, not spooled: asked again until answered ----------------------------------------------------------


class Hello(_Map, frozen=True, kw_only=True, omit_defaults=False):
    """Sent after each connect: who I am, what I have, which desired revision I hold."""

    v: int = FORMAT
    device: str
    boot: str
    epoch: bytes
    agent: str
    profile: str
    revision: int = 0
    facts: DeviceFacts = DeviceFacts()


class Want(_Map, frozen=True, kw_only=True, omit_defaults=False):
    """Chunks that the device lacks of one object (bitmap as in ``skerry_modules.chunks``); empty: has all, stop.

    Sent again while chunks arrive, so that the hub can pace itself by what receivers report. ``alone``: the device
    takes chunks as :class:`Gap` too.
    """

    v: int = FORMAT
    digest: str
    size: int
    bitmap: bytes = b""
    alone: bool = False


class Piece(_Map, frozen=True, kw_only=True, omit_defaults=False):
    """One chunk of a batch part's result, which the hub answers with :class:`Taken`.

    ``digest`` and ``size`` are the whole result's; ``number`` counts its chunks as ``skerry_modules.chunks`` cuts them,
    and ``data`` is framed as there. ``number`` −1 (no data) asks what the hub lacks; with no ``digest`` either, only
    whether the part is still wanted. The result stands on the device's disk until the hub has all of it, so it needs no
    spool: what is not answered is sent again.
    """

    v: int = FORMAT
    job: int
    part: int
    digest: str
    size: int
    number: int
    data: bytes = b""


class Presence(_Map, frozen=True, kw_only=True, omit_defaults=False):
    """Retained; the last will carries ``online`` false with the boot that it was set for."""

    v: int = FORMAT
    online: bool
    boot: str = ""
    at: int = 0


# -- hub → device ----------------------------------------------------------------------------------------------------


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


BODIES: Final[dict[str, type[Any]]] = {
    "state": State,
    "telemetry": Telemetry,
    "health": Health,
    "sample": Sample,
    "event": Event,
    "result": Result,
}
"""Spooled kinds: the body inside :class:`Up`."""

PLAIN: Final[dict[str, type[Any]]] = {
    "hello": Hello,
    "want": Want,
    "piece": Piece,
    "taken": Taken,
    "gap": Gap,
    "desired": Signed,
    "ack": Ack,
    "command": Command,
    "presence": Presence,
}
"""Kinds that are not in an envelope."""

STREAM_OF: Final[dict[str, Stream]] = {
    "state": Stream.STATE,
    "telemetry": Stream.METRIC,
    "health": Stream.METRIC,
    "sample": Stream.SAMPLE,
    "event": Stream.ALARM,
    "result": Stream.RESULT,
}

MAX_BYTES: Final[dict[str, int]] = {
    "hello": 64 * 1024,
    "state": 256 * 1024,
    "telemetry": 256 * 1024,
    "health": 16 * 1024,
    "sample": 8 * 1024 * 1024,
    "event": 64 * 1024,
    "result": 256 * 1024,
    "want": 1024 * 1024,
    "piece": 128 * 1024,
    "taken": 1024 * 1024,
    "gap": 128 * 1024,
    "desired": 1024 * 1024,
    "ack": 4 * 1024,
    "command": 64 * 1024,
    "presence": 1024,
}
"""The largest payload of each kind, in bytes; larger ones are refused before they are decoded."""

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    **{kind: msgspec.msgpack.Decoder(Up[body]) for kind, body in BODIES.items()},  # type: ignore[valid-type]
    **{kind: msgspec.msgpack.Decoder(struct) for kind, struct in PLAIN.items()},
}
_desired_decoder = msgspec.msgpack.Decoder(Desired)


def encode(message: Any) -> bytes:
    """msgpack of any struct above."""
    return _encoder.encode(message)


def decode(kind: str, payload: bytes | bytearray | memoryview) -> Any:
    """The message that a topic's ``kind`` names: ``Up[...]`` for spooled kinds, else the struct itself.

    Raises:
        PeerError: ``message.oversized``, ``message.malformed``, ``message.unsupported_version``,
            ``message.unknown_topic`` for a kind that is not one.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        raise PeerError("message.unknown_topic", f"cannot decode a message of kind {kind!r}: no such kind")
    limit = MAX_BYTES[kind]
    if len(payload) > limit:
        raise PeerError(
            "message.oversized", f"cannot take a {kind} message of {len(payload)} bytes: the limit is {limit}"
        )
    try:
        message = decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError("message.malformed", f"cannot decode a {kind} message: {error}") from error
    version = getattr(message, "v", FORMAT)
    if version != FORMAT:
        raise PeerError(
            "message.unsupported_version", f"cannot read a {kind} message of format {version}: update this side"
        )
    return message


def decode_desired(payload: bytes) -> Desired:
    """The document inside :class:`Signed`, after its signature was verified.

    Raises:
        PeerError: ``message.malformed``.
    """
    try:
        return _desired_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError("message.malformed", f"cannot decode a desired document: {error}") from error
