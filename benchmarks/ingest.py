"""Telemetry messages/s that one hub commits to SQLite, against what a bare paho subscriber receives.

A process of plain sockets publishes prepared messages of 20 devices as fast as the broker acknowledges them. The bare
subscriber is paho's own loop with a callback that counts; the hub decodes, judges, writes, commits and acknowledges.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
import time
from subprocess import PIPE, Popen
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks._streaming import figure, middle, stand, wait_for
from skerry_hub.broker import find_mosquitto, parse_url
from skerry_modules import messages, topics
from skerry_simulators.fleet import packets

DEVICES, PER_DEVICE, WINDOW, ROUNDS = 20, 2000, 100, 3
TOTAL = DEVICES * PER_DEVICE


def publisher(host: str, port: int, names: list[str], words: list[str], epoch: str) -> None:
    """The publishing process: connect, wait for a line on stdin, send all."""
    lanes: list[tuple[socket.socket, list[bytes]]] = []
    for name, word in zip(names, words, strict=True):
        sock = socket.create_connection((host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(packets.connect(name, name, word, 60, None))
        assert sock.recv(4)[3] == 0
        sock.sendall(packets.subscribe(1, [topics.all_down(name)]))
        lanes.append((sock, [_message(name, epoch, seq) for seq in range(1, PER_DEVICE + 1)]))
    print("ready", flush=True)
    sys.stdin.readline()
    selector = selectors.DefaultSelector()
    for sock, made in lanes:
        sock.sendall(b"".join(made[:WINDOW]))
        selector.register(sock, selectors.EVENT_READ, [made, WINDOW, packets.Reader()])
    left = TOTAL
    while left:
        for key, _ in selector.select():
            made, sent, reader = key.data
            asking: Any = key.fileobj
            acked = 0
            for packet in reader.feed(asking.recv(65536)):
                acked += packet.kind == packets.PUBACK
                if packet.kind == packets.PUBLISH and packet.flags & 2:
                    asking.sendall(packets.puback(packets.read_publish(packet).packet_id))
            left -= acked
            if acked and sent < len(made):
                asking.sendall(b"".join(made[sent : sent + acked]))
                key.data[1] = sent + acked
    print("sent", flush=True)
    sys.stdin.readline()


def _message(name: str, epoch: str, seq: int) -> bytes:
    counts = (0,) * 24 + tuple(range(1, 17))
    body = messages.Telemetry(
        module="digits",
        version=3,
        digest="d" * 64,
        endpoint="digits",
        start=1_700_000_000_000 + seq,
        end=1_700_000_010_000 + seq,
        requests=136,
        latency_us=messages.Distribution(counts=counts, total=9e4, minimum=64.0, maximum=1024.0),
    )
    up = messages.Up(messages.FORMAT, epoch.encode(), 4, seq, 1, 1_700_000_010_000, body)
    return packets.publish(topics.up(name, "telemetry"), messages.encode(up), packet_id=seq % 60_000 + 1)


class Publisher:
    """The process, as the measuring side sees it."""

    def __init__(self, url: str, names: list[str], words: list[str], epoch: str) -> None:
        host, port, _ = parse_url(url)
        command = [sys.executable, "-m", "benchmarks.ingest", host, str(port), ",".join(names), ",".join(words), epoch]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def bare(names: list[str]) -> float:
    """Messages/s into paho's own loop, on a broker of its own with the same configuration."""
    with stand(names) as made:
        made.streaming.stop()  # its name at the broker is lent to the bare subscriber
        host, port, _ = parse_url(made.broker.hub_url)
        seen = [0, 0.0]
        done = threading.Event()

        def count(*_: Any) -> None:
            seen[0] += 1
            if seen[0] == 1:
                seen[1] = time.monotonic()
            elif seen[0] == TOTAL:
                done.set()

        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        client.username_pw_set(made.broker.username, made.broker.password)
        client.on_message = count
        client.connect(host, port)
        client.subscribe(topics.ALL_UP, 1)
        client.loop_start()
        process = Publisher(made.broker.hub_url, names, [made.passwords[name] for name in names], "bare")
        try:
            process.go()
            if not done.wait(120):
                raise SystemExit(f"cannot measure: {seen[0]} of {TOTAL} messages came")
            took = time.monotonic() - seen[1]
        finally:
            process.stop()
            client.disconnect()
            client.loop_stop()
    return TOTAL / took


def hub(names: list[str]) -> float:
    """Messages/s until the hub has committed the last one."""
    with stand(names) as made:
        ingest = made.streaming.ingest
        process = Publisher(made.broker.hub_url, names, [made.passwords[name] for name in names], "hub")
        try:
            process.go()
            wait_for(lambda: ingest.counters.offered >= 1, 30, "the first message")
            began = time.monotonic()
            wait_for(lambda: ingest.counters.committed >= TOTAL, 120, "the last commit")
            took = time.monotonic() - began
            with made.db.read() as session:
                stored = session.connection().exec_driver_sql("SELECT COUNT(*) FROM telemetry").scalar_one()
            if stored != TOTAL or made.streaming.link.broker_dropped:
                raise SystemExit(
                    f"cannot measure: {stored} of {TOTAL} rows, {made.streaming.link.broker_dropped} dropped"
                )
        finally:
            process.stop()
    return TOTAL / took


def run() -> list[dict[str, Any]]:
    assert find_mosquitto()
    names = [f"dev-{number:02}" for number in range(DEVICES)]
    limits: list[float] = []
    values: list[float] = []
    for _ in range(ROUNDS):
        limits.append(bare(names))
        values.append(hub(names))
    return [figure("ingest", middle(values), "messages/s", middle(limits), 0.8, most=False)]


if __name__ == "__main__":
    publisher(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4].split(","), sys.argv[5])
