"""Where bytes live: objects addressed by their SHA-256, and named keys for files that are written once (Parquet).

:class:`ObjectStore` is the port; :class:`FolderStore` keeps everything in a local folder:

    objects/ab/abcdef…   an object, named by its content
    keys/<key>           a named file, e.g. keys/samples/digits/2026-11-20/….parquet
    tmp/                 what is being written

A file appears under its name only when it is whole and on disk (written aside, fsynced, renamed, folder fsynced), so
a power cut leaves either nothing or all of it. Left-overs in ``tmp`` are removed when the store is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from skerry_modules.errors import InputError, PeerError, ResourceError
from skerry_modules.manifest import is_plain

BLOCK_BYTES: Final = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")

Source = bytes | bytearray | memoryview | BinaryIO | Iterable[bytes]


class ObjectStore(Protocol):
    """Durable once a ``put`` has returned. Digests are 64 lower-case hex digits."""

    def put_bytes(self, data: bytes) -> str: ...

    def put_stream(self, source: Source, *, expected: str = "", limit: int = 0) -> str:
        """Store what ``source`` gives; with ``expected``, only if its SHA-256 is that. Returns the SHA-256."""
        ...

    def open(self, digest: str) -> BinaryIO: ...

    def path(self, digest: str) -> Path:
        """A local file with the object's content (a remote store fetches it first)."""
        ...

    def size(self, digest: str) -> int: ...

    def exists(self, digest: str) -> bool: ...

    def is_there(self) -> bool:
        """Whether the store itself is there: of one that is away nobody knows what it holds."""
        ...

    def delete(self, digest: str, *, older_than_s: float = 0.0) -> bool:
        """Delete, unless it was stored or stored again within ``older_than_s``. Whether something was deleted."""
        ...

    def digests(self, *, older_than_s: float = 0.0) -> Iterator[str]:
        """Every object, or those untouched for that long."""
        ...

    def put_key(self, key: str, source: Source) -> int:
        """Store under a name; an older file of that name is replaced. Returns the size in bytes."""
        ...

    def open_key(self, key: str) -> BinaryIO: ...

    def key_path(self, key: str) -> Path: ...

    def keys(self, prefix: str = "") -> Iterator[str]: ...

    def delete_key(self, key: str) -> bool: ...


class FolderStore:
    """An object store in a local folder, on one file system (renames are atomic there)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()  # between storing an object that is there and deleting it
        self._objects, self._keys, self._tmp = folder / "objects", folder / "keys", folder / "tmp"
        for part in (self._objects, self._keys, self._tmp):
            part.mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Remove what a crash left half-written. Only for the one hub that holds the lease."""
        for left in self._tmp.iterdir():
            left.unlink(missing_ok=True)

    def put_bytes(self, data: bytes) -> str:
        return self.put_stream(data)

    def put_stream(self, source: Source, *, expected: str = "", limit: int = 0) -> str:
        """See :class:`ObjectStore`.

        Raises:
            PeerError: ``package.digest_mismatch``, ``package.too_large`` (over ``limit`` bytes, 0: none).
            ResourceError: ``resource.no_space``.
        """
        with self._written(source, limit) as (temporary, digest, _size):
            if expected and digest != expected:
                raise PeerError(
                    "package.digest_mismatch",
                    f"cannot store an object: its content is {digest}, not {expected}; send it again",
                    expected=expected,
                    got=digest,
                )
            target = self._object(digest)
            with self._lock:
                if target.exists():
                    # Fresh again: collection must not take it between now and the commit that refers to it.
                    os.utime(target)
                else:
                    self._publish(temporary, target)
        return digest

    def open(self, digest: str) -> BinaryIO:
        """The object's bytes.

        Raises:
            InputError: ``request.not_found``.
        """
        try:
            return self._object(digest).open("rb")
        except FileNotFoundError:
            raise InputError("request.not_found", f"cannot find the object {digest}: it is not in the store") from None

    def path(self, digest: str) -> Path:
        return self._object(digest)

    def size(self, digest: str) -> int:
        return self._object(digest).stat().st_size

    def exists(self, digest: str) -> bool:
        return self._object(digest).exists()

    def is_there(self) -> bool:
        return self._objects.is_dir()

    def delete(self, digest: str, *, older_than_s: float = 0.0) -> bool:
        path = self._object(digest)
        with self._lock:
            try:
                if older_than_s and path.stat().st_mtime > time.time() - older_than_s:
                    return False
            except FileNotFoundError:
                return False
            return _unlink(path)

    def digests(self, *, older_than_s: float = 0.0) -> Iterator[str]:
        horizon = time.time() - older_than_s
        for path in sorted(self._objects.glob("??/*")):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime <= horizon:
                    yield path.name

    def put_key(self, key: str, source: Source) -> int:
        with self._written(source, 0) as (temporary, _digest, size):
            self._publish(temporary, self._key(key))
        return size

    def open_key(self, key: str) -> BinaryIO:
        try:
            return self._key(key).open("rb")
        except (FileNotFoundError, IsADirectoryError):
            raise InputError("request.not_found", f"cannot find the file {key}: it is not in the store") from None

    def key_path(self, key: str) -> Path:
        return self._key(key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        under = self._keys / prefix.rpartition("/")[0]  # other folders need not be walked
        for path in sorted(under.rglob("*")):
            key = path.relative_to(self._keys).as_posix()
            if path.is_file() and key.startswith(prefix):
                yield key

    def delete_key(self, key: str) -> bool:
        return _unlink(self._key(key))

    def _object(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InputError("request.not_found", f"cannot find the object {digest[:80]!r}: it is not a SHA-256")
        return self._objects / digest[:2] / digest

    def _key(self, key: str) -> Path:
        if not is_plain(key):
            raise InputError("request.not_found", f"cannot find the file {key[:80]!r}: it is not a plain path")
        return self._keys / key

    @contextlib.contextmanager
    def _written(self, source: Source, limit: int) -> Iterator[tuple[Path, str, int]]:
        """The source in a temporary file, on disk; the file is gone at the end unless it was published."""
        temporary = self._tmp / secrets.token_hex(16)
        digest, size = hashlib.sha256(), 0
        try:
            with temporary.open("xb") as file:
                for block in blocks(source):
                    size += len(block)
                    if limit and size > limit:
                        raise PeerError(
                            "package.too_large", f"cannot store more than {limit} bytes in one object", limit=limit
                        )
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, digest.hexdigest(), size
        except OSError as error:
            raise _no_space(self.folder, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def _publish(temporary: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(target)
        for folder in (target.parent, target.parent.parent):  # the second: the first may be new in it
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def blocks(source: Source) -> Iterator[bytes]:
    """Any source as blocks of at most :data:`BLOCK_BYTES` where we choose the size."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield bytes(source)
    elif hasattr(source, "read"):
        while block := source.read(BLOCK_BYTES):
            yield block
    else:
        yield from source


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _no_space(folder: Path, error: OSError) -> ResourceError:
    free = shutil.disk_usage(folder).free
    return ResourceError(
        "resource.no_space",
        f"cannot write to {folder}: {error.strerror or error}; {free} bytes are free there",
        free=free,
    )
