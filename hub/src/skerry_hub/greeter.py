"""Asks devices that were there before the hub to say again what nobody heard: see :mod:`skerry_hub.rules.hails`.

The link's thread tells who is there; a thread of its own hails them at the rule's pace, and sleeps for as long as there
is nobody to hail.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from skerry_hub.rules.hails import Hails, HailSettings
from skerry_modules import messages, topics
from skerry_modules.errors import PeerError

log = logging.getLogger(__name__)

HAIL: Final = messages.encode(messages.Ack(messages.FORMAT, b"", {}, again=True))
"""No marks: the hello that answers it is answered with them."""


class Greeter:
    """The thread, and what it shares with the link's.

    Args:
        publish: hands one message to the broker without waiting; False where that cannot be now.
        backlog: messages that wait to be written.
    """

    def __init__(
        self, publish: Callable[[str, bytes], bool], backlog: Callable[[], int], settings: HailSettings | None = None
    ) -> None:
        self.hailed = 0
        self._hails = Hails(settings)
        self._publish, self._backlog = publish, backlog
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="greeter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5)
            self._thread = None

    # -- in the link's thread -----------------------------------------------------------------------------------------

    def presence(self, device: str, payload: bytes, *, retained: bool) -> None:
        """A presence came; ``retained``: it was said before the hub had subscribed."""
        online = False
        with contextlib.suppress(PeerError):  # what is malformed is refused where it is written
            online = bool(messages.decode("presence", payload).online) if payload else False
        with self._lock:
            if online and retained:
                self._hails.present(device)
            else:
                self._hails.settled(device)
        if online and retained:
            self._wake.set()

    def heard(self, device: str) -> None:
        """It said hello to us."""
        if self._hails:  # the common case takes no lock
            with self._lock:
                self._hails.settled(device)

    # -- its own thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._hails:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._hail()
            except Exception:
                log.exception("cannot hail devices; they speak by themselves, later")
            self._stopping.wait(self._hails.settings.look_s)

    def _hail(self) -> None:
        with self._lock:
            due = self._hails.due(time.monotonic(), self._backlog())
        for index, device in enumerate(due):
            if not self._publish(topics.down(device, "ack"), HAIL):
                with self._lock:  # later: the broker is away or has no room
                    for left in due[index:]:
                        self._hails.present(left)
                return
            self.hailed += 1
