"""A name that clients call: the versions that answer, by share, and those that score copies in shadow.

A shadow must never be felt: its copy is made after the answer has gone out, waits in a queue with a limit of its own,
and is dropped with a count where that is full. It scores the request, compares its outputs with the answer that the
client got, next to the model, and tells the agent only how they compared.

One object is one split: a change makes another, in one assignment, so each request sees the split before or after it.
"""

from __future__ import annotations

import asyncio
import functools
import random
from typing import TYPE_CHECKING, Any, Final

from skerry_agent.rules import split
from skerry_modules.messages import Route

if TYPE_CHECKING:
    from skerry_agent.serving.item import Item
    from skerry_agent.serving.version import Version

_IN_REGION: Final = b'"shared_memory_region"'
COPY_AFTER_S: Final = 0.002
"""A copy is made so long after the answer: made at once it would run before the answer's bytes are flushed, and its
worker would wake on the core that the client is about to wake on."""

Part = tuple[Route, "Version"]


class Endpoint:
    """One split of one endpoint."""

    __slots__ = ("_salts", "_shares", "name", "routes", "shadows", "versions")

    def __init__(self, name: str, live: list[Part], shadows: list[Part]) -> None:
        self.name = name
        self.routes = tuple(route for route, _ in live)
        self.versions = tuple(version for _, version in live)
        self.shadows = shadows
        self._shares = [route.percent for route in self.routes]
        self._salts = [split.salt_of(name, route.module, route.version) for route in self.routes]

    def choose(self, key: bytes = b"") -> Version:
        """By key, whose requests wait where its version is being started again; or by share, then another that is
        ready where the chosen one is not."""
        versions = self.versions
        if len(versions) == 1:
            return versions[0]
        if key:
            return versions[split.by_key(key, self._salts, self._shares)]
        chosen = versions[split.by_chance(random.random(), self._shares)]
        return chosen if chosen.ready else next((version for version in versions if version.ready), chosen)

    def without(self, version: Version) -> Endpoint | None:
        """The same split over the others; None where there are none."""
        left = [part for part in zip(self.routes, self.versions, strict=True) if part[1] is not version]
        return Endpoint(self.name, left, [part for part in self.shadows if part[1] is not version]) if left else None

    def follow(self, item: Item) -> Any:
        """What to call with the answer of a request."""
        return functools.partial(self._answered, item)

    def _answered(self, item: Item, json: int, body: bytes) -> None:
        asyncio.get_running_loop().call_later(COPY_AFTER_S, self._copy, item, json, body)

    def _copy(self, item: Item, json: int, body: bytes) -> None:
        if _IN_REGION in (item.body if item.json < 0 else item.body[: item.json]):
            return  # answered: the client may have put its next tensor there by now
        for route, version in self.shadows:
            if route.percent >= 100 or random.random() * 100 < route.percent:
                version.copies.take(item, json, body)
