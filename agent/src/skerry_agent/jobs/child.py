"""The process that scores parts: started for the first, told each next one, and ended when none comes for a while.

The agent never reads the data itself: the child is a process of its own (:mod:`skerry_agent.jobs.scoring`), with the
agent as its parent in whose death it dies, and what it has scored stands on the disk, so that the next one goes on
from there. It lives on between parts: to start one costs as much time as to score some thousand rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_modules.batches import PartOrder
from skerry_modules.errors import InputError, PeerError, ResourceError

IDLE_S: Final = 5.0
"""Without a part for so long, the child ends and gives its memory back."""
_LINE_BYTES: Final = 256 * 1024
_END_S: Final = 5.0
_WORDS: Final = 20


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A part, as the child is told it; see ``skerry_agent.batch.job.Order``."""

    url: str
    model: str
    version: str
    input: str
    output: str
    columns: tuple[str, ...]
    keep: tuple[str, ...]
    rows: int
    part_rows: int
    header: bool | None


class Line(msgspec.Struct):
    """Progress, as the child tells it."""

    done: int
    units: int
    unit: str
    rows: int
    errors: int


class Summary(msgspec.Struct):
    """How a part ended well; also where every single row was an error: that is a result too."""

    rows: int
    errors: int


class Failed(msgspec.Struct):
    """How it ended else. ``input``: what is to be scored is to blame."""

    code: str
    message: str
    input: bool


def task_of(order: PartOrder, source: Path, result: Path, url: str) -> Task:
    """A part that is to be scored at ``url``."""
    return Task(
        url=url,
        model=order.module,
        version=str(order.version),
        input=str(source),
        output=str(result),
        columns=order.columns,
        keep=order.keep,
        rows=order.rows,
        part_rows=order.part_rows,
        header=True if order.kind == "table" else None,
    )


class Child:
    """See the module's text. One part at a time."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._words: deque[str] = deque(maxlen=_WORDS)
        self._listening: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def score(self, task: Task, told: Callable[[Line], None]) -> Summary:
        """Score a part to its end; cancelling kills the child.

        Raises:
            SkerryError: what it said; ``batch.failed`` where it said nothing.
        """
        if self._idle is not None:
            self._idle.cancel()
        try:
            process = await self._begun(msgspec.json.encode(task) + b"\n")
            answer = await self._answer(process, told) or await self._last_words(process)
        except BaseException:
            await self._kill()
            raise
        if isinstance(answer, PeerError):
            raise answer
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._end)
        if isinstance(answer, Failed):
            raise (InputError if answer.input else ResourceError)(answer.code, answer.message)
        return answer

    async def _begun(self, line: bytes) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ConnectionError):  # it died since the part before
                await _tell(self._process, line)
                return self._process
        await self._kill()
        process = self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "skerry_agent.jobs.scoring", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )
        self._listening = asyncio.ensure_future(self._listen(process))
        with contextlib.suppress(ConnectionError):  # its end tells why
            await _tell(process, line)
        return process

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """What it says besides answers: its last words, should it end."""
        assert process.stderr is not None
        self._words.clear()
        while block := await process.stderr.read(_LINE_BYTES):
            self._words.extend(block.decode("utf-8", "replace").splitlines())

    async def _answer(
        self, process: asyncio.subprocess.Process, told: Callable[[Line], None]
    ) -> Summary | Failed | None:
        assert process.stdout is not None
        async for raw in process.stdout:
            for kind in (Line, Failed, Summary):
                with contextlib.suppress(msgspec.DecodeError):
                    said: Any = msgspec.json.decode(raw, type=kind)
                    if not isinstance(said, Line):
                        return said  # type: ignore[no-any-return]
                    told(said)
                    break
        return None

    async def _last_words(self, process: asyncio.subprocess.Process) -> PeerError:
        code = await process.wait()
        if self._listening is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._listening), _END_S)
        last = self._words[-1] if self._words else "nothing"
        return PeerError(
            "batch.failed", f"cannot score the part: the process ended with {code} and said: {last}"[:1000]
        )

    def _end(self) -> None:
        """It ends by itself when it can hear no more."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), _END_S)


async def _tell(process: asyncio.subprocess.Process, line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    await process.stdin.drain()
