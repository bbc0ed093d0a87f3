"""The hub's streaming, wired: broker, link, ingest, delivery, and a keeper for what must be said again.

* Messages are sorted by topic: ``want`` to delivery, all else to ingest; hello and presence also tell delivery.
* Desired documents are retained, and published again when a device says hello with an older revision, when the hub
  connects anew (the broker may have lost them), and now and then while a device has not reported the newest one: no
  broker's memory is relied on. What is published is read from the database then, so revisions only grow on the wire.
* Devices that connected before the hub had subscribed are asked to say again what nobody heard (the greeter).
* The keeper, a thread, does that, prunes old rows, has samples made into Parquet, and counts devices as offline that
  said nothing for long: a broker that dies sends nobody's last will.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import bindparam, text

from skerry_hub import commands, desired, samples
from skerry_hub.batch.results import BatchResults
from skerry_hub.broker import Broker
from skerry_hub.broker.rights import OVERSIZED_TOPIC
from skerry_hub.clock import now_ms
from skerry_hub.delivery import Delivery, Rights
from skerry_hub.greeter import Greeter
from skerry_hub.ingest import Ingest, IngestSettings
from skerry_hub.link import Link, LinkSettings
from skerry_hub.rules.delivery import DeliverySettings
from skerry_hub.rules.hails import HailSettings
from skerry_modules import messages, topics
from skerry_modules.errors import InputError, PeerError

if TYPE_CHECKING:
    from skerry_hub.bus import Bus
    from skerry_hub.db import Database
    from skerry_hub.objects import ObjectStore

log = logging.getLogger(__name__)

_DAY_MS = 86_400_000
_BATCH = 200
"""Documents read at once."""


class StreamingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How long things are kept, and how often the keeper looks."""

    telemetry_days: float = 30.0
    health_days: float = 14.0
    events_days: float = 90.0
    offline_s: float = 300.0  # a device that said nothing for so long counts as offline
    remind_s: float = 30.0  # how often connected devices with an old revision get their document again
    commands_s: float = 2.0  # how often commands without an answer are looked for
    prune_s: float = 600.0
    prune_rows: int = 5000  # rows deleted in one transaction: other writers must not wait long
    compact_s: float = 60.0
    compact: samples.CompactSettings = samples.CompactSettings()
    publish_wait_s: float = 2.0
    result_max_bytes: int = 2_000_000_000  # of one part of a batch job


class Streaming:
    """Everything between broker and database. ``link``, ``ingest`` and ``delivery`` are its parts."""

    def __init__(
        self,
        db: Database,
        objects: ObjectStore,
        bus: Bus,
        broker: Broker,
        *,
        settings: StreamingSettings | None = None,
        link: LinkSettings | None = None,
        ingest: IngestSettings | None = None,
        delivery: DeliverySettings | None = None,
        hails: HailSettings | None = None,
    ) -> None:
        self.settings = settings or StreamingSettings()
        self._db, self._objects, self._bus = db, objects, bus
        self.link = Link(
            lambda: broker.hub_url,
            (broker.username, broker.password),
            self._route,
            on_connected=self._connected,
            may_read=lambda: self.ingest.has_room(),  # noqa: PLW0108 - it is made below
            settings=link,
        )
        self.ingest = Ingest(db, bus, self._publish, on_hello=self._hello, on_room=self.link.wake, settings=ingest)
        # Without waiting for room: what cannot go now goes at the next look.
        self.greeter = Greeter(self.link.publish, lambda: self.ingest.backlog, hails)
        rights = Rights(db, objects)
        self.delivery = Delivery(
            objects,
            self._publish,
            rights.size,
            refuse=self.ingest.refuse,
            tell_gone=self._tell_gone,
            lost=rights.lost,
            settings=delivery,
        )
        self.results = BatchResults(
            db,
            objects,
            self._publish,
            refuse=self.ingest.refuse,
            done=lambda: bus.publish("batches"),
            max_bytes=self.settings.result_max_bytes,
        )
        self._due: set[str] = set()  # devices whose document is to be published
        self._due_lock = threading.Lock()
        self._remind_all = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    def start(self) -> None:
        """Start all threads; returns at once, connecting goes on by itself."""
        self._stopping.clear()
        self.ingest.start()
        self.greeter.start()
        self.delivery.start()
        self.results.start()
        self.link.start()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def stop(self) -> None:
        """Take what has come, write it, acknowledge it, say goodbye."""
        self._stopping.set()
        self._wake.set()
        self.greeter.stop()
        self.delivery.stop()
        self.results.stop()
        if self._keeper is not None:
            self._keeper.join(10)
        self.ingest.stop()
        self.link.stop()

    def publish_desired(self, device_ids: Iterable[str]) -> None:
        """Send devices their documents, retained, soon; call it after the commit. Returns at once, from any thread.

        A device that has no document any more has its retained one cleared.
        """
        with self._due_lock:
            self._due.update(device_ids)
        self._wake.set()

    def send_command(self, device: str, command: messages.Command) -> bool:
        """Tell a device to do something once; False where it could not be handed to the broker."""
        return self._publish(topics.down(device, "command"), messages.encode(command))

    # -- in the link's thread: only hand over -------------------------------------------------------------------------

    def _route(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic == OVERSIZED_TOPIC:
            self._put_out(msgspec.json.decode(payload))
            return
        try:
            parsed = topics.parse(topic)
        except PeerError as error:
            self.ingest.refuse("", error.code, error.message)
            return
        if parsed.direction == "presence":
            self.greeter.presence(parsed.device, payload, retained=retained)
            self.ingest.offer(parsed.device, "presence", payload)
        elif parsed.direction != "up":
            return
        elif parsed.kind == "want":
            self.delivery.want(parsed.device, payload)
        elif parsed.kind == "piece":
            self.results.take(parsed.device, payload)
        else:
            if parsed.kind == "hello":
                # Before the wants that follow it: what flew to its old session is gone.
                self.delivery.reconnected(parsed.device)
                self.greeter.heard(parsed.device)
            self.ingest.offer(parsed.device, parsed.kind, payload)

    def _put_out(self, told: dict[str, Any]) -> None:
        problem = (
            f"cannot take a packet of {told['bytes']} bytes: the limit is {told['limit']}; the connection was ended"
        )
        self.ingest.refuse(told["device"], "message.oversized", problem)

    def _connected(self) -> None:
        self._remind_all = True
        self._wake.set()

    # -- in other parts' threads --------------------------------------------------------------------------------------

    def _publish(self, topic: str, payload: bytes) -> bool:
        return self.link.publish(topic, payload, wait_s=self.settings.publish_wait_s)

    def _tell_gone(self, device: str, digest: str) -> None:
        """In the acknowledgement, whose unknown fields a device passes over; without waiting: it asks again."""
        said = messages.Ack(messages.FORMAT, b"", {}, gone=(digest,))
        self.link.publish(topics.down(device, "ack"), messages.encode(said))

    def _hello(self, hellos: dict[str, messages.Hello]) -> None:
        """After the commit of their hellos: whoever holds an older revision gets the newest."""
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            statement = text("SELECT device, revision FROM desired_document WHERE device IN :devices")
            rows = connection.execute(
                statement.bindparams(bindparam("devices", expanding=True)), {"devices": list(hellos)}
            ).all()
        behind = {str(device) for device, revision in rows if int(revision) > hellos[str(device)].revision}
        ahead = {str(device) for device, revision in rows if int(revision) < hellos[str(device)].revision}
        behind |= self._overtaken(ahead)
        if behind:
            self.publish_desired(behind)

    def _overtaken(self, ahead: set[str]) -> set[str]:
        """Those of the devices with a later revision than ours that have a new document now."""
        found = set()
        for device in sorted(ahead):
            with contextlib.suppress(InputError), self._db.session() as session:  # removed meanwhile
                if desired.overtake(session, device, now=now_ms()):
                    found.add(device)
        return found

    # -- the keeper ---------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        jobs: list[tuple[float, Callable[[], object]]] = [
            (self.settings.remind_s, self._remind),
            (min(30.0, self.settings.offline_s), self._sweep_offline),
            (self.settings.commands_s, self._end_commands),
            (self.settings.prune_s, self.prune),
            (self.settings.compact_s, lambda: self.compact(due_only=True)),
        ]
        due = [time.monotonic() + every for every, _ in jobs]
        while not self._stopping.is_set():
            soon = 1.0 if self._due else 60.0
            self._wake.wait(min(soon, max(0.0, min(due) - time.monotonic())))
            self._wake.clear()
            if self._remind_all:
                self._remind_all = False
                self._guard(self._remind)
            self._guard(self._publish_due)
            now = time.monotonic()
            for index, (every, job) in enumerate(jobs):
                if now >= due[index] and not self._stopping.is_set():
                    due[index] = now + every
                    self._guard(job)

    @staticmethod
    def _guard(job: Callable[[], Any]) -> None:
        try:
            job()
        except Exception:
            log.exception("a job of the keeper failed; it runs again later")

    def _publish_due(self) -> None:
        """Publish until nothing is due; what cannot go out now stays due."""
        while self._due and self.link.connected and not self._stopping.is_set():
            with self._due_lock:
                part = sorted(self._due)[:_BATCH]
                self._due.difference_update(part)
            left = part
            try:
                left = self._publish_documents(part)
            finally:
                with self._due_lock:
                    self._due.update(left)
            if left:
                return

    def _publish_documents(self, devices: list[str]) -> list[str]:
        """Returns those that could not be published."""
        statement = text("SELECT device, payload FROM desired_document WHERE device IN :devices")
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            rows = connection.execute(
                statement.bindparams(bindparam("devices", expanding=True)), {"devices": devices}
            ).all()
        payloads = {str(device): bytes(payload) for device, payload in rows}
        for index, device in enumerate(devices):
            payload = payloads.get(device, b"")
            topic = topics.down(device, "desired")
            if not self.link.publish(topic, payload, retain=True, wait_s=self.settings.publish_wait_s):
                return devices[index:]
        return []

    def _remind(self) -> None:
        """Devices that have not reported the newest revision get their document again; those that a hub which died left
        without their newest one get that."""
        for part in desired.issue_due(self._db):
            self.publish_desired(part)
        statement = (
            "SELECT d.id, w.revision > d.reported_revision FROM device d JOIN desired_document w ON w.device = d.id "
            "WHERE w.revision <> d.reported_revision"
        )
        with self._db.engine.connect().execution_options(skerry_read=True) as connection:
            found = {str(device): bool(is_behind) for device, is_behind in connection.execute(text(statement))}
        behind = {device for device, is_behind in found.items() if is_behind}
        behind |= self._overtaken(found.keys() - behind)
        if behind:
            self.publish_desired(behind)

    def _sweep_offline(self) -> None:
        if not self.link.connected:
            return  # nobody could have been heard
        limit = now_ms() - int(self.settings.offline_s * 1000)
        with self._db.engine.begin() as connection:
            found = connection.execute(
                text("UPDATE device SET online = :no WHERE online = :yes AND seen_at < :limit"),
                {"no": False, "yes": True, "limit": limit},
            )
        if found.rowcount:
            self._bus.publish("fleet")

    def _end_commands(self) -> None:
        if commands.end_unanswered(self._db, now=now_ms()):
            self._bus.publish("models")

    def prune(self) -> int:
        """Delete rows past their time, in small transactions; returns how many."""
        settings = self.settings
        ages = [
            ("telemetry", "end_ms", settings.telemetry_days),
            ("health", "at", settings.health_days),
            ("event", "received_at", settings.events_days),
            ("command", "created_at", settings.events_days),
        ]
        total = 0
        for table, column, days in ages:
            total += self._prune(table, column, now_ms() - int(days * _DAY_MS))
        return total

    def _prune(self, table: str, column: str, before: int) -> int:
        chosen = f"SELECT id FROM {table} WHERE {column} < :before ORDER BY id LIMIT :rows"  # noqa: S608 - our names
        statement = text(f"DELETE FROM {table} WHERE id IN ({chosen})")  # noqa: S608 - our names
        total = 0
        while not self._stopping.is_set():
            with self._db.engine.begin() as connection:
                found = connection.execute(statement, {"before": before, "rows": self.settings.prune_rows})
            total += found.rowcount
            if found.rowcount < self.settings.prune_rows:
                break
        return total

    def compact(self, *, due_only: bool = False) -> int:
        """Make Parquet of captured samples, all of them or those that waited long enough; returns the rows moved."""
        moved = samples.compact(self._db, self._objects, self.settings.compact, now=now_ms() if due_only else 0)
        if moved:
            self._bus.publish("samples")
        return moved
