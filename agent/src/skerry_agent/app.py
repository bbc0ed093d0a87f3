"""Wires the agent together and decides nothing: settings in, a running daemon out.

Order of start: lock the state folder, open the spool, start the data plane, boot the brain from what was saved, and
only then the link. So a device scores before, and without, any network. On SIGTERM it stops taking requests, ends
workers, writes what is pending, and says goodbye; on anything harder the next start goes on from the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from skerry_agent import device_health, notify, wiring
from skerry_agent.commands import Commands
from skerry_agent.control import Control
from skerry_agent.device_profile import equip, load_profile
from skerry_agent.disk import MB, Disk
from skerry_agent.driver import Driver
from skerry_agent.engines import available
from skerry_agent.engines._host import installed
from skerry_agent.events import Events
from skerry_agent.hublink import HubLink, NoLink
from skerry_agent.jobs.command import AT_ONCE as PARTS_AT_ONCE
from skerry_agent.mqtt import LinkEvent, MqttLink
from skerry_agent.outbox import Outbox
from skerry_agent.rules import effects as fx
from skerry_agent.rules.spool import SpoolSettings
from skerry_agent.serving import headstart
from skerry_agent.serving.plane import Plane
from skerry_agent.settings import Settings, redacted
from skerry_agent.spool import Spool
from skerry_agent.statefile import FolderLock, StateFile
from skerry_agent.telemetry import Telemeter
from skerry_modules import batches
from skerry_modules.errors import ResourceError, SkerryError
from skerry_modules.messages import Event, Severity

log = logging.getLogger("skerry_agent")

_RESTART_S: Final = 1.0
_RESTART_MAX_S: Final = 30.0
_END_S: Final = 5.0


class App:
    """One agent. ``await run()`` returns when it was told to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.boot = os.urandom(8).hex()
        self._version = installed("skerry")
        self.profile = load_profile(settings.device.profile)
        equip(self.profile, os.environ)
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._began = time.monotonic()
        self._followed = -1
        self._noted: frozenset[str] = frozenset()
        self._engines = available()
        self.disk_thread = ThreadPoolExecutor(1, "disk")
        self._state_thread = ThreadPoolExecutor(1, "state")
        self._loop = asyncio.get_running_loop()

    # -- building ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, serve until stopped, end cleanly.

        Raises:
            SkerryError: what keeps it from starting: ``resource.state_in_use``, ``resource.port_in_use``, ….
        """
        folder = self.settings.folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ResourceError(
                "resource.no_space",
                f"cannot make the state folder {folder}: {error.strerror}; name another with state.folder",
            ) from error
        lock = FolderLock(folder)
        lock.take()
        try:
            await self._start()
            await self._serve()
        finally:
            lock.release()
            self.disk_thread.shutdown(wait=False)
            self._state_thread.shutdown(wait=False)

    async def _start(self) -> None:
        settings, folder = self.settings, self.settings.folder
        self.disk = Disk(folder, reserve_mb=settings.rules.spare_disk_mb, sync_chunks=settings.state.sync_chunks)
        spool = await self._in_state_thread(
            lambda: Spool(folder / "spool.db", _spool_settings(settings), journal=settings.reporting.journal)
        )
        self.link = self._make_link()
        self.brain = wiring.make_brain(settings, self.profile)
        self.hub = HubLink(
            device=settings.device.id,
            profile=self.profile.name,
            boot=self.boot,
            agent=self._version,
            link=self.link or NoLink(),
            facts=self._facts,
            revision=lambda: self.brain.revision,
            post=self._post,
        )
        self.outbox = Outbox(
            spool,
            self._state_thread,
            self.hub.send,
            gather_s=settings.spool.gather_s,
            trouble=self._spool_trouble,
        )
        self.events = Events(lambda event: self.outbox.put("event", event), settings.reporting.repeat_s, time.monotonic)
        self.hub.outbox, self.hub.events = self.outbox, self.events
        self.plane = self._make_plane()
        self.plane.starting = True
        await self.plane.start()
        self.telemeter = Telemeter(
            self.plane,
            lambda window: self.outbox.put("telemetry", window),
            self._post,
            traffic_s=settings.reporting.traffic_s,
            telemetry_s=settings.reporting.telemetry_s,
        )
        self.health = device_health.DeviceHealth(self.boot, folder)
        self.driver = self._make_driver()
        self.plane.repository.shelf = wiring.make_shelf(self)
        self.hub.commands = self.commands = self._make_commands()
        await self.driver.boot(self.boot)
        self.plane.starting = False
        self.commands.resume()
        self._after_boot(damaged=spool.damaged)

    def _after_boot(self, *, damaged: bool) -> None:
        if damaged:
            self.events.tell(
                Severity.ERROR,
                "resource.spool_damaged",
                "cannot read the spool: its database is damaged; it was set aside as spool.db.damaged and begun anew",
            )
        if self.driver.fell_back:
            self.events.tell(
                Severity.WARNING,
                "resource.state_damaged",
                "cannot read the newest saved state: it is damaged; the one before it is used",
            )

    def _post(self, event: fx.Event) -> None:
        self.driver.post(event)  # made last, since it needs the others

    def _make_link(self) -> MqttLink | None:
        link = wiring.link_settings(self.settings, self.boot)
        return MqttLink(link, self._from_link) if link else None

    def _from_link(self, event: LinkEvent) -> None:
        """In the link's thread."""
        self.call(lambda: self.hub.on_link(event))

    def call(self, work: Callable[[], None]) -> None:
        """Run ``work`` on the event loop; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(work)

    def _make_plane(self) -> Plane:
        folder = self.settings.folder
        serving = msgspec.structs.replace(self.settings.serving, cache=self.settings.serving.cache or f"{folder}/cache")
        plane = Plane(serving)
        plane.on_exit = lambda digest, reason, restarting: self._post(fx.WorkerExited(digest, reason, restarting))
        plane.on_sample = lambda _digest, sample: self.outbox.put("sample", sample)
        plane.on_notice = self._noticed
        return plane

    def _noticed(self, digest: str, code: str, text: str) -> None:
        """A version serves, but not as its manifest or profile would have it."""
        module, version = self.plane.subject(digest)
        self.events.emit(Event(severity=Severity.WARNING, code=code, message=text, module=module, version=version))

    def _make_driver(self) -> Driver:
        return Driver(
            self.brain,
            disk=self.disk,
            state=StateFile(self.settings.folder),
            disk_thread=self.disk_thread,
            state_thread=self._state_thread,
            plane=self.plane,
            outside=self.hub,
            watcher=self.telemeter,
            limits=self.profile.limits,
            facts=self._facts,
            backlog=self.settings.hub.backlog_mb * MB,
            after=self._follow_hub,
        )

    def _make_commands(self) -> Commands:
        from skerry_agent.profiling.command import Profiler

        profiler = Profiler(self.settings.device.id, self.profile, self.disk, self.plane, self.in_disk_thread)
        scorer = self._parts = wiring.make_part_scorer(self)
        return Commands(
            self.settings.folder,
            lambda result: self.outbox.put("result", result),
            {"profile": profiler, batches.COMMAND: scorer, batches.STOP: scorer.stop},
            # A batch's requests would be measured too.
            alone={"profile": 1, batches.COMMAND: PARTS_AT_ONCE},
        )

    async def in_disk_thread(self, work: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self.disk_thread, work)

    async def _in_state_thread(self, work: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._state_thread, work)

    def _facts(self) -> Any:
        return device_health.facts(self.profile, self._engines, self.disk.free_mb())

    def _spool_trouble(self, error: SkerryError | None) -> None:
        if error:
            self.events.error(error, Severity.ERROR)
        else:
            log.info("the spool can be written again")

    # -- running -----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        control = Control(self.settings.folder, {"status": self._on_status, "events": self._on_events})
        try:
            await control.start()
        except OSError as error:  # a file system without sockets (FAT, some shares) must not stop a device
            log.warning("cannot open the control socket: %s; `skerry-agent status` will not work", error)
        self._spawn("driver", self.driver.run)
        self._spawn("outbox", self.outbox.run)
        self._spawn("telemetry", self.telemeter.run)
        self._spawn("health", self._report_health)
        self._spawn("watchdog", self._watch)
        self._spawn("batch parts", self._parts.look_after)
        self.feeders = wiring.make_feeders(self)
        for feeder in self.feeders:
            self._spawn(feeder.name, feeder.run)
        if self.link:
            self.hub.start()
            self.link.start()
        log.info(
            "device %s (%s) is up; scoring at %s", self.settings.device.id, self.settings.device.profile, self.addresses
        )
        notify.send("READY=1")
        self._loop.call_later(self.settings.serving.zygote_timeout_s, headstart.end_rest)
        await self._stop.wait()
        notify.send("STOPPING=1")
        await self._end(control)

    def _spawn(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.append(self._loop.create_task(self._supervise(name, work), name=name))

    async def _supervise(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """A part that breaks is told and begun again: one fault must not end the whole device."""
        pause = _RESTART_S
        while True:
            began = time.monotonic()
            try:
                await work()
            except SkerryError as error:
                self.events.error(error, Severity.ERROR)
            except Exception as error:
                log.exception("the %s broke; it begins again", name)
                text = f"cannot go on with the {name}: {type(error).__name__}: {error}; it begins again, see the log"
                self.events.tell(Severity.ERROR, "internal.bug", text)
            else:
                return
            if time.monotonic() - began > _RESTART_MAX_S:
                pause = _RESTART_S
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RESTART_MAX_S)

    def _follow_hub(self) -> None:
        """Take over the settings of a desired document as soon as it is in force."""
        self.plane.repository.follow()
        if self.plane.engines != self._noted:
            self._noted = self.plane.engines
            headstart.note(self.settings.folder, self._noted)
        if self.brain.revision == self._followed or not self.brain.desired:
            return
        self._followed = self.brain.revision
        wanted = self.brain.desired.settings
        self.telemeter.telemetry_s = wanted.telemetry_s or self.settings.reporting.telemetry_s
        self.plane.set_capture_rate(wanted.capture_rate)

    async def _report_health(self) -> None:
        while True:
            # Off the loop: reading /proc takes milliseconds that a scored request would wait for.
            health = await self._in_state_thread(lambda: self.health.read(self.outbox.facts, self.outbox.dropped))
            self.outbox.put("health", health)
            wanted = self.brain.desired.settings if self.brain.desired else None
            await asyncio.sleep((wanted.health_s if wanted else 0.0) or self.settings.reporting.health_s)

    async def _watch(self) -> None:
        """The loop's own heartbeat for systemd, and the link's watchdog."""
        while True:
            notify.send("WATCHDOG=1")
            if self.link and self.link.stalled(time.monotonic()):
                self.events.tell(
                    Severity.ERROR, "internal.bug", "cannot hear from the link's thread; it is replaced by a new one"
                )
                self.link.restart()
            await asyncio.sleep(1.0)

    async def _end(self, control: Control) -> None:
        await control.stop()
        await self.commands.stop()
        for task in self._tasks:
            task.cancel()
        _, left = await asyncio.wait(self._tasks, timeout=_END_S)
        if left:
            log.error("%s did not end in time; going on without", ", ".join(task.get_name() for task in left))
        await self.driver.settle()
        self.telemeter.flush()
        await self.plane.stop()
        await self.outbox.close()
        if self.link:
            await asyncio.to_thread(self.link.stop, self.hub.presence(online=False))
        log.info("stopped")

    # -- what people ask ---------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> str:
        return wiring.addresses(self.plane, self.settings)

    async def _on_status(self, _request: dict[str, Any]) -> dict[str, Any]:
        used = await self._loop.run_in_executor(self.disk_thread, self.disk.used_mb)
        return {
            "device": self.settings.device.id,
            "profile": self.settings.device.profile,
            "agent": self._version,
            "pid": os.getpid(),
            "boot": self.boot,
            "uptime_s": round(time.monotonic() - self._began, 1),
            "engines": self._engines,
            "scoring": self.addresses,
            "hub": {
                "broker": self.settings.hub.broker,
                "connected": bool(self.link and self.link.connected),
                "since_s": round(time.monotonic() - self.hub.since, 1),
                "reason": self.hub.reason,
            },
            "revision": self.brain.revision,
            "modules": msgspec.to_builtins(self.brain.snapshot(time.monotonic())),
            "loaded": self.telemeter.names(),
            "spool": {**self.outbox.facts, "dropped": self.outbox.dropped},
            "sources": [feeder.facts() for feeder in self.feeders],
            "disk": {"used_mb": used, "free_mb": self.disk.free_mb(), "limit_mb": self.profile.limits.disk_mb},
            "memory_mb": round(device_health.pss(os.getpid()) / MB, 1),
            "settings": redacted(self.settings),
        }

    async def _on_events(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        limit = request.get("limit", 50)
        entries = await self.outbox.journal(limit if isinstance(limit, int) else 50)
        return [{"at": entry.at, **msgspec.to_builtins(entry.event)} for entry in entries]


def _spool_settings(settings: Settings) -> SpoolSettings:
    return SpoolSettings(
        max_bytes=settings.spool.budget_mb * MB,
        window=settings.spool.window,
        window_bytes=settings.spool.window_kb * 1000,
        resend_s=settings.spool.resend_s,
    )
