"""What a fleet counts."""

from __future__ import annotations

import msgspec


class Stats(msgspec.Struct):
    """What the whole fleet did."""

    connects: int = 0
    disconnects: int = 0
    refused: int = 0
    produced: int = 0  # records put into spools
    telemetry: int = 0
    objects: int = 0  # downloaded and verified
    chunks: int = 0
    chunks_twice: int = 0  # received though held already
    chunks_unwanted: int = 0
    chunks_bad: int = 0
    chunk_bytes: int = 0
    promoted: int = 0
    failed: int = 0
    unverified: int = 0
    hailed: int = 0  # asked by a hub that came back to say again what it may have missed
