"""The form of an endpoint: what a person typed ↔ routes. Pure.

The rows of a split and of its shadows are fields that repeat, read in their order; a row whose version is not chosen is
none. What may be set is :func:`skerry_hub.endpoints.check`'s to judge: only what is no number is told here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from skerry_hub.endpoints import MAX_VERSIONS
from skerry_modules.errors import InputError
from skerry_modules.messages import Route

TEXTS = ("name", "target", "reason", "revision")


@dataclass(frozen=True)
class Row:
    """One version with its share, as typed."""

    version: str = ""  # name:number
    percent: str = ""


@dataclass(frozen=True)
class EndpointForm:
    """The fields as they were typed, so that a form with a mistake comes back as it was sent."""

    name: str = ""
    target: str = "*"
    split: tuple[Row, ...] = (Row(percent="100"),)
    shadow: tuple[Row, ...] = ()
    keep_before: bool = True
    reason: str = ""
    revision: str = ""  # of the endpoint that the form was opened with; empty: a new one

    @property
    def is_new(self) -> bool:
        return not self.revision

    @classmethod
    def read(cls, one: Callable[[str], str | None], many: Callable[[str], list[str]]) -> EndpointForm:
        """The fields of a posted form or a query; ``one`` gives a field, ``many`` a field that repeats."""
        texts = {name: value.strip()[:1000] for name in TEXTS if (value := one(name)) is not None}
        return cls(
            split=_rows(many("split_version"), many("split_percent")) or (Row(percent="100"),),
            shadow=_rows(many("shadow_version"), many("shadow_percent")),
            keep_before=one("keep_before") == "yes",
            **texts,
        )

    @classmethod
    def of(cls, name: str, target: str, split: Iterable[Route], shadow: Iterable[Route], revision: int) -> EndpointForm:
        """The form of an endpoint as it is."""
        return cls(
            name=name, target=target, split=_typed(split), shadow=_typed(shadow), revision=str(revision), reason=""
        )

    def edited(self, order: str) -> EndpointForm | None:
        """The form after ``add-split``, ``remove-shadow-2`` and the like; None for what is no such order."""
        verb, _, rest = order.partition("-")
        part, _, place = rest.partition("-")
        if part not in ("split", "shadow"):
            return None
        rows: tuple[Row, ...] = getattr(self, part)
        if verb == "add" and not place:
            fresh = Row(percent=self._missing() if part == "split" else "100")
            return self._with(part, (*rows, fresh)[:MAX_VERSIONS])
        if verb == "remove" and place.isascii() and place.isdigit() and int(place) < len(rows):
            return self._with(part, (*rows[: int(place)], *rows[int(place) + 1 :]))
        return None

    def _with(self, part: str, rows: tuple[Row, ...]) -> EndpointForm:
        if part == "split":
            return replace(self, split=rows or (Row(percent="100"),))
        return replace(self, shadow=rows)

    def routes(self) -> tuple[Route, ...]:
        """Raises InputError ``request.invalid`` for a share that is no number."""
        return _routes(self.split, "the split")

    def shadows(self) -> tuple[Route, ...]:
        """Raises InputError ``request.invalid`` for a share that is no number."""
        return _routes(self.shadow, "the shadows")

    def _missing(self) -> str:
        """What the shares lack to 100, for one more row; empty where that cannot be said."""
        try:
            rest = 100 - sum(route.percent for route in self.routes())
        except InputError:
            return ""
        return f"{rest:g}" if rest > 0 else ""


def _rows(versions: list[str], percents: list[str]) -> tuple[Row, ...]:
    pairs = zip(versions, [*percents, *[""] * len(versions)], strict=False)
    return tuple(Row(version.strip()[:200], percent.strip()[:20]) for version, percent in pairs)[:MAX_VERSIONS]


def _typed(routes: Iterable[Route]) -> tuple[Row, ...]:
    return tuple(Row(f"{one.module}:{one.version}", f"{one.percent:g}") for one in routes)


def _routes(rows: Iterable[Row], what: str) -> tuple[Route, ...]:
    found = []
    for row in rows:
        name, colon, number = row.version.rpartition(":")
        if not row.version:
            continue
        if not colon or not (number.isascii() and number.isdigit() and len(number) < 10):
            raise InputError("request.invalid", f"cannot use {row.version!r} in {what}: choose a version")
        found.append(Route(module=name, version=int(number), percent=_percent(row, what)))
    return tuple(found)


def _percent(row: Row, what: str) -> float:
    try:
        value = float(row.percent.removesuffix("%").strip().replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            "request.invalid", f"cannot use {row.percent!r} as the share of {row.version} in {what}: write a number"
        )
    return value
