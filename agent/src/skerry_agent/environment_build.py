"""Builds one environment from wheels that are already on the disk, in a process of its own: ``python -m`` this.

It needs no network, no pip and no compiler: a virtual environment by the standard library, and each wheel laid out as
PyPA's ``installer`` does. It reads an order (JSON) from standard input and answers with one line of JSON.

Crash safety: everything happens in ``.new-<key>``; the last steps are a list of all files with their SHA-256, a flush
of the file system, and the rename to ``<key>``. Cut anywhere before it, nothing is there that counts. What stands under
``<key>`` is believed only if every file is as that list says.

The wheels' names come from a signed lock, and each wheel's SHA-256 is checked as it is read: what pip's
``--require-hashes`` would do.
"""

from __future__ import annotations

import compileall
import ctypes
import hashlib
import os
import platform
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Final

import msgspec

from skerry_agent.environments import LIST_NAME, Answer, Order, remove_tree
from skerry_agent.parent import die_with_parent
from skerry_agent.statefile import NO_SPACE, no_space, sync_folder
from skerry_modules.environments import Wheel
from skerry_modules.errors import PeerError, ResourceError, SkerryError

NICENESS: Final = 10
"""Building competes with nobody: what serves goes first."""


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished environment holds: each file's SHA-256 (a link's target), and the Python it was built for."""

    format: int
    python: str
    files: dict[str, str]


def build(order: Order) -> Answer:
    """Make the environment, or find that it is there and whole.

    Raises:
        PeerError: ``package.digest_mismatch`` for a damaged wheel, which is gone then; ``data["objects"]`` names it.
        ResourceError: ``resource.no_space``, ``install.environment_failed``.
    """
    target = Path(order.target)
    if not damaged(target):
        return Answer(bytes=sum(path.lstat().st_size for path in _files(target)))
    work = target.with_name(f".new-{target.name}")
    remove_tree(work)
    try:
        _lay_out(order, work, target)
        _finish(work)
        old = target.with_name(f".old-{target.name}")
        remove_tree(old)
        if target.exists():
            target.replace(old)
        work.replace(target)
        sync_folder(target.parent)
        remove_tree(old)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(error, "an environment") from error
        raise failed(str(error)) from error
    finally:
        remove_tree(work)
    return Answer(built=True, bytes=sum(path.lstat().st_size for path in _files(target)))


def damaged(target: Path) -> str:
    """The first file that is missing or differs, the list itself where there is none, or an empty string."""
    try:
        contents = msgspec.json.decode((target / LIST_NAME).read_bytes(), type=Contents)
    except (OSError, msgspec.DecodeError):
        return LIST_NAME
    if contents.python != platform.python_version_tuple()[0] + "." + platform.python_version_tuple()[1]:
        return "python"
    if not (target / "bin" / "python").exists():  # the interpreter that it links to was taken away
        return "bin/python"
    return next((name for name, proof in contents.files.items() if _proof(target / name) != proof), "")


def _lay_out(order: Order, work: Path, target: Path) -> None:
    # Without pip: Debian's python3 has no ensurepip, and nothing is ever installed here again.
    venv.EnvBuilder(symlinks=True, with_pip=False, system_site_packages=False).create(work)
    for script in (work / "bin").glob("[aA]ctivate*"):
        script.unlink()  # they name the folder that this is about to leave
    paths = sysconfig.get_paths(scheme="venv", vars={"base": str(work), "platbase": str(work)})
    for wheel in order.wheels:
        _install(Path(order.objects), wheel, paths, work, target)
    compileall.compile_dir(
        paths["purelib"],
        quiet=2,
        stripdir=str(work),
        prependdir=str(target),
        # The list of files proves them: an import need not look at the source each time.
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )


def _install(objects: Path, wheel: Wheel, paths: dict[str, str], work: Path, target: Path) -> None:
    from installer import install
    from installer.destinations import SchemeDictionaryDestination
    from installer.exceptions import InstallerError
    from installer.sources import WheelFile

    source = objects / wheel.sha256
    if not source.is_file() or _sha256(source) != wheel.sha256:
        source.unlink(missing_ok=True)
        raise PeerError(
            "package.digest_mismatch",
            f"cannot install {wheel.file}: its object {wheel.sha256[:12]} is damaged or missing on disk; it is asked "
            "for again",
            objects=[wheel.sha256],
        )
    named = work / wheel.file  # a wheel says what it is by its file's name
    named.symlink_to(source.absolute())
    destination = SchemeDictionaryDestination(
        scheme_dict={**paths, "headers": f"{work}/include/site"},
        interpreter=str(target / "bin" / "python"),
        script_kind="posix",
        overwrite_existing=True,  # namespace packages share files
    )
    try:
        with WheelFile.open(named) as opened:
            install(opened, destination, {"INSTALLER": b"skerry\n"})
    except (InstallerError, zipfile.BadZipFile, ValueError, KeyError, AssertionError) as error:
        raise failed(f"{wheel.file} is no good wheel: {type(error).__name__}: {error}") from error
    named.unlink()


def _finish(work: Path) -> None:
    """Write the list of files, and have everything on the disk before the folder gets its name."""
    files = {str(path.relative_to(work)): _proof(path) for path in _files(work)}
    python = ".".join(platform.python_version_tuple()[:2])
    (work / LIST_NAME).write_bytes(msgspec.json.encode(Contents(format=1, python=python, files=files)))
    descriptor = os.open(work, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):  # one flush instead of one per file
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(work))
    finally:
        os.close(descriptor)


def failed(problem: str) -> ResourceError:
    return ResourceError(
        "install.environment_failed",
        f"cannot build the environment: {problem[:500]}; look at the state folder's rights and space, or pack it again",
    )


def _files(folder: Path) -> list[Path]:
    found = []
    for top, folders, names in os.walk(folder):
        found += [Path(top) / name for name in (*names, *(one for one in folders if (Path(top) / one).is_symlink()))]
    return sorted(path for path in found if path.name != LIST_NAME)


def _proof(path: Path) -> str:
    try:
        return f"-> {path.readlink()}" if path.is_symlink() else _sha256(path)
    except OSError:
        return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parent = int(sys.argv[1])
    die_with_parent(parent, "skerry-build")
    os.nice(NICENESS)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    out = os.dup(1)
    os.dup2(2, 1)  # whatever prints meanwhile must not stand in the answer
    try:
        answer = build(order)
    except SkerryError as error:
        answer = Answer(code=error.code, message=error.message, objects=tuple(error.data.get("objects", ())))
    os.write(out, msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
