"""The demo's story, act by act. Every part is the real one: real data, real training, hub, broker, agents, engines.

The board is simulated, and only the board: the agent runs the unmodified ``pynq`` package on it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import tomlkit

import skerry
from skerry import git
from skerry.types import Plan, RolloutDetail
from skerry_agent import control
from skerry_modules import package
from skerry_modules.errors import SkerryError
from skerry_modules.trust import SigningKey
from skerry_simulators.demo import cast, outcome
from skerry_simulators.demo.cast import QUALITIES, Player
from skerry_simulators.demo.outcome import BETTER, BROKEN, GOLDEN_FAILED, GOOD, Claim, Facts
from skerry_simulators.demo.processes import Child, Children, DemoFailure, is_free
from skerry_simulators.demo.screen import Screen
from skerry_simulators.demo.traffic import Client, Tally

HUB_PORT: Final = 8420
STEP_S: Final = 120.0
"""The longest that any one step may take, seconds: the demo fails then instead of waiting for ever."""
TRAINERS: Final = 2
"""Trainings at the same time."""
SOAK_S: Final = 3.0
ANSWERS: Final = 100
"""Answers of each version that every client gathers, so that accuracies can be compared."""
LOOK_S: Final = 0.25

_CONSOLE: Final = r"^Console\s+(http://\S+)$"


class Summary(msgspec.Struct, kw_only=True):
    """How it went. Printed whole with ``--json``."""

    ok: bool
    seconds: float
    console: str
    data: str
    agents: list[dict[str, Any]]
    left_out: list[str]
    claims: list[Claim]
    requests: list[Tally]
    rollouts: list[dict[str, Any]]
    failure: str = ""


class Demo:
    """One run.

    Args:
        folder: everything goes under it; it must be empty.
        children: what starts and stops programs.
        screen: what is shown.
        port: of hub and console, if it is free.
    """

    def __init__(self, folder: Path, children: Children, screen: Screen, *, port: int = HUB_PORT) -> None:
        self._folder, self._children, self._screen = folder, children, screen
        self._players, self._left_out = cast.cast()
        self._key = SigningKey.generate("demo")
        self._port = port if is_free(port) else 0
        self.hub: skerry.Client  # once the hub has said where it listens
        self._agent_ports: dict[str, int] = {}  # once the agents have
        self._clients: list[Client] = []
        self._rollouts: dict[int, tuple[RolloutDetail, ...]] = {}
        self._started = time.monotonic()

    @property
    def console(self) -> str:
        return self.hub.url

    def run(self) -> Summary:
        """The whole story, and what came of it.

        Raises:
            DemoFailure: a step did not come to its end.
        """
        show = self._screen
        show.act("A fleet of its own")
        for sentence in self._left_out:
            show.warn(sentence)
        self._start_hub()
        show.step(f"hub and console at {self.console}")
        self._train()
        self._start_agents()
        show.act("Version 1: canary first, then the rest")
        self._roll_out(GOOD)
        show.act("Live digits, scored on every device")
        self._start_clients()
        self._wait_for_answers(GOOD)
        self._wait_for_data()
        show.act("Version 2, better, while scoring goes on")
        self._roll_out(BETTER)
        self._wait_for_answers(BETTER)
        show.act("Version 3, broken: every device must prove it first")
        self._roll_out(BROKEN, engines=("onnx",))
        show.act("What came of it")
        facts = self._facts()
        return self._summary(outcome.claims(facts), facts)

    def keep_running(self) -> None:
        """Go on until Ctrl-C, with clients and sources scoring; the picture stays live."""
        while True:
            self._children.check()
            self._look(())

    def stop(self) -> None:
        """Let clients finish before their agents go."""
        for client in self._clients:
            client.stop()
        if hasattr(self, "hub"):
            self.hub.close()

    # -- acts ----------------------------------------------------------------------------------------------------------

    def _start_hub(self) -> None:
        arguments = ["-m", "skerry_hub.cli", "serve", "--data", str(self._folder / "hub"), "--port", str(self._port)]
        arguments += ["--broker-port", "0", "--samples-every-s", "2", "--samples-max-age-s", "5"]
        process = self._children.python("hub", arguments)
        self._until(lambda: bool(process.said(_CONSOLE)), "the hub to say where it listens")
        self.hub = skerry.Client(process.said(_CONSOLE), actor="demo")
        self._until(self._hub_answers, "the hub to answer")
        self.hub.trust_key(self._key.public.text())

    def _hub_answers(self) -> bool:
        try:
            return self.hub.status().broker_connected
        except SkerryError:
            return False

    def _train(self) -> None:
        """Train every version, a few at a time; pack, sign and register each as the hub numbers them."""
        self._screen.step("training on scikit-learn's handwritten digits, two thirds of them; the rest is held out")
        jobs = [(player, version) for version in QUALITIES for player in self._modules(version)]
        waiting = [job for job in jobs if job[0].engine != "openvino"]
        running: list[Child] = []
        while waiting or running:
            while waiting and len(running) < TRAINERS:
                running.append(self._start_training(*waiting.pop(0)))
            for child in [one for one in running if not one.running]:
                running.remove(child)
                self._children.finish(child, STEP_S)
            time.sleep(0.05)
        for player, version in jobs:
            if player.engine == "openvino":
                self._for_openvino(player, version)
            self._register(player, version)

    def _modules(self, version: int) -> list[Player]:
        """One player per module; the broken version is made for the canary's module only."""
        found = {player.module: player for player in self._players}
        return [player for player in found.values() if version != BROKEN or player.engine == "onnx"]

    def _start_training(self, player: Player, version: int) -> Child:
        script = cast.example(player.example) / "train.py"
        arguments = [str(script), "--out", str(self._module_folder(player, version)), "--name", player.module]
        arguments += ["--quality", QUALITIES[version]]
        return self._children.python(f"train-{player.module}-{version}", arguments, player.environment)

    def _for_openvino(self, player: Player, version: int) -> None:
        """The same model for the other engine: the very file that was trained for ONNX Runtime."""
        trained = next(one for one in self._players if one.engine == "onnx")
        folder = self._module_folder(player, version)
        shutil.copytree(self._module_folder(trained, version), folder)
        document = tomlkit.parse((folder / "module.toml").read_text())
        document["name"], document["engine"] = player.module, player.engine
        (folder / "module.toml").write_text(tomlkit.dumps(document))

    def _module_folder(self, player: Player, version: int) -> Path:
        return self._folder / "modules" / f"{player.module}-{version}"

    def _register(self, player: Player, version: int) -> None:
        folder = self._module_folder(player, version)
        _capture_more(folder / "module.toml")
        target = self._folder / "packages" / f"{player.module}-{version}{package.SUFFIX}"
        target.parent.mkdir(exist_ok=True)
        packed = package.write_package(folder, target, self._key)
        card = json.loads((folder / "card.json").read_text())
        registered = self.hub.register(
            packed.path,
            reason=f"demo: {card['quality']}",
            git=git.capture(cast.example(player.example)),
            tags={"quality": card["quality"]},
        )
        if registered.version != version:
            raise DemoFailure(f"{player.module}: the hub gave version {registered.version} instead of {version}")
        self._screen.step(
            f"trained, packed, signed and registered {player.module}:{version} ({card['quality']}, "
            f"{card['heldout_accuracy']:.1%} on held-out digits before it was broken)"
            if version == BROKEN
            else f"trained, packed, signed and registered {player.module}:{version} ({card['quality']}, "
            f"{card['heldout_accuracy']:.1%} on held-out digits)"
        )

    def _start_agents(self) -> None:
        for player in self._players:
            added = self.hub.add_device(
                player.device, profile=player.profile, tags={"site": "demo", "engine": player.engine}
            )
            config = self._folder / "agents" / f"{player.device}.toml"
            config.parent.mkdir(exist_ok=True)
            config.touch(mode=0o600)
            config.write_text(self._config(player, added.config))
            arguments = ["-m", "skerry_agent.cli", "run", "--config", str(config)]
            self._children.python(player.device, arguments, player.environment)
        self._until(lambda: all(device.online for device in self.hub.devices()), "all agents to connect")
        for player in self._players:
            # Each took a free port of its own: one chosen here could be another's by the time that it is wanted.
            scoring: str = control.ask(self._folder / "agents" / player.device, "status")["scoring"]
            self._agent_ports[player.device] = int(scoring.rpartition(":")[2])
        names = ", ".join(f"{player.device} ({player.engine})" for player in self._players)
        self._screen.step(f"{len(self._players)} agents connected, each a process of its own: {names}")

    def _config(self, player: Player, text: str) -> str:
        """The configuration that the hub gave, with this machine's ports and a replay of the held-out digits."""
        document = tomlkit.parse(text)
        document["state"]["folder"] = str(self._folder / "agents" / player.device)
        document["serving"]["http"] = "127.0.0.1:0"
        document["reporting"] = {"telemetry_s": 1.0, "health_s": 2.0, "traffic_s": 0.5}
        document["sources"] = [
            {"kind": "replay", "module": player.module, "path": str(self._digits(player)), "rate": 10.0}
        ]
        return tomlkit.dumps(document)

    def _digits(self, player: Player) -> Path:
        return self._module_folder(player, GOOD) / "heldout.npz"

    def _roll_out(self, version: int, *, engines: Sequence[str] = ()) -> None:
        plan = Plan(waves=("1",), soak_s=SOAK_S, device_timeout_s=STEP_S)
        started = [
            self.hub.start_rollout(
                player.module,
                version,
                f"site=demo,engine={player.engine}",
                plan,
                reason=f"demo: version {version}",
            )
            for player in self._modules(version)
            if not engines or player.engine in engines
        ]
        self._rollouts[version] = tuple(started)

        def ended() -> bool:
            now = tuple(self.hub.rollout(rollout.id) for rollout in started)
            self._rollouts[version] = now
            return all(rollout.ended for rollout in now)

        self._until(ended, f"the rollouts of version {version}", version=version)
        self._look(self._rollouts[version])

    def _start_clients(self) -> None:
        for player in self._players:
            client = Client(player.device, self._agent_ports[player.device], player.module, self._digits(player))
            client.start()
            self._clients.append(client)
        self._screen.step("one client per agent sends held-out digits without a pause and counts what comes back")

    def _wait_for_answers(self, version: int) -> None:
        def enough() -> bool:
            return all(tally.answered.get(version, 0) >= ANSWERS for tally in self._tallies())

        self._until(enough, f"answers by version {version} on every device")
        for tally in self._tallies():
            self._screen.step(
                f"{tally.device}: {tally.requests} requests, {tally.failed} failed, "
                f"version {version} is right in {tally.accuracy(version):.1%}"
            )

    def _wait_for_data(self) -> None:
        devices = [player.device for player in self._players]

        def arrived() -> bool:
            return all(
                self.hub.telemetry(device, limit=1)
                and self.hub.health(device, limit=1)
                and self.hub.samples(device=device, limit=1)
                for device in devices
            )

        self._until(arrived, "telemetry, health and samples of every device")
        newest = self.hub.telemetry(devices[0], limit=1)[0]
        self._screen.step(
            f"telemetry, health and samples of every device arrived; {devices[0]} scores in {newest.p50_us:.0f} µs"
        )

    # -- what came of it -----------------------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        self._until(lambda: bool(self.hub.sample_files()), "samples to be written as Parquet")
        devices = tuple(self.hub.devices())
        files = self.hub.sample_files()
        golden = [event.device for event in self.hub.events(limit=1000) if event.code == GOLDEN_FAILED]
        ids = [device.id for device in devices]
        return Facts(
            devices=devices,
            module_of={player.device: player.module for player in self._players},
            rollouts=self._rollouts,
            tallies=tuple(self._tallies()),
            telemetry={one: len(self.hub.telemetry(one, limit=1000)) for one in ids},
            health={one: len(self.hub.health(one, limit=1000)) for one in ids},
            samples={one: len(self.hub.samples(device=one, limit=1000)) for one in ids},
            golden_failures=tuple(dict.fromkeys(golden)),
            parquet_files=len(files),
            parquet_rows=sum(self._rows_of(file.key) for file in files),
        )

    def _rows_of(self, key: str) -> int:
        from pyarrow import parquet

        target = self._folder / "samples" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        rows: int = parquet.read_metadata(self.hub.download_samples(key, target)).num_rows
        return rows

    def _summary(self, claims: list[Claim], facts: Facts) -> Summary:
        return Summary(
            ok=all(claim.ok for claim in claims),
            seconds=round(time.monotonic() - self._started, 1),
            console=self.console,
            data=str(self._folder),
            agents=[
                {
                    "device": player.device,
                    "engine": player.engine,
                    "profile": player.profile,
                    "scoring": f"http://127.0.0.1:{self._agent_ports[player.device]}",
                    "serves": [
                        f"{one.module}:{one.version}"
                        for device in facts.devices
                        for one in device.modules
                        if device.id == player.device and one.role == "current"
                    ],
                }
                for player in self._players
            ],
            left_out=self._left_out,
            claims=claims,
            requests=list(facts.tallies),
            rollouts=[msgspec.to_builtins(rollout) for rollouts in facts.rollouts.values() for rollout in rollouts],
        )

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _until(self, check: Callable[[], bool], what: str, *, version: int = 0) -> None:
        """Look again and again, drawing what is seen, until ``check`` holds.

        Raises:
            DemoFailure: it took longer than :data:`STEP_S`, or a program ended meanwhile.
        """
        deadline = time.monotonic() + STEP_S
        while not check():
            self._children.check()
            if time.monotonic() > deadline:
                raise DemoFailure(f"waited {STEP_S:.0f} s for {what}\n{self._tails()}")
            self._look(self._rollouts.get(version, ()))

    def _look(self, rollouts: Sequence[RolloutDetail]) -> None:
        devices = []
        if hasattr(self, "hub"):
            with contextlib.suppress(SkerryError):  # still starting; if it has ended, the next check says so
                devices = self.hub.devices()
        self._screen.draw(devices, rollouts, self._tallies())
        time.sleep(LOOK_S)

    def _tallies(self) -> list[Tally]:
        return [client.tally() for client in self._clients]

    def _tails(self) -> str:
        return self._children.tails()


def _capture_more(manifest: Path) -> None:
    """Let devices keep more inputs than the example's one in a hundred: the demo lasts a minute, not a month."""
    document = tomlkit.parse(manifest.read_text())
    document["capture"] = {"rate": 0.2, "low_confidence": 0.6, "max_per_minute": 600}
    manifest.write_text(tomlkit.dumps(document))
