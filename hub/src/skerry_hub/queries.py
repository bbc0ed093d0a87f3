"""The tag query language, for versions and devices: ``TagName=TagValue``, comma-separated or repeated; all must match.

``*`` or ``all`` is everything. For devices, ``id`` and ``profile`` are tags that every device has by itself, so that
``id=gate-7`` names one device. A value may be empty (``spare=``); names and values hold no comma, and a name no ``=``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, and_, exists, true
from sqlmodel import col

from skerry_hub.tables import Device, DeviceTag, ModelVersion, VersionTag
from skerry_modules.errors import InputError

EVERYTHING: Final = ("*", "all")
BUILT_IN: Final = ("id", "profile")

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_VALUE = re.compile(r"[^,\x00-\x1f\x7f]{0,255}")


class TagQuery(msgspec.Struct, frozen=True):
    """A parsed query: every (name, value) must match; no clause at all matches everything."""

    clauses: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.clauses) or "*"

    def matches(self, tags: Mapping[str, str]) -> bool:
        return all(tags.get(key) == value for key, value in self.clauses)


def parse(query: str | Iterable[str]) -> TagQuery:
    """Read a query; the inverse of ``str``.

    Raises:
        InputError: ``query.invalid``.
    """
    texts = [query] if isinstance(query, str) else list(query)
    parts = [part.strip() for text in texts for part in text.split(",")]
    if parts and all(part in EVERYTHING for part in parts):
        return TagQuery()
    clauses = dict.fromkeys(_clause(part, ",".join(texts)) for part in parts)
    if not clauses:
        raise _invalid("", "it is empty")
    return TagQuery(tuple(clauses))


def check_tags(tags: Mapping[str, str], *, reserved: tuple[str, ...] = ()) -> dict[str, str]:
    """Tags that a query can find again.

    Raises:
        InputError: ``query.invalid``.
    """
    for key, value in tags.items():
        clause = f"{key}={value}"
        if key in reserved:
            raise _invalid(clause, f"the name {key!r} is the hub's own; choose another")
        if _clause(clause, clause) != (key, value):
            raise _invalid(clause, "spaces around names and values do not last")
    return dict(tags)


def parse_tags(texts: Iterable[str]) -> dict[str, str]:
    """``["site=lab", "line=2"]`` as a dict.

    Raises:
        InputError: ``query.invalid``.
    """
    return dict(_clause(text.strip(), text) for text in texts)


def device_filter(query: TagQuery) -> ColumnElement[bool]:
    """The query as a condition on ``device``."""
    columns = {"id": col(Device.id), "profile": col(Device.profile)}
    conditions: list[ColumnElement[bool]] = [true()]
    for key, value in query.clauses:
        if key in columns:
            conditions.append(columns[key] == value)
        else:
            conditions.append(
                exists().where(
                    col(DeviceTag.device) == col(Device.id), col(DeviceTag.key) == key, col(DeviceTag.value) == value
                )
            )
    return and_(*conditions)


def version_filter(query: TagQuery) -> ColumnElement[bool]:
    """The query as a condition on ``model_version``."""
    conditions: list[ColumnElement[bool]] = [true()]
    conditions += [
        exists().where(
            col(VersionTag.name) == col(ModelVersion.name),
            col(VersionTag.version) == col(ModelVersion.version),
            col(VersionTag.key) == key,
            col(VersionTag.value) == value,
        )
        for key, value in query.clauses
    ]
    return and_(*conditions)


def _clause(part: str, whole: str) -> tuple[str, str]:
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals:
        raise _invalid(whole, f"{part!r} has no '='")
    if not _KEY.fullmatch(key):
        raise _invalid(whole, f"{key!r} is not a tag name (1 to 63 of letters, digits and . _ / -)")
    if not _VALUE.fullmatch(value):
        raise _invalid(whole, f"the value of {key!r} is over 255 characters, or holds a comma or control character")
    return key, value


def _invalid(query: str, problem: str) -> InputError:
    return InputError(
        "query.invalid",
        f"cannot use the tag query {query[:200]!r}: {problem}; write TagName=TagValue, comma-separated, or * for all",
        query=query[:200],
    )
