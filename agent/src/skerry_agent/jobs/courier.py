"""Fetches the input of a part from the hub and sends its result there: pure rules over the link and the disk.

An input comes as any object does: chunks that are asked for, kept as they come, checked as a whole. A result goes out
of its file, a few chunks at a time, and only while nothing more urgent waits in the spool. Inputs and results may be on
their way at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from skerry_agent.disk import Disk
from skerry_agent.hublink import HubLink, Taker
from skerry_agent.rules import effects as fx
from skerry_agent.rules.download import Download, DownloadSettings
from skerry_agent.rules.reception import Reception
from skerry_agent.rules.upload import ASK, Upload, UploadSettings
from skerry_modules import chunks, messages, topics
from skerry_modules.batches import PartOrder
from skerry_modules.errors import InputError, ResourceError, SkerryError

_YIELD_S: Final = 0.05
_BLOCK: Final = 1 << 20
OnDisk = Callable[[Callable[[], Any]], Awaitable[Any]]
Tell = Callable[[float], None]


class Courier:
    """See the module's text. One per agent; everything on the event loop.

    Args:
        device: its id.
        hub: the link, to publish and to listen.
        disk: where inputs are kept; not the one of modules.
        on_disk: runs a function in the disk's thread.
        urgent: whether something more urgent waits to be sent.
        backlog: bytes of chunks that may wait for the disk; more are dropped, and missed only after silence.
    """

    def __init__(
        self, device: str, hub: HubLink, disk: Disk, on_disk: OnDisk, urgent: Callable[[], bool], *, backlog: int
    ) -> None:
        self._device, self._hub, self._disk, self._on_disk, self._urgent = device, hub, disk, on_disk, urgent
        self._backlog = backlog
        self._uploads: dict[tuple[int, int, str], Upload] = {}
        self._reception = Reception()
        self._waiting: set[asyncio.Event] = set()  # one of each transfer: what happened wakes all of them
        self.came_up = asyncio.Event()
        """Set when the link came up, or the hub came back; cleared by who waits for it."""
        self.on_unwanted: Callable[[int, int], None] = lambda job, part: None
        """Told (job, part) when the hub said that it needs nothing more of a part."""
        hub.on_taken = self._taken
        hub.watchers.append(self._linked)

    def _linked(self, up: bool) -> None:
        (self._reception.up if up else self._reception.down)(time.monotonic())
        for upload in self._uploads.values():
            upload.linked(up)
        if up:
            self.came_up.set()
        self._wake()

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()

    @contextlib.contextmanager
    def _transfer(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            yield event
        finally:
            self._waiting.discard(event)

    def ask(self, job: int, part: int) -> None:
        """Ask whether a part that stands here is still wanted; where it is not, ``on_unwanted`` hears of it."""
        piece = messages.Piece(job=job, part=part, digest="", size=0, number=ASK)
        self._hub.publish(topics.up(self._device, "piece"), messages.encode(piece))

    # -- the input ----------------------------------------------------------------------------------------------------

    async def fetch(self, digest: str, size: int, tell: Tell) -> Path:
        """The object, whole and checked, on the disk.

        Raises:
            SkerryError: ``resource.no_space``, ``install.download_timeout``, ``install.object_gone``,
                ``package.digest_mismatch``.
        """
        arrived: deque[tuple[int, bytes] | None] = deque()  # None: the hub does not have it any more
        if self._hub.connected != self._reception.connected:
            self._linked(self._hub.connected)
        download = Download(
            digest, size, DownloadSettings(), random.Random(), reception=self._reception, now=time.monotonic()
        )

        def take(part: int, payload: bytes) -> None:
            if len(arrived) * chunks.CHUNK_BYTES < self._backlog:
                arrived.append((part, payload))
                self._wake()

        def gone() -> None:
            arrived.append(None)
            self._wake()

        self._hub.takers[digest] = Taker(take, gone)
        try:
            with self._transfer() as wake:
                await self._drive(download, arrived, tell, wake)
        finally:
            self._hub.takers.pop(digest, None)
            for effect in download.stop() if not download.ended else ():
                await self._perform(effect, download)
        if download.reason[0]:
            kind = InputError if download.reason[0].startswith("package") else ResourceError
            raise kind(*download.reason)
        return self._disk.objects / digest

    async def _drive(
        self, download: Download, arrived: deque[tuple[int, bytes] | None], tell: Tell, wake: asyncio.Event
    ) -> None:
        todo = deque(download.start())
        was_up = self._reception.connected
        while not download.ended:
            while todo:
                todo.extend(await self._perform(todo.popleft(), download))
            if download.ended:
                break
            now = time.monotonic()
            if self._reception.connected and not was_up:
                todo.extend(download.connected(now))
            was_up = self._reception.connected
            if arrived:
                came = arrived.popleft()
                todo.extend(download.gone() if came is None else download.chunk(*came, now))
                tell(download.progress)
            elif found := download.tick(now):
                todo.extend(found)
            elif not todo:
                await _pause(wake, download.next_deadline)

    async def _perform(self, effect: fx.Effect, download: Download) -> list[fx.Effect]:
        digest, size = download.digest, download.size
        try:
            match effect:
                case fx.ListParts():
                    parts = await self._on_disk(lambda: self._disk.parts(digest, size))
                    return download.listed(parts, time.monotonic())
                case fx.StoreChunk(_, part, _, data):
                    await self._on_disk(lambda: self._disk.store_chunk(digest, part, size, bytes(data)))
                case fx.CompleteObject():
                    await self._on_disk(lambda: self._disk.complete(digest, size))
                    return download.checked()
                case fx.Subscribe():
                    self._hub.subscribe_chunks(digest)
                case fx.Unsubscribe():
                    self._hub.unsubscribe_chunks(digest)
                case fx.SendWant(_, _, bitmap):
                    self._hub.send_want(messages.Want(digest=digest, size=size, bitmap=bitmap, alone=True))
        except SkerryError as error:
            return download.failed(type(effect).__name__, error.code, error.message, time.monotonic())
        return []

    # -- the result ---------------------------------------------------------------------------------------------------

    async def send(self, order: PartOrder, path: Path, tell: Tell) -> None:
        """Send a file until the hub needs nothing more of it."""
        digest, size = await self._on_disk(lambda: _facts(path))
        key = (order.job, order.part, digest)
        upload = self._uploads[key] = Upload(size, UploadSettings(), connected=self._hub.connected)
        try:
            with self._transfer() as wake:
                while not upload.over:
                    if self._urgent():
                        await _pause(wake, time.monotonic() + _YIELD_S)
                        continue
                    for number in upload.due(time.monotonic()):
                        data = b"" if number == ASK else await self._on_disk(partial(_read, path, number))
                        piece = messages.Piece(
                            job=order.job, part=order.part, digest=digest, size=size, number=number, data=data
                        )
                        self._hub.publish(topics.up(self._device, "piece"), messages.encode(piece))
                    tell(upload.progress)
                    await _pause(wake, upload.next_deadline)
        finally:
            self._uploads.pop(key, None)

    def _taken(self, said: messages.Taken) -> None:
        upload = self._uploads.get((said.job, said.part, said.digest))
        if upload is not None:
            upload.taken(said.bitmap, said.over, time.monotonic())
            self._wake()
        elif said.over and not said.digest:
            self.on_unwanted(said.job, said.part)


async def _pause(wake: asyncio.Event, until: float | None) -> None:
    """Until something happened since the last pause, or ``until``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
            await wake.wait()
    wake.clear()  # after, not before: what happened while a chunk was read must not be missed


def _facts(path: Path) -> tuple[str, int]:
    hasher, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
            size += len(block)
    return hasher.hexdigest(), size


def _read(path: Path, number: int) -> bytes:
    with path.open("rb") as file:
        file.seek(number * chunks.CHUNK_BYTES)
        return chunks.frame(file.read(chunks.CHUNK_BYTES))
