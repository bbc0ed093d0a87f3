"""Objects, downloads and installed versions under the state folder.

::

    objects/<sha256>            complete objects, checked when they were completed; never written again
    partial/<sha256>            a download's bytes, each chunk at its place
    partial/<sha256>.map        eight bytes per chunk: a mark and the CRC-32 of what was written
    modules/<digest>/           one installed version: its files, and nothing else
    environments/<key>/         built environments, of which :mod:`skerry_agent.environments` tells
    cache/                      what engines compile for this device

Rules kept here:

* A chunk counts as held only if the bytes on disk match the CRC in the map, read again after every start: so no
  flush per chunk is needed for correctness, and a power cut loses at most the chunks since the last one.
* An object becomes visible by rename, after its SHA-256 was checked and its bytes were flushed.
* A version's folder becomes visible by rename, after each of its files was checked. It is laid out from hard links
  where the file system has them: objects are read-only, and checked again before each load.
* What holds nobody's interest is removed by name only; nothing here decides what that is.

All methods block: the driver calls them in its one disk thread, in order.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from skerry_agent.statefile import NO_SPACE, no_space, sync_folder
from skerry_modules import chunks
from skerry_modules.environments import key_of
from skerry_modules.errors import PeerError, ResourceError
from skerry_modules.index import DEFAULT_LIMITS, Index, parse_index

MB: Final = 1_000_000
_SLOT: Final = struct.Struct(">HHI")  # mark, its complement, CRC-32 of the chunk
_MARK: Final = 0xA55A
_BLOCK: Final = 1 << 20


class Held(NamedTuple):
    """What a boot finds: digests of whole objects, of those in part, and of installed versions."""

    complete: frozenset[str]
    partial: frozenset[str]
    installed: frozenset[str]


class Partial:
    """An object on its way: open files, kept while chunks arrive."""

    def __init__(self, data: Path, index: Path, size: int) -> None:
        self.size = size
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._data = os.open(data, flags, 0o600)
        self._map = os.open(index, flags, 0o600)
        self._unsynced = 0

    def write(self, part: int, data: bytes | memoryview, sync_every: int) -> None:
        """Data first, then its mark: a mark without its data is seen by the CRC."""
        _write_all(self._data, data, part * chunks.CHUNK_BYTES)
        _write_all(self._map, _SLOT.pack(_MARK, _MARK ^ 0xFFFF, zlib.crc32(data)), part * _SLOT.size)
        self._unsynced += 1
        if self._unsynced >= sync_every:
            self.sync()

    def sync(self) -> None:
        os.fdatasync(self._data)
        os.fdatasync(self._map)
        self._unsynced = 0

    def parts(self) -> list[int]:
        """Chunks whose bytes on disk match their mark."""
        held = []
        slots = os.pread(self._map, chunks.count(self.size) * _SLOT.size, 0)
        for part in range(len(slots) // _SLOT.size):
            mark, complement, crc = _SLOT.unpack_from(slots, part * _SLOT.size)
            if mark == _MARK and complement == _MARK ^ 0xFFFF and zlib.crc32(self._read(part)) == crc:
                held.append(part)
        return held

    def require_all(self) -> None:
        """Raise OSError (ENOSPC) if a chunk is missing: the disk refused it when it came."""
        if len(self.parts()) < chunks.count(self.size):
            raise OSError(errno.ENOSPC, "a chunk of it was not stored")

    def _read(self, part: int) -> bytes:
        start = part * chunks.CHUNK_BYTES
        return os.pread(self._data, min(chunks.CHUNK_BYTES, max(0, self.size - start)), start)

    def sha256(self) -> str:
        hasher = hashlib.sha256()
        for start in range(0, self.size, _BLOCK):
            hasher.update(os.pread(self._data, min(_BLOCK, self.size - start), start))
        return hasher.hexdigest()

    def close(self) -> None:
        for descriptor in (self._data, self._map):
            os.close(descriptor)


class Disk:
    """The adapter of the store: see the module's text for layout and rules."""

    def __init__(
        self,
        folder: Path,
        *,
        reserve_mb: int,
        sync_chunks: int,
        free: Callable[[Path], int] | None = None,
    ) -> None:
        self.objects = folder / "objects"
        self.partial = folder / "partial"
        self.modules = folder / "modules"
        self.cache = folder / "cache"
        self.folder = folder
        self._reserve = reserve_mb * MB
        self._sync_chunks = sync_chunks
        self._free = free or (lambda path: shutil.disk_usage(path).free)
        self._open: dict[str, Partial] = {}

    def prepare(self) -> Held:
        """Make the layout, clear what an interrupted step left, and say what is there."""
        for path in (self.objects, self.partial, self.modules, self.cache):
            path.mkdir(parents=True, exist_ok=True)
        for left in (*self.modules.glob(".new-*"), *self.modules.glob(".old-*")):
            _remove_tree(left)
        for left in self.objects.glob(".new-*"):
            left.unlink(missing_ok=True)
        return Held(
            frozenset(path.name for path in self.objects.iterdir()),
            frozenset(path.name.removesuffix(".map") for path in self.partial.iterdir()),
            frozenset(path.name for path in self.modules.iterdir()),
        )

    # -- downloads ---------------------------------------------------------------------------------------------------

    def parts(self, digest: str, size: int) -> list[int]:
        """Chunks held of an object; every chunk of one that is complete.

        This is asked before the first byte is: so here the disk's free space is checked too.

        Raises:
            ResourceError: ``resource.no_space``.
        """
        if (self.objects / digest).exists():
            return list(range(chunks.count(size)))
        held = self._partial(digest, size).parts() if (self.partial / digest).exists() else []
        self._preflight(digest, size - min(size, len(held) * chunks.CHUNK_BYTES))
        return held

    def store_chunk(self, digest: str, part: int, size: int, data: bytes | memoryview) -> None:
        """Keep one chunk. Safe to repeat.

        Raises:
            ResourceError: ``resource.no_space``.
            PeerError: ``message.malformed`` for a chunk that does not belong there.
        """
        if (self.objects / digest).exists():
            return
        total = chunks.count(size)
        want = min(chunks.CHUNK_BYTES, size - part * chunks.CHUNK_BYTES)
        if not 0 <= part < total or len(data) != want:
            raise PeerError(
                "message.malformed",
                f"cannot keep chunk {part} of {digest[:12]}: {len(data)} bytes where {want} belong; "
                "it will be asked for again",
            )
        try:
            if digest not in self._open and not (self.partial / digest).exists():
                self._preflight(digest, size)
            self._partial(digest, size).write(part, data, self._sync_chunks)
        except OSError as error:
            raise no_space(error, f"a chunk of {digest[:12]}") from error

    def complete(self, digest: str, size: int) -> None:
        """Check a downloaded object and make it visible.

        Raises:
            PeerError: ``package.digest_mismatch``; the partial object is gone then.
            ResourceError: ``resource.no_space``, also where a chunk is missing; the partial object stays.
        """
        target = self.objects / digest
        if target.exists():
            self._forget(digest)
            return
        try:
            partial = self._partial(digest, size)
            if partial.sha256() != digest:
                # A chunk that could not be written is no damage: what is held stays, only the gap is asked for.
                partial.require_all()
                self._forget(digest)
                raise PeerError(
                    "package.digest_mismatch",
                    f"cannot accept the object {digest[:12]}: what arrived has another SHA-256; "
                    "it was deleted and can be asked for again",
                )
            partial.sync()
            self._close(digest)
            source = self.partial / digest
            os.truncate(source, size)
            source.chmod(0o444)
            source.replace(target)
            sync_folder(self.objects)
        except OSError as error:
            raise no_space(error, f"the object {digest[:12]}") from error
        self._forget(digest)

    def read_object(self, digest: str, limit: int, *, only_look: bool = False) -> bytes:
        """A small object's bytes, checked.

        Raises:
            PeerError: ``package.too_large``; ``package.digest_mismatch`` for a damaged object, which is gone then (with
            ``only_look`` it stays), or one that is not there; ``data["objects"]`` names it.
        """
        path = self.objects / digest
        try:
            size = path.stat().st_size
            if size > limit:
                raise PeerError(
                    "package.too_large", f"cannot read the index {digest[:12]}: {size} bytes, the limit is {limit}"
                )
            data = path.read_bytes()
        except OSError as error:
            raise PeerError(
                "package.digest_mismatch",
                f"cannot read the object {digest[:12]}: {error.strerror}; it is asked for again",
                objects=[digest],
            ) from error
        if hashlib.sha256(data).hexdigest() != digest:
            if not only_look:
                path.unlink(missing_ok=True)
            raise PeerError(
                "package.digest_mismatch",
                f"cannot use the object {digest[:12]}: it was damaged on disk; it is asked for again",
                objects=[digest],
            )
        return data

    def free_mb(self) -> int:
        """What is free on the disk, in MB; the reserve is in it."""
        return self._free(self.folder) // MB

    def used_mb(self) -> int:
        """What objects, downloads and versions take; a file with two hard links counts once."""
        seen: set[int] = set()
        total = 0
        for top in (self.objects, self.partial, self.modules, self.folder / "environments"):
            for folder, _, names in os.walk(top):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        stat = os.lstat(Path(folder) / name)
                        if stat.st_ino not in seen:
                            seen.add(stat.st_ino)
                            total += stat.st_blocks * 512
        return total // MB

    def drop_partials(self, keep: Iterable[str]) -> int:
        """Delete downloads that nobody waits for; how many went."""
        kept = set(keep)
        gone = {path.name.removesuffix(".map") for path in self.partial.iterdir()} - kept
        for digest in gone:
            self._forget(digest)
        return len(gone)

    def _preflight(self, digest: str, need: int) -> None:
        free = self._free(self.folder) - self._reserve
        if need > free:
            raise ResourceError(
                "resource.no_space",
                f"cannot fetch {digest[:12]}: it needs {max(0.1, need / MB):.1f} MB, and the disk has "
                f"{(free + self._reserve) / MB:.1f} MB free, of which {self._reserve // MB} MB are kept in reserve; "
                "free some space",
            )

    def _partial(self, digest: str, size: int) -> Partial:
        found = self._open.get(digest)
        if found is None:
            found = Partial(self.partial / digest, self.partial / f"{digest}.map", size)
            self._open[digest] = found
        return found

    def _close(self, digest: str) -> None:
        if partial := self._open.pop(digest, None):
            partial.close()

    def _forget(self, digest: str) -> None:
        self._close(digest)
        (self.partial / digest).unlink(missing_ok=True)
        (self.partial / f"{digest}.map").unlink(missing_ok=True)

    # -- versions ----------------------------------------------------------------------------------------------------

    def folder_of(self, digest: str) -> Path:
        return self.modules / digest

    def index(self, digest: str, *, only_look: bool = False) -> Index:
        """A version's index, from its object. Raises ``PeerError`` (``package.*``), as :meth:`read_object`."""
        return parse_index(self.read_object(digest, DEFAULT_LIMITS.max_index_bytes, only_look=only_look))

    def environments_needed(self) -> dict[str, str | None]:
        """By installed version, the key of the environment that it needs: empty for none, None for an index that is
        damaged or gone (it will be fetched again)."""
        found: dict[str, str | None] = {}
        for path in self.modules.iterdir():
            if path.name.startswith("."):
                continue
            try:
                # What may need it and is not running must find its object as it was: who uses it judges it.
                lock = self.index(path.name, only_look=True).facts.environment
            except PeerError:
                found[path.name] = None
            else:
                found[path.name] = key_of(lock) if lock is not None else ""
        return found

    def install(self, digest: str, index: Index) -> None:
        """Lay out a version from complete objects. Undo: :meth:`remove`. Safe to repeat.

        The wheels of its environment are not laid out: see :mod:`skerry_agent.environments`.

        Raises:
            PeerError: ``package.digest_mismatch``; the damaged object is gone then, ``data["objects"]`` names it.
            ResourceError: ``install.unpack_failed`` or ``resource.no_space``.
        """
        target = self.folder_of(digest)
        if target.is_dir() and not self.damaged(digest, index):
            return
        work = self.modules / f".new-{digest}"
        _remove_tree(work)
        try:
            work.mkdir()
            for entry in index.without_wheels().files:
                self._place(entry.sha256, work / entry.path, executable=entry.executable)
            for folder, _, _ in os.walk(work):
                sync_folder(Path(folder))
            if target.exists():
                target.replace(self.modules / f".old-{digest}")
            work.replace(target)
            sync_folder(self.modules)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise no_space(error, f"the files of {index.manifest.name}") from error
            raise ResourceError(
                "install.unpack_failed",
                f"cannot lay out {index.manifest.name}: {error}; look at the state folder's rights and space",
            ) from error
        finally:
            _remove_tree(work)
            _remove_tree(self.modules / f".old-{digest}")

    def _place(self, sha256: str, path: Path, *, executable: bool) -> None:
        source = self.objects / sha256
        if not source.exists() or _sha256(source) != sha256:
            source.unlink(missing_ok=True)
            raise PeerError(
                "package.digest_mismatch",
                f"cannot install {path.name}: its object {sha256[:12]} is damaged or missing on disk; it is asked for "
                "again",
                objects=[sha256],
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if not executable:
            with contextlib.suppress(OSError):
                path.hardlink_to(source)
                return
        # Mode bits belong to the file, not to its name: an executable gets a copy of its own.
        with source.open("rb") as read, path.open("xb") as write:
            shutil.copyfileobj(read, write, _BLOCK)
            write.flush()
            os.fsync(write.fileno())
        path.chmod(0o555 if executable else 0o444)

    def damaged(self, digest: str, index: Index) -> str:
        """The first file of an installed version that is missing or differs, or an empty string."""
        folder = self.folder_of(digest)
        for entry in index.without_wheels().files:
            path = folder / entry.path
            if path.is_symlink() or not path.is_file() or _sha256(path) != entry.sha256:
                return entry.path
        return ""

    def remove(self, digest: str, objects: Iterable[str] = ()) -> None:
        """Delete a version's folder (none for an empty digest) and the objects named, complete or not."""
        folder = self.folder_of(digest)
        if digest and folder.is_dir():
            old = self.modules / f".old-{digest}"
            _remove_tree(old)
            folder.replace(old)  # a half-deleted folder must never look like a version
            _remove_tree(old)
        for name in objects:
            (self.objects / name).unlink(missing_ok=True)
            self._forget(name)

    def close(self) -> None:
        for digest in list(self._open):
            with contextlib.suppress(OSError):
                self._open[digest].sync()
            self._close(digest)


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
