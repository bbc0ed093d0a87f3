"""``skerry-hub`` as people run it: real processes, real signals, one clear line for what cannot be."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hub.core.parts import module_folder
from skerry_hub import cli
from skerry_modules import package, trust
from support.processes import answers, stop, wait_until

HUB = [sys.executable, "-m", "skerry_hub.cli"]


class Running:
    """A hub in a process of its own."""

    def __init__(self, data: Path, *flags: str) -> None:
        command = [*HUB, "serve", "--data", str(data), "--port", "0", "--broker", "embedded", "--broker-port", "0"]
        self.process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.told: dict[str, str] = {}

    def ready(self) -> Running:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("Stop with"):
                return self
            name, value = line.split(maxsplit=1)
            self.told[name] = value.strip()
        raise AssertionError(self.process.stderr.read() if self.process.stderr else "")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "data")
    yield running.ready()
    if running.process.poll() is None:
        stop(running.process)  # type: ignore[arg-type]
    for pipe in (running.process.stdout, running.process.stderr):
        if pipe:
            pipe.close()


def broker_port(hub: Running) -> int:
    return int(hub.told["Broker"].rpartition(":")[2])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_says_where_and_stops_cleanly_with_streams_open(hub: Running, number: int) -> None:
    behind_a_proxy = httpx.get(hub.told["API"] + "/status", headers={"X-Forwarded-For": "192.0.2.7"})
    assert (behind_a_proxy.status_code, behind_a_proxy.json()["code"]) == (401, "auth.missing")
    status = httpx.get(hub.told["API"] + "/status").json()
    assert status["database"] == hub.told["Database"]
    assert httpx.get(hub.told["Console"], headers={"Accept": "text/html"}).status_code == 200
    assert answers(broker_port(hub))
    seen: list[str] = []

    def listen() -> None:
        with httpx.stream("GET", hub.told["API"] + "/stream", timeout=30) as stream:
            seen.extend(stream.iter_text())

    listener = threading.Thread(target=listen)
    listener.start()
    wait_until(lambda: seen, what="the stream to begin")
    code, errors = hub.end(number)
    listener.join(20)
    assert not listener.is_alive(), "the stream must end with the hub"
    assert (code, errors) == (0, "")
    assert not answers(broker_port(hub)), "the broker ends with the hub"


def test_a_second_hub_is_refused_in_one_line_and_the_dead_ones_place_is_taken(hub: Running, tmp_path: Path) -> None:
    second = Running(tmp_path / "data")
    _, errors = second.process.communicate(timeout=60)
    assert second.process.returncode == 1
    (line,) = errors.strip().splitlines()
    assert line.startswith("skerry-hub: cannot start on the database sqlite:///")
    assert f"the hub at {hub.told['Console']} (process {hub.process.pid} on " in line
    assert line.endswith("[resource.database_in_use]")
    os.kill(hub.process.pid, signal.SIGKILL)
    hub.process.wait()
    third = Running(tmp_path / "data").ready()
    assert httpx.get(third.told["API"] + "/status").status_code == 200
    assert third.end() == (0, "")


def test_a_hub_killed_in_the_middle_of_an_upload_has_lost_and_kept_nothing(hub: Running, tmp_path: Path) -> None:
    key = trust.SigningKey.generate()
    folder = module_folder(tmp_path / "m")
    (folder / "weights.bin").write_bytes(os.urandom(4_000_000))
    data = package.write_package(folder, tmp_path / "m.skerry", key).path.read_bytes()
    httpx.post(hub.told["API"] + "/keys", json={"text": key.public.text()})
    address = hub.told["Console"].removeprefix("http://")
    temporary = tmp_path / "data" / "store" / "tmp"
    lines = ["POST /api/v1/models/digits/versions HTTP/1.1", f"Host: {address}", f"Content-Length: {len(data)}", "", ""]
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall("\r\n".join(lines).encode() + data[: len(data) // 2])
        wait_until(lambda: list(temporary.iterdir()), what="an object to be half written")
        os.kill(hub.process.pid, signal.SIGKILL)
        hub.process.wait()
    again = Running(tmp_path / "data").ready()
    assert list(temporary.iterdir()) == []
    assert httpx.get(again.told["API"] + "/models").json()["items"] == []
    made = httpx.post(again.told["API"] + "/models/digits/versions", content=data)
    assert (made.status_code, made.json()["version"]) == (201, 1)
    assert httpx.get(again.told["API"] + "/models/digits/versions/1/package").content == data
    assert again.end() == (0, "")


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--data", str(tmp_path), "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"skerry-hub: cannot listen on 127.0.0.1:{port}: another program does; "
        "stop it, or choose another port with --port [resource.port_in_use]\n"
    )
    assert not (tmp_path / "hub.db").exists(), "nothing was opened"


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (["--host", "0.0.0.0"], {}, "cannot listen on 0.0.0.0 without a token: anyone who reaches it"),
        (["--host", "203.0.113.7", "--token", "ci:" + "x" * 16], {}, "cannot listen on 203.0.113.7"),
        ([], {"SKERRY_HUB_PORT": "many"}, "cannot use 'many' for the setting port: it must be of type int"),
        ([], {"SKERRY_HUB_PROT": "1"}, "cannot use the variable SKERRY_HUB_PROT: no setting has this name"),
        (["--port", "70000"], {}, "cannot use 70000 for the setting port: use 0 to 65535"),
        (["--lease-s", "0"], {}, "cannot use 0.0 for the setting lease_s: it must be above 0"),
        (["--token", "short"], {}, "a secret of at least 16 characters"),
        (["--database", "mysql://x"], {}, "cannot use a mysql database"),
        (["--data", "/proc/nothing"], {}, "cannot use the data folder /proc/nothing: "),
        (["--broker", "http://x"], {}, "cannot use the broker 'http://x'"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    text: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["serve", "--data", str(tmp_path), "--port", "0", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("skerry-hub: cannot ")
    assert text in line
    assert not (tmp_path / "hub.db").exists(), "nothing was opened"


def test_settings_are_listed_for_people_and_machines(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        cli.main(arguments)
        return capsys.readouterr().out

    text, machine = said("settings"), json.loads(said("settings", "--json"))
    assert {"name", "variable", "flag", "default", "unit", "help", "secret"} == set(machine[0])
    for row in machine:
        assert re.fullmatch(r"SKERRY_HUB_[A-Z_]+", row["variable"])
        assert row["variable"] in text
        assert row["help"]
        assert row["unit"]
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    help_text = capsys.readouterr().out
    assert all(row["flag"] in help_text for row in machine)


def test_keys_and_migrate_need_no_running_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(command: str, *more: str) -> str:
        assert cli.main([command, "--data", str(tmp_path), *more]) == 0
        return capsys.readouterr().out

    first = said("keys")
    assert re.fullmatch(r"hub        ed25519:[A-Za-z0-9+/]{43}= hub\n", first)
    assert said("keys") == first, "the key is made once"
    assert (tmp_path / "keys" / "hub.pem").stat().st_mode & 0o777 == 0o600
    assert "is up to date" in said("migrate")
    machine = json.loads(said("keys", "--json"))
    assert machine == {"hub": first.split(maxsplit=1)[1].strip(), "publishers": []}
    assert json.loads(said("migrate", "--json"))["up_to_date"] is True


def test_a_hub_that_loses_its_lease_stops(tmp_path: Path) -> None:
    import sqlite3

    hub = Running(tmp_path / "data", "--lease-s", "0.6").ready()
    with sqlite3.connect(tmp_path / "data" / "hub.db", timeout=10) as connection:
        connection.execute("UPDATE hub_lease SET holder = 'another/b/1/2/3/x'")
    connection.close()
    _, errors = hub.process.communicate(timeout=30)
    assert hub.process.returncode == 1
    assert "cannot go on: the lease of sqlite:///" in errors
    assert errors.strip().endswith("[resource.database_in_use]")
