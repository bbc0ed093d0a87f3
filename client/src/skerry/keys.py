"""A publisher's signing keys on this machine: where they stand, how they are made and found.

A project may have its own (``.skerry/keys`` in the working folder or one above it); else they are the user's
(``~/.config/skerry/keys``). ``SKERRY_KEY`` names a key file directly, for CI. The private half never leaves this
machine.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from pathlib import Path
from typing import Final

import msgspec

from skerry_modules.errors import InputError
from skerry_modules.trust import PublicKey, SigningKey, parse_public

DEFAULT_NAME: Final = "default"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair on disk: the private half at ``path``, the public one beside it as ``.pub``."""

    name: str
    keyid: str
    text: str
    path: str


def folder(start: Path | None = None) -> Path:
    """Where keys are kept: the nearest project's ``.skerry/keys``, else the user's."""
    for place in (here := (start or Path.cwd()).absolute(), *here.parents):
        if (place / ".skerry").is_dir():
            return place / ".skerry" / "keys"
    return user_folder() / "keys"


def user_folder() -> Path:
    """By the XDG base directory specification."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "skerry"


def generate(name: str = DEFAULT_NAME, *, into: Path | None = None) -> StoredKey:
    """Make a key pair.

    Raises:
        InputError: ``trust.bad_key`` if the name cannot be used or a key of this name is there.
    """
    if not _NAME.fullmatch(name):
        raise InputError("trust.bad_key", f"cannot name a key {name!r}: use letters, digits, '.', '_' and '-'")
    where = into or folder()
    where.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = where / f"{name}.pem"
    key = SigningKey.generate(_owner(name))
    try:
        key.save(path)
    except FileExistsError as error:
        raise InputError(
            "trust.bad_key", f"cannot make the key {name!r}: {path} exists; choose another name, or use that key"
        ) from error
    path.with_suffix(".pub").write_text(key.public.text() + "\n")
    return _stored(path, key.public)


def stored(where: Path | None = None) -> list[StoredKey]:
    """All keys on this machine, the nearest folder's."""
    return [_stored(path, load(str(path)).public) for path in sorted((where or folder()).glob("*.pem"))]


def load(name: str = "") -> SigningKey:
    """A key by name or by the path of its file; without one ``SKERRY_KEY``, else the default.

    Raises:
        InputError: ``trust.bad_key``.
    """
    wanted = name or os.environ.get("SKERRY_KEY", "") or DEFAULT_NAME
    # A file in the working folder that happens to be named as a key is not meant: a path has a slash or says .pem.
    path = Path(wanted) if "/" in wanted or wanted.endswith(".pem") else folder() / f"{wanted}.pem"
    if not path.is_file():
        raise InputError(
            "trust.bad_key",
            f"cannot find the signing key {wanted!r}: `skerry keys generate` makes one, `skerry keys list` shows them",
        )
    return SigningKey.load(path, _name_of(path))


def load_or_generate(name: str = "") -> tuple[SigningKey, bool]:
    """The key, and whether it was made just now (only the default one ever is)."""
    fresh = not name and not os.environ.get("SKERRY_KEY") and not (folder() / f"{DEFAULT_NAME}.pem").is_file()
    if fresh:
        generate()
    return load(name), fresh


def public(name: str = "") -> PublicKey:
    """A public key by its text (``ed25519:…``), by the path of a ``.pub`` file, or of a stored key."""
    if name.startswith("ed25519:"):
        return parse_public(name)
    if name.endswith(".pub") and Path(name).is_file():
        return parse_public(Path(name).read_text())
    return load(name).public


def _stored(path: Path, key: PublicKey) -> StoredKey:
    return StoredKey(name=path.stem, keyid=key.keyid, text=key.text(), path=str(path))


def _name_of(path: Path) -> str:
    pub = path.with_suffix(".pub")
    return parse_public(pub.read_text()).name if pub.is_file() else path.stem


def _owner(name: str) -> str:
    """For people who read a list of keys: whose it is."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    owner = f"{user}@{socket.gethostname()}"
    return owner if name == DEFAULT_NAME else f"{name} ({owner})"
