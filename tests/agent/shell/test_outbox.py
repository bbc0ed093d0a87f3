"""The spool's asynchronous front: gathering, urgency, and a disk that refuses for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skerry_agent import outbox as outboxes
from skerry_agent.outbox import Outbox
from skerry_agent.rules.spool import SpoolSettings
from skerry_agent.spool import Spool
from skerry_modules import messages
from skerry_modules.errors import SkerryError
from skerry_modules.messages import Ack, Event, Health, Severity


class Rig:
    """An outbox on a real spool; ``sent`` is what a link would have published."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[messages.Up[object]] = []
        self.told: list[str] = []
        self.spool = Spool(folder / "s.db", SpoolSettings())
        self.thread = ThreadPoolExecutor(1)
        self.commits = 0
        append = self.spool.append

        def counted(records: object) -> int:
            self.commits += 1
            return append(records)  # type: ignore[arg-type]

        self.spool.append = counted  # type: ignore[method-assign]

    def trouble(self, error: SkerryError | None) -> None:
        self.told.append(error.code if error else "fine")

    def publish(self, kind: str, payload: bytes) -> None:
        self.sent.append(messages.decode(kind, payload))

    def run(self, scenario: Callable[[Outbox], object], gather_s: float = 0.05) -> None:
        async def main() -> None:
            made = Outbox(self.spool, self.thread, self.publish, gather_s=gather_s, trouble=self.trouble)
            task = asyncio.create_task(made.run())
            async with asyncio.timeout(20):
                await scenario(made)  # type: ignore[misc]
            task.cancel()
            await asyncio.wait([task])
            await made.close()

        try:
            asyncio.run(main())
        finally:
            self.thread.shutdown()

    async def until(self, check: Callable[[], object]) -> None:
        while not check():
            await asyncio.sleep(0.005)


def event(text: str = "m") -> Event:
    return Event(severity=Severity.INFO, code="c", message=text)


def health(number: int, size: int = 0) -> Health:
    return Health(boot="b" * size, uptime_s=number)


def test_metrics_share_a_commit_and_an_alarm_does_not_wait(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scenario(outbox: Outbox) -> None:
        outbox.linked(True)
        await outbox.turn()
        for number in range(100):
            outbox.put("health", health(number))
        await asyncio.sleep(0.02)
        assert rig.commits == 0
        outbox.put("event", event())
        await rig.until(lambda: rig.sent)
        assert rig.commits == 1
        assert rig.sent[0].stream == 0

    rig.run(scenario, gather_s=30.0)


def test_what_is_pending_is_written_when_the_agent_stops(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scenario(outbox: Outbox) -> None:
        outbox.put("health", health(1))

    rig.run(scenario, gather_s=30.0)
    again = Spool(tmp_path / "s.db", SpoolSettings())
    assert again.policy.records == 1
    again.close()


def test_a_disk_that_refuses_is_told_once_and_nothing_is_lost_or_sent_in_a_storm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "_RETRY_S", 0.1)
    rig = Rig(tmp_path)

    async def scenario(outbox: Outbox) -> None:
        outbox.linked(True)
        outbox.put("event", event("before"))
        await rig.until(lambda: len(rig.sent) == 1)
        pages = rig.spool._db.execute("PRAGMA page_count").fetchone()[0]
        rig.spool._db.execute(f"PRAGMA max_page_count = {pages}")
        for number in range(60):
            outbox.put("health", health(number, 2000))
        await rig.until(lambda: rig.told)
        commits = rig.commits
        for _ in range(50):  # acknowledgements and further records must not make it try the disk each time
            outbox.acked(Ack(1, outbox.epoch, {0: 1}))
            outbox.put("event", event("during"))
            await asyncio.sleep(0.005)
        assert rig.commits - commits < 10
        assert len(rig.sent) < 20
        rig.spool._db.execute("PRAGMA max_page_count = 1000000")
        await rig.until(lambda: rig.told == ["resource.no_space", "fine"])
        await rig.until(lambda: rig.spool.policy.records == 110)

    rig.run(scenario, gather_s=0.001)


def test_memory_is_bounded_while_the_disk_refuses_and_alarms_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "_RETRY_S", 0.1)
    monkeypatch.setattr(outboxes, "PENDING_BYTES", 50_000)
    rig = Rig(tmp_path)

    async def scenario(outbox: Outbox) -> None:
        rig.spool._db.execute("PRAGMA max_page_count = 1")
        for number in range(200):
            outbox.put("health", health(number, 1000))
        outbox.put("event", event("kept"))
        await rig.until(lambda: rig.told)
        for number in range(200):
            outbox.put("health", health(number, 1000))
        assert sum(len(record.body) for record in outbox._pending) <= 50_000
        assert outbox.dropped["unstored"] > 300
        rig.spool._db.execute("PRAGMA max_page_count = 1000000")
        await rig.until(lambda: rig.told[-1] == "fine")
        assert [entry.event.message for entry in await outbox.journal(5)] == ["kept"]

    rig.run(scenario)


def test_a_message_that_the_hub_would_refuse_is_dropped_and_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    async def scenario(outbox: Outbox) -> None:
        outbox.put("health", health(1, messages.MAX_BYTES["health"]))
        assert outbox.dropped == {"unstored": 1}

    rig.run(scenario)
