"""What the hub may command: one table of names and handlers, and the promise that every command is answered.

* A handler is a coroutine: it gets the command and a way to tell progress, returns the data of its result or raises a
  ``SkerryError``. It is cancelled at the command's deadline.
* A command that comes twice is carried out once. One that the agent did not live to answer is answered after the next
  start (``command.interrupted``): what is in hand stands in a file.
* Of the names in ``alone`` one is carried out at a time, as often at once as stands beside it; what is more is refused
  at once with ``command.busy``.

Results go through the spool, so that they are not lost either.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_modules.errors import InputError, ResourceError, SkerryError
from skerry_modules.messages import Command, Result

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
"""(share done, from 0 to below 1; what is being done)."""
Handler = Callable[[Command, Progress], Awaitable[dict[str, Any]]]

REMEMBERED: Final = 256
"""Ids of commands that are known to have come."""
DEADLINE_MAX_S: Final = 86_400.0
_FILE: Final = "commands.json"


class Commands:
    """See the module's text.

    Args:
        folder: where the file of commands in hand stands.
        put: takes results for the spool.
        handlers: by name; ``ping`` is always there.
        alone: names of which one is carried out at a time, and how many commands of it at once.
    """

    def __init__(
        self, folder: Path, put: Callable[[Result], None], handlers: dict[str, Handler], *, alone: dict[str, int]
    ) -> None:
        self._path = folder / _FILE
        self._put = put
        self._handlers: dict[str, Handler] = {"ping": _ping, **handlers}
        self._alone = alone
        self._seen: deque[str] = deque(maxlen=REMEMBERED)
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}

    def resume(self) -> None:
        """Answer what the run before this one did not live to answer."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            left = msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
            for command, name in left.items():
                self._put(_interrupted(command, name))
        self._path.unlink(missing_ok=True)

    def take(self, command: Command) -> None:
        """Begin a command; returns at once."""
        if command.id in self._seen:
            return
        self._seen.append(command.id)
        handler = self._handlers.get(command.name)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            text = f"cannot do {command.name[:80]!r}: this agent knows {known}; update the agent"
            self._end(command, InputError("command.unknown", text))
            return
        if busy := self._in_the_way(command.name):
            text = f"cannot begin {command.name} now: the command {busy} goes on; ask again when it has ended"
            self._end(command, ResourceError("command.busy", text))
            return
        task = asyncio.get_running_loop().create_task(self._carry_out(command, handler), name=f"command {command.name}")
        self._running[command.id] = (command.name, task)
        self._save()

    def _in_the_way(self, name: str) -> str:
        """The command whose end another of this name has to wait for; empty: none."""
        if name not in self._alone:
            return ""
        others = {other: its for other, (its, _) in self._running.items() if its in self._alone}
        strange = [other for other, its in others.items() if its != name]
        return next(iter(strange or others)) if strange or len(others) >= self._alone[name] else ""

    async def _carry_out(self, command: Command, handler: Handler) -> None:
        def progress(share: float, text: str) -> None:
            share = min(max(share, 0.0), 0.999)
            self._put(Result(command=command.id, name=command.name, ok=True, progress=share, message=text))

        seconds = min(command.deadline_s, DEADLINE_MAX_S) if command.deadline_s > 0 else DEADLINE_MAX_S
        try:
            async with asyncio.timeout(seconds):
                data = await handler(command, progress)
            self._put(Result(command=command.id, name=command.name, ok=True, data=data))
        except TimeoutError:
            text = f"cannot end {command.name} within {seconds:g} s: it was stopped; allow it more time"
            self._end(command, ResourceError("command.deadline", text))
        except SkerryError as error:
            self._end(command, error)
        except asyncio.CancelledError:
            self._put(_interrupted(command.id, command.name))
            raise
        except Exception as error:
            log.exception("the command %s broke", command.name)
            text = f"cannot do {command.name}: {type(error).__name__}: {error}; see the agent's log"
            self._put(Result(command=command.id, name=command.name, ok=False, code="internal.bug", message=text[:1000]))
        finally:
            del self._running[command.id]
            self._save()

    def _end(self, command: Command, error: SkerryError) -> None:
        self._put(Result(command=command.id, name=command.name, ok=False, code=error.code, message=error.message))

    def _save(self) -> None:
        """Not flushed to the disk: a power cut that loses it is made up for by the hub's own deadline."""
        try:
            if not self._running:
                self._path.unlink(missing_ok=True)
                return
            new = self._path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode({command: name for command, (name, _) in self._running.items()}))
            new.replace(self._path)
        except OSError as error:
            log.warning("cannot note the commands in hand: %s", error)

    async def stop(self) -> None:
        """End what goes on; each is answered."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for command, (name, _) in self._running.items():  # cancelled before its first step
            self._put(_interrupted(command, name))
        self._running.clear()
        self._save()


async def _ping(_command: Command, _progress: Progress) -> dict[str, Any]:
    return {}


def _interrupted(command: str, name: str) -> Result:
    text = f"cannot end {name}: the agent was stopped meanwhile; ask again"
    return Result(command=command, name=name, ok=False, code="command.interrupted", message=text)
