"""The copies of requests that one version scores in shadow: how many at a time, and with what priority.

Nobody waits for a copy, so everything here gives way. What does not fit the limits is dropped and counted, so that a
shadow that cannot keep up scores a sample of the requests. A worker that scores nothing but copies stands aside
(``serving.aside``); it comes back for a client's request, and stays for :data:`QUIET_S` after the last one: a version
that answers and shadows by turns must not be late with its answers.

On cores that are never free a copy may wait for longer than the module's limit. That alone is no hang: the worker first
comes back, and only a copy that takes as long again with the priority of the others is one.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from skerry_modules.messages import Agreement

if TYPE_CHECKING:
    from skerry_agent.rules.dispatch import Ticket
    from skerry_agent.serving.counters import Counters
    from skerry_agent.serving.item import Item
    from skerry_agent.serving.link import WorkerLink
    from skerry_agent.serving.settings import ServingSettings
    from skerry_agent.serving.version import Version

QUIET_S: Final = 10.0
TURN_S: Final = 1.0
"""A worker that stands aside and cannot keep up tries other processors so often."""
AT_ONCE: Final = 2
"""Copies that are with the version at once: enough that its worker need not wait for the next, few enough that a
client's request, should one come, need not wait for many."""
HEAD: Final = struct.Struct("<Ii")
"""In front of a copy's body: the length of the request, the length of the answer's JSON part (−1: all of it)."""


class Copy:
    """A copy of a request: an ``Item`` that nobody waits for."""

    __slots__ = ("_copies", "began", "body", "endpoint", "json")

    low = False
    shadow = True
    after: Callable[[int, bytes], None] | None = None

    def __init__(self, copies: Copies, item: Item, json: int, body: bytes) -> None:
        self._copies = copies
        self.endpoint = item.endpoint
        self.json = item.json
        self.body = b"".join((HEAD.pack(len(item.body), json), item.body, body))
        self.began = time.monotonic()

    def reply(self, status: int, code: str, json: int, body: bytes) -> None:
        if status == 200:
            found = msgspec.msgpack.decode(body, type=Agreement)
        elif status in DROPPED:
            found = Agreement(dropped=1)
        else:
            found = Agreement(failed=1)
        self._copies.ended(self, found)


DROPPED: Final = (429, 503)
"""Answers that say nothing of the model: there was no room, no time, or no worker any more."""


class Copies:
    """Of one version."""

    def __init__(self, version: Version, settings: ServingSettings, counters: Counters) -> None:
        self.aside = False
        """Whether its worker stands aside now."""
        self._version = version
        self._settings = settings
        self._counters = counters
        self._waiting: deque[Copy] = deque()
        self._out = self._bytes = 0  # with the version; of these and of those that wait
        self._back = -QUIET_S  # when a client's request last called the worker back
        self._link: WorkerLink | None = None  # of a worker that stands aside
        self._stood = 0.0  # since when it stands where it does
        self._spared = 0  # the copy that was given more time

    def take(self, item: Item, json: int, body: bytes) -> None:
        """Score a copy of a request that was answered with ``body``, unless this version is busy."""
        size, settings, version = len(item.body) + len(body), self._settings, self._version
        most = 1 if version.admitted else settings.shadow_requests
        count = self._out + len(self._waiting)
        full = count >= most or (count and self._bytes + size > settings.shadow_bytes)
        if full or not version.ready:
            self._counters.compared(item.endpoint, Agreement(dropped=1))
            self._turn()
            return
        copy = Copy(self, item, json, body)
        self._bytes += len(copy.body)
        self._waiting.append(copy)
        self._submit()

    def _submit(self) -> None:
        while self._waiting and self._out < AT_ONCE:
            self._out += 1
            self._version.submit(self._waiting.popleft(), self._version.manifest.resources.request_timeout_s)

    def ended(self, copy: Copy, found: Agreement) -> None:
        """It was scored and compared, or dropped."""
        self._out -= 1
        self._bytes -= len(copy.body)
        self._counters.compared(copy.endpoint, found)
        self._submit()

    def drop(self) -> None:
        """The version is to answer clients now, or to stop: those that wait are not scored."""
        while self._waiting:
            copy = self._waiting.popleft()
            self._bytes -= len(copy.body)
            self._counters.compared(copy.endpoint, Agreement(dropped=1))

    # -- the worker's priority

    def step_aside(self, link: WorkerLink, now: float, flying: Mapping[int, Ticket]) -> None:
        """A copy goes to the worker: yield to those that answer, unless it does so itself or did just now."""
        if now - max(self._version.recent.last, self._back) <= QUIET_S or self._spared in flying:
            return
        if all(ticket.item.shadow for ticket in flying.values()):
            self.aside = True
            self._stood = now
            link.stand(aside=True, processors=self._threads)
            self._link = link

    def _turn(self) -> None:
        """It cannot keep up: perhaps it can elsewhere."""
        now = time.monotonic()
        if self.aside and self._link is not None and now - self._stood > TURN_S:
            self._stood = now
            self._link.stand(aside=True, processors=self._threads)

    @property
    def _threads(self) -> int:
        manifest = self._version.manifest
        asked = manifest.options.get("threads", manifest.resources.threads)
        return max(1, asked) if isinstance(asked, int) else 1

    def answers(self, link: WorkerLink | None, now: float) -> None:
        """A client waits for the worker."""
        self._back = now
        self.come_back(link)

    def spare(self, link: WorkerLink | None, head: int) -> bool:
        """Whether a copy that is late gets its time once more, now with the priority of all others."""
        if not self.aside or head == self._spared:
            return False
        self._spared = head
        self.come_back(link)
        return True

    def come_back(self, link: WorkerLink | None) -> None:
        """The worker is to be quick: for a client, for an order, or to end."""
        if self.aside:
            self.aside = False
            self._link = None
            if link is not None:
                link.stand(aside=False, processors=0)
