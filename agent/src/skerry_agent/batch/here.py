"""A data plane of its own for one module that lies in a folder: to score where no agent runs, as the hub does.

The same workers, engines and limits as on a device; it serves on a Unix socket in a folder that nobody else may enter.
The module must pass its golden test first, as it must before it serves anywhere. Where it brings an environment, the
folder holds ``environment.lock`` and the wheels under ``environment/``, as a package has them: the environment is built
from these as a device builds it, without a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from skerry_agent.environments import Environments
from skerry_agent.serving.plane import Plane, run
from skerry_agent.serving.settings import ServingSettings
from skerry_modules import environments
from skerry_modules.environments import Lock, LockFile
from skerry_modules.errors import InputError, PeerError, ResourceError
from skerry_modules.manifest import Manifest
from skerry_modules.messages import Route
from skerry_modules.package import build_index, index_bytes, read_folder
from skerry_modules.profiles import Limits

START_S = 120.0
NICENESS = 10
_ROOM_MB = 1_000_000  # what a module declares is its own limit; here nobody shares the machine out


class _Here:
    """The plane in a thread with a loop of its own: scoring asks it as a client."""

    def __init__(self, folder: Path, version: int, built: Path | None) -> None:
        self._folder, self._version, self._built = folder, version, built
        self.url = ""
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._main, name="plane")

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(START_S):
            raise ResourceError("install.load_timeout", f"cannot load the module within {START_S:.0f} s")
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        if self._error is None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _main(self) -> None:
        try:
            run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        manifest = read_folder(self._folder)
        with tempfile.TemporaryDirectory(prefix="skerry-batch-") as private:
            environment = await self._environment(manifest, Path(private))
            if environment:
                digest = hashlib.sha256(str(self._folder).encode()).hexdigest()  # a name, for this process alone
            else:
                index, _ = build_index(self._folder, manifest)
                digest = hashlib.sha256(index_bytes(index)).hexdigest()
            plane = Plane(ServingSettings(http="", socket=f"{private}/s.sock", cache=""))
            await plane.start()
            try:
                limits = Limits(memory_mb=_ROOM_MB, disk_mb=_ROOM_MB)
                await plane.load(digest, self._folder, manifest, self._version, limits, environment=environment)
                await self._prove(plane, digest, manifest)
                route = Route(module=manifest.name, version=self._version)
                plane.set_routes(manifest.name, (route,), (digest,))
                self.url = f"unix:{private}/s.sock"
                self._ready.set()
                await self._stop.wait()
            finally:
                await plane.stop()

    async def _environment(self, manifest: Manifest, private: Path) -> str:
        """The folder of the module's environment, built if it is not there; empty: it brings none."""
        if not manifest.environment.given:
            return ""
        lock = _lock_of(self._folder, manifest.name)
        target = environments.choose(lock, platform.machine(), platform.python_version(), glibc=platform.libc_ver()[1])
        if target is None:
            raise ResourceError(
                "unschedulable.environment",
                f"cannot score {manifest.name} here: its environment was not locked for Python "
                f"{platform.python_version()} on {platform.machine()}; pack it for such a profile too, or score it on "
                "a device that serves it",
            )
        objects = private / "objects"  # the wheels by their SHA-256, as a device holds them
        objects.mkdir()
        for wheel in target.wheels:
            (objects / wheel.sha256).symlink_to(self._folder / environments.FOLDER / wheel.file)
        builder = Environments(self._built or private, objects)
        builder.prepare()
        await builder.build(lock, target)
        return str(builder.path(lock))

    async def _prove(self, plane: Plane, digest: str, manifest: Manifest) -> None:
        if manifest.golden is None:
            return
        report = await plane.golden(digest, self._folder, manifest)
        if not report.passed:
            raise PeerError("install.golden_failed", report.message)


def _lock_of(folder: Path, name: str) -> Lock:
    try:
        lock = msgspec.json.decode((folder / environments.LOCK_FILE).read_bytes(), type=LockFile).lock
        problem = next(iter(environments.problems(lock)), "")
    except (OSError, msgspec.DecodeError) as error:
        problem = str(error)
    if problem:
        raise InputError(
            "environment.not_locked",
            f"cannot score {name} here: it brings an environment, and {folder / environments.LOCK_FILE} cannot be "
            f"used: {problem}; score it on a device that serves it, or on the hub",
        )
    return lock


@contextlib.contextmanager
def serving(folder: Path, version: int, built: Path | None = None) -> Iterator[str]:
    """The address at which the module in ``folder`` is served, as the version that it is said to be.

    Args:
        built: a folder that keeps what was built of the module's environment; None: it goes when this ends.

    Raises:
        SkerryError: ``manifest.*``, ``install.*``, ``unschedulable.*``, ``environment.not_locked``,
            ``package.digest_mismatch``.
    """
    os.nice(NICENESS)  # workers too: what else runs on this machine goes first
    here = _Here(folder.resolve(), version, built.resolve() if built else None)
    try:
        here.start()
        yield here.url
    finally:
        here.stop()
