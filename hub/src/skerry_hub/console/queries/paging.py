"""Numbered pages of a long list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

PAGE_ROWS = 50
"""Rows on one page of a table."""


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page: ``number`` from 1, ``total`` rows on all of them."""

    rows: list[T]
    number: int
    total: int
    size: int = PAGE_ROWS

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.size))

    @property
    def first(self) -> int:
        return (self.number - 1) * self.size + 1 if self.rows else 0

    @property
    def last(self) -> int:
        return (self.number - 1) * self.size + len(self.rows)


def clamp(number: int, total: int, size: int = PAGE_ROWS) -> int:
    """The page that is shown for a number that may be past the end (rows vanish while people look)."""
    return min(max(1, number), max(1, -(-total // size)))
