"""Fifty paho clients in one process that receive chunks: as plain subscribers, or as agents' own downloaders.

A downloader is the agent's rule (``skerry_agent.rules.download``): it asks by bitmap, checks each chunk, keeps it, and
reports. Chunks are kept in memory: fifty devices have fifty disks, and this machine has one; that memory is there
before the clock starts, as a disk is. Started by ``benchmarks.delivery`` and ``benchmarks.resume``; it reads commands
on stdin and answers in JSON lines on stdout.
Times are of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import select
import socket
import sys
import time
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from skerry_agent.rules import effects
from skerry_agent.rules.download import Download, DownloadSettings, Phase
from skerry_agent.rules.reception import Reception
from skerry_modules import chunks, messages, topics


class Receiver:
    """One client; ``download`` is None for a plain subscriber."""

    def __init__(self, host: str, port: int, name: str, password: str) -> None:
        self.name = name
        self.received = 0  # payload bytes of chunks
        self.parts: set[int] = set()
        self.done_at = 0.0
        self.total = 0
        self.digest = ""
        self.download: Download | None = None
        self.reception = Reception()
        self.ready = False
        self.twice = 0
        self._rng = random.Random(name)
        self._disk = bytearray()
        self._address, self._password = (host, port), password
        self.connect()

    def connect(self) -> None:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self.name, protocol=mqtt.MQTTv311)
        client.username_pw_set(self.name, self._password)
        client.on_connect = lambda *_: self._connected(client)
        client.on_subscribe = lambda *_: self._subscribed()
        client.on_message = lambda _c, _u, message: self._message(message)
        client.connect(*self._address)
        sock: Any = client.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = client

    def _connected(self, client: mqtt.Client) -> None:
        client.subscribe([(topics.all_down(self.name), 1)])

    def _subscribed(self) -> None:
        if self.ready:
            return
        self.ready = True
        if self.download is not None:
            hello = messages.Hello(device=self.name, boot="b", epoch=b"bench", agent="bench", profile="generic-x86_64")
            self.client.publish(topics.up(self.name, "hello"), messages.encode(hello), 1)
            self.reception.up(time.monotonic())
            self.perform(self.download.connected(time.monotonic()))

    def make_disk(self, size: int) -> None:
        """Have the memory that stands for the device's disk, with nothing of what came before on it."""
        if len(self._disk) != size:
            self._disk = bytearray(size)
        self._disk[:] = bytes(size)

    def begin(self, digest: str, size: int, *, plain: bool) -> None:
        """Receive one object."""
        self.digest, self.total = digest, chunks.count(size)
        self.parts, self.received, self.done_at, self.twice = set(), 0, 0.0, 0
        if plain:
            self.download = None
            self.client.subscribe(topics.chunks_of(digest), 1)
            return
        now = time.monotonic()
        self.reception.up(now)
        self.download = Download(digest, size, DownloadSettings(), self._rng, reception=self.reception, now=now)
        self.perform(self.download.start())

    def perform(self, wanted: list[effects.Effect]) -> None:
        assert self.download is not None
        for one in wanted:
            now = time.monotonic()
            match one:
                case effects.StoreChunk():
                    start = one.part * chunks.CHUNK_BYTES
                    self._disk[start : start + len(one.data)] = one.data
                case effects.ListParts():
                    self.perform(self.download.listed([], now))
                case effects.Subscribe():
                    self.client.subscribe(topics.chunks_of(one.digest), 1)
                case effects.Unsubscribe():
                    self.client.unsubscribe(topics.chunks_of(one.digest))
                case effects.SendWant():
                    want = messages.Want(digest=one.digest, size=one.size, bitmap=one.bitmap, alone=True)
                    self.client.publish(topics.up(self.name, "want"), messages.encode(want), 1)
                case effects.CompleteObject():
                    self.done_at = now  # all bytes are here: what is measured ends here
                case _:
                    raise AssertionError(one)

    def finish(self) -> bool:
        """Check the whole, after the clock was read; whether the digest holds."""
        if self.download is None:
            self.client.unsubscribe(topics.chunks_of(self.digest))
            return True
        whole = hashlib.sha256(self._disk).hexdigest() == self.digest
        if self.download.phase is Phase.CHECKING and whole:
            self.perform(self.download.checked())
        self.download = None
        return whole

    @property
    def deadline(self) -> float:
        """When the downloader wants to do something by itself."""
        deadline = self.download.next_deadline if self.download is not None else None
        return math.inf if deadline is None else deadline

    def tick(self) -> None:
        if self.download is not None:
            self.perform(self.download.tick(time.monotonic()))

    def cut(self) -> None:
        """Pull the cable, then come back as a new connection."""
        sock: Any = self.client.socket()
        sock.close()
        self.ready = False
        if self.download is not None:
            self.reception.down(time.monotonic())
        self.connect()

    def _message(self, message: mqtt.MQTTMessage) -> None:
        topic = topics.parse(message.topic)
        digest, part, payload = topic.digest, topic.part, message.payload
        if topic.kind == "gap":
            gap: messages.Gap = messages.decode("gap", payload)
            digest, part, payload = gap.digest, gap.part, gap.data
        if part < 0 or digest != self.digest:
            return
        self.received += len(payload)
        self.twice += part in self.parts
        self.parts.add(part)
        if self.download is not None:
            self.perform(self.download.chunk(part, bytes(payload), time.monotonic()))
        elif len(self.parts) == self.total:
            self.done_at = time.monotonic()


class Crowd:
    """All receivers on one poll, as one process of a busy subscriber would run them."""

    def __init__(self, receivers: list[Receiver]) -> None:
        self.receivers = receivers
        self._misc_at = 0.0

    def turn(self, extra: int = -1) -> bool:
        """One round; whether ``extra`` is readable."""
        poller = select.poll()
        by_number: dict[int, Receiver] = {}
        for one in self.receivers:
            sock: Any = one.client.socket()
            if sock is not None and sock.fileno() >= 0:
                by_number[sock.fileno()] = one
                poller.register(sock.fileno(), select.POLLIN | (select.POLLOUT if one.client.want_write() else 0))
        if extra >= 0:
            poller.register(extra, select.POLLIN)
        heard = False
        deadlines = [one.deadline for one in self.receivers]
        wait_ms = (min(deadlines) - time.monotonic()) * 1000  # as an agent's own loop waits
        for number, events in poller.poll(min(20.0, max(0.0, wait_ms))):
            if number == extra:
                heard = True
                continue
            one = by_number[number]
            if events & select.POLLOUT:
                one.client.loop_write()
            if events & ~select.POLLOUT:
                for _ in range(4):
                    one.client.loop_read()
        now = time.monotonic()
        for one, deadline in zip(self.receivers, deadlines, strict=True):
            if now >= deadline:
                one.tick()
        if now > self._misc_at:
            self._misc_at = now + 0.05
            for one in self.receivers:
                one.client.loop_misc()
        return heard


def main() -> None:
    """Commands: ``plain DIGEST SIZE``, ``agents DIGEST SIZE [CUTS]``, ``quit``."""
    host, port = sys.argv[1], int(sys.argv[2])
    passwords: dict[str, str] = json.loads(sys.argv[3])
    crowd = Crowd([Receiver(host, port, name, word) for name, word in passwords.items()])
    while not all(one.ready for one in crowd.receivers):
        crowd.turn()
    _say({"ready": True})
    while True:
        if not crowd.turn(0):
            continue
        line = sys.stdin.readline().split()
        if not line or line[0] == "quit":
            return
        _receive(crowd, line[1], int(line[2]), plain=line[0] == "plain", cuts=int(line[3]) if line[3:] else 0)


def _receive(crowd: Crowd, digest: str, size: int, *, plain: bool, cuts: int) -> None:
    if not plain:
        for one in crowd.receivers:
            one.make_disk(size)  # a device has its disk before it is told of an object
    began = time.monotonic()
    for one in crowd.receivers:
        one.begin(digest, size, plain=plain)
    if plain:
        for _ in range(20):  # let all subscriptions be in force before the publisher begins
            crowd.turn()
        _say({"subscribed": True})
    total = chunks.count(size)
    left = [total * (number + 1) // (cuts + 1) for number in range(cuts)]
    while not all(one.done_at for one in crowd.receivers):
        crowd.turn()
        if left and len(crowd.receivers[0].parts) >= left[0]:
            left.pop(0)
            crowd.receivers[0].cut()
    last = max(one.done_at for one in crowd.receivers)
    answer = {
        "began": began,
        "done": last,
        "received": sum(one.received for one in crowd.receivers),
        "twice": sum(one.twice for one in crowd.receivers),
        "whole": all(one.finish() for one in crowd.receivers),
        "cuts": cuts - len(left),
    }
    for _ in range(5):
        crowd.turn()
    _say(answer)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
