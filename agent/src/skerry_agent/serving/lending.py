"""Lends a client's connection to the worker that answers all it asks, and takes it back: see ``serving.guest``.

Where one client asks one version again and again and nobody else does, the way through the agent costs more than a
small model: two of the four times that a sleeping process must be woken, and every byte is read and written twice. So
after some requests alike the worker gets the connection itself. The agent keeps it too, reads nothing, and has it back:

- when the worker meets anything but the plain case (another head, a bad request, a model that fails);
- when the agent recalls it: another request for the version, new routes, an unload, an order of the client's that is
  due, or because the client has gone quiet;
- when the worker dies or is killed because it hangs.

In every case what the client has sent and was not answered is taken up as if it had just come. One loan per worker at a
time: with several clients, agent and workers share the work better.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from skerry_agent.rules import lending
from skerry_agent.serving import frames, ledger, orders, tallies
from skerry_agent.serving.copies import HEAD
from skerry_agent.serving.frames import Kind
from skerry_agent.serving.ledger import NOTHING, Ledger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from skerry_agent.serving.counters import Counters
    from skerry_agent.serving.heads import Form
    from skerry_agent.serving.item import Item
    from skerry_agent.serving.link import WorkerLink
    from skerry_agent.serving.version import Version

LOOK_S: Final = 0.25
"""How often a loan is looked at: whether a request hangs, and whether the client still asks."""
QUIET_S: Final = 2.0
"""A client that asks nothing for so long is the agent's again, with the limits that the agent has for it."""


class Lendable(Protocol):
    """What a connection is to its lender."""

    @property
    def sock(self) -> socket.socket: ...

    def lend(self, lender: Lender) -> None:
        """Read and write nothing from now on."""
        ...

    def resume(self, data: bytes, *, rest: bytes = b"", began: float = 0.0, kills: int = 0) -> None:
        """Go on where the worker stopped.

        Args:
            data: of a request that the worker has read.
            rest: of an answer that it did not write.
            began: when that request came (monotonic seconds); 0: now.
            kills: workers that it has killed.
        """
        ...

    def abort(self) -> None: ...


class Answered:
    """A request that a worker has answered: an ``Item`` of which copies can be made."""

    __slots__ = ("after", "began", "body", "endpoint", "json")

    low = False
    shadow = False

    def __init__(self, endpoint: bytes, json: int, body: bytes) -> None:
        self.after: Callable[[int, bytes], None] | None = None
        self.began = time.monotonic()
        self.endpoint, self.json, self.body = endpoint, json, body

    def reply(self, status: int, code: str, json: int, body: bytes) -> None:
        """It has its answer."""


class Lender:
    """The loans of one version."""

    def __init__(self, version: Version, counters: Counters) -> None:
        self.out = False  # whether a connection is lent
        self.loans = 0  # so far; the number of the last one
        self._version = version
        self._counters = counters
        self._connection: Lendable | None = None
        self._link: WorkerLink | None = None  # the worker of the loan
        self._form: Form | None = None
        self._endpoint = b""
        self._follow: Callable[[Item], None] | None = None
        self._start: tallies.Tally | None = None
        self._sock: socket.socket | None = None
        self._ledger: Ledger | None = None
        self._descriptor = -1  # of the ledger's memory
        self._known: WorkerLink | None = None  # the worker that has this ledger
        self._before = NOTHING
        self._last = (0.0, 0.0)  # answers counted, and when they were last seen to change
        self._recalled = False
        self._timer: asyncio.TimerHandle | None = None
        self._home: asyncio.Future[None] | None = None

    # -- lending

    def offer(
        self, connection: Lendable, form: Form, endpoint: bytes, follow: Callable[[Item], None] | None = None
    ) -> None:
        """Lend it, if the worker has nothing else to do. ``follow`` has shadows score what was answered."""
        version = self._version
        link = version.worker
        if self.out or link is None or not version.lends:
            return
        if 0 < form.timeout_s < version.manifest.resources.request_timeout_s:
            return  # the worker keeps no deadlines but that at which it would be killed
        try:
            pages = self._pages(link)
            sock = connection.sock
            self._start = tallies.tally(sock)
            link.hand_over([sock.fileno(), self._descriptor])
        except OSError:
            return  # out of descriptors or memory: it goes on as before
        pages.clear()
        connection.lend(self)
        self.loans += 1
        self._connection, self._link, self._sock, self._form = connection, link, sock, form
        self._endpoint, self._follow = endpoint, follow
        self.out = True
        self._recalled = False
        self._last = (-1.0, time.monotonic())
        order = orders.Lend(self.loans, endpoint, form.before, form.after, form.json, follow is not None)
        body = msgspec.msgpack.encode(order)
        link.send(frames.pack(Kind.LEND, 0, size=len(body)), body)
        self._look()

    def _pages(self, link: WorkerLink) -> Ledger:
        """The memory to share with this worker."""
        if self._ledger is None or self._known is not link:
            self.collect()
            descriptor = ledger.create()
            if self._ledger is not None:
                os.close(self._descriptor)
            self._descriptor, self._ledger, self._known = descriptor, Ledger(descriptor), link
            self._ledger.words[ledger.LEAST], self._ledger.words[ledger.MOST] = float("inf"), float("-inf")
            self._before = NOTHING
        return self._ledger

    # -- taking back

    def recall(self) -> None:
        """Have it back soon; the request that is being scored, if any, is still answered by the worker."""
        if self._connection is None or self._recalled or self._ledger is None or self._link is None:
            return
        self._recalled = True
        self._ledger.words[ledger.REVOKED] = 1.0
        self._link.send(frames.pack(Kind.RECALL, self.loans), b"")

    async def home(self, wait_s: float) -> None:
        """Recall, and wait for it at most so long."""
        if self._connection is None:
            return
        self.recall()
        self._home = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._home
        self._home = None

    def back(self, number: int, rest: bytes) -> None:
        """The worker gives a loan back."""
        if self._connection is None or number != self.loans or self._ledger is None:
            return
        have = self._ledger.notes().have
        data = bytes(self._ledger.request[: min(max(have, 0), ledger.REQUEST_BYTES)])
        self._end().resume(data, rest=rest)

    def copied(self, number: int, json: int, body: bytes) -> None:
        """The worker has answered this; ``body`` is that of a copy (``copies.HEAD``)."""
        if number == self.loans and self._follow is not None:
            size, answered = HEAD.unpack_from(body)
            end = HEAD.size + size
            item = Answered(self._endpoint, json, body[HEAD.size : end])
            self._follow(item)
            if item.after is not None:
                item.after(answered, body[end:])

    def lost(self, link: WorkerLink) -> None:
        """The worker is dead."""
        if self._connection is None or link is not self._link or self._ledger is None:
            return
        sock, pages = self._sock, self._ledger
        notes, since = pages.notes(), pages.words[ledger.SINCE]
        connection = self._end()
        try:
            assert sock is not None
            counted = self._counted(sock)
            moved = counted is None and tallies.unread(sock) + tallies.unsent(sock) > 0
        except OSError:  # the client's end is gone as well
            connection.abort()
            return
        verdict = lending.after_death(notes, counted, moved, ledger.REQUEST_BYTES)
        if verdict.torn:
            connection.abort()
            return
        data = bytes(pages.request[: verdict.pending])
        connection.resume(data, began=since if verdict.blamed else 0.0, kills=int(verdict.blamed))

    def _counted(self, sock: socket.socket) -> lending.Counted | None:
        now, start = tallies.tally(sock), self._start
        if now is None or start is None:
            return None
        return lending.Counted(now.taken - start.taken, now.written - start.written)

    def _end(self) -> Lendable:
        connection = self._connection
        assert connection is not None
        self._connection = self._link = self._sock = None
        self.out = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.collect()
        if self._home is not None and not self._home.done():
            self._home.set_result(None)
        return connection

    # -- watching

    def _look(self) -> None:
        now, pages, limit = time.monotonic(), self._ledger, self._version.manifest.resources.request_timeout_s
        assert pages is not None
        state, since, done = (pages.words[place] for place in (ledger.STATE, ledger.SINCE, ledger.DONE))
        if done != self._last[0]:
            self._last = (done, now)
        quiet = now - self._last[1]
        wait = min(LOOK_S, limit)
        if lending.is_hanging(int(state), since, now, limit) or (quiet >= limit and self._is_awaited(int(state))):
            self._version.kill("hang")
        elif state == lending.SCORING:
            wait = min(wait, max(since + limit - now, 0.005))
        elif quiet > QUIET_S:
            self.recall()
        self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _is_awaited(self, state: int) -> bool:
        """Whether somebody waits for a worker that does not score: it has stopped, or is never given time."""
        if state == lending.SCORING or self._sock is None:
            return False
        with contextlib.suppress(OSError):
            return self._recalled or tallies.unread(self._sock) > 0
        return True

    def collect(self) -> None:
        """Count what was answered since the last time."""
        if self._ledger is None:
            return
        found, self._before = self._ledger.collect(self._before)
        if found.count:
            self._counters.answered(self._endpoint, found)
            self._version.recent.add(time.monotonic(), found.maximum / 1e6)

    def close(self) -> None:
        """The version has stopped."""
        if self._ledger is not None:
            self.collect()
            os.close(self._descriptor)
            self._ledger = self._known = None
