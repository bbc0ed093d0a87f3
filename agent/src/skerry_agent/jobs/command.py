"""The command ``batch``: score one part of a job, behind live traffic, and see that the hub has the result.

What is fetched and scored stands on the disk under ``batch/`` of the state folder until the hub has it all: an agent
that is killed is given the part again, and goes on from there. The command ``batch-stop`` ends a job here.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from skerry_agent.commands import Progress
from skerry_agent.disk import MB, Disk
from skerry_agent.jobs import child
from skerry_agent.jobs.courier import Courier
from skerry_agent.settings import Batch
from skerry_modules.batches import MAX_PART_BYTES, PartOrder, order_of
from skerry_modules.errors import InputError, ResourceError, SkerryError
from skerry_modules.manifest import is_plain
from skerry_modules.messages import Command

STALE_S: Final = 7 * 86_400.0
"""Parts that nobody asked for again for so long are forgotten."""
SCORED: Final = 0.95
"""The share of the whole when all rows are scored; the rest is sending."""
_MAX_FILES: Final = 10_000


class PartScorer:
    """The handler.

    Args:
        folder: the agent's state folder; ``disk`` keeps inputs under ``batch/`` of it.
        settings: what the hub may have scored, and how much room it may take.
        courier: fetches and sends.
        address: where the child scores; empty: nowhere.
        connected: whether the hub would hear.
        on_disk: runs a function in the disk's thread.
        spare_mb: disk that must stay free.
    """

    def __init__(
        self,
        folder: Path,
        settings: Batch,
        disk: Disk,
        courier: Courier,
        *,
        address: Callable[[], str],
        connected: Callable[[], bool],
        on_disk: Callable[[Callable[[], Any]], Awaitable[Any]],
        spare_mb: int,
    ) -> None:
        self._inputs = [folder / "inputs", *(Path(one).expanduser() for one in settings.inputs)]
        self._settings, self._disk, self._courier = settings, disk, courier
        self._address, self._connected, self._on_disk = address, connected, on_disk
        self._spare_mb = spare_mb
        self._work = disk.folder / "work"
        self._running: dict[int, asyncio.Task[Any]] = {}
        self._stopped: set[int] = set()
        self._prepare()

    def _prepare(self) -> None:
        self._disk.prepare()
        self._work.mkdir(exist_ok=True)
        for left in self._work.iterdir():
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        if not any(self._work.iterdir()):  # nobody goes on with what was fetched
            for fetched in (*self._disk.objects.iterdir(), *self._disk.partial.iterdir()):
                fetched.unlink(missing_ok=True)

    async def __call__(self, command: Command, progress: Progress) -> dict[str, Any]:
        """Arguments: those of ``skerry_modules.batches.PartOrder``.

        Raises:
            SkerryError: ``request.invalid``, ``batch.*``, ``resource.no_space``, ``scoring.*``, ``module.unknown``.
        """
        order = order_of(command.arguments)
        told = _Told(progress, self._settings.report_s, self._connected)
        task = asyncio.ensure_future(self._carry_out(order, told))
        self._running[order.job] = task
        try:
            async with told:
                return await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if order.job not in self._stopped:
                raise
            await self._on_disk(lambda: self._forget(order))
            raise InputError("batch.cancelled", f"cannot go on: the batch job {order.job} was cancelled") from None
        except SkerryError as error:
            if isinstance(error, InputError) or error.code == "resource.no_space":  # nothing to go on from here
                await self._on_disk(lambda: self._forget(order))
            raise
        finally:
            self._running.pop(order.job, None)
            self._stopped.discard(order.job)

    async def stop(self, command: Command, _progress: Progress) -> dict[str, Any]:
        """The command ``batch-stop``: ``job`` is not wanted any more."""
        job = command.arguments.get("job")
        if not isinstance(job, int):
            raise InputError("request.invalid", "cannot stop a batch job: name it")
        task = self._running.get(job)
        if task is not None:
            self._stopped.add(job)
            task.cancel()
        else:
            await self._on_disk(lambda: self._forget_job(job))
        return {}

    async def _carry_out(self, order: PartOrder, told: _Told) -> dict[str, Any]:
        folder = self._work / f"{order.job}-{order.part}"
        await self._on_disk(lambda: self._begin(order, folder))
        result = folder / "result.rows"
        if not result.exists():
            told("fetching", 0.0)
            source = await self._source(order, folder, told)
            told("scoring", 0.0)
            await self._score(order, source, result, told)
        told("sending", SCORED)
        await self._courier.send(order, result, lambda share: told("sending", SCORED + (1 - SCORED) * share))
        await self._on_disk(lambda: self._forget(order))
        return {}

    def _begin(self, order: PartOrder, folder: Path) -> None:
        """The part's folder: what is there of the same order stays."""
        note = folder / "order.json"
        text = msgspec.json.encode(order)
        try:
            if folder.exists() and (not note.exists() or note.read_bytes() != text):
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True)
            note.write_bytes(text)
        except OSError as error:
            raise ResourceError("resource.no_space", f"cannot begin a part in {folder}: {error.strerror}") from error
        taken = sum(path.stat().st_size for path in self._disk.folder.rglob("*") if path.is_file())
        if taken + order.size > self._settings.budget_mb * MB:
            raise ResourceError(
                "resource.no_space",
                f"cannot take a part of {order.size / MB:.1f} MB: batch jobs have {taken / MB:.1f} MB here already and "
                f"may have {self._settings.budget_mb} MB; raise batch.budget_mb, or make smaller parts (--part-rows)",
            )
        self._check_room()

    def _check_room(self) -> None:
        free = self._disk.free_mb()
        if free < self._spare_mb:
            raise ResourceError(
                "resource.no_space",
                f"cannot go on: the disk has {free} MB free, and {self._spare_mb} MB are kept in reserve; "
                "free some space",
            )

    async def _source(self, order: PartOrder, folder: Path, told: _Told) -> Path:
        if order.kind == "path":
            return allowed(order.path, self._inputs)
        fetched = await self._courier.fetch(order.input, order.size, lambda _share: told("fetching", 0.0))
        return await self._on_disk(lambda: laid_out(order, fetched, folder))  # type: ignore[no-any-return]

    async def _score(self, order: PartOrder, source: Path, result: Path, told: _Told) -> None:
        address = self._address()
        if not address.startswith(("http://", "unix:")):
            raise ResourceError("batch.failed", "cannot score: the agent serves nowhere; set serving.http")

        def heard(line: child.Line) -> None:
            self._check_room()
            unit = f"{line.done:,} of {line.units:,} {line.unit}"
            told(f"scoring: {unit}", SCORED * line.done / max(line.units, 1))

        await child.run(child.arguments(order, source, result, address), heard)

    def _forget(self, order: PartOrder) -> None:
        """In the disk's thread."""
        shutil.rmtree(self._work / f"{order.job}-{order.part}", ignore_errors=True)
        if order.input:
            (self._disk.objects / order.input).unlink(missing_ok=True)
            self._disk.drop_partials(())

    def _forget_job(self, job: int) -> None:
        for folder in self._work.glob(f"{job}-*"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._forget(msgspec.json.decode((folder / "order.json").read_bytes(), type=PartOrder))
            shutil.rmtree(folder, ignore_errors=True)


class _Told:
    """What the hub hears of a part: each change of step at once, progress now and then, and that we live."""

    def __init__(self, progress: Progress, every_s: float, connected: Callable[[], bool]) -> None:
        self._progress, self._every_s, self._connected = progress, every_s, connected
        self._step, self._share, self._text, self._at = "", 0.0, "", 0.0
        self._beat: asyncio.Task[None] | None = None

    def __call__(self, text: str, share: float) -> None:
        step = text.partition(":")[0]
        self._text, self._share = text, share
        if step != self._step:
            self._step = step
            self._tell()

    async def __aenter__(self) -> None:
        self._beat = asyncio.ensure_future(self._go_on())

    async def __aexit__(self, *_: object) -> None:
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            self._tell()

    def _tell(self) -> None:
        if self._connected():  # nobody hears it otherwise, and the spool need not fill with it
            self._progress(self._share, self._text)


def allowed(path: str, folders: list[Path]) -> Path:
    """The path, where the device's owner lets the hub have it scored. Relative ones stand in the first folder.

    Raises:
        InputError: ``batch.not_allowed``, ``batch.input``.
    """
    try:
        found = (folders[0] / path).resolve()
        roots = [folder.resolve() for folder in folders]
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError("batch.input", f"cannot score {path}: {error}") from error
    if not any(found == root or root in found.parents for root in roots):
        raise InputError(
            "batch.not_allowed",
            f"cannot score {path}: this device lets the hub have {', '.join(map(str, roots))} scored; put it there, or "
            "add its folder to batch.inputs in the device's agent.toml",
        )
    if not found.exists():
        raise InputError("batch.input", f"cannot score {path}: there is no such file or folder on the device")
    return found


def laid_out(order: PartOrder, fetched: Path, folder: Path) -> Path:
    """A fetched input as the child reads it.

    Raises:
        InputError: ``batch.input``.
        ResourceError: ``resource.no_space``.
    """
    source = folder / ("input.csv.gz" if order.kind == "table" else "files")
    try:
        if source.exists():
            return source
        if order.kind == "table":
            source.symlink_to(fetched.resolve())
            return source
        draft = folder / "files.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _unzip(fetched, draft)
        draft.rename(source)
    except OSError as error:
        raise ResourceError("resource.no_space", f"cannot lay out a part: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise InputError("batch.input", f"cannot read a part of the batch job: {error}") from error
    return source


def _unzip(archive: Path, folder: Path) -> None:
    left = MAX_PART_BYTES
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        if len(members) > _MAX_FILES:
            raise ValueError(f"it holds {len(members)} files, the limit is {_MAX_FILES}")
        for member in members:
            left -= member.file_size
            if not is_plain(member.filename) or left < 0:
                raise ValueError(f"it holds {member.filename[:80]!r}, which cannot be laid out")
            target = folder / PurePosixPath(member.filename)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
