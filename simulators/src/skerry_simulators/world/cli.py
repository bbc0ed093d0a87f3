"""``skerry-sim world``: run worlds by seed; a world that breaks a rule is named, and can be lived through again.

Exit codes: 0 every rule held in every world; 1 one was broken; 2 the options cannot be meant.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from skerry_simulators.world.world import Outcome, World

TRACE_LINES = 10_000
SHOWN = 5  # broken worlds that are told in full


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="one world")
    which.add_argument("--seeds", type=_seeds, default=range(200), metavar="A..B", help="worlds A to B−1 (0..200)")
    parser.add_argument("--trace", action="store_true", help="with --seed: print what happened, in virtual time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _seeds(text: str) -> range:
    match = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: give two numbers, as in 0..2000")
    return range(int(match[1]), int(match[2]))


def run(options: argparse.Namespace) -> int:
    """The command. Returns the exit code."""
    return _one(options) if options.seed is not None else _many(options)


def _one(options: argparse.Namespace) -> int:
    outcome = World(options.seed, trace=TRACE_LINES if options.trace else 100).run()
    if options.json:
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        return 1 if outcome.violation else 0
    if options.trace or outcome.violation:
        print("\n".join(outcome.trace))
    print(
        f"seed {outcome.seed}: {outcome.violation or 'every rule held'} "
        f"({outcome.events} events in {outcome.virtual_s:.0f} virtual seconds, {outcome.rollouts} rollouts, "
        f"{outcome.samples} samples; digest {outcome.digest[:16]})"
    )
    return 1 if outcome.violation else 0


def _live(seed: int) -> Outcome:
    return World(seed, trace=60).run()


def _outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    if jobs <= 1 or len(seeds) < 20:
        yield from map(_live, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_live, seeds, chunksize=10)


def _many(options: argparse.Namespace) -> int:
    started = time.monotonic()
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("worlds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    broken: list[Outcome] = []
    events = 0
    with Progress(*columns, console=console, disable=options.json or not console.is_terminal) as progress:
        task = progress.add_task("worlds", total=len(options.seeds))
        for outcome in _outcomes(options.seeds, options.jobs):
            progress.advance(task)
            events += outcome.events
            if outcome.violation:
                broken.append(outcome)
                console.print(f"[red]seed {outcome.seed}[/]: {outcome.violation}")
    wall = time.monotonic() - started
    if options.json:
        summary = {
            "worlds": len(options.seeds),
            "broken": {outcome.seed: outcome.violation for outcome in broken},
            "events": events,
            "wall_s": round(wall, 2),
        }
        sys.stdout.buffer.write(msgspec.json.encode(summary) + b"\n")
        return 1 if broken else 0
    for outcome in broken[:SHOWN]:
        print(f"\nseed {outcome.seed}: {outcome.violation}", *outcome.trace[-25:], sep="\n  ")
        print(f"  all of it: skerry-sim world --seed {outcome.seed} --trace")
    print(f"{len(options.seeds)} worlds, {events} events, {len(broken)} broken, {wall:.1f} s")
    return 1 if broken else 0


def main(arguments: list[str] | None = None) -> int:
    """``skerry-sim world``."""
    parser = argparse.ArgumentParser(
        prog="skerry-sim world", description="The agent's and the hub's rules on a virtual clock, network and disk."
    )
    add_arguments(parser)
    return run(parser.parse_args(arguments))
