"""The commands against a real hub: what they print, as JSON and for people, and what every mistake is told."""

from __future__ import annotations

import itertools
import json
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from skerry.cli.app import app
from skerry.client import Client
from skerry_hub.rules import rollout as rules
from skerry_modules import messages, package, topics
from skerry_modules.trust import SigningKey
from support.processes import free_port

from .conftest import Run, make_model

_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A model's name that no other test uses."""
    return f"model-{next(_numbers)}"


@pytest.fixture
def folder(tmp_path: Path, name: str, run: Run) -> Path:
    """A module's folder, as ``skerry init`` writes it."""
    made = tmp_path / "module"
    run("init", made, "--from", make_model(tmp_path / f"{name}.onnx", seed=next(_numbers)))
    return made


@pytest.fixture
def registered(hub: Client, folder: Path, name: str, run: Run) -> str:
    assert run("models", "register", folder, "--json", "-m", "first", "-t", "stage=new").json["version"] == 1
    return f"{name}:1"


# -- modules, on this machine ----------------------------------------------------------------------------------------


def test_init_pack_verify_inspect_sign(folder: Path, tmp_path: Path, name: str, run: Run) -> None:
    packed = run("modules", "pack", folder, "--json").json
    assert packed["path"] == f"{name}.skerry"
    path = tmp_path / packed["path"]
    assert len(packed["signatures"]) == 1
    assert run("modules", "verify", path, "--json").json["digest"] == packed["digest"]
    shown = run("modules", "inspect", path, "--json").json
    assert [file["path"] for file in shown["files"]] == ["golden.npz", f"{name}.onnx", "module.toml"]
    assert shown["manifest"]["inputs"][0]["name"] == "x"
    run("keys", "generate", f"second-{name}")
    signed = run("modules", "sign", path, "--key", f"second-{name}", "--json").json
    assert signed["digest"] == packed["digest"]
    assert len(signed["signatures"]) == 2
    for text in ("good:", packed["digest"]):
        assert text in run("modules", "verify", path).out
    assert "MatMul, Relu" in run("modules", "inspect", path).out


def test_inspect_shows_the_steps_of_a_pipeline(tmp_path: Path, run: Run) -> None:
    tensor = 'name = "x"\ndatatype = "FP32"\nshape = [-1, 4]\n'
    ends = f'[[inputs]]\n{tensor}[[outputs]]\n{tensor}from = "top.x"\n'
    top = '[[steps]]\nname = "top"\ncombine = "weighted"\nfrom = {a = "half.x", b = "input.x"}\n'
    top += f"weights = {{a = 1.0, b = 2.5}}\n[[steps.outputs]]\n{tensor}"
    half = '[[steps]]\nname = "half"\nengine = "python"\nmodel = "half.py"\nfrom = {x = "input.x"}\n'
    half += f"[[steps.inputs]]\n{tensor}[[steps.outputs]]\n{tensor}"
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / "half.py").write_text("def run(inputs):\n    return inputs\n")
    (tmp_path / "chain" / "module.toml").write_text(
        f'format = 1\nname = "chain"\nengine = "pipeline"\n{ends}{top}{half}'
    )
    run("modules", "pack", tmp_path / "chain", "--unsigned", "-o", "chain.skerry")
    lines = [line.split() for line in run("modules", "inspect", "chain.skerry").out.splitlines()]
    assert ["output", "x", "FP32", "[-1,", "4]", "from", "top.x"] in lines
    steps = lines[lines.index(["step", "runs", "takes", "gives"]) + 1 :]
    assert " ".join(steps[0]) == "half python half.py x from input.x x FP32 [-1, 4]"
    assert " ".join(steps[1]) == "top combine weighted (a 1, b 2.5) a from half.x, b from input.x x FP32 [-1, 4]"


def test_packing_twice_gives_the_same_bytes(folder: Path, run: Run) -> None:
    run("modules", "pack", folder, "-o", "a.skerry")
    run("modules", "pack", folder, "-o", "b.skerry")
    assert Path("a.skerry").read_bytes() == Path("b.skerry").read_bytes()


def test_a_package_by_a_stranger_or_damaged_does_not_verify(folder: Path, tmp_path: Path, run: Run) -> None:
    package.write_package(folder, tmp_path / "x.skerry", SigningKey.generate())
    said = run("modules", "verify", "x.skerry", code=3)
    assert "with `skerry keys trust` [trust.unknown_key]" in said.err
    run("modules", "pack", folder, "--unsigned", "-o", "u.skerry")
    assert "[trust.unsigned]" in run("modules", "verify", "u.skerry", code=3).err
    data = bytearray((tmp_path / "x.skerry").read_bytes())
    data[-2000] ^= 1
    (tmp_path / "x.skerry").write_bytes(data)
    error = json.loads(run("modules", "verify", "x.skerry", "--json", code=3).err)
    assert error["family"] == "peer"
    assert error["code"].startswith("package.")


def test_mistakes_on_this_machine(tmp_path: Path, run: Run, model: Path) -> None:
    assert "`skerry init` writes one [manifest.unreadable]" in run("modules", "pack", tmp_path, code=2).err
    (tmp_path / "module.toml").write_text('format = 1\nnmae = "x"\n')
    said = run("modules", "pack", tmp_path, code=2)
    assert "line 2, field nmae" in said.err
    assert "[manifest.invalid]" in said.err
    assert json.loads(run("modules", "pack", tmp_path, "--json", code=2).err)["data"]["line"] == 2
    assert "cannot open the package no.skerry" in run("modules", "inspect", "no.skerry", code=2).err
    assert "cannot tell which model" in run("init", tmp_path / "empty", code=2).err
    assert "cannot find the signing key 'nobody'" in run("modules", "sign", "x", "--key", "nobody", code=2).err
    run("init", "fine", "--from", model)
    said = run("modules", "pack", "fine", "-o", "nowhere/x.skerry", code=2)
    assert "cannot use nowhere/" in said.err
    assert "No such file or directory [request.invalid]" in said.err


def test_init_takes_the_model_itself(model: Path, run: Run) -> None:
    made = run("init", model, "--name", "mine", "--json").json
    assert made["folder"] == "mine"
    assert Path("mine/module.toml").is_file()


# -- the registry ------------------------------------------------------------------------------------------------------


def test_a_version_is_registered_with_its_commit(hub: Client, folder: Path, name: str, run: Run) -> None:
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.com"]
        subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)
    made = run("models", "register", folder, "-m", "because", "--json").json
    assert (made["name"], made["version"], made["reason"], made["git_branch"]) == (name, 1, "because", "main")
    assert len(made["git_commit"]) == 40
    assert made["git_dirty"] is False
    assert made["signer"]
    said = run("models", "register", folder, code=2)
    assert f"its content is {name}:1 already; use that version [module.exists]" in said.err


def test_list_show_search_and_tag(hub: Client, registered: str, name: str, run: Run) -> None:
    assert name in {model["name"] for model in run("models", "list", "--json").json}
    assert name in run("models", "list").out
    assert run("models", "show", name, "--json").json["versions"][0]["tags"] == {"stage": "new"}
    assert "first" in run("models", "show", name).out
    assert run("models", "show", registered, "--json").json["manifest"]["name"] == name
    assert "golden.npz" in run("models", "show", registered).out
    tagged = run("models", "tag", registered, "stage=old", f"owner={name}", "--json").json["tags"]
    assert tagged == {"stage": "old", "owner": name}
    assert run("models", "tag", registered, "stage-", "--json").json["tags"] == {"owner": name}
    found = run("models", "search", f"owner={name}", "--json").json
    assert [(one["name"], one["version"]) for one in found] == [(name, 1)]
    assert "No version matches." in run("models", "search", "owner=nobody").out


def test_download_gives_every_byte_back(hub: Client, folder: Path, registered: str, run: Run) -> None:
    run("modules", "pack", folder, "-o", "mine.skerry")
    got = run("models", "download", registered, "-o", "theirs.skerry", "--json").json
    assert Path("theirs.skerry").read_bytes() == Path("mine.skerry").read_bytes()
    assert got["digest"]
    run("models", "download", registered.partition(":")[0], "--unpack", "-o", "files")
    files = {path.name: path.read_bytes() for path in Path("files").iterdir()}
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(path.name for path in Path().iterdir() if path.suffix == ".skerry") == [
        "mine.skerry",
        "theirs.skerry",
    ]


def test_delete_asks_first(hub: Client, registered: str, name: str, run: Run) -> None:
    said = run("models", "delete", registered, code=2)
    assert "say --yes" in said.err
    run("models", "delete", registered, "--yes", "-m", "wrong data")
    assert "[module.unknown]" in run("models", "show", registered, code=2).err
    newest = run("audit", "--subject", registered, "--json").json[0]
    assert (newest["action"], newest["reason"]) == ("version.delete", "wrong data")
    run("models", "delete", name, "-y")
    assert "[module.unknown]" in run("models", "show", name, code=2).err


def test_a_package_by_a_key_that_the_hub_does_not_trust_is_refused(hub: Client, folder: Path, run: Run) -> None:
    hub_keys = run("keys", "list", "--hub", "--json").json
    if not hub_keys:
        run("keys", "trust")
    run("modules", "pack", folder, "-o", "s.skerry", "--unsigned")
    assert "[trust.unsigned]" in run("models", "register", "s.skerry", code=3).err
    package.write_package(folder, Path("t.skerry"), SigningKey.generate())
    assert "[trust.unknown_key]" in run("models", "register", "t.skerry", code=3).err


@pytest.mark.parametrize("text", ["x", "x:", ":1", "x:one", "x:-1"])
def test_what_is_no_version_says_how_one_is_written(hub: Client, run: Run, text: str) -> None:
    assert "write NAME:VERSION" in run("models", "tag", text, "a=b", code=2).err


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_are_made_shown_trusted_and_distrusted(hub: Client, name: str, run: Run) -> None:
    made = run("keys", "generate", name, "--json").json
    assert run("keys", "show", name).out.strip() == made["text"]
    assert name in {key["name"] for key in run("keys", "list", "--json").json}
    assert made["keyid"] in run("keys", "list").out
    assert run("keys", "trust", name, "--json").json["keyid"] == made["keyid"]
    assert made["keyid"] in run("keys", "list", "--hub").out
    run("keys", "distrust", made["keyid"])
    assert made["keyid"] not in {key["keyid"] for key in run("keys", "list", "--hub", "--json").json}
    assert "use ed25519:<base64>" in run("keys", "trust", "ed25519:nonsense", code=2).err


# -- devices -----------------------------------------------------------------------------------------------------------


def test_a_device_is_added_with_a_config_that_only_its_owner_reads(hub: Client, name: str, run: Run) -> None:
    added = run("devices", "add", name, "-p", "generic-x86_64", "-t", "site=lab", "-t", f"own={name}", "--json").json
    path = Path(added["config"])
    assert path == Path(f"{name}.toml")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = tomllib.loads(path.read_text())
    assert config["device"]["id"] == name
    assert config["hub"]["publishers"]
    assert added["device"]["tags"] == {"site": "lab", "own": name}
    assert "password" not in run("devices", "show", name).out
    assert [one["id"] for one in run("devices", "list", "-t", f"own={name}", "--json").json] == [name]
    assert "offline" in run("devices", "list", "-t", f"own={name}").out
    assert run("devices", "tag", name, "site-", "--json").json["tags"] == {"own": name}
    said = run("devices", "add", name, "-p", "generic-x86_64", code=2)
    assert f"cannot write {name}.toml: it exists" in said.err
    assert "[device.exists]" in run("devices", "add", name, "-p", "generic-x86_64", "-o", "b.toml", code=2).err
    assert not Path("b.toml").exists()
    before = config["hub"]["password"]
    run("devices", "renew-password", name)
    assert tomllib.loads(path.read_text())["hub"]["password"] != before
    run("devices", "remove", name, "--yes", "--json")
    assert "[device.unknown]" in run("devices", "show", name, code=2).err


def test_a_version_is_wanted_on_one_device_and_taken_off_again(
    hub: Client, registered: str, name: str, run: Run
) -> None:
    device, model = f"one-{name}", registered.partition(":")[0]
    run("devices", "add", device, "-p", "generic-x86_64")
    assert f"is to run {registered}" in run("devices", "assign", device, registered, "--soak", "2").err
    (wanted,) = hub.device_modules(device).wanted
    assert (wanted.module, wanted.version, wanted.soak_s, wanted.rollout) == (model, 1, 2.0, None)
    assert "no such version" in run("devices", "assign", device, f"{model}:9", code=2).err
    said = run("devices", "unassign", device, "other", "--yes", code=2).err
    assert f"wanted are: {registered}" in said
    left = run("devices", "unassign", device, model, "--yes", "-m", "done with it", "--json").json
    assert (left["wanted"], left["revision"] > 1) == ([], True)
    assert hub.device_modules(device).wanted == ()
    assert [entry.action for entry in hub.audit(subject=device)][:2] == ["device.unassign", "device.assign"]


def test_wrong_devices_are_refused(hub: Client, run: Run) -> None:
    assert "[device.invalid_id]" in run("devices", "add", "Gate 7", "-p", "generic-x86_64", "-o", "x", code=2).err
    assert "[profile.unknown]" in run("devices", "add", "gate-7", "-p", "toaster", "-o", "x", code=2).err
    said = run("devices", "add", "gate-7", "-p", "generic-x86_64", "-t", "site", "-o", "x", code=2)
    assert "cannot use the tag 'site': write TagName=TagValue [query.invalid]" in said.err
    assert not Path("x").exists()


# -- rollouts ----------------------------------------------------------------------------------------------------------


def test_a_rollout_is_previewed_started_paused_resumed_and_aborted(
    hub: Client, registered: str, name: str, run: Run
) -> None:
    device = f"{name}-away"
    run("devices", "add", device, "-p", "generic-x86_64", "-t", f"own={name}", "-o", "d.toml")
    run("devices", "add", f"{name}-tiny", "-p", "pynq-z2", "-t", f"own={name}", "-o", "t.toml")
    target = f"own={name}"
    preview = run("rollouts", "preview", registered, "--to", target, "--json").json
    assert preview["unschedulable"] == 1
    assert preview["waves"] == [1]
    assert "unschedulable.engine" in run("rollouts", "preview", registered, "--to", target).out
    started = run("rollouts", "start", name, "--to", target, "--no-watch", "--soak", "1", "-m", "try", "--json").json
    assert (started["state"], started["plan"]["soak_s"]) == ("running", 1.0)
    number = str(started["id"])
    said = run("rollouts", "start", name, "--to", target, "--no-watch", code=2)
    assert "[rollout.conflict]" in said.err
    assert "[module.in_use]" in run("models", "delete", registered, "-y", code=2).err
    assert run("rollouts", "pause", number, "--json").json["state"] == "paused"
    assert "[rollout.wrong_state]" in run("rollouts", "pause", number, code=2).err
    assert run("rollouts", "resume", number, "--json").json["state"] == "running"
    assert int(number) in {one["id"] for one in run("rollouts", "list", "--json").json}
    assert "unschedulable" in run("rollouts", "show", number).out
    assert run("rollouts", "abort", number, "-m", "enough", "--json").json["state"] in ("rolling-back", "aborted")


def test_wrong_rollouts_are_refused(hub: Client, registered: str, run: Run) -> None:
    assert "[rollout.empty_target]" in run("rollouts", "start", registered, "--to", "own=nobody", code=2).err
    assert "[query.invalid]" in run("rollouts", "start", registered, "--to", "nonsense", code=2).err
    assert "[module.unknown]" in run("rollouts", "start", "nothing:1", "--to", "*", code=2).err
    assert "[rollout.unknown]" in run("rollouts", "show", "999999", code=2).err
    said = run("rollouts", "start", registered, "--to", "own=nobody", "--waves", "one", code=2)
    assert "write a number of devices or a share such as 25%" in said.err


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_status_events_profiles_open_samples(hub: Client, run: Run, hub_url: str) -> None:
    status = run("status", "--json").json
    assert status["url"] == hub_url
    assert status["broker_connected"] is True
    assert "connected" in run("status").out
    assert isinstance(run("events", "--json").json, list)
    assert run("samples", "list", "--json").json == []
    assert "No samples." in run("samples", "list").out
    assert run("samples", "export", "out", "--json").json == []
    assert "raspberry-pi-5" in {one["name"] for one in run("profiles", "--json").json}
    assert "raspberry-pi-5" in run("profiles").out
    assert run("open", "--json").json == {"url": hub_url}


def test_export_is_everything_as_lines_or_as_one_object(hub: Client, registered: str, name: str, run: Run) -> None:
    device = f"{name}-x"
    run("devices", "add", device, "-p", "generic-x86_64", "-t", f"own={name}", "-o", "x.toml")
    lines = [json.loads(line) for line in run("export").out.splitlines()]
    kinds = {line["kind"] for line in lines}
    assert {"hub", "model", "version", "device", "audit"} <= kinds
    everything = run("export", "--json").json
    assert name in {one["name"] for one in everything["versions"]}
    mine = run("export", "--model", name, "--json").json
    assert {one["name"] for one in mine["versions"]} == {name}
    assert mine["devices"] == []
    assert all(name in entry["subject"] or entry["data"].get("module") == name for entry in mine["audit"])
    fleet = run("export", "--tag", f"own={name}", "--json").json
    assert [one["id"] for one in fleet["devices"]] == [device]
    assert fleet["versions"] == []
    secret = tomllib.loads(Path("x.toml").read_text())["hub"]["password"]
    assert secret not in json.dumps(everything)


def test_wire_decode_reads_files_and_topics(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "payload"
    path.write_bytes(messages.encode(messages.Presence(online=True, boot="b")))
    assert run("wire", "decode", topics.presence("gate-7"), path).json["message"]["boot"] == "b"
    assert run("wire", "decode", "--kind", "presence", path, "--json").json["message"]["online"] is True
    assert "[message.unknown_topic]" in run("wire", "decode", "--kind", "gossip", path, code=3).err
    assert "[message.malformed]" in run("wire", "decode", "--kind", "ack", path, code=3).err
    assert "give TOPIC and FILE" in run("wire", "decode", path, code=2).err
    assert "cannot read the payload" in run("wire", "decode", "--kind", "ack", "nowhere", code=2).err


def _commands(group: Any, path: str = "skerry") -> Iterator[tuple[str, Any]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(command, f"{path} {name}")


def test_no_help_text_is_lost_as_markup() -> None:
    """Rich takes ``[default: x]`` for a style of its own, and shows nothing, unless its bracket is escaped."""
    lost = []
    for path, command in _commands(typer.main.get_command(app)):
        for told in (command.help, *(getattr(option, "help", "") for option in command.params)):
            written = (told or "").replace("\\[", "[")
            if Text.from_markup(told or "").plain != written:
                lost.append(f"{path}: {told}")
    assert lost == []


def test_a_hub_that_is_away_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("SKERRY_URL", url)
    said = run("status", code=4)
    assert f"cannot reach the hub at {url}" in said.err
    assert "start it with `skerry-hub serve`" in said.err
    error: dict[str, Any] = json.loads(run("--url", url, "models", "list", "--json", code=4).err)
    assert (error["code"], error["family"]) == ("resource.hub_unreachable", "resource")
    assert run("models", "list", "--json", code=4).out == ""


@pytest.mark.parametrize("command", [("rollouts", "start"), ("deploy",)])
def test_the_help_tells_the_defaults_that_the_hub_has(run: Run, command: tuple[str, ...]) -> None:
    """What is not said is left to the hub, so its own defaults are what the help must tell."""
    from skerry_hub.api.rollouts import PlanBody

    hubs = PlanBody()
    assert hubs.rule() == rules.Plan(), "the API's defaults are the rule's"
    told = " ".join(run(*command, "--help").out.replace("│", " ").split())
    defaults = {"--soak": f"{hubs.soak_s:g}", "--waves": "one canary, then the rest"}
    if command[0] == "rollouts":
        defaults |= {
            "--wave-pause": f"{hubs.wave_pause_s:g}",
            "--failure-threshold": f"{hubs.failure_threshold:g}",
            "--device-timeout": f"{hubs.device_timeout_s:g}, an hour",
            "--offline-timeout": f"{hubs.offline_timeout_s:g}, a day",
            "--on-failure": hubs.on_failure,
        }
    for option, default in defaults.items():
        following = told[told.index(f"{option} ") :]
        assert following[following.index("[default: ") :].startswith(f"[default: {default}]"), option
    assert [(wave.count, wave.percent) for wave in hubs.waves] == [(1, 0.0), (0, 100.0)]
