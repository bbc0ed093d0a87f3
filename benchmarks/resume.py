"""Bytes that one agent receives of an object while its cable is pulled 20 times, against the object's size.

The agent runs its own download rule over paho; each cut closes the socket without a goodbye, in the middle of the
stream. Counted are the payload bytes that reach the agent, those that came twice included.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks._streaming import figure, stand
from benchmarks.delivery import Process
from skerry_modules import chunks

SIZE, CUTS = 32 * 1024 * 1024, 20


def run() -> list[dict[str, Any]]:
    with stand(["agent-00"]) as made:
        process = Process(made, ["agent-00"])
        try:
            digest = made.offer("object", os.urandom(SIZE), ["agent-00"])
            process.tell("agents", digest, SIZE, CUTS)
            answer = process.hear()
        finally:
            process.stop()
    if not answer["whole"] or answer["cuts"] != CUTS:
        raise SystemExit(f"cannot measure: {answer}")
    header = len(chunks.frame(b"")) * chunks.count(SIZE)
    return [figure("resume", answer["received"] - header, "bytes", SIZE, 1.05, most=True)]
