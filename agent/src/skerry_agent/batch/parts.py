"""What is done of a job, on disk beside its output: a folder with one file per scored part and a journal.

A part counts once its line is in the journal, and its line is written after its files are on the disk under their
names: a kill at any moment costs the part that was being scored, and none that was finished. The output appears whole,
by one rename, when all parts are there; then the folder goes.

Does not handle: an input that is changed while it is read (size and time of the file are compared at the start).
"""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_agent.batch.rows import Model, RowError, Segment
from skerry_modules.arrays import Array
from skerry_modules.errors import InputError, ResourceError

FORMATS: Final = (".parquet", ".csv", ".jsonl")
FRAMES: Final = ".rows"
"""What goes to the hub: see ``skerry_modules.batches``; row errors are in it too."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What makes two runs the same job."""

    format: int = 1
    input: str
    print: str
    model: str
    version: str
    part_rows: int
    columns: tuple[str, ...]
    kept: tuple[str, ...]
    output: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the journal."""

    part: int
    rows: int
    errors: int
    units: int
    bytes: int  # of the part's file


class Parts:
    """The folder of one job. Use :func:`opened`."""

    def __init__(self, output: Path, folder: Path, model: Model, *, files: bool, kept: dict[str, Any]) -> None:
        self._output = output
        self._folder = folder
        self._journal = folder / "journal.jsonl"
        self._model = model
        self._files = files
        self._kept = kept
        self._kind = output.suffix.lower()
        self._schema: Any = None
        if self._kind == ".parquet":
            from skerry_agent.batch import parquet

            self._schema = parquet.schema_of(model, files=files, kept=kept)
        self.done = self._read()

    def _read(self) -> dict[int, Done]:
        found: dict[int, Done] = {}
        try:
            lines = self._journal.read_bytes().split(b"\n")
        except FileNotFoundError:
            return found
        for line in lines:
            try:
                done = msgspec.json.decode(line, type=Done)
                if self._part(done.part).stat().st_size == done.bytes:
                    found[done.part] = done
            except (msgspec.DecodeError, OSError):
                continue  # the line that a kill cut short
        return found

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:06d}{self._kind}"

    def _errors(self, number: int) -> Path:
        return self._folder / f"{number:06d}.errors.jsonl"

    def finish(self, number: int, segments: Sequence[Segment], errors: Sequence[RowError], units: int) -> Done:
        """Put a part on the disk for good."""
        path = self._part(number)
        draft = path.with_suffix(path.suffix + ".draft")
        self._write(draft, segments, errors)
        if errors and self._kind != FRAMES:
            lines = b"".join(msgspec.json.encode(error) + b"\n" for error in errors)
            _write(self._errors(number), lines)
        else:
            self._errors(number).unlink(missing_ok=True)
        draft.rename(path)
        _sync(self._folder)
        rows = sum(len(segment.rows) for segment in segments)
        done = Done(part=number, rows=rows, errors=len(errors), units=units, bytes=path.stat().st_size)
        with self._journal.open("ab") as stream:
            if stream.tell() and not _ends_line(self._journal):
                stream.write(b"\n")
            stream.write(msgspec.json.encode(done) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.done[number] = done
        return done

    def _write(self, path: Path, segments: Sequence[Segment], errors: Sequence[RowError]) -> None:
        if self._kind == FRAMES:
            from skerry_agent.batch import results

            _write_plain(path, results.frames(segments, errors))
            return
        if self._kind == ".parquet":
            from skerry_agent.batch import parquet

            parquet.write_part(path, self._schema, segments, self._model)
            return
        with path.open("w", newline="", encoding="utf-8") as stream:
            if self._kind == ".csv":
                csv.writer(stream).writerows(self._flat_rows(segments))
            else:
                stream.writelines(json.dumps(row) + "\n" for row in self._objects(segments))
            stream.flush()
            os.fsync(stream.fileno())

    def _flat_rows(self, segments: Sequence[Segment]) -> Iterator[list[Any]]:
        for segment in segments:
            outputs = [_values(segment.outputs[spec.name]) for spec in self._model.outputs]
            for place, row in enumerate(segment.rows):
                cells: list[Any] = [segment.file] if self._files else []
                cells += [row, *(segment.kept[name][place] for name in self._kept)]
                for spec, values in zip(self._model.outputs, outputs, strict=True):
                    value = values[place]
                    if self._model.width(spec) > 1:
                        cells += value
                    else:
                        cells.append(json.dumps(value) if isinstance(value, list) else value)
                yield cells

    def _objects(self, segments: Sequence[Segment]) -> Iterator[dict[str, Any]]:
        for segment in segments:
            outputs = {spec.name: _values(segment.outputs[spec.name]) for spec in self._model.outputs}
            for place, row in enumerate(segment.rows):
                one: dict[str, Any] = {"file": segment.file} if self._files else {}
                one |= {"row": row} | {name: _plain(segment.kept[name][place]) for name in self._kept}
                yield one | {name: values[place] for name, values in outputs.items()}

    def _head(self) -> str:
        names = ["file"] if self._files else []
        names += ["row", *self._kept]
        for spec in self._model.outputs:
            width = self._model.width(spec)
            names += [f"{spec.name}_{place}" for place in range(width)] if width > 1 else [spec.name]
        return ",".join(f'"{name}"' if "," in name else name for name in names) + "\r\n"

    def join(self, parts: int) -> Path | None:
        """All parts into the output, which appears whole, and the row errors into their own file (None: no errors)."""
        paths = [self._part(number) for number in range(parts)]
        told = range(parts) if self._kind != FRAMES else ()
        failed = [self._errors(number) for number in told if self.done[number].errors]
        beside = self._output.with_name(f"{self._output.name}.errors.jsonl")
        if failed:
            draft = self._folder / "errors"
            _concatenate(failed, draft, b"")
            draft.rename(beside)
        else:
            beside.unlink(missing_ok=True)  # of an earlier output by this name
        draft = self._folder / "output"
        if self._kind == ".parquet":
            from skerry_agent.batch import parquet

            parquet.join(paths, draft, self._schema)
        else:
            _concatenate(paths, draft, self._head().encode() if self._kind == ".csv" else b"")
        draft.rename(self._output)
        _sync(self._output.parent)
        gone = _gone(self._folder)  # a kill while it is removed must not leave what looks like a job just begun
        self._folder.rename(gone)
        shutil.rmtree(gone)
        return beside if failed else None


@contextmanager
def opened(
    output: Path, job: Job, model: Model, *, files: bool, kept: dict[str, Any], restart: bool
) -> Iterator[Parts]:
    """The job's folder, for this process alone.

    Raises:
        InputError: ``request.invalid``: the output exists, or another job was begun for it.
        ResourceError: ``resource.state_in_use``.
    """
    folder = output.with_name(f"{output.name}.batch")
    shutil.rmtree(_gone(folder), ignore_errors=True)
    if output.exists() and not folder.exists() and not restart:
        raise InputError("request.invalid", f"cannot write {output}: it exists; name another, or use --restart")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not folder.exists() or os.fstat(descriptor).st_ino != folder.stat().st_ino:
                raise BlockingIOError  # the one that held it has just finished
        except OSError as error:
            raise ResourceError(
                "resource.state_in_use", f"cannot go on with {output}: another process works on it; let it, or stop it"
            ) from error
        if restart:
            _clear(folder)
        _check(folder, job, output)
        yield Parts(output, folder, model, files=files, kept=kept)
    finally:
        os.close(descriptor)


def _gone(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.done")


def _clear(folder: Path) -> None:
    for left in folder.iterdir():
        left.unlink()


def begun(output: Path) -> Job | None:
    """The job that was begun for an output and not finished."""
    try:
        return msgspec.json.decode((output.with_name(f"{output.name}.batch") / "job.json").read_bytes(), type=Job)
    except (OSError, msgspec.DecodeError):
        return None


def _check(folder: Path, job: Job, output: Path) -> None:
    before = begun(output)
    if before is None:
        _clear(folder)
        _write(folder / "job.json", msgspec.json.encode(job))
        return
    differ = [name for name in Job.__struct_fields__ if getattr(job, name) != getattr(before, name)]
    if differ:
        told = ", ".join(
            "the input has changed" if name == "print" else f"{name} was {getattr(before, name)!r}" for name in differ
        )
        raise InputError(
            "request.invalid",
            f"cannot go on with {output}: this is another job than the one that was begun: {told}; "
            "use --restart to begin anew, or another --output",
        )


def _values(array: Array) -> list[Any]:
    rows = array.reshape(len(array), -1)
    plain = [[_plain(value) for value in row] for row in rows.tolist()]
    return [row[0] for row in plain] if rows.shape[1] == 1 else plain


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has neither NaN nor infinity
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


def _write(path: Path, data: bytes) -> None:
    draft = path.with_suffix(path.suffix + ".draft")
    with draft.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(path)
    _sync(path.parent)


def _write_plain(path: Path, blocks: Iterable[bytes]) -> None:
    with path.open("wb") as stream:
        stream.writelines(blocks)
        stream.flush()
        os.fsync(stream.fileno())


def _concatenate(sources: Sequence[Path], path: Path, head: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(head)
        for source in sources:
            with source.open("rb") as piece:
                shutil.copyfileobj(piece, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _ends_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
