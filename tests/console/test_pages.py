"""Every page in a real browser: it renders, breaks no policy, asks no other host, and can be used by everyone."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from console.conftest import PHONE, Open, Served

pytestmark = pytest.mark.chromium

PAGES = {
    "overview": "/",
    "devices": "/devices",
    "device": "/devices/press-harbour-04",
    "models": "/models",
    "model": "/models/digits",
    "version": "/models/digits/versions/3",
    "pipeline": "/models/vibration/versions/2",
    "simulated": "/models/digits-fpga/versions/1",
    "rollouts": "/rollouts",
    "running": "/rollouts/6",
    "rolled back": "/rollouts/4",
    "new rollout": "/rollouts/new?version=digits:4",
    "endpoints": "/endpoints",
    "endpoint": "/endpoints/digits",
    "new endpoint": "/new/endpoint",
    "changed endpoint": "/endpoints/digits/edit",
    "environments": "/environments",
    "environment": "/environments/vision",
    "locked": "/environments/vision/versions/2",
    "batches": "/batches",
    "batch at work": "/batches/4",
    "failed batch": "/batches/2",
    "samples": "/samples",
    "events": "/events",
    "audit": "/audit",
}
EMPTY = (
    "/",
    "/devices",
    "/models",
    "/rollouts",
    "/rollouts/new",
    "/endpoints",
    "/new/endpoint",
    "/environments",
    "/batches",
    "/samples",
    "/events",
    "/audit",
)

ACCESSIBILITY = (Path(__file__).parent / "accessibility.js").read_text()


@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES.keys())
def test_a_page_renders_for_everyone(path: str, seeded: Served, watched: Open) -> None:
    page = watched(seeded.url + path).page
    assert page.locator("h1").is_visible()
    assert page.evaluate(ACCESSIBILITY) == []
    if page.locator(".plot").count():
        page.wait_for_selector(".plot canvas")
        assert page.locator(".plot canvas").count() == page.locator(".plot").count()


def test_no_page_is_wider_than_a_phone(seeded: Served, watched: Open) -> None:
    opened = watched(seeded.url + "/", viewport=PHONE, scheme="dark")
    for path in PAGES.values():
        opened.page.goto(seeded.url + path, wait_until="domcontentloaded")
        opened.page.wait_for_selector("h1")
        wide = opened.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{path} is {wide} px too wide"
        assert opened.page.locator(".nav").is_visible()


def test_the_phones_menu_opens_and_leads_on(seeded: Served, watched: Open) -> None:
    page = watched(seeded.url + "/", viewport=PHONE).page
    page.get_by_role("button", name="More").click()
    page.locator("#more").get_by_role("link", name="Audit log").click()
    page.wait_for_url("**/audit")


@pytest.mark.parametrize("path", EMPTY)
def test_an_empty_hub_says_what_to_do_next(path: str, empty: Served, watched: Open) -> None:
    page = watched(empty.url + path).page
    assert page.locator(".empty-title").is_visible()
    assert page.locator(".command code").first.inner_text().strip()
    assert page.evaluate(ACCESSIBILITY) == []


def test_the_search_narrows_the_table_and_keeps_the_focus(seeded: Served, watched: Open) -> None:
    page = watched(seeded.url + "/devices").page
    box = page.get_by_label("Search by tags or id")
    box.press_sequentially("site=lab,kind=gate", delay=5)
    page.wait_for_url("**query=site%3Dlab*kind%3Dgate**")
    page.locator("#device-cam-harbour-01").wait_for(state="detached")
    names = page.locator("#devices-table tbody .cell-main a").all_inner_texts()
    assert names
    assert all(name.startswith("gate-lab") for name in names)
    assert page.evaluate("document.activeElement.id") == "query"
    assert box.input_value() == "site=lab,kind=gate"


def test_a_query_that_is_none_says_so(seeded: Served, watched: Open) -> None:
    page = watched(seeded.url + "/devices?query=%3D3").page
    assert "TagName=TagValue" in page.locator("#query-problem").inner_text()


def test_keyboard_alone_reaches_content_and_actions(seeded: Served, watched: Open) -> None:
    page = watched(seeded.url + "/rollouts/6").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert "pause" in reached
    assert "abort" in reached
    page.locator("#abort").press("Enter")
    assert page.locator("#abort-dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#abort-dialog").is_visible()


def test_the_theme_follows_the_system_and_can_be_chosen(seeded: Served, watched: Open) -> None:
    page = watched(seeded.url + "/models", scheme="dark").page

    def background() -> Any:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    dark = background()
    page.locator("#theme").click()
    light = background()
    assert light != dark
    page.reload()
    assert background() == light, "the choice lasts"
    page.locator("#theme").click()
    assert background() == dark


def test_a_form_says_at_the_field_what_is_wrong_with_it(seeded: Served, watched: Open) -> None:
    page = watched(seeded.url + "/rollouts/new", viewport=PHONE).page
    page.get_by_label("Soak").fill("long")
    page.get_by_role("button", name="Start the rollout").click()
    page.locator("#soak[aria-invalid=true]").wait_for()
    assert page.evaluate("document.activeElement.id") == "soak"
    assert "cannot use 'long' as the soak" in page.locator("#soak_s-problem").inner_text()
    assert page.evaluate(ACCESSIBILITY) == []

    page.goto(seeded.url + "/new/endpoint")
    page.get_by_label("Name").fill("half")
    page.locator("#split-0").select_option("digits:3")
    page.locator("#split-0-percent").fill("50")
    page.get_by_role("button", name="Make the endpoint").click()
    page.locator("#problem", has_text="make them 100").wait_for()
    box = page.locator("#problem").bounding_box()
    assert 0 <= box["y"] < PHONE["height"], "what no single field is to blame for is brought into sight"


def test_an_unknown_page_and_device_are_told_in_the_consoles_style(seeded: Served, watched: Open) -> None:
    opened = watched(seeded.url + "/nothing-here", strict=False)
    assert opened.page.locator(".error-status").inner_text() == "404"
    opened.page.goto(seeded.url + "/devices/ghost")
    assert "cannot find the device 'ghost'" in opened.page.locator("main").inner_text()
    assert "device.unknown" in opened.page.locator("main").inner_text()
    opened.page.get_by_role("main").get_by_role("link", name="Devices").click()
    opened.page.wait_for_url("**/devices")


@pytest.mark.parametrize("path", ["/environments/vision", "/samples"])
def test_what_goes_into_a_manifest_can_be_copied_as_it_stands(
    path: str, seeded: Served, empty: Served, watched: Open
) -> None:
    hub = empty if path == "/samples" else seeded
    page = watched(hub.url + path).page
    copied = page.locator("[data-copy]").get_attribute("data-copy")
    assert tomllib.loads(copied)
    assert page.locator(".command code").inner_text() == copied


def test_the_checks_find_what_is_wrong(empty: Served, watched: Open) -> None:
    opened = watched(empty.url + "/models", strict=False)
    page = opened.page
    page.evaluate(
        """() => {
          const main = document.querySelector('main');
          main.append(document.createElement('input'), document.createElement('h4'), document.createElement('h1'));
          main.querySelector('h4').textContent = main.querySelector('h1:last-of-type').textContent = 'a heading';
          const button = document.createElement('button');
          button.innerHTML = '<svg></svg>';
          button.id = 'main';
          main.append(button);
          const script = document.createElement('script');
          script.textContent = 'window.injected = true';
          document.body.append(script);
          const image = new Image();
          image.src = 'http://127.0.0.1:9/elsewhere.png';
        }"""
    )
    problems = " ".join(page.evaluate(ACCESSIBILITY))
    for word in ("no label", "h1:", "heading jump", "no name", "image without a name", "id twice"):
        assert word in problems
    assert page.evaluate("window.injected") is None
    page.wait_for_timeout(200)
    assert any("policy: script-src" in fault for fault in opened.faults)
    assert any("policy: img-src" in fault for fault in opened.faults)
