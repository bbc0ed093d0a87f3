"""``skerry-agent batch`` as a child: started, listened to, and ended with whoever asked for it.

The agent never reads the data itself: the child is a process of its own, with the agent as its parent in whose death
it dies, and what it has scored stands on the disk, so that the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from skerry_modules.batches import PartOrder
from skerry_modules.errors import CODES, InputError, PeerError, ResourceError, SkerryError

_ERROR: Final = re.compile(r"skerry-agent: (?P<message>.*) \[(?P<code>[a-z_]+\.[a-z_]+)\]")
_LINE_BYTES: Final = 256 * 1024
_END_S: Final = 5.0


class Line(msgspec.Struct):
    """Progress, as the child tells it."""

    done: int
    units: int
    unit: str
    rows: int
    errors: int


class Summary(msgspec.Struct):
    """How the child ended well."""

    rows: int
    errors: int


def arguments(order: PartOrder, source: Path, result: Path, url: str) -> list[str]:
    """The command line."""
    found = [sys.executable, "-m", "skerry_agent.cli", "batch", f"{order.module}:{order.version}", str(source)]
    found += [f"--output={result}", f"--url={url}", f"--rows={order.rows}", f"--part-rows={order.part_rows}"]
    found += [f"--columns={','.join(order.columns)}", f"--keep={','.join(order.keep)}"]
    found += ["--lines", "--json", f"--child-of={os.getpid()}"]
    return [*found, "--header=yes"] if order.kind == "table" else found


async def run(command: Sequence[str], told: Callable[[Line], None]) -> Summary:
    """Run it to its end; cancelling kills it.

    Raises:
        SkerryError: what it said; ``batch.failed`` where it said nothing.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    written = asyncio.ensure_future(process.stdout.read())
    said: list[str] = []
    try:
        async for raw in process.stderr:
            try:
                told(msgspec.json.decode(raw, type=Line))
            except msgspec.DecodeError:
                said = [*said[-20:], raw.decode("utf-8", "replace").rstrip("\n")]
        code = await process.wait()
        output = await written
    finally:
        written.cancel()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.wait()), _END_S)
    return _ended(code, output, said)


def _ended(code: int, output: bytes, said: list[str]) -> Summary:
    if code in (0, 1):  # 1 also where every single row was an error: that is a result too
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(output, type=Summary)
    raise error_of(code, said)


def error_of(code: int, said: Sequence[str]) -> SkerryError:
    """The error that a child told on its last lines."""
    for line in reversed(said):
        found = _ERROR.fullmatch(line)
        if found and found["code"] in CODES:
            return (InputError if code == 2 else ResourceError)(found["code"], found["message"])
    last = said[-1] if said else "nothing"
    return PeerError("batch.failed", f"cannot score the part: the process ended with {code} and said: {last}"[:1000])
