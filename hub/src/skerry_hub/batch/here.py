"""Jobs that the hub scores itself: in a child process with the engines that are installed beside it.

The hub's own process never sees a model: ``skerry-agent batch --module-folder`` runs as a program of its own, at low
priority, in whose parent's death it dies. What it has scored stands in the hub's data folder, so that a hub that is
killed goes on from there. Where the agent is not installed, that is the error. A module's environment is built by the
child as a device builds it, in the job's folder: it goes with the job.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from skerry_hub import registry
from skerry_hub.batch import inputs as batch_inputs
from skerry_hub.batch.merge import count
from skerry_hub.batch.results import Result, manifest_of
from skerry_hub.batches import HUB, names_of
from skerry_hub.tables import BatchRow, ModelVersion
from skerry_modules import package
from skerry_modules.environments import LOCK_FILE, LockFile, choose
from skerry_modules.errors import CODES, InputError, PeerError, ResourceError, SkerryError
from skerry_modules.index import Index

if TYPE_CHECKING:
    from skerry_hub.db import Database
    from skerry_hub.objects import ObjectStore

PROGRAM: Final = "skerry-agent"
_ERROR: Final = re.compile(rf"{PROGRAM}: (?P<message>.*) \[(?P<code>[a-z_]+\.[a-z_]+)\]")
Told = Callable[[int, int], None]
"""(units done, units in all)."""


class Line(msgspec.Struct):
    """Progress, as the child tells it."""

    done: int
    units: int


class Here:
    """One job in a child. :meth:`run` blocks; :meth:`stop` ends it from another thread.

    Args:
        folder: where this job's files stand until it is done.
    """

    def __init__(self, db: Database, objects: ObjectStore, folder: Path, row: BatchRow) -> None:
        self._db, self._objects, self._folder, self._row = db, objects, folder, row
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def stop(self) -> None:
        """End the child, now or before it starts."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def run(self, told: Told) -> Result:
        """Score, and store what came out.

        Raises:
            SkerryError: what the child said; ``resource.missing_dependency``, ``resource.no_space``,
                ``batch.cancelled`` after :meth:`stop`.
        """
        program = find_program()
        result = self._folder / "result.rows"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not result.exists():
                source = self._lay_out()
                self._score(program, source, result, told)
            size = result.stat().st_size
            with self._db.read() as session:
                manifest = manifest_of(session, self._row)
            with result.open("rb") as file:
                counted = count(file, manifest)
            with result.open("rb") as file:
                digest = self._objects.put_stream(file)
        except OSError as error:
            raise ResourceError(
                "resource.no_space", f"cannot score in {self._folder}: {error.strerror or error}; make room there"
            ) from error
        return Result(job=self._row.id or 0, part=0, device=HUB, digest=digest, size=size, counted=counted)

    def _lay_out(self) -> Path:
        """The module and the input as files; what stands there already stays."""
        module, row = self._folder / "module", self._row
        if not module.exists():
            with self._db.read() as session, tempfile.TemporaryDirectory(dir=self._folder) as temporary:
                file = Path(temporary) / f"module{package.SUFFIX}"
                _, blocks = registry.package_of(session, self._objects, row.module, row.version)
                with file.open("wb") as target:
                    target.writelines(blocks)
                index = package.unpack(file, Path(temporary) / "module")
                if index.facts.environment is not None:  # the wheels are files of the package
                    lock = msgspec.json.encode(LockFile(lock=index.facts.environment))
                    (Path(temporary) / "module" / LOCK_FILE).write_bytes(lock)
                (Path(temporary) / "module").rename(module)
        return batch_inputs.lay_out(
            self._objects, batch_inputs.read_list(self._objects, row.upload), self._folder / "input"
        )

    def _score(self, program: str, source: Path, result: Path, told: Told) -> None:
        row = self._row
        command = [program, "batch", f"{row.module}:{row.version}", str(source), f"--output={result}"]
        command += [f"--module-folder={self._folder / 'module'}", f"--rows={row.rows}", f"--part-rows={row.part_rows}"]
        command += [f"--columns={','.join(names_of(row.columns))}", f"--keep={','.join(names_of(row.keep))}"]
        command += [f"--built={self._folder}", "--lines", "--json", f"--child-of={os.getpid()}"]
        with self._lock:
            if self._stopped:
                raise _cancelled()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        said = self._listen(self._process, told)
        code = self._process.wait()
        if self._stopped:
            raise _cancelled()
        if code not in (0, 1) or not result.exists():
            raise error_of(code, said)

    def _listen(self, process: subprocess.Popen[str], told: Told) -> list[str]:
        """Until it ends; what it said besides progress."""
        said: list[str] = []
        assert process.stderr is not None
        with process.stderr as lines:
            for text in lines:
                try:
                    line = msgspec.json.decode(text, type=Line)
                except msgspec.DecodeError:
                    said = [*said[-20:], text.rstrip("\n")]
                else:
                    told(line.done, line.units)
        return said

    def forget(self) -> None:
        """Remove the job's files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def check_environment(objects: ObjectStore, version: ModelVersion) -> None:
    """See that a version's environment, if it has one, was locked for this machine.

    Raises:
        InputError: ``unschedulable.environment``.
    """
    with objects.open(version.digest) as file:
        lock = msgspec.json.decode(file.read(), type=Index).facts.environment
    python, machine = platform.python_version(), platform.machine()
    if lock is not None and choose(lock, machine, python, platform.libc_ver()[1]) is None:
        kinds = "; ".join(target.label for target in lock.targets)
        raise InputError(
            "unschedulable.environment",
            f"cannot score {version.name}:{version.version} on the hub: its environment was not locked for Python "
            f"{python} on {machine}, but for {kinds}; name devices that serve it, or register it with such a profile "
            "among targets.profiles",
        )


def find_program() -> str:
    """The agent's command, beside this Python first: it is of the same version.

    Raises:
        ResourceError: ``resource.missing_dependency``.
    """
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.is_file() else shutil.which(PROGRAM)
    if not found:
        raise ResourceError(
            "resource.missing_dependency",
            f"cannot score on the hub: {PROGRAM} is not installed there; pip install 'skerry[agent,onnx,batch]' beside "
            "the hub, or score on devices",
        )
    return found


def error_of(code: int, said: Sequence[str]) -> SkerryError:
    """The error that a child told on its last lines."""
    for line in reversed(said):
        found = _ERROR.fullmatch(line)
        if found and found["code"] in CODES:
            return (InputError if code == 2 else ResourceError)(found["code"], found["message"])
    last = said[-1] if said else "nothing"
    return PeerError("batch.failed", f"cannot score the job: the process ended with {code} and said: {last}"[:1000])


def _cancelled() -> InputError:
    return InputError("batch.cancelled", "cannot go on: the batch job was cancelled")
