"""What a module is made of: a folder becomes a content-addressed index, and an index is checked before it is believed.

The **index** is canonical JSON: the manifest, what was read from the model, and every file with its SHA-256 and size.
The SHA-256 of the index *is* the module's digest; signatures are over the index, and so over every byte of every file.
The manifest inside the index is authoritative; ``module.toml`` is carried along for people.

Paths, sizes and counts are checked here for both directions. It does not read package files
(:mod:`skerry_modules.package`) and does not say whose signature is good: that is :func:`verify_index` with the keys
that the caller trusts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from skerry_modules import environments, trust
from skerry_modules import manifest as manifests
from skerry_modules.compatibility import ModelFacts
from skerry_modules.environments import Bundle, Target
from skerry_modules.errors import InputError, PeerError
from skerry_modules.manifest import Manifest
from skerry_modules.trust import PublicKey, Signature, SigningKey

FORMAT: Final = 1
PACKAGE_SUFFIX: Final = ".skerry"

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a package may be, at most. Each side has its own; these are the defaults."""

    max_files: int = 4096
    max_file_bytes: int = 4 * 1024**3  # one file
    max_total_bytes: int = 8 * 1024**3  # all files together
    max_index_bytes: int = 4 * 1024**2
    max_signatures_bytes: int = 16 * 1024


DEFAULT_LIMITS: Final = Limits()


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a module. ``size`` is in bytes; ``executable`` is the only mode bit that is kept."""

    path: str
    sha256: str
    size: int
    executable: bool = False


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a module is. ``files`` are in ascending order of their path."""

    format: int
    manifest: Manifest
    facts: ModelFacts
    files: tuple[FileEntry, ...]

    @property
    def size(self) -> int:
        """Bytes of all files together; content that stands twice counts twice."""
        return sum(entry.size for entry in self.files)

    def objects(self) -> dict[str, int]:
        """Each object's SHA-256 and its size in bytes, once, ascending."""
        return dict(sorted((entry.sha256, entry.size) for entry in self.files))

    def objects_with(self, target: Target | None) -> dict[str, int]:
        """As :meth:`objects`, with the wheels of one kind of device only: what such a device fetches."""
        wheels = {wheel.sha256: wheel.size for wheel in target.wheels} if target else {}
        return dict(sorted(({entry.sha256: entry.size for entry in self.without_wheels().files} | wheels).items()))

    def without_wheels(self) -> Index:
        """What is laid out in the module's folder on a device."""
        if self.facts.environment is None:
            return self
        kept = tuple(entry for entry in self.files if not entry.path.startswith(environments.FOLDER))
        return msgspec.structs.replace(self, files=kept)


# -- from a folder to an index ----------------------------------------------------------------------------------------


def read_folder(folder: Path) -> Manifest:
    """The manifest of a module's folder.

    Raises:
        InputError: ``manifest.unreadable``, ``manifest.invalid``.
    """
    path = folder / manifests.FILE_NAME
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            "manifest.unreadable", f"cannot read {path}: {why}; `skerry init` writes one", file=str(path)
        ) from error
    return manifests.parse(text, source=str(path))


def build_index(folder: Path, manifest: Manifest, bundle: Bundle | None = None) -> tuple[Index, dict[str, Path]]:
    """Hash a module's folder and hold its model to the manifest.

    Args:
        folder: the module's.
        manifest: from :func:`read_folder`.
        bundle: the lock and wheels of the module's environment, where it has one.

    Returns:
        The index, and for each object's SHA-256 a file that holds it.

    Raises:
        InputError: ``environment.not_locked`` where the manifest names packages and there is no ``bundle``.
        InputError: ``manifest.invalid`` for a declared file that is missing, ``manifest.model_mismatch``,
            ``manifest.golden_mismatch``.
        PeerError: ``package.unsafe_entry`` for a link or device in the folder, ``package.unsafe_path``.
    """
    from skerry_modules import golden, model_files  # readers of model files: devices read indexes but build none

    if manifest.environment.given and bundle is None:
        raise InputError(
            "environment.not_locked",
            f"cannot pack {folder}: its environment is not locked; `skerry modules pack` resolves and locks it",
        )
    paths = _select(folder, manifest)
    entries, sources = [], {}  # type: list[FileEntry], dict[str, Path]
    for path in paths:
        file = folder / path
        with file.open("rb") as stream:
            sha256, size = hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
        executable = bool(file.stat().st_mode & 0o100)
        entries.append(FileEntry(path, sha256, size, executable))
        sources[sha256] = file
    lock = bundle.lock if bundle and manifest.environment.given else None
    if bundle and lock:
        for name, wheel in lock.wheels().items():
            entries.append(FileEntry(environments.FOLDER + name, wheel.sha256, wheel.size))
            sources[wheel.sha256] = bundle.sources[wheel.sha256]
        entries.sort(key=lambda entry: entry.path)
    facts = model_files.check(folder, manifest, {entry.path: entry.size for entry in entries})
    if manifest.golden:
        golden.check(manifest, folder / manifest.golden.file)
    return Index(FORMAT, manifest, msgspec.structs.replace(facts, environment=lock), tuple(entries)), sources


def _select(folder: Path, manifest: Manifest) -> list[str]:
    """The paths to pack, ascending: those that the manifest names, and what its ``files`` match (all, if empty)."""
    present = dict(_walk(folder))
    required = _named_files(manifest)
    for field, path in required.items():
        if path not in present:
            line = _line(folder, field)
            raise InputError(
                "manifest.invalid",
                f"cannot pack {folder}: {manifests.FILE_NAME}, line {line}, field {field}: there is no file {path!r}",
                field=field,
                line=line,
                file=path,
            )
    chosen = set(required.values()) | ({manifests.FILE_NAME} & present.keys())
    if manifest.files:
        for number, pattern in enumerate(manifest.files):
            matched = {path for path in present if fnmatchcase(path, pattern)}
            if not matched:
                raise InputError(
                    "manifest.invalid",
                    f"cannot pack {folder}: {manifests.FILE_NAME}, line {_line(folder, 'files')}, "
                    f"field files[{number}]: no file matches {pattern!r}",
                    field=f"files[{number}]",
                    line=_line(folder, "files"),
                )
            chosen |= matched
    else:
        chosen |= {path for path, ours in present.items() if not ours}
    for path in chosen:
        if manifest.environment.given and path.startswith(environments.FOLDER):
            raise PeerError(
                "package.unsafe_path",
                f"cannot pack {path!r}: packages keep the wheels of an environment there; give the folder another name",
            )
        if not manifests.is_plain(path):
            raise PeerError("package.unsafe_path", f"cannot pack {path!r}: rename it to a plain relative path")
    return sorted(chosen)


def _named_files(manifest: Manifest) -> dict[str, str]:
    """Every file that the manifest names, by the field that names it."""
    named = {"model": manifest.model} if manifest.model else {}
    named |= {f"steps[{place}].model": step.model for place, step in enumerate(manifest.steps) if step.model}
    if manifest.golden:
        named["golden.file"] = manifest.golden.file
    if manifest.baseline:
        named["baseline.file"] = manifest.baseline.file
    named |= {f"environment.wheels[{number}]": path for number, path in enumerate(manifest.environment.wheels)}
    return named


def _walk(folder: Path, below: str = "") -> Iterator[tuple[str, bool]]:
    """Every file under a folder, and whether it is one that is left out unless named (hidden, cache, a package)."""
    for entry in sorted(os.scandir(folder / below), key=lambda entry: entry.name):
        path = f"{below}{entry.name}"
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise PeerError(
                "package.unsafe_entry",
                f"cannot pack {folder}: {path!r} is a link or no regular file; put the file itself there",
                file=path,
            )
        if entry.is_dir():
            if not entry.name.startswith(".") and entry.name != "__pycache__":
                yield from _walk(folder, f"{path}/")
        else:
            yield path, entry.name.startswith(".") or entry.name.endswith(PACKAGE_SUFFIX)


def _line(folder: Path, field: str) -> int:
    path = folder / manifests.FILE_NAME
    return manifests.line_of(path.read_text(), field) if path.is_file() else 0


# -- the index as bytes ------------------------------------------------------------------------------------------------


def index_bytes(index: Index) -> bytes:
    """Canonical JSON: keys sorted, no spaces. Its SHA-256 is the module's digest."""
    return msgspec.json.encode(index, order="sorted")


def digest_of(index: bytes) -> str:
    """The module's digest: 64 lower-case hex digits."""
    return hashlib.sha256(index).hexdigest()


def parse_index(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Index:
    """Read an index and check all that can be checked without the objects.

    Raises:
        PeerError: ``package.unreadable``, ``package.unsafe_path``, ``package.too_many_files``, ``package.too_large``.
    """
    if len(data) > limits.max_index_bytes:
        raise PeerError(
            "package.too_large", f"cannot read an index of {len(data)} bytes: the limit is {limits.max_index_bytes}"
        )
    try:
        index = msgspec.json.decode(data, type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError("package.unreadable", f"cannot read the package's index: {error}") from error
    if index.format != FORMAT:
        unreadable(f"its format is {index.format}, this version reads {FORMAT}; update this side")
    if problem := next(iter(manifests.problems(index.manifest)), None):
        unreadable(f"the manifest in its index is wrong: {problem[0]}: {problem[1]}")
    check_files(index.files, limits)
    _check_environment(index)
    paths = {entry.path for entry in index.files}
    for field, path in _named_files(index.manifest).items():
        if path not in paths:
            unreadable(f"its manifest names {path!r} as {field}, which is not among its files")
    return index


def _check_environment(index: Index) -> None:
    """An environment has a lock, and exactly its wheels stand among the files."""
    lock = index.facts.environment
    if (lock is not None) != index.manifest.environment.given:
        unreadable("its manifest names an environment that is not locked, or a lock that it does not name")
    if lock is None:
        return
    if problem := next(iter(environments.problems(lock)), None):
        unreadable(problem)
    wanted = {environments.FOLDER + file: (wheel.sha256, wheel.size) for file, wheel in lock.wheels().items()}
    found = {e.path: (e.sha256, e.size) for e in index.files if e.path.startswith(environments.FOLDER)}
    if wanted != found:
        unreadable("the wheels among its files are not those that its lock names")


def check_files(files: tuple[FileEntry, ...], limits: Limits) -> None:
    if len(files) > limits.max_files:
        raise PeerError(
            "package.too_many_files", f"cannot accept a package of {len(files)} files: the limit is {limits.max_files}"
        )
    folders: set[str] = set()
    sizes: dict[str, int] = {}
    total, last = 0, ""
    for entry in files:
        if not manifests.is_plain(entry.path):
            raise PeerError("package.unsafe_path", f"cannot accept the path {entry.path!r}: it is not plain")
        if entry.path <= last:
            unreadable(f"its files are not in ascending order, or {entry.path!r} stands twice")
        last = entry.path
        parts = entry.path.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if not _DIGEST.fullmatch(entry.sha256):
            unreadable(f"{entry.path!r} has no valid SHA-256")
        if not 0 <= entry.size <= limits.max_file_bytes:
            raise PeerError(
                "package.too_large",
                f"cannot accept {entry.path!r} of {entry.size} bytes: the limit is {limits.max_file_bytes}",
            )
        if sizes.setdefault(entry.sha256, entry.size) != entry.size:
            unreadable(f"{entry.path!r} gives the same content another size")
        total += entry.size
    if total > limits.max_total_bytes:
        raise PeerError(
            "package.too_large", f"cannot accept a package of {total} bytes: the limit is {limits.max_total_bytes}"
        )
    for entry in files:
        if entry.path in folders:  # `a` as a file and `a/b` below it: laid out, one would have to replace the other
            raise PeerError("package.unsafe_path", f"cannot accept the path {entry.path!r}: it is a folder too")


def verify_index(index: bytes, signatures: tuple[Signature, ...], trusted: dict[str, PublicKey]) -> PublicKey:
    """The trusted key that signed this index.

    Raises:
        PeerError: ``trust.unsigned``, ``trust.unknown_key``, ``trust.bad_signature``.
    """
    return trust.verify(trust.MODULE_TYPE, index, signatures, trusted)


def sign_index(index: bytes, key: SigningKey) -> Signature:
    """A publisher's signature over the whole module."""
    return key.sign(trust.MODULE_TYPE, index)


def unreadable(problem: str) -> NoReturn:
    """Raise the ``package.unreadable`` that index and package file share."""
    raise PeerError("package.unreadable", f"cannot read the package: {problem}")
