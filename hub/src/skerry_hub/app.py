"""The hub, wired: settings in, a web application out. It decides nothing.

Order of a start: data folder and key, database and its history, the lease (from here on this is the one hub), broker,
link, ingest, delivery, rollouts. A stop goes the same way back, so that what was taken is committed and acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Collection, Iterable

from fastapi import FastAPI
from sqlmodel import Session

from skerry_hub import broker as brokers
from skerry_hub import desired, devices, keys, registry
from skerry_hub.batch.engine import BatchEngine
from skerry_hub.batch.look import BatchSettings
from skerry_hub.broker import Broker, parse_url
from skerry_hub.bus import Bus
from skerry_hub.db import Database
from skerry_hub.ingest import IngestSettings
from skerry_hub.lease import Lease
from skerry_hub.live import Seats
from skerry_hub.objects import FolderStore, ObjectStore
from skerry_hub.rollouts import RolloutEngine
from skerry_hub.samples import CompactSettings
from skerry_hub.settings import Settings, is_loopback
from skerry_hub.streaming import Streaming, StreamingSettings
from skerry_hub.tables import Device
from skerry_modules import trust
from skerry_modules.errors import InputError, ResourceError, SkerryError
from skerry_modules.messages import Command

log = logging.getLogger(__name__)


class Hub:
    """Every part of a running hub, by name. ``app.state.hub`` is one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bus = Bus()
        self.seats = Seats(settings.streams_max)
        self.db = Database(settings.database_url, busy_s=settings.database_busy_s, pool=settings.database_pool)
        self.key: trust.SigningKey
        self.objects: ObjectStore
        self.rollouts = RolloutEngine(self.db, self.bus, self.publish_desired)
        self.batches: BatchEngine
        self.broker: Broker = brokers.choose(settings)
        self.streaming: Streaming | None = None  # until the hub has started
        self.failure: SkerryError | None = None  # why it could not start, or had to stop by itself
        self._lease = Lease(self.db, self.address, seconds=settings.lease_s, on_lost=self._stop_process)
        # An upload holds a worker thread for as long as it comes: slow ones must leave some for all other requests.
        self.uploads = asyncio.Semaphore(settings.uploads_max)
        self._telling = threading.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._opened = False

    @property
    def address(self) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.settings.port}"

    @property
    def connected(self) -> bool:
        """Whether the hub speaks with the broker now."""
        return self.streaming is not None and self.streaming.link.connected

    def open(self) -> None:
        """Folder, key, database and lease: what can refuse a start with a clear word.

        Raises:
            ResourceError: ``resource.database_in_use``, ``resource.database_unreachable``.
            InputError: ``trust.bad_key``, ``settings.invalid`` (the data folder).
        """
        if self._opened:
            return
        folder = self.settings.data_folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.key = keys.hub_key(folder)
        except OSError as error:
            raise InputError(
                "settings.invalid",
                f"cannot use the data folder {folder}: {error.strerror}; make it writable, or choose another --data",
                setting="data",
            ) from error
        self.db.info[desired.SIGNER] = self.key
        self.db.migrate()
        self._lease.acquire()
        self._check_key()
        store = FolderStore(folder / "store")
        store.clean()
        self.objects = store
        self._opened = True

    def _check_key(self) -> None:
        with self.db.read() as session:
            former = keys.former_key(session, self.key)
        if former:
            log.error(
                "devices of this database trust the hub key %s and will refuse this hub's documents, signed with %s: "
                "put the former keys/hub.pem back into %s, or give each device a new configuration",
                former,
                self.key.public.keyid,
                self.settings.data_folder,
            )

    async def start(self) -> None:
        """Open, then start every part in order.

        Raises:
            SkerryError: as :meth:`open`, and what the broker says (``resource.*``).
        """
        await asyncio.to_thread(self.open)
        await asyncio.to_thread(self._start_streaming)
        self.bus.reopen()
        self.batches = self._make_batches()
        parts = (("rollouts", self.rollouts.run()), ("batches", self.batches.run()), ("collector", self._collect()))
        for name, work in parts:
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(_tell)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Stop what :meth:`start` started, as far as it came."""
        self.bus.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await asyncio.to_thread(self._stop_streaming)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Undo :meth:`open`."""
        self._lease.release()
        self.db.close()
        self._opened = False

    def _make_batches(self) -> BatchEngine:
        settings = self.settings
        return BatchEngine(
            self.db,
            self.objects,
            self.bus,
            settings.data_folder / "batches",
            self._send_command,
            settings=BatchSettings(
                lease_s=settings.batch_lease_s, days=settings.batches_days, hub_jobs=settings.batch_hub_jobs
            ),
        )

    def _send_command(self, device: str, command: Command) -> bool:
        return self.streaming is not None and self.streaming.send_command(device, command)

    def publish_desired(self, device_ids: Iterable[str]) -> None:
        """Send devices their documents, soon; call it after the commit. A device that has none any more is cleared."""
        if self.streaming is not None:
            self.streaming.publish_desired(device_ids)

    def spread_desired(self, device_ids: Collection[str]) -> None:
        """As :meth:`publish_desired`, for a change of many devices: writes their documents where that is due."""
        if len(device_ids) > desired.SLICE:
            for part in desired.issue_due(self.db):
                self.publish_desired(part)
        else:
            self.publish_desired(device_ids)

    def refresh_credentials(self) -> None:
        """Tell the broker, and the ingest, which devices there are; call it after the commit."""
        # One at a time: of two, the one that read first must not be the one that is told last.
        with self._telling, self.db.read() as session:
            self.broker.set_credentials(devices.credentials(session))
        if self.streaming is not None:
            self.streaming.ingest.forget_devices()

    def device_config(self, session: Session, device: Device, password: str) -> str:
        """The agent's configuration (TOML) for a device with this password."""
        return devices.config_text(
            device,
            password,
            broker=self.broker.public_url,
            hub_key=self.key.public.text(),
            publishers=[key.text() for key in keys.publishers(session).values()],
        )

    async def _collect(self) -> None:
        """Now and then delete objects that no version needs any more."""
        while True:
            await asyncio.sleep(self.settings.object_grace_s)
            try:
                gone = await asyncio.to_thread(
                    registry.collect_garbage, self.db, self.objects, grace_s=self.settings.object_grace_s
                )
                log.info("collected %d objects that no version needs", len(gone))
            except SkerryError as error:
                log.warning("cannot collect objects now: %s", error)

    def _start_streaming(self) -> None:
        settings = self.settings
        self.broker.start()
        self.refresh_credentials()
        kept = StreamingSettings(
            telemetry_days=settings.telemetry_days,
            health_days=settings.health_days,
            events_days=settings.events_days,
            offline_s=settings.device_offline_s,
            result_max_bytes=settings.batch_result_max_bytes,
            compact_s=settings.samples_every_s,
            compact=CompactSettings(min_rows=settings.samples_min_rows, max_age_s=settings.samples_max_age_s),
        )
        ingest = IngestSettings(reconnects_per_s=settings.reconnects_per_s)
        self.streaming = Streaming(self.db, self.objects, self.bus, self.broker, settings=kept, ingest=ingest)
        self.streaming.start()
        if not settings.loopback and is_loopback(parse_url(self.broker.public_url)[0]):
            log.warning(
                "devices are told to connect to %s, which only this machine reaches: listen with --broker-host, or say "
                "with --broker-public-url where the broker is, before you add devices",
                self.broker.public_url,
            )

    def _stop_streaming(self) -> None:
        if self.streaming is not None:
            self.streaming.stop()
            self.streaming = None
        self.broker.stop()

    def _stop_process(self) -> None:
        """The lease is lost: end as if asked to, since another hub may run on the database by now."""
        self.failure = ResourceError(
            "resource.database_in_use",
            f"cannot go on: the lease of {self.db} was lost; see that one hub only runs on it, and restart",
        )
        os.kill(os.getpid(), signal.SIGTERM)


def _tell(task: asyncio.Task[None]) -> None:
    """A part that ends by itself is a mistake of ours: it must not go unseen."""
    if not task.cancelled() and task.exception():
        log.critical("the part %s ended by a mistake of ours", task.get_name(), exc_info=task.exception())


def create_app(settings: Settings) -> FastAPI:
    """The web application. Its lifespan starts and stops the hub in ``app.state.hub``."""
    from skerry_hub import api, console

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await hub.start()
            yield
        except SkerryError as error:
            hub.failure = error
            raise
        finally:
            await hub.stop()

    hub = Hub(settings)
    app = api.create(settings, lifespan)
    console.mount(app)
    app.state.hub = hub
    return app
