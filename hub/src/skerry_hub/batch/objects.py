"""What batch jobs need to stay: objects of the store, and the version that scores."""

from __future__ import annotations

import contextlib

import msgspec
from sqlmodel import Session, col, select

from skerry_hub.objects import ObjectStore
from skerry_hub.rules.batch import ACTIVE
from skerry_hub.tables import BatchPart, BatchRow
from skerry_modules.batches import InputList
from skerry_modules.errors import SkerryError


def objects_needed(session: Session, objects: ObjectStore) -> set[str]:
    """Uploads until their parts are made, then inputs and results, for as long as their job goes on."""
    going = select(BatchRow.id).where(col(BatchRow.state).in_(ACTIVE))
    uploads = select(BatchRow.upload).where(col(BatchRow.upload) != "", col(BatchRow.id).in_(going))
    found: set[str] = set()
    for upload in session.exec(uploads):
        found |= {upload, *pieces_of(objects, upload)}
    for column in (BatchPart.input, BatchPart.kept, BatchPart.result):
        statement = select(column).where(col(column) != "", col(BatchPart.batch).in_(going))
        found.update(session.exec(statement.distinct()))
    return found


def pieces_of(objects: ObjectStore, upload: str) -> set[str]:
    """The pieces that an upload's list names; none where the list is gone."""
    with contextlib.suppress(OSError, SkerryError, msgspec.DecodeError), objects.open(upload) as file:
        found = msgspec.json.decode(file.read(), type=InputList)
        return {piece for one in found.files for piece in one.pieces}
    return set()


def jobs_with(session: Session, module: str, version: int) -> list[str]:
    """Jobs that a version scores and that go on."""
    statement = select(BatchRow.id).where(
        col(BatchRow.module) == module, col(BatchRow.version) == version, col(BatchRow.state).in_(ACTIVE)
    )
    return [str(job) for job in session.exec(statement.order_by(col(BatchRow.id)))]
