"""What became of a connection that was lent to a worker which died: pure rules.

A worker that serves a client's connection itself reads the request into memory that the agent has too, and notes there
how far it is. When it dies the agent must know two things exactly: which bytes of a request the worker had taken and
not answered (they are taken up again), and whether the last answer went out (it must not be sent twice). Notes alone
cannot tell, since a process can be killed between a system call and the note of it; but for TCP the kernel counts the
bytes of each connection, and what it counted beyond the notes is what happened after the last one. For Unix sockets
there is no such count: where the notes leave a doubt the connection is closed, as if the client's request had met a
broken connection, rather than answered twice.
"""

from __future__ import annotations

from typing import Final, NamedTuple

WAITING: Final = 0
SCORING: Final = 1
ANSWERING: Final = 2


class Notes(NamedTuple):
    """What the worker noted last."""

    state: int  # WAITING, SCORING or ANSWERING
    have: int  # bytes of the request that it has taken
    done: int  # bytes of all requests that it has answered
    sent: int  # bytes of these answers
    size: int  # bytes of the answer that it was about to send
    began: bool  # the first byte of a request lies in memory


class Counted(NamedTuple):
    """What the kernel counted since the loan began."""

    taken: int
    written: int


class Verdict(NamedTuple):
    """``pending``: bytes of a request to take up again. ``blamed``: it was being scored. ``torn``: nobody can know."""

    pending: int = 0
    blamed: bool = False
    torn: bool = False


TORN: Final = Verdict(torn=True)


def after_death(notes: Notes, counted: Counted | None, moved: bool, limit: int) -> Verdict:
    """Judge a loan whose worker is dead.

    Args:
        notes: from the memory that it shared.
        counted: by the kernel, for TCP; None for Unix sockets.
        moved: the client has sent something since, or has not yet read what was sent to it.
        limit: bytes that the memory holds.
    """
    if counted is None:
        return _by_notes(notes, moved, limit)
    written, pending = counted.written - notes.sent, counted.taken - notes.done
    if written:
        return Verdict() if written == notes.size else TORN
    if not 0 <= pending <= limit:
        return TORN
    return Verdict(pending, blamed=pending > 0 and notes.state == SCORING)


def _by_notes(notes: Notes, moved: bool, limit: int) -> Verdict:
    if notes.state == ANSWERING:
        return Verdict() if moved else TORN
    if notes.state == SCORING:
        return Verdict(notes.have, blamed=True) if 0 < notes.have <= limit else TORN
    return TORN if notes.have or notes.began else Verdict()  # more may have been taken than is noted


def is_hanging(state: int, since: float, now: float, limit_s: float) -> bool:
    """Whether a request has been scored for longer than its module may take (monotonic seconds)."""
    return state == SCORING and now - since >= limit_s
