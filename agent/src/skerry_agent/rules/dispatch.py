"""Who waits for a version's worker, who is with it, and who is to blame when it dies: pure rules.

A worker scores the requests it was sent in order and answers each, so the oldest unanswered one (the *head*) is what
it was scoring when it died or stopped. Only the head is blamed. The others, and the head the first time, are sent
again to the next worker; a request that was the head of ``kill_limit`` deaths is quarantined.

A worker that scores requests together (``batched``) may have had any of those it held under way when it died. All of
them are then suspects, are counted one death, and are sent again to be scored alone: so the guilty one is found at its
second death, and the innocent are answered.

A request whose deadline passes is answered at once. If it was already sent it stays as a tombstone, so that the
order of answers still tells which request is the head. A head that has run for longer than the version's limit is
a hang: the worker must be killed.

Time is an argument (monotonic seconds). Nothing here is thread-safe; it lives on one event loop.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class Ticket:
    """One request as the rules see it; ``item`` is the caller's own. ``pinned``: it named the version that it wants."""

    __slots__ = ("alone", "deadline", "done", "item", "kills", "number", "pinned", "size")

    def __init__(self, number: int, item: Any, size: int, deadline: float, pinned: bool = False) -> None:
        self.number = number
        self.item = item
        self.size = size
        self.deadline = deadline
        self.pinned = pinned
        self.kills = 0
        self.alone = False  # must not be scored together with others
        self.done = False  # answered: by its deadline, or because its client left


class Dispatch:
    """The queue and window of one worker."""

    def __init__(
        self, *, window: int, window_bytes: int, queue_requests: int, queue_bytes: int, run_limit_s: float
    ) -> None:
        self.waiting: deque[Ticket] = deque()
        self.flying: dict[int, Ticket] = {}  # insertion order is the worker's order
        self.head_since = 0.0
        self.batched = False  # the worker scores requests together
        self._window = window
        self._window_bytes = window_bytes
        self._queue_requests = queue_requests
        self._queue_bytes = queue_bytes
        self._run_limit_s = run_limit_s
        self._waiting_bytes = 0
        self._flying_bytes = 0

    def __len__(self) -> int:
        """Requests that still want an answer."""
        return sum(not ticket.done for ticket in (*self.flying.values(), *self.waiting))

    @property
    def idle(self) -> bool:
        return not self.flying and not self.waiting

    def offer(self, ticket: Ticket) -> bool:
        """Take a request; False: the queue is full and the caller answers 429."""
        if len(self.waiting) >= self._queue_requests or (
            self.waiting and self._waiting_bytes + ticket.size > self._queue_bytes
        ):
            return False
        self.waiting.append(ticket)
        self._waiting_bytes += ticket.size
        return True

    def board(self, ticket: Ticket, now: float) -> bool:
        """Take a request to be sent now: nobody waits and the window has room. False: offer it."""
        flying = self.flying
        if self.waiting or len(flying) >= self._window:
            return False
        if flying:
            if self._flying_bytes + ticket.size > self._window_bytes:
                return False
        else:
            self.head_since = now
        flying[ticket.number] = ticket
        self._flying_bytes += ticket.size
        return True

    def send(self, now: float) -> list[Ticket]:
        """The requests to send to the worker now."""
        sent: list[Ticket] = []
        while self.waiting and len(self.flying) < self._window:
            ticket = self.waiting[0]
            if self.flying and self._flying_bytes + ticket.size > self._window_bytes:
                break
            self.waiting.popleft()
            self._waiting_bytes -= ticket.size
            if ticket.done:
                continue
            if not self.flying:
                self.head_since = now
            self.flying[ticket.number] = ticket
            self._flying_bytes += ticket.size
            sent.append(ticket)
        return sent

    def answered(self, number: int, now: float) -> Ticket | None:
        """The worker answered; None if nobody waits for it any more."""
        ticket = self.flying.pop(number, None)
        if ticket is None:
            return None
        self._flying_bytes -= ticket.size
        self.head_since = now
        return None if ticket.done else ticket

    def crashed(self, kill_limit: int) -> list[Ticket]:
        """The worker died: put what it had back to the front of the queue. Returns the quarantined (none or one)."""
        quarantined: list[Ticket] = []
        again: list[Ticket] = []
        together = self.batched and not next((ticket.alone for ticket in self.flying.values()), True)
        for place, ticket in enumerate(self.flying.values()):
            if together and not ticket.alone:
                ticket.kills = min(ticket.kills + 1, kill_limit - 1)  # one of them is to blame: none is proven guilty
                ticket.alone = True
            elif place == 0:
                ticket.kills += 1
            if ticket.done:
                continue
            if ticket.kills >= kill_limit:
                ticket.done = True
                quarantined.append(ticket)
            else:
                again.append(ticket)
        self.flying.clear()
        self._flying_bytes = 0
        self.waiting.extendleft(reversed(again))
        self._waiting_bytes += sum(ticket.size for ticket in again)
        return quarantined

    def expired(self, now: float) -> list[Ticket]:
        """Requests whose deadline has passed; each is returned once."""
        late = [
            ticket for ticket in (*self.flying.values(), *self.waiting) if not ticket.done and now >= ticket.deadline
        ]
        for ticket in late:
            ticket.done = True
        if self.waiting and any(ticket.done for ticket in self.waiting):
            self.waiting = deque(ticket for ticket in self.waiting if not ticket.done)
            self._waiting_bytes = sum(ticket.size for ticket in self.waiting)
        return late

    def forget(self, ticket: Ticket) -> None:
        """Nobody wants the answer any more: not scored if that has not begun, a tombstone otherwise."""
        ticket.done = True
        if ticket in self.waiting:
            self.waiting.remove(ticket)
            self._waiting_bytes -= ticket.size

    def hangs(self, now: float) -> bool:
        """Whether the head has been with the worker for longer than the version's limit."""
        return bool(self.flying) and now - self.head_since >= self._run_limit_s

    def next_look(self) -> float | None:
        """When something may expire or hang next; None: nothing can."""
        times = [ticket.deadline for ticket in (*self.flying.values(), *self.waiting) if not ticket.done]
        if self.flying:
            times.append(self.head_since + self._run_limit_s)
        return min(times, default=None)

    def take_waiting(self) -> list[Ticket]:
        """Give away those that were not sent: another worker will take them up."""
        left = [ticket for ticket in self.waiting if not ticket.done]
        self.waiting.clear()
        self._waiting_bytes = 0
        return left

    def drop_all(self) -> list[Ticket]:
        """Give up on everything: those that still want an answer."""
        left = [ticket for ticket in (*self.flying.values(), *self.waiting) if not ticket.done]
        for ticket in left:
            ticket.done = True
        self.flying.clear()
        self.waiting.clear()
        self._flying_bytes = self._waiting_bytes = 0
        return left
