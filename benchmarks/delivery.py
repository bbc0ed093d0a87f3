"""8 MiB to 50 agents, asked for, paced and verified, against a plain publish of the same bytes to 50 subscribers.

Both go through the same managed Mosquitto to paho clients in one process, turn by turn. The agents run the agent's
own download rule with its defaults, the gathering of wants and the jitter of first wants included; the clock runs from
the moment they are told to the last chunk kept by the last of them. Digests are checked after it.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from benchmarks._child import Child
from benchmarks._streaming import Stand, figure, middle, stand, wait_for
from skerry_hub.broker import parse_url
from skerry_modules import chunks, topics

SIZE, AGENTS, ROUNDS = 8 * 1024 * 1024, 50, 5


class Process:
    """The receivers' process."""

    def __init__(self, made: Stand, names: list[str]) -> None:
        host, port, _ = parse_url(made.broker.hub_url)
        passwords = json.dumps({name: made.passwords[name] for name in names})
        self._child = Child("benchmarks._receivers", host, str(port), passwords)
        self.hear()

    def tell(self, *words: object) -> None:
        self._child.tell(" ".join(str(word) for word in words))

    def hear(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._child.hear()
        return answer

    def stop(self) -> None:
        self.tell("quit")
        self._child.close()


def plain(made: Stand, process: Process, data: bytes, number: int) -> float:
    """Seconds from the first publish to the last byte at the last subscriber: the same paho publisher, QoS 1."""
    digest = f"{number:064x}"
    process.tell("plain", digest, len(data))
    process.hear()
    payloads = [chunks.frame(data[start : start + chunks.CHUNK_BYTES]) for start in range(0, SIZE, chunks.CHUNK_BYTES)]
    began = time.monotonic()
    for part, payload in enumerate(payloads):
        if not made.streaming.link.publish(topics.chunk(digest, part), payload, wait_s=10.0):
            raise SystemExit("cannot measure: the publisher lost its connection")
    return float(process.hear()["done"]) - began


def agents(made: Stand, process: Process, data: bytes, names: list[str], number: int) -> float:
    """Seconds from the agents being told to the last chunk stored by the last of them."""
    digest = made.offer(f"object-{number}", data, names)
    process.tell("agents", digest, len(data))
    answer = process.hear()
    if not answer["whole"]:
        raise SystemExit("cannot measure: an agent's bytes do not have the digest")
    wait_for(lambda: made.streaming.delivery.idle, 20, "delivery to be idle")
    return float(answer["done"]) - float(answer["began"])


def run() -> list[dict[str, Any]]:
    names = [f"agent-{number:02}" for number in range(AGENTS)]
    with stand(names) as made:
        process = Process(made, names)
        try:
            limits: list[float] = []
            values: list[float] = []
            for number in range(ROUNDS):
                data = os.urandom(SIZE)
                limits.append(plain(made, process, data, number))
                values.append(agents(made, process, data, names, number))
            twice = made.streaming.delivery.counters.published - ROUNDS * chunks.count(SIZE)
        finally:
            process.stop()
    return [
        figure("delivery", middle(values), "s", middle(limits), 2.0, most=True),
        figure("delivery.chunks_twice", twice, "chunks", ROUNDS * chunks.count(SIZE), 0.0, most=True),
    ]
