"""How splits are written on the command line, and how agreement reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.cli.endpoints import agreement_text, parse_routes
from skerry.types import Agreement, EndpointRoute, EndpointTraffic
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
