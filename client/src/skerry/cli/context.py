"""What every command shares: the hub that the root options name, and names such as ``digits:3``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from skerry.client import Client
from skerry_modules.errors import InputError


@contextmanager
def hub(context: typer.Context) -> Iterator[Client]:
    """A client of the hub that ``--url`` and ``--token`` (or their variables) name."""
    options = context.find_root().obj or {}
    with Client(options.get("url", ""), options.get("token", "")) as client:
        yield client


def parse_version(text: str) -> tuple[str, int]:
    """``digits:3`` (or ``digits@3``) → name and number.

    Raises:
        InputError: ``request.invalid``.
    """
    name, _, number = text.replace("@", ":").rpartition(":")
    if not name or not number.isdecimal() or not number.isascii():
        raise InputError("request.invalid", f"cannot read {text!r} as a model version: write NAME:VERSION, as digits:3")
    return name, int(number)


def resolve_version(client: Client, text: str) -> tuple[str, int]:
    """As :func:`parse_version`; a bare name is its newest version.

    Raises:
        InputError: ``module.unknown``.
    """
    if ":" in text or "@" in text:
        return parse_version(text)
    latest = client.model(text).latest
    if latest is None:
        raise InputError("module.unknown", f"cannot use {text!r}: it has no version yet; see `skerry models register`")
    return text, latest.version
