"""Nudges: coalesced, from any thread, ended by a close."""

from __future__ import annotations

import asyncio
import threading

from skerry_hub.bus import Bus


def test_nudges_from_many_threads_come_together() -> None:
    async def run() -> set[str]:
        bus, seen = Bus(), set[str]()
        listener = bus.listen()
        first = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        threads = [threading.Thread(target=bus.publish, args=(f"device:{n}", "fleet")) for n in range(20)]
        for thread in threads:
            thread.start()
        seen |= await first
        for thread in threads:
            thread.join()
        while len(seen) < 21:
            seen |= await anext(listener)
        await listener.aclose()  # type: ignore[attr-defined]
        return seen

    assert asyncio.run(run()) == {"fleet", *(f"device:{n}" for n in range(20))}


def test_what_came_while_nobody_looked_is_told_at_once_and_only_once() -> None:
    async def run() -> list[frozenset[str]]:
        bus = Bus()
        listener = bus.listen(quiet_s=0.05)
        first = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        bus.publish("fleet")
        seen = [await first]
        bus.publish("fleet")
        bus.publish("models", "fleet")
        seen += [await anext(listener), await anext(listener)]
        await listener.aclose()  # type: ignore[attr-defined]
        return seen

    assert asyncio.run(run()) == [{"fleet"}, {"fleet", "models"}, frozenset()]


def test_closing_ends_every_listener_and_refuses_new_ones() -> None:
    async def run() -> tuple[int, int]:
        bus, ended = Bus(), 0

        async def listen() -> None:
            nonlocal ended
            async for _ in bus.listen():
                pass
            ended += 1

        tasks = [asyncio.create_task(listen()) for _ in range(5)]
        await asyncio.sleep(0.01)
        bus.close()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        await asyncio.wait_for(listen(), 5)
        bus.publish("fleet")  # nobody hears it, nothing fails
        return ended, len(bus._listeners)

    assert asyncio.run(run()) == (6, 0)


def test_a_listener_whose_loop_is_gone_does_no_harm() -> None:
    bus = Bus()
    loop = asyncio.new_event_loop()
    listener = bus.listen()
    task = loop.create_task(anext(listener))  # type: ignore[arg-type]
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.close()  # without letting the generator end
    bus.publish("fleet")
    bus.publish("models")
