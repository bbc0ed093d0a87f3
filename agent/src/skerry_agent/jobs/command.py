"""The command ``batch``: score one part of a job, behind live traffic, and see that the hub has the result.

Up to :data:`AT_ONCE` parts are in hand: while one is scored, the input of the next is fetched and the result before it
sent. Each of the three is done for one part at a time, in the order in which the parts came; a part for which there
is no room waits for those before it.

What is fetched and scored stands on the disk under ``batch/`` of the state folder until the hub needs nothing more of
it: an agent that is killed is given the part again, and goes on from there. Whether a part that stands here idle is
still wanted is asked whenever the hub comes, and now and then. The command ``batch-stop`` ends a job here, or a part.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from skerry_agent.commands import Progress
from skerry_agent.jobs import child
from skerry_agent.jobs.courier import Courier
from skerry_agent.jobs.folders import RESULT, Folders, Key, allowed
from skerry_agent.settings import Batch
from skerry_modules.batches import PartOrder, order_of
from skerry_modules.errors import InputError, ResourceError, SkerryError
from skerry_modules.messages import Command

AT_ONCE: Final = 2
"""Parts in hand at most: the one that is scored, and the one before or after it."""
SCORED: Final = 0.95
"""The share of the whole when all rows are scored; the rest is sending."""
ASK_S: Final = 300.0
"""How often the hub is asked about parts that stand here idle, besides whenever it comes back."""


class PartScorer:
    """The handler.

    Args:
        inputs: folders whose files the hub may have scored; relative paths stand in the first.
        settings: how much room parts may take, and how often the hub hears of them.
        folders: what parts take on the disk.
        courier: fetches and sends.
        address: where the child scores; empty: nowhere.
        connected: whether the hub would hear.
        on_disk: runs a function in the disk's thread.
    """

    def __init__(
        self,
        inputs: list[Path],
        settings: Batch,
        folders: Folders,
        courier: Courier,
        *,
        address: Callable[[], str],
        connected: Callable[[], bool],
        on_disk: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._inputs, self._settings, self._folders, self._courier = inputs, settings, folders, courier
        self._address, self._connected, self._on_disk = address, connected, on_disk
        self._in_hand: dict[Key, asyncio.Task[dict[str, Any]]] = {}  # in the order in which they came
        self._stopped: set[Key] = set()
        self._letting_go: set[asyncio.Task[None]] = set()
        self._fetching, self._scoring, self._sending = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._child = child.Child()
        courier.on_unwanted = self._unwanted
        folders.prepare()

    async def __call__(self, command: Command, progress: Progress) -> dict[str, Any]:
        """Arguments: those of ``skerry_modules.batches.PartOrder``.

        Raises:
            SkerryError: ``request.invalid``, ``batch.*``, ``resource.no_space``, ``scoring.*``, ``module.unknown``,
                ``command.busy``: the part is in hand already, for a command that the hub gave up.
        """
        order = order_of(command.arguments)
        key = (order.job, order.part)
        if key in self._in_hand:
            text = f"cannot begin part {order.part} of the batch job {order.job}: it is in hand here already"
            raise ResourceError("command.busy", text)
        told = _Told(progress, self._settings.report_s, self._connected)
        task = self._in_hand[key] = asyncio.ensure_future(self._carry_out(order, told))
        try:
            async with told:
                return await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if key not in self._stopped:
                raise
            await self._on_disk(lambda: self._folders.forget(key))
            raise InputError("batch.cancelled", f"cannot go on: the batch job {order.job} was cancelled") from None
        except SkerryError as error:
            if isinstance(error, InputError) or error.code == "resource.no_space":  # nothing to go on from here
                await self._on_disk(lambda: self._folders.forget(key))
            raise
        finally:
            self._in_hand.pop(key, None)
            self._stopped.discard(key)

    # -- ending --------------------------------------------------------------------------------------------------------

    async def stop(self, command: Command, _progress: Progress) -> dict[str, Any]:
        """The command ``batch-stop``: ``job`` is not wanted any more, or only its ``part``, where one is named."""
        job, part = command.arguments.get("job"), command.arguments.get("part")
        if not isinstance(job, int) or not isinstance(part, int | None):
            raise InputError("request.invalid", "cannot stop a batch job: name it, and the part by its number")
        held = await self._on_disk(self._folders.held)
        for key in {*held, *self._in_hand}:
            if key[0] == job and part in (None, key[1]):
                await self._let_go(key)
        return {}

    async def _let_go(self, key: Key) -> None:
        task = self._in_hand.get(key)
        if task is not None:
            self._stopped.add(key)
            task.cancel()
        else:
            await self._on_disk(lambda: self._folders.forget(key))

    def _unwanted(self, job: int, part: int) -> None:
        task = asyncio.ensure_future(self._let_go((job, part)))
        self._letting_go.add(task)  # the loop itself holds no task
        task.add_done_callback(self._letting_go.discard)

    async def look_after(self) -> None:
        """Never ends: asks the hub about the parts that stand here and that nobody works on."""
        while True:
            if self._connected():
                for job, part in await self._on_disk(self._folders.held):
                    if (job, part) not in self._in_hand:
                        self._courier.ask(job, part)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_S):
                    await self._courier.came_up.wait()
            self._courier.came_up.clear()

    # -- one part ------------------------------------------------------------------------------------------------------

    async def _carry_out(self, order: PartOrder, told: _Told) -> dict[str, Any]:
        result = self._folders.path(order) / RESULT
        async with _turn(self._fetching, told):
            source = await self._begun(order, told)
        if source is not None:
            async with _turn(self._scoring, told):
                told("scoring", 0.0)
                await self._score(order, source, result, told)
        async with self._sending:
            told("sending", SCORED)
            await self._courier.send(order, result, lambda share: told("sending", SCORED + (1 - SCORED) * share))
            await self._on_disk(lambda: self._folders.forget((order.job, order.part)))
        return {}

    async def _begun(self, order: PartOrder, told: _Told) -> Path | None:
        """Its input on the disk; None: it was scored before. Without room for it, it waits for the parts before it."""
        while True:
            try:
                folder: Path = await self._on_disk(lambda: self._folders.begin(order))
                if (folder / RESULT).exists():
                    return None
                told("fetching", 0.0)
                return await self._source(order, told)
            except ResourceError as error:
                before = self._before((order.job, order.part))
                if error.code != "resource.no_space" or not before:
                    raise
                told("waiting: for room", 0.0)
                await asyncio.wait(before, return_when=asyncio.FIRST_COMPLETED)

    def _before(self, key: Key) -> list[asyncio.Task[Any]]:
        """Parts that came before this one: those after it may be waiting for it."""
        keys = list(self._in_hand)
        return [self._in_hand[one] for one in keys[: keys.index(key)]]

    async def _source(self, order: PartOrder, told: _Told) -> Path:
        if order.kind == "path":
            return allowed(order.path, self._inputs)
        fetched = await self._courier.fetch(order.input, order.size, lambda _share: told("fetching", 0.0))
        return await self._on_disk(lambda: self._folders.lay_out(order, fetched))  # type: ignore[no-any-return]

    async def _score(self, order: PartOrder, source: Path, result: Path, told: _Told) -> None:
        address = self._address()
        if not address.startswith(("http://", "unix:")):
            raise ResourceError("batch.failed", "cannot score: the agent serves nowhere; set serving.http")

        def heard(line: child.Line) -> None:
            self._folders.check_room()
            unit = f"{line.done:,} of {line.units:,} {line.unit}"
            told(f"scoring: {unit}", SCORED * line.done / max(line.units, 1))

        await self._child.score(child.task_of(order, source, result, address), heard)


@contextlib.asynccontextmanager
async def _turn(step: asyncio.Lock, told: _Told) -> AsyncIterator[None]:
    if step.locked():
        told("waiting: its turn comes after the part before it", 0.0)
    async with step:
        yield


class _Told:
    """What the hub hears of a part: each change of step at once, progress now and then, and that we live."""

    def __init__(self, progress: Progress, every_s: float, connected: Callable[[], bool]) -> None:
        self._progress, self._every_s, self._connected = progress, every_s, connected
        self._step, self._share, self._text = "", 0.0, ""
        self._beat: asyncio.Task[None] | None = None

    def __call__(self, text: str, share: float) -> None:
        step = text.partition(":")[0]
        self._text, self._share = text, share
        if step != self._step:
            self._step = step
            self._tell()

    async def __aenter__(self) -> None:
        self._beat = asyncio.ensure_future(self._go_on())

    async def __aexit__(self, *_: object) -> None:
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            self._tell()

    def _tell(self) -> None:
        if self._connected():  # nobody hears it otherwise, and the spool need not fill with it
            self._progress(self._share, self._text)
