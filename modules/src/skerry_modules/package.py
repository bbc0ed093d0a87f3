"""A module as one deterministic file: an index (:mod:`skerry_modules.index`), its signatures and its objects.

The **package file** (``.skerry``) is an uncompressed tar: ``index.json``, ``signatures.json``, then
``objects/<sha256>`` in ascending order. Times, owners, modes, umask and directory order leave no trace, so packing the
same content twice gives the same bytes.

The reader accepts exactly that and no other tar. It parses the headers itself: the standard library's reader follows
links, sparse maps and extension headers of a size that the attacker chooses. It streams: no object is held in memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from skerry_modules import manifest as manifests
from skerry_modules.environments import Bundle
from skerry_modules.errors import InputError, PeerError
from skerry_modules.index import (
    DEFAULT_LIMITS,
    PACKAGE_SUFFIX,
    FileEntry,
    Index,
    Limits,
    build_index,
    check_files,
    digest_of,
    index_bytes,
    parse_index,
    read_folder,
    sign_index,
    unreadable,
    verify_index,
)
from skerry_modules.trust import Signature, SigningKey

__all__ = [
    "DEFAULT_LIMITS",
    "MEDIA_TYPE",
    "FileEntry",
    "Index",
    "Limits",
    "PackageReader",
    "Packed",
    "PackedObject",
    "add_signature",
    "build_index",
    "digest_of",
    "index_bytes",
    "lay_out",
    "package_size",
    "parse_index",
    "read_folder",
    "read_package",
    "sign_index",
    "stream_package",
    "unpack",
    "verify_index",
    "write_objects",
    "write_package",
]

SUFFIX: Final = PACKAGE_SUFFIX
MEDIA_TYPE: Final = "application/vnd.skerry.package"
INDEX_NAME: Final = "index.json"
SIGNATURES_NAME: Final = "signatures.json"
OBJECTS: Final = "objects/"
BLOCK_BYTES: Final = 256 * 1024
"""How much of an object is read at a time."""

_TAR_BLOCK: Final = 512


class Packed(msgspec.Struct, frozen=True):
    """A package that was written."""

    digest: str
    index: Index
    signatures: tuple[Signature, ...]
    path: Path


# -- the package file: writing -----------------------------------------------------------------------------------------


def write_package(folder: Path, target: Path, key: SigningKey | None = None, *, bundle: Bundle | None = None) -> Packed:
    """Pack a folder into one file, signed if a key is given. The file appears whole or not at all.

    ``bundle``: the wheels of the module's environment (``skerry.environments.prepare``), where it has one.

    Raises:
        As :func:`read_folder` and :func:`build_index`; OSError where ``target`` cannot be written.
    """
    index, sources = build_index(folder, read_folder(folder), bundle)
    check_files(index.files, DEFAULT_LIMITS)
    data = index_bytes(index)
    signatures = (sign_index(data, key),) if key else ()

    def blocks(sha256: str) -> Iterator[bytes]:
        with sources[sha256].open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block

    _write(target, data, signatures, blocks)
    return Packed(digest_of(data), index, signatures, target)


def write_objects(
    target: Path, index: bytes, signatures: tuple[Signature, ...], blocks: Callable[[str], Iterator[bytes]]
) -> None:
    """Write a package from an index and a function that gives an object's bytes (a registry's download).

    Raises:
        PeerError: as :func:`parse_index`; ``package.digest_mismatch`` if an object is not what its name says.
    """
    parse_index(index)
    _write(target, index, signatures, blocks)


def add_signature(source: Path, target: Path, key: SigningKey) -> Packed:
    """Sign a package again, with another key or a new one; the content, and so the digest, stays.

    Raises:
        PeerError: as :func:`read_package`.
    """
    with read_package(source) as package:
        package.verify()  # what is damaged must not get a fresh signature
    with read_package(source) as package:
        mine = sign_index(package.index_bytes, key)
        others = tuple(signature for signature in package.signatures if signature.keyid != mine.keyid)
        signatures = tuple(sorted((*others, mine), key=lambda signature: signature.keyid))
        objects = package.objects()

        def blocks(_sha256: str) -> Iterator[bytes]:
            return iter(next(objects))  # objects stand in the order in which they are written

        _write(target, package.index_bytes, signatures, blocks)
        return Packed(package.digest, package.index, signatures, target)


def stream_package(
    index: bytes, signatures: tuple[Signature, ...], blocks: Callable[[str], Iterator[bytes]]
) -> Iterator[bytes]:
    """The package file's bytes, piece by piece (what :func:`write_objects` writes)."""
    parsed = msgspec.json.decode(index, type=Index)
    yield from _member(INDEX_NAME, index)
    yield from _member(SIGNATURES_NAME, msgspec.json.encode(signatures, order="sorted"))
    for sha256, size in parsed.objects().items():
        yield _header(OBJECTS + sha256, size)
        hasher, count = hashlib.sha256(), 0
        for block in blocks(sha256):
            hasher.update(block)
            count += len(block)
            yield block
        if count != size or hasher.hexdigest() != sha256:
            raise PeerError(
                "package.digest_mismatch", f"cannot pack the object {sha256}: its content changed meanwhile"
            )
        yield bytes(-count % _TAR_BLOCK)
    yield bytes(2 * _TAR_BLOCK)


def package_size(index: bytes, signatures: tuple[Signature, ...]) -> int:
    """Bytes of the package file that :func:`stream_package` gives (for a Content-Length)."""
    sizes = [len(index), len(msgspec.json.encode(signatures, order="sorted"))]
    sizes += msgspec.json.decode(index, type=Index).objects().values()
    return sum(_TAR_BLOCK + size + -size % _TAR_BLOCK for size in sizes) + 2 * _TAR_BLOCK


def _write(
    target: Path, index: bytes, signatures: tuple[Signature, ...], blocks: Callable[[str], Iterator[bytes]]
) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            for piece in stream_package(index, signatures, blocks):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _member(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data))
    yield data
    yield bytes(-len(data) % _TAR_BLOCK)


def _header(name: str, size: int) -> bytes:
    """A ustar header without time or owner. Source: POSIX.1-2017, pax, "ustar Interchange Format"."""
    fields = b"".join(
        (
            name.encode().ljust(100, b"\0"),
            b"0000644\0" + b"0000000\0" * 2,  # mode, uid, gid
            b"%011o\0" % size,
            b"00000000000\0",  # mtime
            b" " * 8,  # the checksum counts as spaces while it is computed
            b"0" + bytes(100) + b"ustar\0" + b"00",
        )
    ).ljust(_TAR_BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


# -- the package file: reading -----------------------------------------------------------------------------------------


class PackedObject:
    """One object as it streams past. Iterate over it to the end: only then is its content proven."""

    def __init__(self, stream: IO[bytes], sha256: str, size: int) -> None:
        self.sha256 = sha256
        self.size = size
        self._stream = stream
        self._done = False

    def __iter__(self) -> Iterator[bytes]:
        """Blocks of bytes.

        Raises:
            PeerError: ``package.digest_mismatch`` after the last block if they are not what the name says: whoever
                stores them keeps them apart until the loop has ended.
        """
        hasher, left = hashlib.sha256(), self.size
        while left:
            block = _exactly(self._stream, min(left, BLOCK_BYTES))
            hasher.update(block)
            left -= len(block)
            yield block
        if hasher.hexdigest() != self.sha256:
            raise PeerError(
                "package.digest_mismatch", f"cannot accept the package: the object {self.sha256} was damaged or changed"
            )
        if any(_exactly(self._stream, -self.size % _TAR_BLOCK)):
            unreadable("there is content in its padding")
        self._done = True

    def drain(self) -> None:
        """Read what the caller left unread; a damaged object is found here too."""
        if not self._done:
            for _ in self:
                pass


class PackageReader:
    """An open package: the index and signatures are read, the objects follow in order, once."""

    def __init__(self, stream: IO[bytes], limits: Limits) -> None:
        self._stream = stream
        self.index_bytes = self._document(INDEX_NAME, limits.max_index_bytes)
        self.index = parse_index(self.index_bytes, limits)
        self.digest = digest_of(self.index_bytes)
        self.signatures = self._signatures(self._document(SIGNATURES_NAME, limits.max_signatures_bytes))

    def objects(self) -> Iterator[PackedObject]:
        """Every object, in ascending order; ends only after the package has proven to be whole.

        Raises:
            PeerError: ``package.*``.
        """
        for sha256, size in self.index.objects().items():
            found = self._next(OBJECTS + sha256)
            if found != size:
                code = "package.too_large" if found > size else "package.digest_mismatch"
                raise PeerError(code, f"cannot accept the object {sha256}: it has {found} bytes, its index says {size}")
            item = PackedObject(self._stream, sha256, size)
            yield item
            item.drain()
        if any(_exactly(self._stream, 2 * _TAR_BLOCK)) or self._stream.read(1):
            raise PeerError("package.unsafe_entry", "cannot accept the package: it holds more than its index names")

    def verify(self) -> None:
        """Read to the end and check every byte, keeping nothing."""
        for item in self.objects():
            item.drain()

    def _document(self, name: str, limit: int) -> bytes:
        size = self._next(name)
        if size > limit:
            raise PeerError("package.too_large", f"cannot read {name} of {size} bytes: the limit is {limit}")
        data = _exactly(self._stream, size)
        if any(_exactly(self._stream, -size % _TAR_BLOCK)):
            unreadable("there is content in its padding")
        return data

    def _next(self, name: str) -> int:
        """The size of the next entry, which must be the regular file ``name``."""
        return _parse_header(_exactly(self._stream, _TAR_BLOCK), name)

    @staticmethod
    def _signatures(data: bytes) -> tuple[Signature, ...]:
        try:
            return msgspec.json.decode(data, type=tuple[Signature, ...])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError("package.unreadable", f"cannot read the package's signatures: {error}") from error


@contextmanager
def read_package(source: Path | IO[bytes], limits: Limits = DEFAULT_LIMITS) -> Iterator[PackageReader]:
    """Open a package from a file or from any stream that can only be read.

    Raises:
        InputError: ``package.unreadable`` if there is no such file.
        PeerError: ``package.*``, here or while its objects are read.
    """
    if not isinstance(source, Path):
        yield PackageReader(source, limits)
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise InputError("package.unreadable", f"cannot open the package {source}: {error}") from error
    with file:
        yield PackageReader(file, limits)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    """``size`` bytes, however small the pieces in which the stream gives them."""
    pieces: list[bytes] = []
    while size:
        piece = stream.read(size)
        if not piece:
            unreadable("it is cut short")
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _parse_header(header: bytes, expected: str) -> int:
    """The size in a header, after everything else in it has proven to be as :func:`_header` writes it."""
    if not any(header):
        unreadable(f"{expected} is missing")
    if header[257:262] != b"ustar":
        unreadable("it is no tar file")
    if header[156:157] not in (b"0", b"\0"):
        raise PeerError(
            "package.unsafe_entry",
            f"cannot accept the package: where {expected} should stand is a link, folder, device or extension "
            f"(tar type {header[156:157]!r})",
        )
    name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
    if header[345:500].strip(b"\0"):
        name = header[345:500].rstrip(b"\0").decode("utf-8", "replace") + "/" + name
    if not manifests.is_plain(name):
        raise PeerError("package.unsafe_path", f"cannot accept the package: it holds the path {name!r}")
    if name != expected:
        raise PeerError(
            "package.unsafe_entry", f"cannot accept the package: {name!r} stands where {expected!r} should stand"
        )
    try:
        size = int(header[124:135], 8)
    except ValueError:
        unreadable(f"the size of {name} is no number")
    if header != _header(expected, size):
        unreadable(f"the header of {name} is not as `skerry modules pack` writes it; pack the folder again")
    return size


# -- laying out --------------------------------------------------------------------------------------------------------


def lay_out(index: Index, place: Callable[[FileEntry, Path], Any], folder: Path) -> None:
    """Make a module's folder from objects that are already verified.

    Args:
        index: from :func:`parse_index`, so that its paths are safe.
        place: puts an entry's content at a path, by link or copy, and sets its mode where ``executable`` matters.
        folder: must be empty or absent; use a temporary one and rename it when this returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for entry in index.files:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        place(entry, target)


def unpack(source: Path | IO[bytes], folder: Path, limits: Limits = DEFAULT_LIMITS) -> Index:
    """Unpack a whole package into a new folder, which appears complete or not at all.

    Raises:
        InputError: ``package.unsafe_path`` if the folder exists.
        PeerError: ``package.*``.
    """
    if folder.exists():
        raise InputError("package.unsafe_path", f"cannot unpack to {folder}: it exists; name a new folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    objects = partial / "objects"

    def place(entry: FileEntry, target: Path) -> None:
        shutil.copyfile(objects / entry.sha256, target)
        target.chmod(0o755 if entry.executable else 0o644)

    try:
        objects.mkdir(parents=True)
        with read_package(source, limits) as package:
            for item in package.objects():
                with (objects / item.sha256).open("wb") as file:
                    for block in item:
                        file.write(block)
        lay_out(package.index, place, partial / "folder")
        (partial / "folder").rename(folder)
        return package.index
    finally:
        shutil.rmtree(partial, ignore_errors=True)
