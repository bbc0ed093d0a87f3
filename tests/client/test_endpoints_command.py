"""How splits are written on the command line, and how agreement reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from client.conftest import serving
from skerry.cli.app import app
from skerry.cli.endpoints import agreement_text, parse_routes
from skerry.types import Agreement, EndpointRoute, EndpointTraffic
from skerry_hub.db import Database
from skerry_hub.tables import Device, Endpoint, EndpointDevice
from skerry_modules.errors import InputError

parts = st.lists(
    st.tuples(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), st.integers(1, 99), st.integers(1, 100)),
    min_size=1,
    max_size=4,
)


@given(parts, st.booleans())
def test_a_split_reads_back_as_it_was_written(found: list[tuple[str, int, int]], together: bool) -> None:
    texts = [f"{name}:{version}={share}" for name, version, share in found]
    routes = parse_routes([",".join(texts)] if together else texts)
    assert routes == [EndpointRoute(module=n, version=v, percent=float(s)) for n, v, s in found]


def test_a_share_may_be_left_out_or_have_its_sign() -> None:
    assert parse_routes(["digits:3"]) == [EndpointRoute(module="digits", version=3, percent=100.0)]
    assert parse_routes(["digits:3=12.5%"])[0].percent == 12.5
    assert parse_routes([]) == []


@pytest.mark.parametrize("text", ["", "digits", ":3", "digits:", "digits:x", "digits:3=", "digits:3=half", "digits:-1"])
def test_what_is_no_version_with_its_share_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="NAME:VERSION=PERCENT") as caught:
        parse_routes([text])
    assert caught.value.code == "endpoint.invalid"


def test_agreement_in_words() -> None:
    live = EndpointTraffic(module="m", version=1, role="live")
    assert agreement_text(live) == "–"
    new = EndpointTraffic(module="m", version=1, role="shadow", agreement=Agreement(dropped=3))
    assert agreement_text(new) == "nothing compared yet; 3 dropped"
    found = Agreement(rows=200, agreed=199, within=150, worst=0.25, failed=1)
    said = agreement_text(EndpointTraffic(module="m", version=1, role="shadow", agreement=found))
    assert said == "99.50 % of 200 rows, 75.00 % within tolerance, largest difference 0.25; 1 failed"


def test_of_a_large_endpoint_json_names_all_devices_and_people_are_told_of_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(*options: str) -> str:
        done = CliRunner().invoke(app, ["endpoints", "show", "e", *options])
        assert done.exit_code == 0, done.output
        return done.output

    with serving(tmp_path) as url:
        monkeypatch.setenv("SKERRY_URL", url)
        database = Database(f"sqlite:///{tmp_path / 'hub' / 'hub.db'}")
        with database.session() as session:
            session.add(Endpoint(name="e", target="*", split="[]", changed_by="t", created_at=1, changed_at=1))
            for number in range(130):
                name, reason = f"d{number:03}", "unschedulable.memory" if number >= 100 else ""
                session.add(Device(id=name, profile="generic-x86_64", created_at=1))
                session.add(EndpointDevice(endpoint="e", device=name, reason=reason, message="too small"))
        database.close()
        whole = json.loads(shown("--json"))
        assert (whole["devices"], whole["unschedulable"]) == (100, 30)
        assert [one["device"] for one in whole["members"]] == [f"d{number:03}" for number in range(130)]
        told = shown()
    assert told.count("cannot have it") == 20
    assert "and 10 more" in told
