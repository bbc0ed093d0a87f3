"""Settings: every source of them, and errors that name the place and the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_agent.settings import catalogue, load, parse_broker, redacted
from skerry_modules.errors import InputError

GOOD = """
[device]
id = "line-3"
profile = "generic-x86-64"
[hub]
broker = "mqtt://hub.local"
username = "line-3"
password = "hunter2"
key = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
publishers = ["ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
[serving]
http = "127.0.0.1:9000"
queue_requests = 5
[[sources]]
kind = "replay"
module = "digits"
path = "heldout.npz"
rate = 2.5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_a_file_alone(tmp_path: Path) -> None:
    found = load(write(tmp_path, GOOD), environ={})
    assert found.device.id == "line-3"
    assert found.serving.queue_requests == 5
    assert found.sources[0].target == "digits"
    assert found.sources[0].rate == 2.5
    assert found.hub.keepalive_s == 30


def test_the_environment_stands_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    environ = {"SKERRY_AGENT_SPOOL_BUDGET_MB": "7", "SKERRY_AGENT_HUB_PUBLISHERS": "a, b", "OTHER": "x"}
    found = load(path, environ=environ, overrides=["spool.window=3", "hub.broker=mqtts://other:1234"])
    assert (found.spool.budget_mb, found.spool.window) == (7, 3)
    assert found.hub.publishers == ("a", "b")
    assert parse_broker(found.hub.broker) == ("other", 1234, True)
    assert load(path, environ=environ, overrides=["spool.budget_mb=9"]).spool.budget_mb == 9


def test_the_rules_can_be_set_too(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "[rules.lifecycle]\nbackoff_s = 0.5\n")
    found = load(path, environ={"SKERRY_AGENT_RULES_DOWNLOAD_QUIET_S": "9"}, overrides=["rules.objects_at_once=2"])
    assert found.rules.lifecycle.backoff_s == 0.5
    assert found.rules.download.quiet_s == 9.0
    assert found.rules.objects_at_once == 2


def test_relative_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + '[state]\nfolder = "state"\n')
    found = load(path, environ={})
    assert found.folder == tmp_path / "state"
    assert found.sources[0].path == str(tmp_path / "heldout.npz")
    assert load(path, environ={}, overrides=["state.folder=here"]).folder == Path("here")


def test_no_file_at_all() -> None:
    found = load(None, environ={"SKERRY_AGENT_DEVICE_ID": "d", "SKERRY_AGENT_DEVICE_PROFILE": "p"})
    assert found.device.profile == "p"
    assert found.hub.broker == ""


@pytest.mark.parametrize(
    ("old", "new", "field", "text"),
    [
        ('id = "line-3"', "", "device.id", "missing required field"),
        ('id = "line-3"', 'id = "Line 3"', "device.id", "cannot use 'Line 3' as a device id"),
        ('id = "line-3"', "id = 3", "device.id", "Expected `str`, got `int`"),
        ('profile = "generic-x86-64"', 'profil = "x"', "device.profil", "unknown field"),
        ('profile = "generic-x86-64"', "", "device.profile", "missing required field"),
        ("[hub]", "[hub]\nwhat = 1", "hub.what", "unknown field"),
        ("[hub]", "[hubb]\na = 1\n[hub]", "hubb", "unknown field"),
        ("mqtt://hub.local", "http://hub", "hub.broker", "is not of the form mqtt://host:port"),
        ("mqtt://hub.local", "mqtt://hub:port", "hub.broker", "has no valid port"),
        ("key = ", "ca = ", "hub.key", "public key is needed"),
        ("127.0.0.1:9000", "9000", "serving.http", "is not of the form host:port"),
        ("queue_requests", "que_requests", "serving.que_requests", "there is no such setting"),
        ('kind = "replay"', 'kind = "camera"', "sources[0].kind", "Invalid enum value 'camera'"),
        ('module = "digits"', "", "sources[0].endpoint", "name the endpoint"),
        ('path = "heldout.npz"', "", "sources[0].path", "a replay source needs one"),
        ("rate = 2.5", "rate = -1", "sources[0].rate", "Expected `float` >= 0"),
        ("[device]", "[rules.health]\ncrash = 1\n[device]", "rules.health.crash", "there is no such setting"),
        ("[device]", "[device", "", "it is not TOML"),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, old: str, new: str, field: str, text: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load(path, environ={})
    assert caught.value.code == "settings.invalid"
    assert str(path) in caught.value.message
    assert text in caught.value.message
    assert caught.value.data.get("field", "") == field


@pytest.mark.parametrize(
    ("environ", "overrides", "place"),
    [
        ({"SKERRY_AGENT_SPOOL_WINDOW": "many"}, [], "the environment variable SKERRY_AGENT_SPOOL_WINDOW"),
        ({"SKERRY_AGENT_SPOOL_WINDOW": "0"}, [], "the environment variable SKERRY_AGENT_SPOOL_WINDOW"),
        ({"SKERRY_AGENT_NOTHING": "1"}, [], "the environment variable SKERRY_AGENT_NOTHING"),
        ({}, ["spool.windows=1"], "--set spool.windows"),
        ({}, ["spool"], "--set"),
    ],
)
def test_errors_name_the_variable_or_flag(
    tmp_path: Path, environ: dict[str, str], overrides: list[str], place: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(write(tmp_path, GOOD), environ=environ, overrides=overrides)
    assert f"cannot use {place}," in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the configuration .*nowhere\.toml"):
        load(tmp_path / "nowhere.toml", environ={})


def test_secrets_are_masked(tmp_path: Path) -> None:
    assert "hunter2" not in str(redacted(load(write(tmp_path, GOOD), environ={})))


def test_the_catalogue_lists_every_setting_with_help_and_a_variable_that_works() -> None:
    found = catalogue()
    names = [one.name for one in found]
    assert len(names) == len(set(names)) > 50
    for one in found:
        assert one.help, one.name
        assert one.env == "" or one.env == "SKERRY_AGENT_" + one.name.replace(".", "_").upper()
    needed = {"SKERRY_AGENT_DEVICE_ID": "d", "SKERRY_AGENT_DEVICE_PROFILE": "p"}
    for one in found:
        if one.env and one.env not in needed and isinstance(one.default, str | int | float):
            text = str(one.default).lower() if isinstance(one.default, bool) else str(one.default)
            load(None, environ={**needed, one.env: text})


def test_the_sources_page_shows_a_configuration_that_loads(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "sources.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    found = load(write(tmp_path, '[device]\nid = "d"\nprofile = "p"\n' + example), environ={})
    assert {one.kind for one in found.sources} == {"replay", "folder", "mqtt"}
