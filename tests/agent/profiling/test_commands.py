"""Every command is answered once, whatever becomes of it, and what was measured reaches the device's own rules."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from agent.rules.bench import Bench
from skerry_agent.commands import Commands, Handler, Progress
from skerry_agent.rules import effects as fx
from skerry_modules.errors import InputError
from skerry_modules.messages import Command, Result
from skerry_simulators.world import modules


class Desk:
    """A table of commands with handlers that do what tests need, and what it answered."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[Result] = []
        self.carried_out: list[str] = []
        self.go_on = asyncio.Event()
        handlers: dict[str, Handler] = {"wait": self._wait, "refuse": self._refuse, "break": self._break}
        handlers["twice"] = self._wait
        self.table = Commands(folder, self.answers.append, handlers, alone={"wait": 1, "twice": 2})

    async def _wait(self, command: Command, progress: Progress) -> dict[str, Any]:
        self.carried_out.append(command.id)
        progress(0.5, "half")
        progress(7.0, "never whole before its end")
        await self.go_on.wait()
        return {"n": 1}

    async def _refuse(self, _command: Command, _progress: Progress) -> dict[str, Any]:
        raise InputError("request.invalid", "cannot do that")

    async def _break(self, _command: Command, _progress: Progress) -> dict[str, Any]:
        raise ZeroDivisionError("oh")

    def take(self, id_: str, name: str, deadline_s: float = 60.0) -> None:
        self.table.take(Command(id=id_, name=name, deadline_s=deadline_s))

    @property
    def ends(self) -> list[tuple[str, bool, str]]:
        return [(one.command, one.ok, one.code) for one in self.answers if one.progress >= 1]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_each_command_ends_in_its_type(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        for id_, name in (("p", "ping"), ("r", "refuse"), ("b", "break"), ("d", "dance")):
            desk.take(id_, name)
        await settle()
        assert sorted(desk.ends) == [
            ("b", False, "internal.bug"),
            ("d", False, "command.unknown"),
            ("p", True, ""),
            ("r", False, "request.invalid"),
        ]
        unknown = next(one for one in desk.answers if one.command == "d")
        assert unknown.message.startswith("cannot do 'dance': this agent knows break, ping, refuse, twice, wait")

    run(scenario())


def test_progress_is_told_and_is_never_an_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.take("w", "wait")
        await settle()
        assert [(one.progress, one.name) for one in desk.answers] == [(0.5, "wait"), (0.999, "wait")]
        desk.go_on.set()
        await settle()
        assert desk.ends == [("w", True, "")]
        assert desk.answers[-1].data == {"n": 1}

    run(scenario())


def test_what_comes_twice_is_done_once_and_what_goes_not_together_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        for id_ in ("one", "one", "two"):
            desk.take(id_, "wait")
        desk.take("p", "ping")
        await settle()
        assert desk.carried_out == ["one"]
        assert desk.ends == [("two", False, "command.busy"), ("p", True, "")]
        desk.go_on.set()
        await settle()
        desk.take("one", "wait")
        desk.take("three", "wait")
        await settle()
        assert desk.carried_out == ["one", "three"]
        assert [end[0] for end in desk.ends] == ["two", "p", "one", "three"]

    run(scenario())


def test_some_may_be_in_hand_twice_but_not_beside_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        for id_, name in (("a", "twice"), ("b", "twice"), ("c", "twice"), ("w", "wait")):
            desk.take(id_, name)
        await settle()
        assert desk.carried_out == ["a", "b"]
        assert desk.ends == [("c", False, "command.busy"), ("w", False, "command.busy")]
        desk.go_on.set()
        await settle()
        desk.go_on.clear()
        desk.take("v", "wait")
        desk.take("d", "twice")
        await settle()
        assert desk.carried_out == ["a", "b", "v"]
        assert desk.ends[-1] == ("d", False, "command.busy")
        desk.go_on.set()
        await settle()

    run(scenario())


def test_a_deadline_ends_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.take("w", "wait", deadline_s=0.01)
        async with asyncio.timeout(10):
            while not desk.ends:
                await asyncio.sleep(0.005)
        assert desk.ends == [("w", False, "command.deadline")]
        assert not list(tmp_path.glob("commands*"))

    run(scenario())


def test_a_stop_answers_and_a_kill_is_answered_by_the_next_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.take("w", "wait")
        await settle()
        note = (tmp_path / "commands.json").read_bytes()
        desk.take("at-once", "ping")  # stopped before its first step
        await desk.table.stop()
        assert sorted(desk.ends) == [("at-once", False, "command.interrupted"), ("w", False, "command.interrupted")]
        assert not (tmp_path / "commands.json").exists()

        (tmp_path / "commands.json").write_bytes(note)  # as a kill leaves it
        after = Desk(tmp_path)
        after.table.resume()
        assert after.ends == [("w", False, "command.interrupted")]
        again = Desk(tmp_path)
        again.table.resume()
        assert again.ends == []
        (tmp_path / "commands.json").write_bytes(b"torn")
        again.table.resume()
        assert again.ends == []

    run(scenario())


# -- what was measured, in the rules of the device


def test_the_device_counts_what_was_measured_and_loads_with_it() -> None:
    greedy = modules.make("m", 1, modules.Behaviour.TOO_LARGE)  # declares 4096 MB, the profile leaves 512
    bench = Bench()
    bench.add(greedy)
    bench.desire(1, greedy.wanted())
    bench.run(60)
    assert bench.state is not None
    assert [(one.phase, one.reason) for one in bench.state.modules] == [("Unschedulable", "unschedulable.memory")]
    bench.desire(2, msgspec.structs.replace(greedy.wanted(attempt=1), memory_mb=300))
    bench.run(60)
    assert [(one.phase, one.role) for one in bench.state.modules] == [("Healthy", "current")]
    small = modules.make("n", 1)  # declares 64 MB
    bench.add(small)
    both = (msgspec.structs.replace(greedy.wanted(attempt=1), memory_mb=300), small.wanted())
    bench.desire(3, both[0], msgspec.structs.replace(both[1], memory_mb=213))
    bench.run(60)
    reasons = {one.name: (one.phase, one.message) for one in bench.state.modules}
    assert reasons["n"][0] == "Unschedulable"
    assert "needs 213 MB, profile leaves 212 MB" in reasons["n"][1]
    assert reasons["m"][0] == "Healthy"


class Noting(Bench):
    """Notes the memory of every load."""

    def __post_init__(self) -> None:
        self.loads: list[int] = []
        super().__post_init__()

    def _perform(self, effect: fx.Effect) -> fx.Event | None:
        if isinstance(effect, fx.Load):
            self.loads.append(effect.memory_mb)
        return super()._perform(effect)


def test_what_was_measured_goes_with_the_load_and_survives_a_restart() -> None:
    greedy, plain = modules.make("m", 1, modules.Behaviour.TOO_LARGE), modules.make("n", 1)
    bench = Noting()
    bench.add(greedy, plain)
    bench.desire(1, msgspec.structs.replace(greedy.wanted(), memory_mb=300), plain.wanted())
    bench.run(60)
    assert sorted(bench.loads) == [0, 300]
    bench.boot()
    bench.run(60)
    assert bench.state is not None
    assert {(one.name, one.phase) for one in bench.state.modules} == {("m", "Healthy"), ("n", "Healthy")}
    assert sorted(bench.loads) == [0, 0, 300, 300]
