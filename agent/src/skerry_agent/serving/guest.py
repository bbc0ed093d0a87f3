"""A client's connection that the agent has lent to this worker: requests come and answers go without a third process.

The guest does only what is plain: a whole request whose head is the agreed one but for its length, which the model
scores without complaint and whose answer the client takes at once. Whatever else comes is given back with the request
as it was, and the agent answers it: so there is one place that refuses requests, and one that speaks HTTP.

How far it is stands in the :class:`Ledger`: should this process die, the agent goes on from there.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from skerry_agent.rules.lending import ANSWERING, SCORING
from skerry_agent.serving import frames, oip
from skerry_agent.serving.copies import HEAD
from skerry_agent.serving.frames import Kind
from skerry_agent.serving.heads import END, HEAD_BYTES, answer_head
from skerry_agent.serving.ledger import HAVE, REQUEST_BYTES, REVOKED, SINCE, SIZE, START, STATE, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from skerry_agent.ports import Arrays
    from skerry_agent.serving import orders
    from skerry_agent.serving.codec import Codec

_WHOLE: Final = -1


class Guest:
    """One loan.

    Args:
        connection: the client's, as the agent has it too; closed at the end.
        pages: shared with the agent.
        order: what is lent.
        codec: reads requests and writes answers.
        score: the model.
        note: is told what was scored, once it is answered.
        tell: to the agent.
        agent: the descriptor of the agent's own socket, which must be heard meanwhile.
    """

    def __init__(  # noqa: PLR0917
        self,
        connection: socket.socket,
        pages: Ledger,
        order: orders.Lend,
        codec: Codec,
        score: Callable[[Arrays], Arrays],
        note: Callable[[bytes, Arrays, Arrays, int], None],
        tell: Callable[[bytes], None],
        agent: int,
    ) -> None:
        self.number = order.number
        self.rest = b""  # of an answer that the client did not take at once
        self._socket = connection
        self._fd = connection.fileno()
        self._receive = connection.recv_into
        self._send = connection.send
        self._ledger = pages
        self._words = pages.words
        self._memory = pages.memory
        self._space = pages.request
        self._parse, self._format = codec.parse, codec.format
        self._score, self._note, self._tell = score, note, tell
        self._copies = order.copies
        self._name = order.endpoint
        self._text = order.endpoint.decode()
        self._json = order.json
        self._before, self._after = order.before, order.after
        self._head = b""  # of the last request
        self._need = 0  # bytes of a whole request with this head
        self._have = self._done = self._sent = 0
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(agent, select.POLLIN)
        self._poll = poll.poll

    def serve(self, wait_ms: float) -> bool | None:
        """Wait for the client or the agent, at most so long, and answer the client.

        Returns:
            True: the agent has something to say, or nobody had. False: give the connection back.
        """
        heard = None
        for fd, _ in self._poll(wait_ms):
            if fd != self._fd:
                heard = True
            elif not self._turn():
                return False
        return heard

    def close(self) -> None:
        self._socket.close()

    def _turn(self) -> bool:
        """What the client sent; False: this is nothing for here."""
        have = self._have
        try:
            size = self._receive(self._space[have:] if have else self._space)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not size:
            return False  # it has left
        began = time.monotonic()
        words = self._words
        self._have = have = have + size
        words[HAVE] = have
        head = self._head
        if have < self._need or not head or self._memory[START : START + len(head)] != head:
            found = self._read_head(have)
            if found != _WHOLE:
                return found > 0
            head = self._head
        if have < self._need:
            return True
        if have > self._need or words[REVOKED]:
            return False
        words[SINCE] = began
        words[STATE] = SCORING
        return self._answer(self._memory[START + len(head) : START + have], began)

    def _read_head(self, have: int) -> int:
        """A head that is not the last one again. 0: not the agreed one; 1: wait for more; :data:`_WHOLE`: known."""
        raw = self._memory[START : START + min(have, HEAD_BYTES)]
        end = raw.find(END) + len(END)
        if end < len(END):
            return int(len(raw) < HEAD_BYTES and self._before.startswith(raw[: len(self._before)]))
        digits = raw[len(self._before) : end - len(self._after)]
        if not raw.startswith(self._before) or not raw.endswith(self._after, 0, end) or not digits.isdigit():
            return 0
        if len(digits) > 9 or end + int(digits) > REQUEST_BYTES:
            return 0
        self._head, self._need = raw[:end], end + int(digits)
        return _WHOLE

    def _answer(self, body: bytes, began: float) -> bool:
        try:
            if oip.timeout_s(body, self._json) is not None:
                return False  # the agent keeps deadlines
            request = self._parse(body, self._json)
            outputs = self._score(request.inputs)
            answer = self._format(self._text, request.plan, outputs)
        except MemoryError:
            raise
        except Exception:  # the agent asks again, and has the reason told to the client
            return False
        data = answer_head(answer.json, len(answer.body)) + answer.body
        words = self._words
        words[SIZE] = len(data)
        words[STATE] = ANSWERING
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        self._done += self._have
        self._sent += len(data)
        self._have = 0
        if sent < len(data):
            self.rest = data[sent:]
            words[HAVE] = 0.0
            words[SIZE] = -1.0  # no answer has this size: should nobody hear of the rest, the connection is torn
            return False
        self._ledger.answered(self._done, self._sent, time.monotonic() - began)
        if self._copies:
            copy = HEAD.pack(len(body), answer.json) + body + answer.body
            self._tell(frames.whole(Kind.COPY, self.number, copy, json=self._json))
        self._note(self._name, request.inputs, outputs, request.plan.rows)
        return True


def take(side: socket.socket, pages: Ledger | None) -> tuple[socket.socket, Ledger]:
    """What goes with an order to serve a connection: it, and the memory to share (``pages`` if that is known)."""
    _, (connection, memory), _, _ = socket.recv_fds(side, 1, 2, socket.MSG_CMSG_CLOEXEC)
    try:
        return socket.socket(fileno=connection), pages or Ledger(memory)
    finally:
        os.close(memory)
