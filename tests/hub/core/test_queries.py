"""The tag query language: what it reads, what it refuses, and that SQL and the rule agree."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import select

from skerry_hub import queries
from skerry_hub.db import Database
from skerry_hub.queries import TagQuery
from skerry_hub.tables import Device, DeviceTag
from skerry_modules.errors import InputError

KEYS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,20}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters=",", exclude_categories=["C"]), max_size=40).map(str.strip)
CLAUSES = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=4, unique=True).map(tuple)


@given(CLAUSES)
def test_text_and_query_are_inverses(clauses: tuple[tuple[str, str], ...]) -> None:
    query = TagQuery(clauses)
    assert queries.parse(str(query)) == query
    assert queries.parse([f"{key}={value}" for key, value in clauses]) == query


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_as_a_query(text: str) -> None:
    with contextlib.suppress(InputError):  # any other error fails the test
        query = queries.parse(text)
        assert queries.parse(str(query)) == query


@pytest.mark.parametrize("text", ["*", "all", "*,all", " * "])
def test_everything(text: str) -> None:
    assert queries.parse(text) == TagQuery()
    assert queries.parse(text).matches({"site": "lab"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' has no '='"),
        ("site", "'site' has no '='"),
        ("site=lab,", "'' has no '='"),
        ("*,site=lab", "'*' has no '='"),
        ("=lab", "'' is not a tag name"),
        ("a b=c", "'a b' is not a tag name"),
        ("site=" + "x" * 256, "over 255 characters"),
        ("site=\x00", "control character"),
    ],
)
def test_refusals_say_what_and_how(text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        queries.parse(text)
    assert problem in caught.value.message
    assert caught.value.message.endswith("write TagName=TagValue, comma-separated, or * for all")


def test_nothing_at_all_is_no_query() -> None:
    with pytest.raises(InputError, match="it is empty"):
        queries.parse([])


def test_tags_of_the_hubs_own_names_are_refused() -> None:
    with pytest.raises(InputError, match="the name 'id' is the hub's own"):
        queries.check_tags({"id": "x"}, reserved=queries.BUILT_IN)
    with pytest.raises(InputError, match="spaces around"):
        queries.check_tags({"site": " lab"})


NAMES = ("a", "b")
FLEETS = st.lists(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(("1", "2", "")), max_size=2), max_size=5)
SMALL = st.lists(st.tuples(st.sampled_from((*NAMES, "profile")), st.sampled_from(("1", "2", "p0"))), max_size=3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(FLEETS, SMALL)
def test_the_database_finds_what_the_rule_says(
    database: Database, fleet: list[dict[str, str]], clauses: list[tuple[str, str]]
) -> None:
    query = TagQuery(tuple(clauses))
    with database.read() as session:  # rolled back: nothing stays for the next example
        for number, tags in enumerate(fleet):
            session.add(Device(id=f"d{number}", profile=f"p{number % 2}", created_at=1))
            session.flush()
            session.add_all(DeviceTag(device=f"d{number}", key=key, value=value) for key, value in tags.items())
        session.flush()
        found = set(session.exec(select(Device.id).where(queries.device_filter(query))))
    expected = {
        f"d{number}"
        for number, tags in enumerate(fleet)
        if query.matches({**tags, "id": f"d{number}", "profile": f"p{number % 2}"})
    }
    assert found == expected
