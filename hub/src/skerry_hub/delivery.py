"""Chunks to devices: the planner of :mod:`skerry_hub.rules.delivery` in a thread, over the object store and the link.

Rules:

* Only objects that the hub wants on a device may be wanted by it: the index and the files of the versions that are
  assigned to it or stand behind its endpoints, and the inputs of the batch parts that it has.
* Chunks are read as they are published and never kept: the page cache does that better.
* An object that is not in the store any more (pruned, a disk lost, cut short) is told as *gone* to each device that
  asks for it, and once in a while as an event; it is :attr:`Delivery.missing` until it is asked for and there. Where
  the store itself is away, or an object cannot be read just now, devices ask again. Neither holds up other objects.
* The link's own queue bounds how far publishing runs ahead of the broker; the planner bounds how far the broker runs
  ahead of the devices.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec
from sqlalchemy import text

from skerry_hub.clock import now_ms
from skerry_hub.rules.delivery import DeliverySettings, Planner, Publish
from skerry_modules import chunks, messages, topics
from skerry_modules.errors import PeerError, SkerryError

if TYPE_CHECKING:
    from skerry_hub.db import Database
    from skerry_hub.objects import ObjectStore

log = logging.getLogger(__name__)

_routes = msgspec.json.Decoder(tuple[messages.Route, ...])

QUEUE_WANTS: Final = 50_000
"""Wants that wait at most; a device says its want again."""
OPEN_FILES: Final = 16
ALLOWED_S: Final = 5.0
"""How long a "yes, it may have that" is trusted; a "no" is looked up again after :data:`DENIED_S`."""
DENIED_S: Final = 0.5
MISSING: Final = -1
"""In place of a size: the device may have the object, and the store does not have it."""
MISSING_KEPT: Final = 1000
MISSING_TOLD_S: Final = 600.0
"""How often an object that stays missing is told as an event."""

PublishChunk = Callable[[str, bytes], bool]
"""(topic, payload): publish at QoS 1, waiting a little for room; False where it was not handed to the broker."""
Refuse = Callable[[str, str, str], None]
"""(device, code, message)."""
TellGone = Callable[[str, str], None]
"""(device, digest): tell a device that an object is gone; it asks again where it did not hear it."""


class Counters(msgspec.Struct):
    """What happened since the start."""

    wants: int = 0
    refused: int = 0
    published: int = 0
    published_bytes: int = 0
    alone: int = 0  # of what was published: to one device alone
    failed: int = 0
    gone: int = 0  # times that a device was told that an object is gone


class Missing(msgspec.Struct, frozen=True):
    """An object that the store lost: ``part_of`` names versions with its path, ``at`` is milliseconds since 1970."""

    digest: str
    part_of: tuple[str, ...]
    at: int


class Rights:
    """Which objects a device may ask for, with their sizes as the store has them."""

    def __init__(self, db: Database, objects: ObjectStore) -> None:
        self._db, self._objects = db, objects
        self._devices: dict[str, tuple[frozenset[tuple[str, int]], float]] = {}
        self._versions: dict[tuple[str, int], dict[str, int]] = {}
        self._sizes: dict[str, int] = {}

    def size(self, device: str, digest: str, now: float) -> int | None:
        """The object's size, None where this device may not have it, :data:`MISSING` where it is not in the store."""
        wanted, at = self._devices.get(device, (frozenset(), -1e9))
        expected = self._expected(digest, wanted)
        if now - at > (DENIED_S if expected is None else ALLOWED_S):
            expected = self._expected(digest, self._look_up(device, now))
        if expected is not None:
            return self._size(digest, expected)
        return self._size(digest) if self._is_input(device, digest) else None

    def _expected(self, digest: str, wanted: frozenset[tuple[str, int]]) -> int | None:
        """Its size as it was registered, if it belongs to one of these versions."""
        return next((self._versions[version][digest] for version in wanted if digest in self._versions[version]), None)

    def lost(self, digest: str) -> tuple[str, ...]:
        """An object was not there: its size is not believed any more. Returns what it is, for people."""
        self._sizes.pop(digest, None)
        named = text(
            "SELECT path, name, version FROM version_file WHERE sha256 = :digest UNION ALL "
            "SELECT 'index', name, version FROM model_version WHERE digest = :digest ORDER BY 2, 3 LIMIT 3"
        )
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            rows = connection.execute(named, {"digest": digest})
            return tuple(f"{path} of {name}:{version}" for path, name, version in rows)

    def _look_up(self, device: str, now: float) -> frozenset[tuple[str, int]]:
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            statement = text("SELECT module, version FROM assignment WHERE device = :device")
            wanted = frozenset((str(row[0]), int(row[1])) for row in connection.execute(statement, {"device": device}))
            behind = text(
                "SELECT e.split, e.shadow, e.before FROM endpoint e JOIN endpoint_device d ON d.endpoint = e.name "
                "WHERE d.device = :device AND d.reason = ''"
            )
            for row in connection.execute(behind, {"device": device}):
                wanted |= {(one.module, one.version) for part in row for one in _routes.decode(part)}
            for name, version in wanted - self._versions.keys():
                key = {"name": name, "version": version}
                index = text("SELECT digest, index_size FROM model_version WHERE name = :name AND version = :version")
                files = text("SELECT sha256, size FROM version_file WHERE name = :name AND version = :version")
                rows = [*connection.execute(index, key), *connection.execute(files, key)]
                self._versions[name, version] = {str(digest): int(size) for digest, size in rows}
        self._devices[device] = (wanted, now)
        return wanted

    def _is_input(self, device: str, digest: str) -> bool:
        """Whether it is what a part of a batch job is scored from, which the device has now."""
        statement = text(
            "SELECT 1 FROM batch_part WHERE device = :device AND input = :digest AND state = 'running' LIMIT 1"
        )
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            return connection.execute(statement, {"device": device, "digest": digest}).first() is not None

    def _size(self, digest: str, expected: int | None = None) -> int:
        """As the store has it: one that was cut short is as good as missing."""
        if digest not in self._sizes:
            if not self._objects.exists(digest):
                return MISSING
            size = self._objects.size(digest)
            if expected is not None and size != expected:
                return MISSING
            self._sizes[digest] = size
        return self._sizes[digest]


class Delivery:
    """The thread that publishes chunks.

    Args:
        objects: where the bytes are.
        publish: hands a chunk to the broker, waiting for room.
        size_for: (device, digest, now) → size in bytes, None where the device may not have the object, or MISSING.
        refuse: told of wants that are malformed, and of objects that are missing.
        tell_gone: tells a device that an object is gone.
        lost: told of an object that was not there; says what it is.
    """

    def __init__(
        self,
        objects: ObjectStore,
        publish: PublishChunk,
        size_for: Callable[[str, str, float], int | None],
        *,
        refuse: Refuse = lambda device, code, message: None,
        tell_gone: TellGone = lambda device, digest: None,
        lost: Callable[[str], tuple[str, ...]] = lambda digest: (),
        settings: DeliverySettings | None = None,
    ) -> None:
        self.counters = Counters()
        self.missing: dict[str, Missing] = {}
        """Objects that devices asked for and that are not in the store, by digest; replaced whole, for any thread."""
        self._objects, self._publish, self._size_for, self._refuse = objects, publish, size_for, refuse
        self._tell_gone, self._lost = tell_gone, lost
        self._told_at: dict[str, float] = {}
        self._planner = Planner(settings)
        self._queue: collections.deque[tuple[str, bytes | None, bool]] = collections.deque(maxlen=QUEUE_WANTS)
        self._files: collections.OrderedDict[str, BinaryIO] = collections.OrderedDict()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- for everyone -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    def want(self, device: str, payload: bytes) -> None:
        """Take a want as it came; decoded in the thread."""
        self._put(device, payload, False)

    def reconnected(self, device: str) -> None:
        """The device said hello: nothing is on its way to it any more."""
        self._put(device, None, True)

    def gone(self, device: str) -> None:
        """The device is offline."""
        self._put(device, None, False)

    @property
    def idle(self) -> bool:
        """Whether no device lacks anything that it asked for."""
        return self._planner.idle and not self._queue

    def _put(self, device: str, payload: bytes | None, back: bool) -> None:
        self._queue.append((device, payload, back))
        if not self._wake.is_set():
            self._wake.set()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._hear()
                if not self._work():
                    self._sleep()
            except Exception:
                log.exception("delivery failed; devices will ask again")
                self._stopping.wait(1.0)
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _sleep(self) -> None:
        now = time.monotonic()
        deadline = self._planner.next_deadline(now)
        # A deadline that has passed and gave nothing to do must not spin.
        self._wake.wait(5.0 if deadline is None else min(5.0, max(0.005, deadline - now)))
        self._wake.clear()

    def _hear(self) -> None:
        while self._queue:
            device, payload, back = self._queue.popleft()
            now = time.monotonic()
            if payload is not None:
                self._want(device, payload, now)
            elif back:
                self._planner.reconnected(device, now)
            else:
                self._planner.forget(device)

    def _want(self, device: str, payload: bytes, now: float) -> None:
        self.counters.wants += 1
        try:
            want: messages.Want = messages.decode("want", payload)
        except PeerError as error:
            self.counters.refused += 1
            self._refuse(device, error.code, error.message)
            return
        if not want.bitmap:
            self._planner.want(device, want.digest, max(0, want.size), b"", now)
            return
        size = self._size_for(device, want.digest, now)
        if size == MISSING:
            self._gone(want.digest, [device], now)
            return
        if size is not None and want.digest in self.missing:
            self._told_at.pop(want.digest, None)
            self.missing = {digest: one for digest, one in self.missing.items() if digest != want.digest}
        if size is None or size != want.size:
            # Not told as an event: an assignment that changed meanwhile looks the same.
            self.counters.refused += 1
            log.debug("%s may not have %s (%d bytes)", device, want.digest[:80], want.size)
            return
        self._planner.want(device, want.digest, size, want.bitmap, now, alone=want.alone)

    def _work(self) -> bool:
        """One round of decisions; whether there was any."""
        decisions = self._planner.plan(time.monotonic())
        for index, decision in enumerate(decisions):
            if self._stopping.is_set():
                break
            data = self._data(decision)
            if data is None:
                continue  # others are not held up
            if not self._send(decision, data):
                self.counters.failed += 1
                for undone in decisions[index:]:
                    self._planner.unpublished(undone, time.monotonic())
                self._stopping.wait(0.1)
                break
            if self._queue:
                self._hear()
        return bool(decisions)

    def _send(self, decision: Publish, data: bytes) -> bool:
        topic, payload = topics.chunk(decision.digest, decision.part), chunks.frame(data)
        if decision.device:
            gap = messages.Gap(messages.FORMAT, decision.digest, decision.part, payload)
            topic, payload = topics.down(decision.device, "gap"), messages.encode(gap)
        if not self._publish(topic, payload):
            return False
        self.counters.alone += bool(decision.device)
        self.counters.published += 1
        self.counters.published_bytes += len(data)
        return True

    def _data(self, decision: Publish) -> bytes | None:
        """A chunk's bytes; None where they cannot be had: then nobody gets the object until it is asked for again."""
        digest, part = decision.digest, decision.part
        problem: Exception
        try:
            data = self._read(decision)
            if len(data) == min(chunks.CHUNK_BYTES, decision.size - part * chunks.CHUNK_BYTES):
                return data
            problem = EOFError(f"chunk {part} is cut short")
        except (OSError, SkerryError) as error:
            problem = error
        if file := self._files.pop(digest, None):
            file.close()
        now = time.monotonic()
        waiting = self._planner.abandon(digest, now)
        if not waiting:
            return None
        log.error("cannot read the object %s for %d devices: %s", digest, len(waiting), problem)
        if not isinstance(problem, OSError):  # not there, or cut short: more than a disk that is slow or away
            self._gone(digest, waiting, now)
        return None

    def _gone(self, digest: str, devices: list[str], now: float) -> None:
        """The store does not have an object that these devices ask for, unless the store itself is away just now."""
        if not self._objects.is_there():
            log.error("the object store is not there: is its disk mounted? Devices ask again for %s", digest)
            return
        for device in devices:
            self.counters.gone += 1
            self._tell_gone(device, digest)
        if now - self._told_at.get(digest, -1e9) < MISSING_TOLD_S:
            return
        if len(self._told_at) >= MISSING_KEPT:
            self._told_at.clear()
        self._told_at[digest] = now
        part_of = self._lost(digest)
        if len(self.missing) < MISSING_KEPT:
            self.missing = self.missing | {digest: Missing(digest, part_of, now_ms())}
        self._refuse(
            "",
            "resource.object_missing",
            f"cannot deliver the object {digest[:12]} ({', '.join(part_of) or 'no version names it'}): the hub's store "
            "does not have it any more; restore the store from a backup, or register the same files again. Devices "
            "that need it fail with install.object_gone",
        )

    def _read(self, decision: Publish) -> bytes:
        file = self._files.get(decision.digest)
        if file is None:
            file = self._files[decision.digest] = self._objects.open(decision.digest)
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        else:
            self._files.move_to_end(decision.digest)
        file.seek(decision.part * chunks.CHUNK_BYTES)
        return file.read(chunks.CHUNK_BYTES)
