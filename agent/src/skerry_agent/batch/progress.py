"""A progress line on stderr: plain text, drawn again in place, and nothing at all where no terminal is."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Final, TextIO

_REDRAW_S: Final = 0.2
_TOLD_S: Final = 0.5
_BAR: Final = 24


class Progress:
    """``units`` and ``unit`` are the input's (rows or files); rows and errors are counted apart."""

    def __init__(self, title: str, units: int, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        self._title = title
        self._units = units
        self._unit = unit
        self._before = self._done = done
        self._rows = self._errors = 0
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0

    def rows(self, scored: int, errors: int) -> None:
        """So many rows more were settled."""
        self._rows += scored
        self._errors += errors
        if self._shown and time.monotonic() - self._drawn > _REDRAW_S:
            self._draw()

    def units(self, done: int) -> None:
        """So many of the input's units more are done for good."""
        self._done += done
        if self._shown:
            self._draw()

    def _draw(self) -> None:
        now = self._drawn = time.monotonic()
        seconds = max(now - self._began, 1e-3)
        settled = self._rows + self._errors
        done = self._done
        if self._unit == "rows":  # what is settled within the part counts already
            done = max(done, min(self._before + settled, self._units))
        left_s = (self._units - done) * seconds / (done - self._before) if done > self._before else None
        text = line(self._title, done, self._units, self._unit, settled / seconds, errors=self._errors, left_s=left_s)
        self._stream.write(f"\r{text[: shutil.get_terminal_size((80, 24)).columns - 1]}\x1b[K")
        self._stream.flush()

    def close(self) -> None:
        """Leave the last state on its line."""
        if self._shown:
            self._draw()
            self._stream.write("\n")
            self._stream.flush()


class Lines(Progress):
    """Progress for the program that started this one: a JSON object per line, at most two a second.

    ``rows`` and ``errors`` count what earlier runs settled too.
    """

    def __init__(
        self,
        title: str,
        units: int,
        unit: str,
        done: int = 0,
        *,
        rows: int = 0,
        errors: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        super().__init__(title, units, unit, done, stream)
        self._rows, self._errors = rows, errors
        self._shown = True
        self._drawn = -_TOLD_S  # the first one is told at once
        self._draw()

    def _draw(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._drawn < _TOLD_S and not last:
            return
        self._drawn = now
        settled = self._rows + self._errors
        done = max(self._done, min(settled, self._units)) if self._unit == "rows" else self._done
        told = {"done": done, "units": self._units, "unit": self._unit, "rows": self._rows, "errors": self._errors}
        self._stream.write(json.dumps(told) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._draw(last=True)


def line(title: str, done: int, units: int, unit: str, rate: float, *, errors: int, left_s: float | None) -> str:
    """One progress line."""
    share = done / units if units else 1.0
    bar = "#" * round(share * _BAR)
    told = f"{title} [{bar:-<{_BAR}}] {share:4.0%}  {done:,} of {units:,} {unit}  {rate:,.0f} rows/s"
    if errors:
        told += f"  {errors:,} errors"
    if left_s is not None and done < units:
        minutes, seconds = divmod(round(left_s), 60)
        told += (
            f"  {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
            if minutes >= 60
            else f"  {minutes}:{seconds:02d} left"
        )
    return told
