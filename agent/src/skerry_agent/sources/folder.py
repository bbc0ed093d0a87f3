"""A watched folder: each file that appears is scored once, then moved to ``done/``, or to ``bad/`` with the reason.

``.npz`` and ``.npy`` hold tensors by name, ``.json`` an object of nested lists by name, ``.csv`` rows. A file is taken
when it has stopped growing between two looks; hidden files and ``*.tmp``, ``*.part`` never. A file is moved only after
it was scored, so a kill in between scores it again: at least once, never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import msgspec

from skerry_agent.sources import Inputs, Row, Specs
from skerry_agent.sources.values import from_csv, from_json, named
from skerry_modules import npz
from skerry_modules.errors import InputError, SkerryError
from skerry_modules.messages import Tensor

KINDS: Final = frozenset({".npz", ".npy", ".json", ".csv"})


class Folder:
    """See the module's text. ``keep_files``: the newest scored files that stay in ``done/``."""

    def __init__(self, path: Path, *, every_s: float, keep_files: int, max_mb: int) -> None:
        self._path = path
        self._done = path / "done"
        self._bad = path / "bad"
        self._every_s = every_s
        self._keep = keep_files
        self._limit = max_mb * 1_000_000
        self._seen: dict[str, tuple[int, int]] = {}

    async def rows(self) -> AsyncGenerator[Row, None]:
        while True:
            for path in await asyncio.to_thread(self._look):
                yield self._row(path)
            await asyncio.sleep(self._every_s)

    def _row(self, path: Path) -> Row:
        def read(specs: Specs) -> Inputs:
            return self._read(path, specs)

        def done(how: dict[str, Tensor] | SkerryError) -> None:
            self._end(path, how)

        return Row(path.name, read, done=done)

    def _look(self) -> list[Path]:
        """Files that did not change since the last look, oldest first."""
        for folder in (self._path, self._done, self._bad):
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
        now: dict[str, tuple[int, int]] = {}
        with contextlib.suppress(OSError):
            for path in self._path.iterdir():
                if path.suffix.lower() in KINDS and not path.name.startswith(".") and path.is_file():
                    with contextlib.suppress(OSError):
                        stat = path.stat()
                        now[path.name] = (stat.st_mtime_ns, stat.st_size)
        steady = sorted((mark, name) for name, mark in now.items() if self._seen.get(name) == mark)
        self._seen = now
        return [self._path / name for _, name in steady]

    def _read(self, path: Path, specs: Specs) -> Inputs:
        try:
            size = path.stat().st_size
            if size > self._limit:
                raise InputError(
                    "request.too_large", f"cannot score {path.name}: {size} bytes, the limit is {self._limit}"
                )
            if path.suffix.lower() in (".npz", ".npy"):
                return self._arrays(path, specs)
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("request.invalid", f"cannot read {path.name}: {error}") from error
        if path.suffix.lower() == ".csv":
            return from_csv(text, specs, path.name)
        return read_json(text.encode(), specs, path.name)

    def _arrays(self, path: Path, specs: Specs) -> Inputs:
        arrays: dict[str, Tensor] = npz.read(path, npz.Limits(max_bytes=self._limit))
        if path.suffix.lower() == ".npy" and len(specs) == 1:
            return {specs[0].name: next(iter(arrays.values()))}
        chosen: Inputs = named(arrays, specs, path.name)
        return chosen

    def _end(self, path: Path, how: dict[str, Tensor] | SkerryError) -> None:
        self._seen.pop(path.name, None)
        with contextlib.suppress(OSError):
            if isinstance(how, SkerryError):
                path.replace(self._bad / path.name)
                (self._bad / f"{path.name}.reason.txt").write_text(f"{how.code}: {how.message}\n")
            elif self._keep:
                path.replace(self._done / path.name)
                self._thin(self._done)
            else:
                path.unlink()

    def _thin(self, folder: Path) -> None:
        files = sorted((one.stat().st_mtime_ns, one) for one in folder.iterdir())
        for _, old in files[: max(0, len(files) - self._keep)]:
            old.unlink(missing_ok=True)

    def close(self) -> None:
        self._seen = {}


def read_json(data: bytes, specs: Specs, source: str) -> Inputs:
    """``{name: nested list}`` as the declared inputs.

    Raises:
        InputError: ``scoring.invalid_json``, and as :func:`skerry_agent.sources.values.from_json`.
    """
    try:
        given = msgspec.json.decode(data, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("scoring.invalid_json", f"cannot read {source} as an object of lists: {error}") from error
    chosen = named(given, specs, source)
    return {spec.name: from_json(chosen[spec.name], spec) for spec in specs}
