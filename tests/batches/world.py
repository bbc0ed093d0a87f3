"""A real hub and real agents, each a process of its own, and a module that all of them serve."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from skerry.types import BatchDetail, Plan
from skerry_modules.errors import SkerryError
from support.processes import wait_until
from support.site import Site

# Sums a row and doubles it; refuses one whose first value is -666; takes so long for each row.
SCRIPT = """
import time
def run(inputs):
    x = inputs["x"]
    if (x[:, 0] == -666).any():
        raise ValueError("the devil is in the data")
    time.sleep({seconds} * len(x))
    return {{"y": x.sum(axis=1) * 2}}
"""
MANIFEST = """
format = 1
name = "{name}"
engine = "python"
model = "main.py"
resources = {{ memory_mb = 200 }}
golden = {{ file = "golden.npz" }}
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 3]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1]
"""
LEASE_S = 2.5


class World(Site):
    """Devices that serve both modules."""

    HUB = ("--batch-lease-s", str(LEASE_S), "--batch-hub-jobs", "2")
    # What a device says before the hub listens again is lost; it is said again after this silence.
    AGENT = ("batch.report_s=0.3", "hub.retry_min_s=0.2", "hub.retry_max_s=1", "spool.resend_s=1")

    def serves(self, device: str) -> bool:
        """Whether it serves both modules, and the hub knows: of a device that starts again it may have old news."""
        with contextlib.suppress(SkerryError):
            status = self.status(device)
            own = [one["phase"] for one in status["modules"] if one.get("role") == "current"]
            reported = self.client.device_modules(device).reported
            known = [one.phase for one in reported if one.role == "current"]
            return own == known == ["Healthy"] * 2 and not status["spool"]["streams"]["state"]
        return False

    def register(self, name: str, seconds: float) -> int:
        """A module that takes so long for each row; its version."""
        number = len(list(self.folder.glob("module-*")))
        folder = self.folder / f"module-{number}"
        folder.mkdir()
        (folder / "main.py").write_text(SCRIPT.format(seconds=seconds))
        (folder / "module.toml").write_text(MANIFEST.format(name=name))
        rows = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.savez(folder / "golden.npz", **{"input.x": rows, "output.y": rows.sum(axis=1) * 2})
        return self.publish(folder)

    def roll_out(self, name: str, seconds: float) -> None:
        """The same, on all devices."""
        rollout = self.client.start_rollout(name, self.register(name, seconds), "*", Plan(soak_s=0.1)).id
        wait_until(lambda: self.client.rollout(rollout).state == "succeeded", what="the rollout", seconds=60)

    def score(self, path: Path, target: str, *, model: str = "adder:1", **wishes: Any) -> BatchDetail:
        """A whole job; its result is fetched beside the input."""
        wishes = {"keep": [] if path.is_dir() else ["id"], **wishes}
        upload = self.client.upload_batch_input(path)
        job = self.client.start_batch(model, target, upload=upload, input=path.name, **wishes).id
        ended = self.wait_for(job, "done", "failed")
        if ended.result_size:
            self.client.fetch_batch(job, path.parent)
        return ended

    def wait_for(self, job: int, *states: str, seconds: float = 60) -> BatchDetail:
        wait_until(lambda: self.client.batch(job).state in states, what=f"job {job} to be {states}", seconds=seconds)
        return self.client.batch(job)


def table(path: Path, rows: int, *, bad: tuple[int, ...] = ()) -> np.ndarray[Any, Any]:
    """A CSV of ``id,a,b,c``; returns the sums that version 1 gives, doubled. ``bad`` rows cannot be scored."""
    values = np.random.default_rng(rows).normal(size=(rows, 3)).astype("f4")
    values[list(bad), 0] = -666
    lines = [f"r{number}," + ",".join(f"{cell:.9g}" for cell in row) for number, row in enumerate(values)]
    path.write_text("id,a,b,c\n" + "\n".join(lines) + "\n")
    found: np.ndarray[Any, Any] = values.sum(axis=1) * 2
    return found
