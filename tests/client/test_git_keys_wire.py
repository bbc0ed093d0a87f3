"""Git with real repositories, keys on disk, and every kind of payload as JSON."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from skerry import git, keys, wire
from skerry_modules import chunks, messages, topics
from skerry_modules.errors import InputError, PeerError
from skerry_modules.messages import BODIES, PLAIN, Up
from skerry_modules.trust import SigningKey


def commit(folder: Path, message: str = "first") -> str:
    name = ["-c", "user.name=T", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", folder, "add", "."], check=True)
    subprocess.run(["git", "-C", folder, *name, "commit", "-q", "-m", message], check=True)
    found = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return found.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "module").mkdir(parents=True)
    (folder / "module" / "train.py").write_text("1")
    (folder / "other.txt").write_text("1")
    subprocess.run(["git", "init", "-q", "-b", "topic", folder], check=True)
    return folder


def test_a_clean_tree_is_its_commit(repository: Path) -> None:
    made = commit(repository)
    url = "https://user:secret@git.example.com/a.git"
    subprocess.run(["git", "-C", repository, "remote", "add", "origin", url], check=True)
    found = git.capture(repository / "module")
    assert found == git.GitState(commit=made, branch="topic", remote="https://git.example.com/a.git", dirty=False)


def test_a_changed_file_anywhere_or_a_new_one_in_the_module_is_dirty(repository: Path) -> None:
    commit(repository)
    (repository / "notes.txt").write_text("not of the module")
    assert not git.capture(repository / "module").dirty
    (repository / "module" / "new.py").write_text("1")
    assert git.capture(repository / "module").dirty
    (repository / "module" / "new.py").unlink()
    (repository / "other.txt").write_text("2")
    assert git.capture(repository / "module").dirty


def test_a_detached_commit_has_no_branch(repository: Path) -> None:
    commit(repository)
    subprocess.run(["git", "-C", repository, "checkout", "-q", "--detach"], check=True)
    assert git.capture(repository).branch == ""


def test_no_repository_no_commit_and_no_git_are_nothing(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    assert git.capture(tmp_path / "plain") == git.GitState()
    assert git.capture(repository) == git.GitState()  # not a single commit yet
    commit(repository)
    monkeypatch.setenv("PATH", str(tmp_path / "plain"))
    assert git.capture(repository) == git.GitState()


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("https://token@example.com:8443/a?x=1", "https://example.com:8443/a?x=1"),
        ("https://example.com/a", "https://example.com/a"),
        ("", ""),
    ],
)
def test_a_remote_loses_its_password_only(remote: str, shown: str) -> None:
    assert git.without_password(remote) == shown


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_found_again_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = keys.generate("ci")
    assert Path(made.path) == tmp_path / "skerry" / "keys" / "ci.pem"
    assert stat.S_IMODE(Path(made.path).stat().st_mode) == 0o600
    assert [key.keyid for key in keys.stored()] == [made.keyid]
    assert keys.load("ci").public.text() == keys.public("ci").text() == made.text
    assert keys.public(str(Path(made.path).with_suffix(".pub"))).keyid == made.keyid
    assert keys.public(made.text).keyid == made.keyid
    with pytest.raises(InputError, match=r"ci\.pem exists; choose another name"):
        keys.generate("ci")


def test_a_projects_keys_come_before_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "project" / ".skerry").mkdir(parents=True)
    (tmp_path / "project" / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "deep" / "er")
    assert keys.folder() == tmp_path / "project" / ".skerry" / "keys"


def test_only_the_default_key_is_made_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(InputError, match="`skerry keys generate` makes one"):
        keys.load_or_generate("mine")
    first, fresh = keys.load_or_generate()
    again, twice = keys.load_or_generate()
    assert (fresh, twice) == (True, False)
    assert first.public == again.public
    SigningKey.generate().save(tmp_path / "ci.pem")
    monkeypatch.setenv("SKERRY_KEY", str(tmp_path / "ci.pem"))
    assert keys.load_or_generate()[0].public.keyid == SigningKey.load(tmp_path / "ci.pem").public.keyid


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_a_key_name_is_a_plain_name(name: str) -> None:
    with pytest.raises(InputError, match="cannot name a key"):
        keys.generate(name)


# -- wire --------------------------------------------------------------------------------------------------------------

SAMPLES = {
    "state": messages.State(device="d", boot="b", revision=3),
    "telemetry": messages.Telemetry(module="m", version=1, digest="0", endpoint="m", start=1, end=2),
    "health": messages.Health(boot="b", uptime_s=1.5),
    "sample": messages.Sample(
        id="s",
        module="m",
        version=1,
        digest="0",
        at=1,
        inputs={"x": messages.Tensor(datatype="FP32", shape=(1,), data=b"\0\1\2\3")},
    ),
    "event": messages.Event(severity=messages.Severity.ERROR, code="run.hang", message="it hangs"),
    "result": messages.Result(command="c", ok=True),
    "hello": messages.Hello(device="d", boot="b", epoch=b"e", agent="1", profile="p"),
    "want": messages.Want(digest="0" * 64, size=1, bitmap=b"\x01"),
    "desired": messages.Signed(1, messages.encode(messages.Desired(device="d", revision=7, issued_at=1))),
    "ack": messages.Ack(1, b"e", {0: 5}, again=True, spread_s=4),
    "piece": messages.Piece(job=1, part=0, digest="0" * 64, size=3, number=0, data=b"abc"),
    "taken": messages.Taken(job=1, part=0, digest="0" * 64, bitmap=b"\x01"),
    "gap": messages.Gap(1, "0" * 64, 3, chunks.frame(b"12345")),
    "command": messages.Command(id="1", name="restart"),
    "presence": messages.Presence(online=True),
}


@pytest.mark.parametrize("kind", sorted({**BODIES, **PLAIN}))
def test_every_kind_decodes_to_json(kind: str) -> None:
    body = SAMPLES[kind]
    message = Up(1, b"epoch", messages.STREAM_OF[kind].value, 9, 2, 5, body) if kind in BODIES else body
    found = json.loads(msgspec.json.encode(wire.decode(messages.encode(message), kind=kind)))
    assert found["kind"] == kind
    inner = found["message"]["body"] if kind in BODIES else found["message"]
    assert set(inner) == set(body.__struct_fields__)
    if kind == "desired":
        assert inner["payload"]["revision"] == 7
    if kind in BODIES:
        assert (found["message"]["seq"], found["message"]["stream"]) == (9, messages.STREAM_OF[kind].name.lower())


def test_topics_say_what_their_payload_is() -> None:
    found = wire.decode(messages.encode(SAMPLES["presence"]), topic=topics.presence("gate-7"))
    assert (found["device"], found["kind"], found["message"]["online"]) == ("gate-7", "presence", True)
    found = wire.decode(chunks.frame(b"12345"), topic=topics.chunk("0" * 64, 3))
    assert (found["part"], found["message"]["data_bytes"]) == (3, 5)
    assert wire.decode(b"", topic=topics.down("gate-7", "desired"))["message"] is None


def test_garbage_is_refused_with_its_code() -> None:
    for arguments, code in (
        ({"payload": b"\xff", "kind": "state"}, "message.malformed"),
        ({"payload": b"", "topic": "other/topic"}, "message.unknown_topic"),
        ({"payload": b"1", "kind": "chunk"}, "message.malformed"),
    ):
        with pytest.raises(PeerError) as caught:
            wire.decode(**arguments)  # type: ignore[arg-type]
        assert caught.value.code == code
    with pytest.raises(PeerError, match="it is one of ack, chunk, command"):
        wire.check_kind("gossip")
