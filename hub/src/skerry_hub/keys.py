"""The hub's own Ed25519 key, which signs desired documents. It never leaves the data folder.

Publishers' keys are theirs: the hub only knows the public halves, in the table ``publisher_key``.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from skerry_hub import audit
from skerry_hub.db import add_missing
from skerry_hub.tables import DesiredDocument, PublisherKey
from skerry_modules import messages, trust
from skerry_modules.errors import InputError


def hub_key(folder: Path) -> trust.SigningKey:
    """The hub's key, made at the first start.

    Raises:
        InputError: ``trust.bad_key``: the file is there and cannot be read.
    """
    path = folder / "keys" / "hub.pem"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.unlink(missing_ok=True)
        trust.SigningKey.generate().save(aside)
        # A link, not a rename: of two hubs that start at once, one key stays and both use it.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
    return trust.SigningKey.load(path, "hub")


def former_key(session: Session, key: trust.SigningKey) -> str:
    """The id of another key that signed the newest document, or nothing: then devices will not believe this hub.

    A database that is served from another data folder than before is how that comes about.
    """
    newest = session.exec(select(DesiredDocument).order_by(col(DesiredDocument.at).desc()).limit(1)).first()
    if newest is None:
        return ""
    signers = [signature.keyid for signature in messages.decode("desired", newest.payload).signatures]
    return "" if key.public.keyid in signers else ", ".join(signers)


def add_publisher(session: Session, text: str, *, actor: str, now: int) -> PublisherKey:
    """Trust a publisher's public key (``ed25519:<base64> [name]``); adding it again changes its name only.

    Raises:
        InputError: ``trust.bad_key``.
    """
    key = trust.parse_public(text)
    mine = col(PublisherKey.keyid) == key.keyid
    renamed = update(PublisherKey).where(mine).values(text=key.text())
    while not add_missing(session, PublisherKey, keyid=key.keyid, text=key.text(), added_by=actor, added_at=now):
        if session.exec(renamed).rowcount:  # none: it was removed in between, so that it can be added
            break
    row = session.exec(select(PublisherKey).where(mine).execution_options(populate_existing=True)).one()
    audit.record(session, actor=actor, action="key.add", subject=key.keyid, now=now, name=key.name)
    return row


def remove_publisher(session: Session, keyid: str, *, actor: str, now: int) -> None:
    """Stop accepting a publisher's signatures. Devices that run its modules go on.

    Raises:
        InputError: ``request.not_found``.
    """
    if session.exec(delete(PublisherKey).where(col(PublisherKey.keyid) == keyid)).rowcount == 0:
        raise InputError("request.not_found", f"cannot remove the key {keyid}: it is not among the publishers' keys")
    audit.record(session, actor=actor, action="key.remove", subject=keyid, now=now)


def publishers(session: Session) -> dict[str, trust.PublicKey]:
    """The keys whose modules the hub accepts, by key id."""
    rows = session.exec(select(PublisherKey).order_by(col(PublisherKey.keyid)))
    return {row.keyid: trust.parse_public(row.text) for row in rows}
