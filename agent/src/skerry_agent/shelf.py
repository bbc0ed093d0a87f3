"""The modules on this device's disk, for clients that ask the data plane to load one: nothing is opened unverified."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from skerry_agent.disk import Disk
from skerry_agent.environments import Environments
from skerry_agent.rules import verify
from skerry_agent.rules.records import Record, Slot
from skerry_agent.serving.repository import Held, Opened
from skerry_modules.errors import PeerError
from skerry_modules.index import DEFAULT_LIMITS
from skerry_modules.profiles import Limits
from skerry_modules.trust import PublicKey


class DiskShelf:
    """Implements ``serving.repository.Shelf``.

    Args:
        disk: the store.
        thread: its one thread.
        slots: what the brain holds, now.
        publishers: keys whose modules this device runs.
        limits: what modules may take, from the profile.
    """

    def __init__(
        self,
        disk: Disk,
        thread: Executor,
        slots: Callable[[], Mapping[str, Slot]],
        publishers: Mapping[str, PublicKey],
        limits: Limits,
    ) -> None:
        self._disk = disk
        self._environments = Environments(disk.folder, disk.objects)
        self._thread = thread
        self._slots = slots
        self._publishers = publishers
        self._limits = limits

    def held(self) -> list[Held]:
        """Versions that proved themselves here once and have a use; not those that failed or are still on their way."""
        return [
            Held(record.digest, record.name, record.version)
            for slot in self._slots().values()
            for record in slot.records.values()
            if record.good and slot.role(record.digest)
        ]

    async def open(self, held: Held) -> Opened:
        """Raises PeerError ``trust.*``, ``package.*``, ``install.verify_failed``."""
        record = next(
            (slot.records[held.digest] for slot in self._slots().values() if held.digest in slot.records), None
        )
        if record is None:
            raise PeerError("install.verify_failed", f"cannot open {held.module} {held.version}: it was removed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._verify, record)

    def _verify(self, record: Record) -> Opened:
        data = self._disk.read_object(record.digest, DEFAULT_LIMITS.max_index_bytes)
        index = verify.read_index(data, record.digest, record.name, record.signatures, self._publishers)
        damaged = self._disk.damaged(record.digest, index)
        if damaged:
            raise PeerError(
                "package.digest_mismatch",
                f"cannot open {record.name} {record.version}: its file {damaged} was changed on this device",
            )
        lock = index.facts.environment
        environment = str(self._environments.path(lock)) if lock is not None else ""
        return Opened(self._disk.folder_of(record.digest), index.manifest, self._limits, environment)
