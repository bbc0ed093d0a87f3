"""Who serves a crowd waits awake, for a moment; who does not sleeps."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from skerry_agent.serving.vigil import CROWD, Vigil


async def turns(vigil: Vigil, seconds: float) -> int:
    """How often the loop looked at its sockets within a time in which it has nothing else to do."""
    loop = asyncio.get_running_loop()
    count, end = 0, time.monotonic() + seconds
    selector = loop._selector  # type: ignore[attr-defined]
    select = selector.select

    def counting(timeout: float | None = None) -> object:
        nonlocal count
        count += 1
        return select(timeout)

    selector.select = counting
    while time.monotonic() < end:
        await asyncio.sleep(end - time.monotonic())
    selector.select = select
    return count


@pytest.mark.parametrize(("answers", "awake_s", "kept"), [(CROWD, 0.2, True), (CROWD - 1, 0.2, False), (99, 0, False)])
def test_a_crowd_keeps_the_loop_awake_for_its_time(answers: int, awake_s: float, kept: bool) -> None:
    async def main() -> None:
        vigil = Vigil(awake_s)
        vigil.keep(answers)
        assert vigil.kept == kept
        looks = await turns(vigil, 0.1)
        assert (looks > 10) == kept  # a loop with nothing to do looks twice or so
        vigil.keep(answers)  # once more, and at the end all the same
        while vigil.kept:
            await asyncio.sleep(0.01)
        assert await turns(vigil, 0.05) < 10

    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("with one processor there is no vigil")
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_with_one_processor_the_worker_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    async def main() -> None:
        vigil = Vigil(1.0)
        vigil.keep(99)
        assert not vigil.kept

    asyncio.run(main())
