"""The command as it is installed, and the client against things that are no hub."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import skerry
from skerry.bodies import plan_body
from skerry.cli.output import EXIT_CODES
from skerry.client import Client
from skerry.problems import problem_of
from skerry.types import Plan
from skerry_modules import errors
from skerry_modules.errors import InputError, ResourceError

from .conftest import serving

SKERRY = [sys.executable, "-m", "skerry.cli.app"]


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SKERRY, *arguments], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def all_commands() -> dict[str, object]:
    """Every command and group by its full name."""
    from typer.main import get_command

    from skerry.cli.app import app

    def walk(name: str, one: object) -> Iterator[tuple[str, object]]:
        yield name, one
        for child, inner in getattr(one, "commands", {}).items():
            yield from walk(f"{name} {child}", inner)

    return dict(walk("skerry", get_command(app)))


def test_help_tells_the_exit_codes_and_every_command_has_help() -> None:
    said = command("--help")
    assert said.returncode == 0
    assert "Exit codes: 0 done" in said.stdout
    found = all_commands()
    assert {"skerry modules pack", "skerry rollouts watch", "skerry wire decode", "skerry deploy"} <= set(found)
    for name, one in found.items():
        assert one.help, name  # type: ignore[attr-defined]
        if not hasattr(one, "commands"):
            assert "--json" in {flag for part in one.params for flag in part.opts}, name  # type: ignore[attr-defined]


def test_every_command_that_a_text_names_is_there() -> None:
    """Errors and pages say "see `skerry …`": what they name must exist."""
    root = Path(__file__).parents[2]
    texts = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("*/src/**/*.py"), *root.glob("*/src/**/*.html")]
    known, named = all_commands(), set()
    for path in texts:
        for quoted in re.findall(r"(?:`|^\$ |<code>)skerry ((?:[a-z-]+ ?)+)", path.read_text(), re.MULTILINE):
            words = quoted.split()
            depth = 2 if f"skerry {words[0]}" in known and hasattr(known[f"skerry {words[0]}"], "commands") else 1
            named.add((" ".join(["skerry", *words[:depth]]), path.relative_to(root).as_posix()))
    assert len(named) > 20
    assert sorted(one for one in named if one[0] not in known) == []


def test_a_mistyped_command_and_a_hub_that_is_away_have_their_exit_codes() -> None:
    assert command("modles").returncode == 2
    away = command("--url", "http://127.0.0.1:9", "status", "--json")
    assert away.returncode == EXIT_CODES["resource"] == 4
    assert json.loads(away.stderr)["code"] == "resource.hub_unreachable"


def test_completion_is_there_for_the_shell() -> None:
    words = {"_SKERRY_COMPLETE": "complete_bash", "COMP_WORDS": "skerry mod", "COMP_CWORD": "1"}
    assert command(env={**os.environ, **words}).stdout.split() == ["modules", "models"]
    assert "complete" in command("--show-completion", "bash").stdout


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen([*SKERRY, "profiles", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        said = process.stderr.read().decode()
    assert "Traceback" not in said


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b"<html>nginx</html>", "it is no Skerry hub"),
        (502, b"", "it is no Skerry hub"),
        (200, b"<html>", "is it a Skerry hub of this version?"),
        (200, b'{"version": 3}', "is it a Skerry hub of this version?"),
    ],
)
def test_what_is_no_hub_is_said_to_be_none(status: int, body: bytes, text: str) -> None:
    with answering(status, body) as url, Client(url) as client:
        with pytest.raises(ResourceError, match=r"cannot (use|understand) what answers") as caught:
            client.status()
        assert text in caught.value.message


@pytest.mark.parametrize("url", ["http://[", "ftp://example.com", "no address", "http://127.0.0.1:9"])
def test_an_address_that_leads_nowhere_is_told(url: str) -> None:
    with pytest.raises(ResourceError, match="cannot reach the hub"), Client(url) as client:
        client.status()


@pytest.mark.parametrize("family", ["input", "peer", "resource", "bug"])
def test_the_hubs_errors_come_back_as_they_were(family: str) -> None:
    body = json.dumps(
        {"code": "module.exists", "detail": "cannot …", "family": family, "data": {"version": 3}}
    ).encode()
    error = problem_of(409, body, "http://x")
    assert (error.family, error.code, error.message, error.data) == (
        family,
        "module.exists",
        "cannot …",
        {"version": 3},
    )
    assert family in EXIT_CODES


def test_a_newer_hubs_code_is_kept_in_the_text() -> None:
    error = problem_of(400, b'{"code":"quantum.decohered","detail":"cannot look","family":"input"}', "http://x")
    assert isinstance(error, InputError)
    assert error.message == "cannot look [quantum.decohered]"
    assert "quantum.decohered" not in errors.CODES


def test_a_hub_with_a_token_asks_for_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--token", "ci:test-secret-of-the-hub") as url:
        with pytest.raises(InputError, match="set SKERRY_TOKEN") as caught, Client(url) as client:
            client.status()
        assert caught.value.code == "auth.missing"
        with pytest.raises(InputError, match="not one of this hub's") as caught, Client(url, token="wrong") as client:
            client.status()
        assert caught.value.code == "auth.denied"
        said = command("--url", url, "--token", "test-secret-of-the-hub", "audit", "--json")
        assert said.returncode == 0


def test_long_lists_are_read_to_their_end(hub: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        hub.add_device(f"page-{number}", profile="generic-x86_64", tags={"page": "yes"})
    asked: list[str] = []
    original = hub._ask

    def one_at_a_time(method: str, path: str, **request: object) -> bytes:
        params = dict(request.pop("params", {}))  # type: ignore[call-overload]
        asked.append(params.get("cursor", ""))
        return original(method, path, params={**params, "limit": 2}, **request)

    monkeypatch.setattr(hub, "_ask", one_at_a_time)
    assert [device.id for device in hub.devices(tags=["page=yes"])] == [f"page-{number}" for number in range(5)]
    assert len(asked) == 3


def test_a_name_with_a_slash_is_one_name(hub: Client) -> None:
    with pytest.raises(InputError):
        hub.device("../status")
    with pytest.raises(InputError):
        hub.model("a/../../status")


def test_plans_say_only_what_was_said() -> None:
    assert plan_body(None) == {}
    assert plan_body(Plan(soak_s=0.0)) == {"soak_s": 0.0}
    assert plan_body(Plan(waves=("1", "25%")))["waves"] == [{"count": 1}, {"percent": 25.0}, {"percent": 100.0}]
    assert plan_body(Plan(waves=("100%",)))["waves"] == [{"percent": 100.0}]
    with pytest.raises(InputError, match="cannot use the wave 'x'"):
        plan_body(Plan(waves=("x",)))


def test_the_package_says_what_it_offers() -> None:
    assert {"Client", "deploy", "Plan", "SkerryError"} <= set(skerry.__all__)
    assert all(hasattr(skerry, name) for name in skerry.__all__)
