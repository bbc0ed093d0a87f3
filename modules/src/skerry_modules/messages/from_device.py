"""What devices say: reports, which go through the spool inside :class:`Up`, and what is asked again until answered."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry_modules.compatibility import DeviceFacts
from skerry_modules.messages.base import FORMAT, ModulePhase, Severity


class _Map(msgspec.Struct, frozen=True, omit_defaults=True):
    pass


# -- spooled: the bodies of an envelope -------------------------------------------------------------------------------


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


# -- not spooled: asked again until answered ---------------------------------------------------------------------------


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
