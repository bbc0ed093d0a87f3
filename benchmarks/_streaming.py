"""What the benchmarks of the hub's streaming share: a real Mosquitto, a database, the streaming, and figures."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skerry_hub import desired, devices
from skerry_hub.broker import find_mosquitto
from skerry_hub.broker.mosquitto import MosquittoBroker
from skerry_hub.bus import Bus
from skerry_hub.clock import now_ms
from skerry_hub.db import Database
from skerry_hub.objects import FolderStore
from skerry_hub.streaming import Streaming
from skerry_hub.tables import Model, ModelVersion, VersionFile
from skerry_modules import trust

PROFILE = "generic-x86_64"


def figure(
    name: str, value: float, unit: str, limit: float, bar: float, *, most: bool, ratio: float | None = None
) -> dict[str, Any]:
    """One line. ``most``: the ratio of value to limit may be at most ``bar``; else it must be at least."""
    ratio = value / limit if ratio is None else ratio
    ok = ratio <= bar if most else ratio >= bar
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "limit": round(limit, 4),
        "ratio": round(ratio, 3),
        "bar": bar,
        "ok": ok,
    }


def middle(values: list[float]) -> float:
    return statistics.median(values)


class Stand:
    """A hub's streaming on SQLite over a managed Mosquitto, with devices registered by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = find_mosquitto()
        if program is None:
            raise SystemExit("cannot measure without Mosquitto: apt-get install mosquitto")
        self.broker = MosquittoBroker(program=program, folder=folder / "broker")
        self.db = Database(f"sqlite:///{folder / 'hub.db'}")
        self.db.migrate()
        self.db.info[desired.SIGNER] = trust.SigningKey.generate("bench")
        self.objects = FolderStore(folder / "store")
        self.passwords: dict[str, str] = {}
        self.streaming = Streaming(self.db, self.objects, Bus(), self.broker)

    def register(self, names: list[str]) -> None:
        with self.db.session() as session:
            for name in names:
                self.passwords[name] = devices.register(
                    session, name, profile=PROFILE, tags={}, actor="bench", now=now_ms()
                )
            self.broker.set_credentials(devices.credentials(session))

    def offer(self, name: str, data: bytes, names: list[str]) -> str:
        """Register a version with one file and want it on devices; returns the file's digest."""
        digest = self.objects.put_bytes(data)
        index = self.objects.put_bytes(name.encode())
        now = now_ms()
        with self.db.session() as session:
            session.add(Model(name=name, last_version=1, created_at=now))
            session.flush()
            session.add(
                ModelVersion(
                    name=name,
                    version=1,
                    digest=index,
                    index_size=len(name),
                    size=len(data),
                    engine="onnx",
                    manifest="{}",
                    facts="{}",
                    signatures="[]",
                    created_by="bench",
                    created_at=now,
                )
            )
            session.add(VersionFile(name=name, version=1, path="file", sha256=digest, size=len(data)))
            session.flush()
            for device in names:
                desired.assign(session, device, name, 1, now=now)
        return digest


@contextlib.contextmanager
def stand(names: list[str]) -> Iterator[Stand]:
    """A running stand; all is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
        made = Stand(Path(folder))
        made.register(names)
        made.broker.start()
        made.streaming.start()
        try:
            if not made.streaming.link.wait_connected(20):
                raise SystemExit("cannot measure: the hub did not connect to the broker")
            yield made
        finally:
            made.streaming.stop()
            made.broker.stop()
            made.db.close()


def wait_for(check: Any, seconds: float, what: str) -> None:
    """Poll; a benchmark that hangs says where."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            raise SystemExit(f"cannot measure: waited {seconds} s for {what}")
        time.sleep(0.005)
