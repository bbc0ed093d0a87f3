"""Chunks to devices: the planner of :mod:`skerry_hub.rules.delivery` in a thread, over the object store and the link.

Rules:

* Only objects that the hub wants on a device may be wanted by it: the index and the files of the versions that are
  assigned to it or stand behind its endpoints, and the inputs of the batch parts that it has.
* Chunks are read as they are published and never kept: the page cache does that better.
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

PublishChunk = Callable[[str, bytes], bool]
"""(topic, payload): publish at QoS 1, waiting a little for room; False where it was not handed to the broker."""
Refuse = Callable[[str, str, str], None]
"""(device, code, message)."""


class Counters(msgspec.Struct):
    """What happened since the start."""

    wants: int = 0
    refused: int = 0
    published: int = 0
    published_bytes: int = 0
    failed: int = 0


class Rights:
    """Which objects a device may ask for, with their sizes as the store has them."""

    def __init__(self, db: Database, objects: ObjectStore) -> None:
        self._db, self._objects = db, objects
        self._devices: dict[str, tuple[frozenset[tuple[str, int]], float]] = {}
        self._versions: dict[tuple[str, int], frozenset[str]] = {}
        self._sizes: dict[str, int] = {}

    def size(self, device: str, digest: str, now: float) -> int | None:
        """The object's size, or None where this device may not have it."""
        wanted, at = self._devices.get(device, (frozenset(), -1e9))
        allowed = any(digest in self._versions[version] for version in wanted)
        if now - at > (ALLOWED_S if allowed else DENIED_S):
            allowed = any(digest in self._versions[version] for version in self._look_up(device, now))
        if not allowed:
            allowed = self._is_input(device, digest)
        return self._size(digest) if allowed else None

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
                index = text("SELECT digest FROM model_version WHERE name = :name AND version = :version")
                files = text("SELECT sha256 FROM version_file WHERE name = :name AND version = :version")
                digests = {str(row[0]) for row in connection.execute(index, key)}
                digests |= {str(row[0]) for row in connection.execute(files, key)}
                self._versions[name, version] = frozenset(digests)
        self._devices[device] = (wanted, now)
        return wanted

    def _is_input(self, device: str, digest: str) -> bool:
        """Whether it is what a part of a batch job is scored from, which the device has now."""
        statement = text(
            "SELECT 1 FROM batch_part WHERE device = :device AND input = :digest AND state = 'running' LIMIT 1"
        )
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            return connection.execute(statement, {"device": device, "digest": digest}).first() is not None

    def _size(self, digest: str) -> int | None:
        if digest not in self._sizes:
            if not self._objects.exists(digest):
                return None
            self._sizes[digest] = self._objects.size(digest)
        return self._sizes[digest]


class Delivery:
    """The thread that publishes chunks.

    Args:
        objects: where the bytes are.
        publish: hands a chunk to the broker, waiting for room.
        size_for: (device, digest, now) → size in bytes, or None where the device may not have the object.
        refuse: told of wants that are malformed.
    """

    def __init__(
        self,
        objects: ObjectStore,
        publish: PublishChunk,
        size_for: Callable[[str, str, float], int | None],
        *,
        refuse: Refuse = lambda device, code, message: None,
        settings: DeliverySettings | None = None,
    ) -> None:
        self.counters = Counters()
        self._objects, self._publish, self._size_for, self._refuse = objects, publish, size_for, refuse
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
        if size is None or size != want.size:
            # Not told as an event: an assignment that changed meanwhile looks the same.
            self.counters.refused += 1
            log.debug("%s may not have %s (%d bytes)", device, want.digest[:80], want.size)
            return
        self._planner.want(device, want.digest, size, want.bitmap, now)

    def _work(self) -> bool:
        """One round of decisions; whether there was any."""
        decisions = self._planner.plan(time.monotonic())
        for index, decision in enumerate(decisions):
            if self._stopping.is_set():
                break
            if not self._send(decision):
                self.counters.failed += 1
                for undone in decisions[index:]:
                    self._planner.unpublished(undone, time.monotonic())
                self._stopping.wait(0.1)
                break
            if self._queue:
                self._hear()
        return bool(decisions)

    def _send(self, decision: Publish) -> bool:
        try:
            data = self._read(decision)
        except (OSError, SkerryError) as error:
            log.warning("cannot read the object %s: %s", decision.digest, error)
            return False
        if not self._publish(topics.chunk(decision.digest, decision.part), chunks.frame(data)):
            return False
        self.counters.published += 1
        self.counters.published_bytes += len(data)
        return True

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
