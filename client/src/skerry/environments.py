"""From pinned requirements to a lock with its wheels: what packing a module with an environment needs.

The lock is written beside ``module.toml`` and used again as long as it answers what the manifest asks, so that packing
twice gives the same bytes, whatever the package index has learned meanwhile. Wheels are kept by their SHA-256.

An environment that the hub knows (``use = "vision:3"``) comes from there, lock and wheels: no index is asked.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec

from skerry import resolving
from skerry.types import EnvironmentDetail
from skerry_modules import environments, package, profiles
from skerry_modules.compatibility import python_fits
from skerry_modules.environments import Bundle, Lock, LockFile, Target, Wheel
from skerry_modules.errors import InputError, PeerError
from skerry_modules.manifest import Manifest, engines_of
from skerry_modules.trust import SigningKey

Say = Callable[[str], None]


BYTECODE_SHARE: Final = 1.75
"""A device compiles what it unpacks: bytes of bytecode and records per byte of source, with a margin (measured: 1.6 for
numpy, 1.4 for numpy, scipy and scikit-learn together)."""


class Hub(Protocol):
    """What is asked of a :class:`skerry.Client`."""

    def environment_version(self, name: str, version: int) -> EnvironmentDetail: ...

    def fetch_wheel(self, name: str, version: int, sha256: str, target: Path) -> Path: ...


def pack(
    folder: Path,
    target: Path,
    key: SigningKey | None = None,
    *,
    hub: Callable[[], Hub] | None = None,
    relock: bool = False,
    say: Say = lambda _: None,
) -> package.Packed:
    """Pack a module's folder with its environment: :func:`prepare`, then ``package.write_package``.

    Raises:
        SkerryError: as both.
    """
    bundle = prepare(folder, package.read_folder(folder), hub=hub, relock=relock, say=say)
    return package.write_package(folder, target, key, bundle=bundle)


def prepare(
    folder: Path,
    manifest: Manifest,
    *,
    hub: Callable[[], Hub] | None = None,
    relock: bool = False,
    say: Say = lambda _: None,
) -> Bundle | None:
    """The lock and wheels of a module's environment; None where it has none.

    Args:
        folder: the module's; its ``environment.lock`` is read, and written if it is missing or outdated.
        manifest: the module's.
        hub: gives the hub for an environment that is used by name; without it only what is cached can be used.
        relock: resolve again even if the lock still answers the manifest.
        say: told each step in a sentence.

    Raises:
        InputError: ``environment.unresolvable`` naming package and tag, ``environment.unavailable``,
            ``environment.unknown``, ``environment.not_locked`` for a lock file that cannot be read.
        PeerError: ``package.digest_mismatch`` for a wheel that is not what its lock says.
        ResourceError: ``resource.missing_dependency`` where pip is not installed.
    """
    wanted = manifest.environment
    if not wanted.given:
        return None
    hub = functools.cache(hub) if hub else None  # asked for at the last moment, and once
    cache = Cache(cache_folder())
    kinds = environments.kinds_of(targeted(manifest), wanted.python)
    known = None if relock else read_lock(folder)
    if known is None or not answers(known, manifest, folder, kinds):
        if wanted.use:
            known = _taken(wanted.use, kinds, hub)
        else:
            known = LockFile(lock=_resolve(folder, manifest, kinds, cache, say))
        _write(folder, known)
        wheels, targets = len(known.lock.wheels()), len(known.lock.targets)
        say(f"locked {_count(wheels, 'wheel')} for {_count(targets, 'kind')} of devices")
    return Bundle(known.lock, _gather(folder, manifest, known, cache, hub))


def targeted(manifest: Manifest) -> list[profiles.Profile]:
    """The shipped profiles that a module is for: those it names, or all that it could run on."""
    targets = manifest.targets
    if targets.profiles:
        return [profiles.get(name) for name in targets.profiles]
    return [
        profile
        for profile in profiles.shipped().values()
        if all(profile.engine(engine) for engine in engines_of(manifest))
        and (not targets.architectures or profile.architecture in targets.architectures)
        and (not targets.python or python_fits(environments.python_of(profile), targets.python))
    ]


Kinds = Mapping[tuple[str, str], tuple[str, list[str]]]


def answers(known: LockFile, manifest: Manifest, folder: Path, kinds: Kinds) -> bool:
    """Whether a lock is still what the manifest asks for: requirements, kinds of devices, the folder's own wheels."""
    wanted = manifest.environment
    if known.use != wanted.use or (not wanted.use and known.lock.requirements != tuple(sorted(wanted.requirements))):
        return False
    exact = {(target.architecture, target.python, target.glibc) for target in known.lock.targets}
    asked = {(architecture, python, glibc) for (architecture, python), (glibc, _) in kinds.items()}
    if wanted.use:
        return all(environments.covers(known.lock, *kind) for kind in asked)
    locked = known.lock.wheels()
    ours = [(Path(path).name, folder / path) for path in wanted.wheels]
    return exact == asked and all(
        name not in locked or (path.is_file() and locked[name].sha256 == sha256_of(path)) for name, path in ours
    )


# -- the lock file -----------------------------------------------------------------------------------------------------


def read_lock(folder: Path) -> LockFile | None:
    """What stands beside the manifest, or None.

    Raises:
        InputError: ``environment.not_locked``: the file is there and is no lock.
    """
    path = folder / environments.LOCK_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        known = msgspec.json.decode(data, type=LockFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    if problem := next(iter(environments.problems(known.lock)), None):
        raise _unreadable(path, problem)
    return known


def _write(folder: Path, known: LockFile) -> None:
    path = folder / environments.LOCK_FILE
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(known, order="sorted"), indent=1) + b"\n")
        partial.replace(path)
    except OSError as error:
        raise InputError(
            "environment.not_locked",
            f"cannot write {path}: {error.strerror}; packing keeps the lock beside the manifest",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _unreadable(path: Path, problem: str) -> InputError:
    return InputError(
        "environment.not_locked",
        f"cannot read {path}: {problem}; delete it, and packing writes it anew",
        file=str(path),
    )


# -- resolving and taking ----------------------------------------------------------------------------------------------


def _resolve(folder: Path, manifest: Manifest, kinds: Kinds, cache: Cache, say: Say) -> Lock:
    wanted, found = manifest.environment, []
    with tempfile.TemporaryDirectory(prefix="skerry-wheels-") as temporary:
        own = Path(temporary) / "own"
        own.mkdir()
        for path in wanted.wheels:
            shutil.copyfile(folder / path, own / Path(path).name)
        for number, ((architecture, python), (glibc, names)) in enumerate(kinds.items()):
            target = Target(architecture=architecture, python=python, glibc=glibc, wheels=())
            say(f"resolving for {target.label} ({', '.join(names)})")
            place = Path(temporary) / str(number)
            files = resolving.resolve(
                wanted.requirements, target, names, place, find_links=own if wanted.wheels else None
            )
            wheels = tuple(sorted((cache.add(path) for path in files), key=lambda wheel: wheel.file))
            found.append(msgspec.structs.replace(target, wheels=wheels))
    lock = Lock(
        format=environments.FORMAT,
        requirements=tuple(sorted(wanted.requirements)),
        targets=environments.ordered(found),
    )
    if problem := next(iter(environments.problems(lock)), None):
        raise InputError("environment.unresolvable", f"cannot lock the environment of {manifest.name}: {problem}")
    return lock


def _taken(use: str, kinds: Kinds, hub: Callable[[], Hub] | None) -> LockFile:
    """The lock of a registered environment, if it is for what the module targets."""
    if hub is None:
        raise InputError(
            "environment.unknown", f"cannot use the environment {use}: no hub is named that knows it; set SKERRY_URL"
        )
    lock = hub().environment_version(*environments.parse_reference(use)).lock
    for (architecture, python), (glibc, names) in kinds.items():
        if not environments.covers(lock, architecture, python, glibc):
            tag = Target(architecture=architecture, python=python, glibc=glibc, wheels=()).label
            raise InputError(
                "environment.unresolvable",
                f"cannot use the environment {use} for {', '.join(names)}: it was not locked for {tag}; "
                "narrow the module's targets, or name requirements instead",
                environment=use,
                tag=tag,
                profiles=names,
            )
    return LockFile(lock=lock, use=use)


def _gather(
    folder: Path, manifest: Manifest, known: LockFile, cache: Cache, hub: Callable[[], Hub] | None
) -> dict[str, Path]:
    """A file for each wheel of the lock: from the cache, the folder, the hub, or the index by its hash."""
    own = {sha256_of(folder / path): folder / path for path in manifest.environment.wheels}
    found: dict[str, Path] = {}
    for target in known.lock.targets:
        missing = []
        for wheel in target.wheels:
            path = own.get(wheel.sha256) or cache.find(wheel.sha256)
            if path is None:
                missing.append(wheel)
            else:
                found[wheel.sha256] = path
        if missing:
            _fetch(missing, target, known.use, cache, hub)
        for wheel in missing:
            found[wheel.sha256] = cache.path(wheel.sha256)
    return found


def _fetch(missing: list[Wheel], target: Target, use: str, cache: Cache, hub: Callable[[], Hub] | None) -> None:
    with tempfile.TemporaryDirectory(prefix="skerry-wheels-") as temporary:
        place = Path(temporary)
        if use and hub is not None:
            name, version = environments.parse_reference(use)
            for wheel in missing:
                hub().fetch_wheel(name, version, wheel.sha256, place / wheel.file)
        else:
            resolving.download(missing, target, place)
        for wheel in missing:
            path = place / wheel.file
            if not path.is_file() or sha256_of(path) != wheel.sha256:
                raise PeerError(
                    "package.digest_mismatch",
                    f"cannot use {wheel.file}: what was fetched has another SHA-256 than its lock says",
                    file=wheel.file,
                )
            cache.add(path)


# -- wheels kept by content --------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """``SKERRY_CACHE``, or ``skerry`` in the user's cache folder."""
    named = os.environ.get("SKERRY_CACHE", "")
    if named:
        return Path(named) / "wheels"
    base = os.environ.get("XDG_CACHE_HOME", "") or str(Path.home() / ".cache")
    return Path(base) / "skerry" / "wheels"


class Cache:
    """Wheels by SHA-256. A file that is not what its name says is as good as absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def find(self, sha256: str) -> Path | None:
        path = self.path(sha256)
        return path if path.is_file() and sha256_of(path) == sha256 else None

    def add(self, wheel: Path) -> Wheel:
        """Keep a wheel and describe it."""
        sha256 = sha256_of(wheel)
        target = self.path(sha256)
        if self.find(sha256) is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{sha256}.{os.getpid()}.partial")
            shutil.copyfile(wheel, partial)
            partial.replace(target)
        return Wheel(file=wheel.name, sha256=sha256, size=wheel.stat().st_size, installed=_unpacked(wheel))


def _unpacked(wheel: Path) -> int:
    try:
        with zipfile.ZipFile(wheel) as archive:
            items = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError("environment.unresolvable", f"cannot use {wheel.name}: it is no wheel: {error}") from error
    compiled = sum(item.file_size for item in items if item.filename.endswith(".py")) * BYTECODE_SHARE
    return sum(item.file_size for item in items) + int(compiled)


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
