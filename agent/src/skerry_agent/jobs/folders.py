"""What parts of batch jobs take on the disk: a folder for each part, and the objects that were fetched for them.

::

    work/<job>-<part>/order.json     what was ordered; another order of the same part begins anew
    work/<job>-<part>/input.csv.gz   or ``files``: the input as the child reads it
    work/<job>-<part>/result.rows    what is to be sent, once all is scored; before that the child's own journal
    objects/<sha256>                 inputs as they were fetched; two parts may be made from the same one

A folder stays until the hub needs nothing more of the part, so that an agent that is killed goes on from there. All
methods block: they are called in the disk's thread.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from skerry_agent.disk import MB, Disk
from skerry_modules.batches import MAX_PART_BYTES, PartOrder
from skerry_modules.errors import InputError, ResourceError
from skerry_modules.manifest import is_plain

STALE_S: Final = 7 * 86_400.0
"""Parts that no hub was heard of for so long are forgotten: a hub that is there says so itself."""
RESULT: Final = "result.rows"
_NOTE: Final = "order.json"
_MAX_FILES: Final = 10_000

Key = tuple[int, int]
"""(job, part)."""


class Folders:
    """See the module's text.

    Args:
        disk: where inputs are kept; not the one of modules.
        budget_mb: what all parts together may take.
        spare_mb: disk that must stay free.
    """

    def __init__(self, disk: Disk, *, budget_mb: int, spare_mb: int) -> None:
        self._disk, self._budget_mb, self._spare_mb = disk, budget_mb, spare_mb
        self._work = disk.folder / "work"

    def prepare(self) -> None:
        """Make the layout; forget what is stale."""
        self._disk.prepare()
        self._work.mkdir(exist_ok=True)
        for left in self._work.iterdir():
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        self._drop_inputs()

    def path(self, order: PartOrder) -> Path:
        return self._work / f"{order.job}-{order.part}"

    def begin(self, order: PartOrder) -> Path:
        """The part's folder: what is there of the same order stays.

        Raises:
            ResourceError: ``resource.no_space``.
        """
        folder = self.path(order)
        note, text = folder / _NOTE, msgspec.json.encode(order)
        try:
            if folder.exists() and (not note.exists() or note.read_bytes() != text):
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True)
            note.write_bytes(text)
        except OSError as error:
            raise ResourceError("resource.no_space", f"cannot begin a part in {folder}: {error.strerror}") from error
        held = (self._disk.objects / order.input).is_file() if order.input else True
        taken = self._taken()
        if taken + (0 if held else order.size) > self._budget_mb * MB:
            raise ResourceError(
                "resource.no_space",
                f"cannot take a part of {order.size / MB:.1f} MB: batch jobs have {taken / MB:.1f} MB here already and "
                f"may have {self._budget_mb} MB; raise batch.budget_mb, or make smaller parts (--part-rows)",
            )
        self.check_room()
        return folder

    def _taken(self) -> int:
        """Bytes that all parts take now."""
        total = 0
        for path in self._disk.folder.rglob("*"):
            with contextlib.suppress(OSError):  # a child renames and removes its files meanwhile
                total += path.lstat().st_size if path.is_file() else 0
        return total

    def check_room(self) -> None:
        """Raises ResourceError ``resource.no_space`` where the disk's reserve is touched."""
        free = self._disk.free_mb()
        if free < self._spare_mb:
            raise ResourceError(
                "resource.no_space",
                f"cannot go on: the disk has {free} MB free, and {self._spare_mb} MB are kept in reserve; "
                "free some space",
            )

    def lay_out(self, order: PartOrder, fetched: Path) -> Path:
        """A fetched input as the child reads it.

        Raises:
            InputError: ``batch.input``.
            ResourceError: ``resource.no_space``.
        """
        folder = self.path(order)
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

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def held(self) -> list[Key]:
        """The parts that have a folder here."""
        found = (path.name.partition("-") for path in self._work.iterdir())
        return sorted((int(job), int(part)) for job, _, part in found if job.isdecimal() and part.isdecimal())

    def forget(self, key: Key) -> None:
        """Remove a part's folder, and its input unless another part has the same. Safe to repeat."""
        shutil.rmtree(self._work / f"{key[0]}-{key[1]}", ignore_errors=True)
        self._drop_inputs()

    def _drop_inputs(self) -> None:
        """Inputs, whole and in part, that no part here is scored from."""
        wanted = set()
        for note in self._work.glob(f"*/{_NOTE}"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                wanted.add(msgspec.json.decode(note.read_bytes(), type=PartOrder).input)
        for fetched in self._disk.objects.iterdir():
            if fetched.name not in wanted:
                fetched.unlink(missing_ok=True)
        self._disk.drop_partials(wanted)


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
