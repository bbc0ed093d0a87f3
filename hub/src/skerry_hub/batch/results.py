"""Takes results of batch parts from devices, chunk by chunk, and says what is still lacking.

Rules:

* The link's thread only hands over; one thread here works. A chunk is answered after it is on the disk.
* Only a device that the part was ever given to may send of it, and only while the part is not done: then the answer is
  ``over``, and the device forgets it. So a part counts once, whoever comes first, however often it comes.
* When it is done, the other devices that ever had it are told at once; who was away asks when it is back, with a piece
  that names no result. What is answered stands in the part's row, so nothing has to be remembered for anyone.
* A whole result is checked (digest, frames, outputs) before it counts; one that is not right counts as a failure of
  that device.

What is lost on the way is asked for again by the device; a hub that restarts finds the chunks that it has.
"""

from __future__ import annotations

import collections
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec
from sqlmodel import Session

from skerry_hub import commands, registry
from skerry_hub.batch.merge import Counted, count
from skerry_hub.batches import names_of
from skerry_hub.clock import now_ms
from skerry_hub.rules.batch import ACTIVE, OPEN, PartState
from skerry_hub.tables import BatchPart, BatchRow, CommandRow
from skerry_modules import chunks, messages, topics
from skerry_modules.errors import PeerError, ResourceError
from skerry_modules.manifest import Manifest

if TYPE_CHECKING:
    from skerry_hub.db import Database
    from skerry_hub.objects import ObjectStore

log = logging.getLogger(__name__)

PIECES: Final = "batch-pieces/"
QUEUE: Final = 2000
"""Pieces that wait at most; one that is dropped comes again."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_KNOWN_S: Final = 2.0
_MAX_RECEIPTS: Final = 1000

Publish = Callable[[str, bytes], bool]
Refuse = Callable[[str, str, str], None]


class _Receipt:
    """What is here of one result of one part."""

    def __init__(self, size: int, have: set[int]) -> None:
        self.size, self.total, self.have = size, chunks.count(size), have

    @property
    def bitmap(self) -> bytes:
        return chunks.encode_bitmap((one for one in range(self.total) if one not in self.have), self.total)


class BatchResults:
    """The thread. :meth:`take` is called by the link's.

    Args:
        publish: sends answers.
        refuse: told of pieces that are malformed.
        done: called when a part was done.
        max_bytes: of one result.
    """

    def __init__(
        self,
        db: Database,
        objects: ObjectStore,
        publish: Publish,
        *,
        refuse: Refuse,
        done: Callable[[], None],
        max_bytes: int,
    ) -> None:
        self._db, self._objects, self._publish = db, objects, publish
        self._refuse, self._done, self._max_bytes = refuse, done, max_bytes
        self._queue: collections.deque[tuple[str, bytes]] = collections.deque(maxlen=QUEUE)
        self._receipts: dict[tuple[int, int, str], _Receipt] = {}
        self._known: dict[tuple[int, int], tuple[frozenset[str], float]] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="batch-results", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(30)
            self._thread = None

    def take(self, device: str, payload: bytes) -> None:
        """Take a piece as it came; decoded in the thread."""
        self._queue.append((device, payload))
        self._wake.set()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(1.0)
            self._wake.clear()
            answers: dict[tuple[str, int, int, str], messages.Taken] = {}
            while self._queue and not self._stopping.is_set():
                device, payload = self._queue.popleft()
                try:
                    said = self._piece(device, payload)
                except PeerError as error:
                    self._refuse(device, error.code, error.message)
                except ResourceError as error:  # a full disk, a database that is away: the device asks again
                    log.warning("cannot keep a piece of a batch result: %s", error)
                except Exception:
                    log.exception("cannot take a piece of a batch result; the device sends it again")
                else:
                    answers[device, said.job, said.part, said.digest] = said  # the newest says it all
            for (device, *_), said in answers.items():
                self._publish(topics.down(device, "taken"), messages.encode(said))

    def _piece(self, device: str, payload: bytes) -> messages.Taken:
        piece: messages.Piece = messages.decode("piece", payload)
        over = messages.Taken(job=piece.job, part=piece.part, digest=piece.digest, over=True)
        if not piece.digest:  # it asks for what it still has of the part
            return msgspec.structs.replace(over, over=device not in self._wanted(piece.job, piece.part, device))
        if not _DIGEST.fullmatch(piece.digest) or not 0 <= piece.size <= self._max_bytes:
            self._refuse(device, "message.malformed", f"cannot take a batch result of {piece.size} bytes")
            return over
        if device not in self._wanted(piece.job, piece.part, device):
            return over
        receipt = self._receipt(piece)
        if piece.number >= 0:
            self._keep(piece, receipt)
        if len(receipt.have) == receipt.total and self._whole(device, piece, receipt):
            return over
        return messages.Taken(job=piece.job, part=piece.part, digest=piece.digest, bitmap=receipt.bitmap)

    def _wanted(self, job: int, part: int, device: str) -> frozenset[str]:
        """The devices whose result of a part would count; nobody's where it is done, or the job is over."""
        known, at = self._known.get((job, part), (frozenset(), -1e9))
        if device in known and time.monotonic() - at < _KNOWN_S:  # it may have been given the part just now
            return known
        with self._db.read() as session:
            row, found = session.get(BatchRow, job), session.get(BatchPart, (job, part))
            goes_on = row is not None and row.state in ACTIVE and found is not None and found.state in OPEN
            known = frozenset(names_of(found.given)) if goes_on and found is not None else frozenset()
        if len(self._known) > _MAX_RECEIPTS:
            self._known.clear()
        self._known[job, part] = (known, time.monotonic())
        return known

    def _receipt(self, piece: messages.Piece) -> _Receipt:
        key = (piece.job, piece.part, piece.digest)
        found = self._receipts.get(key)
        if found is None or found.size != piece.size:
            total = chunks.count(piece.size)
            have = {number for number in range(total) if self._objects.key_path(_key(piece, number)).is_file()}
            if len(self._receipts) > _MAX_RECEIPTS:
                self._receipts.clear()
            found = self._receipts[key] = _Receipt(piece.size, have)
        return found

    def _keep(self, piece: messages.Piece, receipt: _Receipt) -> None:
        data = chunks.unframe(piece.data)
        size = min(chunks.CHUNK_BYTES, piece.size - piece.number * chunks.CHUNK_BYTES)
        if piece.number >= receipt.total or len(data) != size:
            raise PeerError("message.malformed", "cannot take a piece of a batch result: its size is not its place's")
        if piece.number not in receipt.have:
            self._objects.put_key(_key(piece, piece.number), bytes(data))
            receipt.have.add(piece.number)

    def _whole(self, device: str, piece: messages.Piece, receipt: _Receipt) -> bool:
        """All chunks are there: whether nothing more is needed of this result."""
        try:
            self._objects.put_stream(self._blocks(piece, receipt), expected=piece.digest)
            counted = self._counted(piece)
        except PeerError as error:
            self._drop(piece, receipt)
            if error.code == "package.digest_mismatch":
                return False  # a chunk was damaged where it lay: all of it once more
            self._failed(device, piece, error)
            return True
        result = Result(
            job=piece.job, part=piece.part, device=device, digest=piece.digest, size=piece.size, counted=counted
        )
        with self._db.session() as session:
            finish(session, result)
            part = session.get(BatchPart, (piece.job, piece.part))
            others = set(names_of(part.given)) - {device} if part is not None else set()
        self._drop(piece, receipt)
        self._known.pop((piece.job, piece.part), None)
        forget = messages.encode(messages.Taken(job=piece.job, part=piece.part, digest="", over=True))
        for other in others:
            self._publish(topics.down(other, "taken"), forget)
        self._done()
        return True

    def _failed(self, device: str, piece: messages.Piece, error: PeerError) -> None:
        """A result that is not right: what the device was told to do counts as failed."""
        with self._db.session() as session:
            part = session.get(BatchPart, (piece.job, piece.part))
            row = session.get(CommandRow, part.command) if part is not None else None
            if row is not None and row.device == device and not row.ended_at:
                commands.fail(session, row.id, error.code, error.message, now=now_ms())
        self._done()

    def _counted(self, piece: messages.Piece) -> Counted:
        with self._db.read() as session:
            row = session.get(BatchRow, piece.job)
            assert row is not None
            manifest = manifest_of(session, row)
        with self._objects.open(piece.digest) as file:
            return count(file, manifest)

    def _blocks(self, piece: messages.Piece, receipt: _Receipt) -> Iterator[bytes]:
        for number in range(receipt.total):
            with self._objects.open_key(_key(piece, number)) as file:
                yield file.read()

    def _drop(self, piece: messages.Piece, receipt: _Receipt) -> None:
        for number in range(receipt.total):
            self._objects.delete_key(_key(piece, number))
        self._receipts.pop((piece.job, piece.part, piece.digest), None)


def _key(piece: messages.Piece, number: int) -> str:
    return f"{PIECES}{piece.job}/{piece.part}/{piece.digest}/{number}"


def manifest_of(session: Session, row: BatchRow) -> Manifest:
    """The manifest of the version that a job is scored by.

    Raises:
        InputError: ``module.unknown``: it was deleted.
    """
    return msgspec.json.decode(registry.get_version(session, row.module, row.version).manifest, type=Manifest)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A part's whole result, checked: an object of the store."""

    job: int
    part: int
    device: str
    digest: str
    size: int
    counted: Counted


def finish(session: Session, result: Result) -> bool:
    """Count a part as done, unless it is already or is not wanted any more; whether it was this that did."""
    row = session.get(BatchRow, result.job)
    found = session.get(BatchPart, (result.job, result.part), with_for_update=True)
    if row is None or found is None or row.state not in ACTIVE or found.state not in OPEN:
        return False
    found.state, found.device, found.ended_at = PartState.DONE, result.device, now_ms()
    found.result, found.result_size, found.progress = result.digest, result.size, 1.0
    found.scored, found.errors, found.code, found.message = *result.counted, "", ""
    found.units = found.units or sum(result.counted)
    session.add(found)
    return True


__all__ = ["BatchResults", "Result", "finish", "manifest_of"]
