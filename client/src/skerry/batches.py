"""Batch jobs of the hub: upload an input in pieces, begin, watch, cancel, fetch.

An upload is content-addressed: what the hub has already is not sent again, so a broken upload, or the same input a
second time, goes on from there. A broken download goes on too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from skerry.asking import Asking, Progress
from skerry.types import Batch, BatchDetail, BatchPart
from skerry_modules.batches import ARRAYS, PIECE_BYTES, TABLES, InputFile, InputList
from skerry_modules.errors import InputError, ResourceError

TRIES: Final = 5
"""How often one piece is sent, and a download goes on, before a broken connection is an error."""
_ASKED: Final = 5000
_PAUSE_S: Final = 0.5
_BLOCK: Final = 1 << 20


class _Piece(NamedTuple):
    """Where the bytes of a piece stand."""

    path: Path
    start: int
    size: int


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """What was downloaded; ``errors`` is empty where every row was scored."""

    scores: str
    errors: str = ""


class BatchCalls(Asking):
    """What :class:`skerry.client.Client` knows of batch jobs."""

    # -- beginning ----------------------------------------------------------------------------------------------------

    def upload_batch_input(self, path: Path, *, progress: Progress | None = None) -> str:
        """Send a table, a file of arrays or a folder of them. Returns what :meth:`start_batch` takes as ``upload``.

        Raises:
            InputError: ``batch.input``.
            ResourceError: ``resource.hub_unreachable`` after some tries; the same call goes on from there.
        """
        listed, pieces = _listed(path)
        text = msgspec.json.encode(listed)
        digest = hashlib.sha256(text).hexdigest()
        total = sum(piece.size for piece in pieces.values())
        missing = self._missing_pieces(list(pieces))
        done = total - sum(pieces[one].size for one in missing)
        for one in missing:
            piece = pieces[one]
            data = _read(piece)
            if hashlib.sha256(data).hexdigest() != one:
                raise InputError("batch.input", f"cannot upload {piece.path}: it changes meanwhile; try again")
            self._put_piece(one, data)
            done += piece.size
            if progress:
                progress(done, total)
        self._put_piece(digest, text)
        return digest

    def start_batch(self, model: str, target: str, *, upload: str = "", path: str = "", **wishes: Any) -> BatchDetail:
        """Begin a job.

        Args:
            model: ``NAME:VERSION``, an endpoint, or a module (its newest version).
            target: a tag query (``id=gate-7`` is one device), or ``hub``.
            upload: what :meth:`upload_batch_input` gave; or ``path``: a file or folder on each device.
            wishes: ``input`` (the upload's name), ``columns``, ``keep``, ``rows``, ``part_rows``, ``reason``.
        """
        body = {"model": model, "target": target, "upload": upload, "path": path, **wishes}
        return self._send("POST", "batches", BatchDetail, json=body)

    def _missing_pieces(self, digests: Sequence[str]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(digests), _ASKED):
            part = {"digests": list(digests[start : start + _ASKED])}
            found += self._send("POST", "batches/uploads/missing", dict[str, list[str]], json=part)["digests"]
        return found

    def _put_piece(self, digest: str, data: bytes) -> None:
        _tried(lambda: self._ask("PUT", f"batches/uploads/{digest}", content=data))

    # -- looking ------------------------------------------------------------------------------------------------------

    def batches(self, *, state: str = "", module: str = "", limit: int = 100) -> list[Batch]:
        """Jobs, newest first."""
        return list(self._list("batches", Batch, limit=limit, state=state, module=module))

    def batch(self, batch: int) -> BatchDetail:
        return self._send("GET", f"batches/{batch}", BatchDetail)

    def batch_parts(self, batch: int) -> Iterator[BatchPart]:
        """A job's parts by number."""
        return self._list(f"batches/{batch}/parts", BatchPart)

    def watch_batch(self, batch: int) -> Iterator[BatchDetail]:
        """The job whenever it changes, until it has ended. A hub that is away for a while is waited for."""
        seen: BatchDetail | None = None
        for _ in self.nudges(f"batch:{batch}"):
            now = _tried(lambda: self.batch(batch))
            if now != seen:
                yield now
            if now.ended:
                return
            seen = now

    # -- ending -------------------------------------------------------------------------------------------------------

    def cancel_batch(self, batch: int, *, reason: str = "") -> BatchDetail:
        return self._send("POST", f"batches/{batch}/cancel", BatchDetail, json={"reason": reason})

    def fetch_batch(self, batch: int, folder: Path, *, progress: Progress | None = None) -> Fetched:
        """Download the scores, and the rows that could not be scored, into a folder.

        Raises:
            InputError: ``batch.unknown``, ``batch.wrong_state``: there is nothing to fetch (yet).
            ResourceError: ``resource.hub_unreachable`` after some tries; the same call goes on from there.
        """
        found = self.batch(batch)
        if not found.result_size:
            why = found.message or "it goes on" if not found.ended else f"it is {found.state}: {found.message}"
            raise InputError("batch.wrong_state", f"cannot fetch the batch job {batch}: it has no result; {why}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            scores = self._download(batch, "result", folder / f"batch-{batch}.parquet", found.result_size, progress)
            if not found.errors_size:
                return Fetched(scores=str(scores))
            errors = folder / f"batch-{batch}.errors.jsonl"
            self._download(batch, "errors", errors, found.errors_size, progress)
        except OSError as error:
            raise ResourceError("resource.no_space", f"cannot write to {folder}: {error.strerror or error}") from error
        return Fetched(scores=str(scores), errors=str(errors))

    def _download(self, batch: int, what: str, target: Path, size: int, progress: Progress | None) -> Path:
        partial = target.with_name(f".{target.name}.partial")

        def more() -> None:
            start = partial.stat().st_size if partial.exists() else 0
            if start > size:
                partial.unlink()
                start = 0
            with partial.open("ab") as file:
                for block in self._blocks(f"batches/{batch}/{what}", start) if start < size else ():
                    file.write(block)
                    if progress:
                        progress(file.tell(), size)

        _tried(more)
        if partial.stat().st_size != size:
            partial.unlink()
            raise ResourceError("resource.hub_unreachable", f"cannot fetch {target.name} whole; try again")
        partial.replace(target)
        return target


def _listed(path: Path) -> tuple[InputList, dict[str, _Piece]]:
    """The list of an input's files, and where each piece of them stands."""
    try:
        if path.is_dir():
            kind, files = "files", _arrays_in(path)
        elif path.is_file() and path.suffix.lower() in (*TABLES, *ARRAYS):
            kind, files = "table" if path.suffix.lower() in TABLES else "files", [(path.name, path)]
        else:
            raise InputError(
                "batch.input",
                f"cannot score {path}: it is no folder, {', '.join(TABLES)} or {', '.join(ARRAYS)}"
                + ("" if path.exists() else "; there is no such file"),
            )
        pieces: dict[str, _Piece] = {}
        listed = tuple(_cut(name, file, pieces) for name, file in files)
    except OSError as error:
        raise InputError("batch.input", f"cannot read {error.filename or path}: {error.strerror}") from error
    return InputList(kind=kind, files=listed), pieces


def _arrays_in(folder: Path) -> list[tuple[str, Path]]:
    """Its files of arrays at any depth; hidden ones are left out, as on devices."""
    found = [
        (file.relative_to(folder).as_posix(), file)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in ARRAYS
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not found:
        raise InputError("batch.input", f"cannot find a file to score in {folder}: none of {', '.join(ARRAYS)}")
    return found


def _cut(name: str, path: Path, pieces: dict[str, _Piece]) -> InputFile:
    digests, start = [], 0
    with path.open("rb") as file:
        while data := file.read(PIECE_BYTES):
            digest = hashlib.sha256(data).hexdigest()
            digests.append(digest)
            pieces.setdefault(digest, _Piece(path, start, len(data)))
            start += len(data)
    return InputFile(path=name, size=start, pieces=tuple(digests))


def _read(piece: _Piece) -> bytes:
    with piece.path.open("rb") as file:
        file.seek(piece.start)
        return file.read(piece.size)


def _tried(work: Callable[[], Any]) -> Any:
    """Do something that may be repeated; a hub that is away for a moment is no error."""
    for left in reversed(range(TRIES)):
        try:
            return work()
        except ResourceError as error:
            if error.code != "resource.hub_unreachable" or not left:
                raise
            time.sleep(_PAUSE_S * 2 ** (TRIES - 1 - left))
    raise AssertionError("unreachable")
