"""Endpoints are changed in the console by the rules that the API and the command line go by."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import col, select

from console import seed
from console.conftest import PHONE, Open, Served
from skerry_hub import endpoints, monitoring
from skerry_hub.console.forms_endpoints import EndpointForm, Row
from skerry_hub.db import Database
from skerry_hub.tables import Audit, Endpoint
from skerry_modules.errors import InputError
from skerry_modules.messages import Route

HTML = {"accept": "text/html"}


def stored(served: Served, name: str) -> Endpoint | None:
    with served.hub.db.read() as session:
        return session.get(Endpoint, name)


def noted(served: Served, name: str) -> list[tuple[str, str]]:
    with served.hub.db.read() as session:
        rows = session.exec(select(Audit).where(col(Audit.subject) == name).order_by(col(Audit.id)))
        return [(row.action, row.reason) for row in rows]


def fields(name: str, *split: tuple[str, str], shadow: tuple[str, ...] = (), **more: str) -> dict[str, Any]:
    return {
        "name": name,
        "target": "kind=press",
        "split_version": [version for version, _ in split],
        "split_percent": [percent for _, percent in split],
        "shadow_version": list(shadow),
        "shadow_percent": ["100"] * len(shadow),
        "keep_before": "yes",
        **more,
    }


@pytest.mark.chromium
def test_a_split_is_made_changed_shadowed_turned_back_and_deleted(acting: Served, watched: Open) -> None:
    page = watched(acting.url + "/endpoints").page
    page.get_by_role("link", name="New endpoint").click()
    page.locator("#preview-hint", has_text="Choose a version").wait_for()
    assert not page.locator("#preview-problem").count(), "nothing chosen yet is no mistake"
    assert not page.get_by_label("Keep the split before").count(), "there is none before"
    page.get_by_label("Name").fill("wear")
    page.get_by_label("Devices").fill("kind=press")
    page.locator("#split-0").select_option("vibration:1")
    page.locator(".preview-number", has_text="7 of 7 matching devices can hold it").wait_for()
    page.get_by_label("Why").fill("first of its kind")
    page.get_by_role("button", name="Make the endpoint").click()
    page.wait_for_url("**/endpoints/wear")
    row = stored(acting, "wear")
    assert row is not None
    assert endpoints.text_of(endpoints.routes_of(row.split)) == "vibration:1=100"
    assert not page.get_by_role("button", name="Go back…").count(), "there is no way back yet"

    page.get_by_role("link", name="Change the split").click()
    page.get_by_label("Share").first.fill("90")
    page.get_by_role("button", name="Add a version").click()
    page.locator("#split-1").select_option("vibration:2")
    assert page.locator("#split-1-percent").input_value() == "10", "what is missing to 100"
    page.locator("#split-1-percent").fill("20")
    page.locator("#preview-problem", has_text="110 percent together; make them 100").wait_for()
    page.get_by_role("button", name="Change the split").click()
    assert "make them 100" in page.locator("#problem").inner_text()
    page.locator("#split-1-percent").fill("10")
    page.get_by_role("button", name="Add a shadow").click()
    page.locator("#shadow-0").select_option("digits:3")
    page.get_by_role("button", name="Remove shadow 1").click()
    page.locator("#shadow-0").wait_for(state="detached")
    page.get_by_role("button", name="Add a shadow").click()
    page.locator("#shadow-0").select_option("digits:3")
    page.get_by_label("Why").fill("a tenth")
    page.get_by_role("button", name="Change the split").click()
    page.wait_for_url("**/endpoints/wear")
    page.locator("#part-shadow-digits-3").wait_for()
    assert "90 %" in page.locator("#part-live-vibration-1").inner_text()

    page.get_by_role("button", name="Go back…").click()
    page.locator("#back-dialog").get_by_label("Why").fill("too many alarms")
    page.locator("#back-confirm").click()
    page.locator("#part-live-vibration-2").wait_for(state="detached")
    row = stored(acting, "wear")
    assert row is not None
    assert endpoints.text_of(endpoints.routes_of(row.split)) == "vibration:1=100"

    page.get_by_role("button", name="Delete…").click()
    page.locator("#delete-confirm").click()
    page.wait_for_url("**/endpoints")
    assert stored(acting, "wear") is None
    assert noted(acting, "wear") == [
        ("endpoint.set", "first of its kind"),
        ("endpoint.set", "a tenth"),
        ("endpoint.set", "too many alarms"),
        ("endpoint.delete", ""),
    ]


@pytest.mark.chromium
def test_the_form_is_used_by_thumb_and_keyboard(seeded: Served, watched: Open) -> None:
    page = watched(seeded.url + "/endpoints/digits/edit", viewport=PHONE).page
    small = page.evaluate(
        "[...document.querySelectorAll('main button:not(.first-button), main select, main input:not([type=hidden])"
        ":not([type=checkbox])')].filter(e => e.getBoundingClientRect().height < 44).map(e => e.outerHTML.slice(0, 80))"
    )
    assert not small
    page.get_by_role("button", name="Add a version").press("Enter")
    page.locator("#split-2").wait_for()
    assert page.evaluate("document.activeElement.id") == "split-2"


def test_the_form_works_without_script_and_tells_what_is_wrong(acting: Served) -> None:
    def post(**data: Any) -> httpx.Response:
        return httpx.post(f"{acting.url}/endpoints", headers=HTML, data=data)

    one = fields("plain", ("vibration:1", "100"))
    more = post(**one, rows="add-split")
    assert more.status_code == 200
    assert more.text.count('name="split_version"') == 2
    wrong = post(**fields("plain", ("vibration:1", "half")))
    assert (wrong.status_code, "write a number" in wrong.text) == (422, True)
    assert "value=&#34;half" in wrong.text or 'value="half"' in wrong.text
    nowhere = post(**fields("plain", ("vibration:1", "100"), target="site=nowhere"))
    assert "no device matches" in nowhere.text
    assert "unschedulable.profile" in post(**fields("plain", ("digits-fpga:1", "100"))).text
    assert stored(acting, "plain") is None
    made = post(**one)
    assert (made.status_code, made.headers["location"]) == (303, "/endpoints/plain")
    assert "it exists; change that one" in post(**one).text, "a new one must not overwrite"
    assert httpx.post(f"{acting.url}/endpoints/plain/delete", headers=HTML).headers["location"] == "/endpoints"


def test_a_form_that_was_open_too_long_does_not_undo_others_changes(acting: Served) -> None:
    def post(percent: int, revision: str) -> httpx.Response:
        split = (("vibration:1", str(percent)), ("vibration:2", str(100 - percent)))
        return httpx.post(f"{acting.url}/endpoints", headers=HTML, data=fields("shared", *split, revision=revision))

    post(50, "")
    assert post(60, "1").status_code == 303
    late = post(70, "1")
    assert (late.status_code, "was changed while this form was open" in late.text) == (422, True)
    row = stored(acting, "shared")
    assert row is not None
    assert (row.revision, "60.0" in row.split) == (2, True)
    assert len(noted(acting, "shared")) == 2, "what was refused left nothing behind"
    back = httpx.post(f"{acting.url}/endpoints/shared/back", headers=HTML, data={"reason": "again"})
    assert back.headers["location"] == "/endpoints/shared"
    httpx.post(f"{acting.url}/endpoints/shared/delete", headers=HTML)


@pytest.mark.parametrize("path", ["", "/digits/back", "/digits/delete"])
def test_another_sites_form_changes_no_endpoint(path: str, seeded: Served) -> None:
    before = noted(seeded, "digits")
    answer = httpx.post(
        f"{seeded.url}/endpoints{path}",
        headers={**HTML, "origin": "https://evil.example"},
        data=fields("digits", ("digits:1", "100"), revision="2"),
    )
    assert answer.status_code == 403
    assert noted(seeded, "digits") == before


def test_what_cannot_be_done_to_an_endpoint_says_why(acting: Served) -> None:
    for path, status, text in (
        ("ghost", 404, "cannot find the endpoint"),
        ("ghost/edit", 404, "cannot find the endpoint"),
    ):
        answer = httpx.get(f"{acting.url}/endpoints/{path}", headers=HTML)
        assert (answer.status_code, text in answer.text) == (status, True)
    assert httpx.post(f"{acting.url}/endpoints/ghost/back", headers=HTML).status_code == 404


def test_a_large_fleets_rate_is_of_the_time_that_was_read(tmp_path: Path) -> None:
    """Only so many windows are read: their requests over the whole span would be a rate that is too small."""
    database = Database(f"sqlite:///{tmp_path / 'hub.db'}")
    now = time.time_ns() // 1_000_000
    seed.seed(database.engine, now, minutes=6)
    with database.read() as session:

        def rate(limit: int) -> float:
            found = monitoring.behind(session, "digits", since=now - 300_000, now=now, limit=limit)
            return sum(one.rate for one in found if one.role == "live" and one.version == 3)

        assert rate(40) == pytest.approx(rate(10_000), rel=0.5)
    database.close()


# -- the form's rules ------------------------------------------------------------------------------------------------

routes = st.lists(
    st.builds(
        Route,
        module=st.sampled_from(["digits", "a-b", "x"]),
        version=st.integers(1, 10**8),
        percent=st.integers(1, 10_000).map(lambda n: n / 100),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(routes, routes)
def test_a_form_reads_what_it_shows(split: list[Route], shadow: list[Route]) -> None:
    form = EndpointForm.of("digits", "*", split, shadow, 3)
    many = {
        "split_version": [row.version for row in form.split],
        "split_percent": [row.percent for row in form.split],
        "shadow_version": [row.version for row in form.shadow],
        "shadow_percent": [row.percent for row in form.shadow],
    }
    again = EndpointForm.read({"name": "digits", "keep_before": "yes"}.get, lambda name: many[name])
    assert again.routes() == tuple(split)
    assert again.shadows() == tuple(shadow)


words = st.text(max_size=12)


@settings(deadline=None)
@given(st.lists(words, max_size=20), st.lists(words, max_size=20), words)
def test_any_form_gives_routes_or_says_why_not(versions: list[str], percents: list[str], order: str) -> None:
    form = EndpointForm.read(lambda name: order, lambda name: versions if name.endswith("version") else percents)
    edited = form.edited(order)
    assert edited is None or edited.split
    try:
        routes_now = form.routes()
    except InputError as problem:
        told = problem.code
    else:
        told = ""
        assert all(math.isfinite(route.percent) for route in routes_now)
    assert told in ("", "request.invalid")


@pytest.mark.parametrize(
    ("order", "split", "shadow"),
    [
        ("add-split", ("a:1", "b:2", ""), ()),
        ("add-shadow", ("a:1", "b:2"), ("",)),
        ("remove-split-0", ("b:2",), ()),
        ("remove-split-9", None, None),
        ("remove-shadow-0", None, None),
        ("add-split-1", None, None),
        ("remove-split--1", None, None),
        ("add-before", None, None),
    ],
)
def test_rows_come_and_go(order: str, split: tuple[str, ...] | None, shadow: tuple[str, ...] | None) -> None:
    found = EndpointForm(split=(Row("a:1", "60"), Row("b:2", "30"))).edited(order)
    if split is None:
        assert found is None
        return
    assert found is not None
    assert tuple(row.version for row in found.split) == split
    assert tuple(row.version for row in found.shadow) == shadow
    if order == "add-split":
        assert found.split[-1].percent == "10"
