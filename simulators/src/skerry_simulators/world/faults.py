"""What goes wrong in a run, drawn from its seed: some worlds are calm, some lose one message in five."""

from __future__ import annotations

import random

import msgspec


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities are per occasion (message, effect, step); ``*_every_s`` are mean seconds, 0: never."""

    drop: float = 0.0
    duplicate: float = 0.0
    flip: float = 0.0  # of a chunk on the wire
    delay_s: float = 0.05  # mean; reordering comes from its spread
    chunk_s: float = 0.01  # how long a chunk takes on a device's link
    crash_effect: float = 0.0  # power cut at any effect of an agent, before or after it
    crash_moment: int = 0  # power cut at exactly this of each agent's moments (before and after each effect), once
    crash_hub: float = 0.0  # at any of the hub's steps, before or after its commit
    partition_every_s: float = 0.0
    broker_loss_every_s: float = 0.0
    power_every_s: float = 0.0
    disk_full_every_s: float = 0.0
    worker_crash_every_s: float = 0.0
    attack_every_s: float = 0.0  # forged, stale and misdirected documents
    rot: float = 0.0  # a bit of something on the disk flips at a power cut
    object_loss_every_s: float = 0.0  # the hub's store loses an object for good


CALM = Faults()


def draw(rng: random.Random, lots: random.Random) -> Faults:
    """Every kind of fault is in about half of the worlds, so that each is met alone and with others; in few, one that
    good versions cannot get through. ``lots`` decides of those: what ``rng`` gives stays the same without them."""

    def maybe(low: float, high: float) -> float:
        return rng.uniform(low, high) if rng.random() < 0.5 else 0.0

    return Faults(
        drop=maybe(0.01, 0.2),
        duplicate=maybe(0.01, 0.2),
        flip=maybe(0.01, 0.1),
        chunk_s=rng.choice((0.01, 0.5, 4.0)),
        delay_s=rng.choice((0.01, 0.05, 0.5)),
        crash_effect=maybe(0.002, 0.02),
        crash_hub=maybe(0.005, 0.05),
        partition_every_s=maybe(60, 400),
        broker_loss_every_s=maybe(100, 500),
        power_every_s=maybe(60, 400),
        disk_full_every_s=maybe(100, 500),
        worker_crash_every_s=maybe(60, 300),
        attack_every_s=maybe(30, 200),
        rot=maybe(0.02, 0.3),
        object_loss_every_s=lots.uniform(60, 500) if lots.random() < 0.15 else 0.0,
    )
