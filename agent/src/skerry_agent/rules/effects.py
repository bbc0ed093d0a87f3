"""What the agent's rules hear (events) and ask for (effects): the whole seam between rules and I/O.

The brain (:mod:`skerry_agent.rules.brain`) is ``handle(event, now) -> list[Effect]``. A driver performs the effects
in order and feeds each outcome back as an event. There are two drivers: the daemon's, over real disks, workers and
MQTT, and the simulator's, over virtual ones. Both run the same rules.

Rules of the seam:

* ``now`` is monotonic seconds; ``wall_ms`` (in events that carry it) is a label only.
* Effects are performed in list order. :class:`Save`, if there is one, is the first of its list and is durable before
  the next effect starts. If it fails, the rest of the list is *not* performed and ``Failed("Save", …)`` is the very
  next event; the brain then asks for all of it again.
* Slow effects (those with an outcome) run in the background; at most one per digest runs at a time.
  :class:`Unload` and :class:`Remove` cancel what runs for their digest; its outcome, if it still comes, is ignored.
* Every effect may be performed twice: a crash can come after it was done and before its outcome was saved.
* A digest names one module version (the SHA-256 of its index) or one object.
"""

from __future__ import annotations

from typing import Any

import msgspec

from skerry_modules.messages import Event as EventBody
from skerry_modules.messages import Route


class _E(msgspec.Struct, frozen=True, tag=True):
    pass


# -- events: what the brain hears -----------------------------------------------------------------------------------


class Booted(_E, frozen=True):
    """The first event. ``saved`` is what the last :class:`Save` wrote, or None; ``complete`` are the objects held,
    ``partial`` those held in part, ``installed`` the module folders: what no record needs of them is removed."""

    boot: str
    saved: bytes | None
    complete: frozenset[str] = frozenset()
    wall_ms: int = 0
    partial: frozenset[str] = frozenset()
    installed: frozenset[str] = frozenset()


class Connected(_E, frozen=True):
    """The link is up and subscribed."""


class Disconnected(_E, frozen=True):
    """The link is down."""


class DesiredArrived(_E, frozen=True):
    """The payload of ``down/desired``, not yet verified."""

    payload: bytes


class ChunkArrived(_E, frozen=True):
    """A chunk's payload as it came, not yet checked."""

    digest: str
    part: int
    payload: bytes


class ObjectGone(_E, frozen=True):
    """The hub says that it does not have an object any more which it was asked for."""

    digest: str


class Done(_E, frozen=True):
    """The effect ``effect`` for ``digest`` ended well. ``data`` is what it found (index bytes, timings, …)."""

    effect: str  # the class name of the effect
    digest: str
    data: dict[str, Any] = {}


class Failed(_E, frozen=True):
    """The effect ``effect`` for ``digest`` ended badly, with a code of ``errors.CODES``.

    :class:`Install` and :class:`ReadIndex` that found a damaged object (``package.digest_mismatch``) or none at all
    delete it and name it in ``data["objects"]: list[str]``.
    """

    effect: str
    digest: str
    code: str
    message: str
    data: dict[str, Any] = {}


class WorkerExited(_E, frozen=True):
    """The worker of a loaded version died or was killed (``code``: run.crash_loop is decided by rules, not here).

    The data plane has restarted it already if it says ``restarting``.
    """

    digest: str
    reason: str  # "signal 11", "exit 1", "hang", "memory"; of a pipeline with " in step 'x'" behind
    restarting: bool = True


class Traffic(_E, frozen=True):
    """Live requests of a version since the last such event; drives the soak."""

    digest: str
    requests: int
    errors: int


class Tick(_E, frozen=True):
    """Time has passed. Sent at least once a second, and whenever the brain's ``next_deadline`` comes."""

    wall_ms: int = 0


# -- effects: what the brain asks for ---------------------------------------------------------------------------------


class Save(_E, frozen=True):
    """Write the brain's state durably (new file, fsync, rename)."""

    state: bytes


class Subscribe(_E, frozen=True):
    """Listen to the chunks of an object."""

    digest: str


class Unsubscribe(_E, frozen=True):
    digest: str


class SendWant(_E, frozen=True):
    """Publish ``up/want``. An empty bitmap says: complete."""

    digest: str
    size: int
    bitmap: bytes


class StoreChunk(_E, frozen=True):
    """Write one chunk of a partial object. Outcome ``Done``/``Failed`` only on failure (``resource.no_space``)."""

    digest: str
    part: int
    size: int  # of the whole object
    data: bytes | memoryview  # what came, not copied


class CompleteObject(_E, frozen=True):
    """All chunks are stored: check SHA-256, then make the object visible. Outcome: Done, or Failed with
    ``package.digest_mismatch`` (the partial object is then gone), or with ``resource.no_space`` where a chunk could not
    be stored just before (what is stored stays)."""

    digest: str
    size: int


class ListParts(_E, frozen=True):
    """Which chunks of a partial object does the disk hold? Outcome: Done with ``data["parts"]: list[int]``."""

    digest: str
    size: int


class ReadIndex(_E, frozen=True):
    """Outcome: Done with ``data["index"]: bytes`` and ``data["free_disk_mb"]``, ``data["facts"]: DeviceFacts``, and
    ``data["environments"]``: keys of the environments that are built."""

    digest: str


class Install(_E, frozen=True):
    """Lay the module's files out in a folder of its own from complete objects, checking each, and build the environment
    that it names unless that is there. Undo: Remove."""

    digest: str


class Load(_E, frozen=True):
    """Start a worker and load the model. Undo: Unload. ``memory_mb``: measured need; 0: as the manifest declares."""

    digest: str
    timeout_s: float
    module: str = ""
    version: int = 0
    memory_mb: int = 0


class Golden(_E, frozen=True):
    """Run the golden inputs through the loaded version and compare."""

    digest: str
    timeout_s: float


class Warm(_E, frozen=True):
    """A few requests, so that the first real one is not slow."""

    digest: str
    timeout_s: float


class SetRoutes(_E, frozen=True):
    """From now on requests to ``endpoint`` go to ``routes`` (digest by (module, version)); atomic, drops nothing.

    Empty routes: the endpoint answers 503, or 404 if it is ``gone``. ``shadow`` versions score copies of the requests
    and never answer.
    """

    endpoint: str
    routes: tuple[Route, ...]
    digests: tuple[str, ...]
    shadow: tuple[Route, ...] = ()
    shadow_digests: tuple[str, ...] = ()
    gone: bool = False


class Unload(_E, frozen=True):
    """Let requests in flight end, then stop the version's worker (or stop loading it). No outcome."""

    digest: str


class Remove(_E, frozen=True):
    """Delete a version's folder and every object in ``objects``, whole or partial, and the environments that no
    installed version names any more. No outcome.

    ``digest`` may be empty: objects only.
    """

    digest: str
    objects: tuple[str, ...] = ()


class Report(_E, frozen=True):
    """Put a state snapshot (msgpack of ``messages.State``) into the spool; a newer one replaces an unsent older."""

    state: bytes


class Emit(_E, frozen=True):
    """Put an event into the spool."""

    event: EventBody


Event = (
    Booted
    | Connected
    | Disconnected
    | DesiredArrived
    | ChunkArrived
    | ObjectGone
    | Done
    | Failed
    | WorkerExited
    | Traffic
    | Tick
)
Effect = (
    Save
    | Subscribe
    | Unsubscribe
    | SendWant
    | StoreChunk
    | CompleteObject
    | ListParts
    | ReadIndex
    | Install
    | Load
    | Golden
    | Warm
    | SetRoutes
    | Unload
    | Remove
    | Report
    | Emit
)
