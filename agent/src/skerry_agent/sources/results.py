"""Where outputs of sources go, if anywhere: a JSON-lines file that stays bounded, an MQTT topic, or both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec


class ResultsFile:
    """Appends one line per result; at ``max_mb`` the file becomes ``<name>.1`` and a new one begins."""

    def __init__(self, path: Path, max_mb: int) -> None:
        self._path = path
        self._limit = max_mb * 1_000_000
        self._size = path.stat().st_size if path.exists() else 0

    def __call__(self, result: dict[str, Any]) -> None:
        line = msgspec.json.encode(result) + b"\n"
        if self._size + len(line) > self._limit and self._size:
            self._path.replace(f"{self._path}.1")
            self._size = 0
        with self._path.open("ab") as file:
            file.write(line)
        self._size += len(line)


def to_topic(publish: Callable[[str, bytes], None], topic: str) -> Callable[[dict[str, Any]], None]:
    """Publishes each result as JSON."""
    return lambda result: publish(topic, msgspec.json.encode(result))


def both(takers: list[Callable[[dict[str, Any]], None]]) -> Callable[[dict[str, Any]], None] | None:
    """One taker out of several; None out of none."""
    if not takers:
        return None

    def take(result: dict[str, Any]) -> None:
        for one in takers:
            one(result)

    return take
