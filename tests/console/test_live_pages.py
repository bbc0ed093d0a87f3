"""Pages that stay true while people look: live updates without a reload, and a rollout from start to end."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from sqlmodel import col, select

from console.conftest import PHONE, Open, Served, Speaker
from skerry_hub.console import live as live_stream
from skerry_hub.console import templating
from skerry_hub.tables import Assignment, Rollout
from skerry_modules.messages import ModulePhase
from support.processes import wait_until

pytestmark = pytest.mark.chromium


def live(page: Any) -> None:
    page.locator("html[data-live=live]").wait_for(state="attached")


def mark(page: Any) -> None:
    """Leave something that a reload of the page would lose."""
    page.evaluate("window.notReloaded = true")


def not_reloaded(page: Any) -> bool:
    return bool(page.evaluate("window.notReloaded === true"))


def test_an_event_arrives_while_the_page_is_read(acting: Served, watched: Open, speaker: Speaker) -> None:
    page = watched(acting.url + "/").page
    live(page)
    mark(page)
    page.wait_for_selector("#fleet-latency canvas")
    page.evaluate("window.canvas = document.querySelector('#fleet-latency canvas')")
    page.locator("#device-press-lab-12 .cell-main a").focus()
    page.evaluate("scrollTo(0, 400)")
    speaker.event("cam-lab-00", "run.hang", "the worker of digits:3 stopped answering")
    page.get_by_text("the worker of digits:3 stopped answering").wait_for()
    assert not_reloaded(page)
    assert page.evaluate("scrollY") == 400
    assert page.evaluate("document.activeElement.textContent") == "press-lab-12"
    assert page.evaluate("window.canvas === document.querySelector('#fleet-latency canvas')"), "the chart was kept"


def test_what_is_typed_survives_an_update(acting: Served, watched: Open, speaker: Speaker) -> None:
    page = watched(acting.url + "/events").page
    live(page)
    box = page.get_by_label("Code")
    box.fill("")
    page.evaluate("document.querySelector('form').removeAttribute('hx-trigger')")
    page.evaluate("htmx.process(document.querySelector('form'), true)")
    box.press_sequentially("install.")
    speaker.event("cam-lab-03", "run.hang", "said while someone types")
    page.get_by_text("said while someone types").wait_for()
    assert box.input_value() == "install."
    assert page.evaluate("document.activeElement.id") == "code"


def test_a_lost_connection_shows_and_comes_back(acting: Served, watched: Open, speaker: Speaker) -> None:
    page = watched(acting.url + "/devices/cam-lab-06", strict=False).page
    live(page)
    page.context.set_offline(True)
    page.evaluate("document.getElementById('live')._htmx.sse.reader.cancel()")
    page.locator("#lost").wait_for()
    speaker.event("cam-lab-06", "run.hang", "said while nobody listened")
    page.context.set_offline(False)
    page.locator("#lost").wait_for(state="hidden")
    page.get_by_text("said while nobody listened").wait_for()


def test_a_refresh_that_failed_is_made_up_for(
    acting: Served, watched: Open, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_stream, "TICK_S", 0.5)
    page = watched(acting.url + "/devices/cam-lab-09", strict=False).page
    live(page)
    mark(page)
    page.route("**/devices/cam-lab-09", lambda route: route.abort(), times=1)
    with page.expect_event("requestfailed"):
        speaker.event("cam-lab-09", "run.hang", "said while the page could not ask")
    page.get_by_text("said while the page could not ask").wait_for()
    page.locator("#lost").wait_for(state="hidden")
    assert not_reloaded(page)


def test_a_page_without_a_seat_asks_for_itself_until_there_is_one(
    acting: Served, watched: Open, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templating, "POLL_S", 0.3)
    monkeypatch.setattr(acting.hub.seats, "limit", 0)
    page = watched(acting.url + "/devices/cam-lab-24", strict=False).page
    page.locator("html[data-live=polling]").wait_for(state="attached")
    mark(page)
    speaker.event("cam-lab-24", "run.hang", "said while no seat was free")
    page.get_by_text("said while no seat was free").wait_for()
    assert not page.locator("#lost").is_visible()
    assert not page.locator("#flash").inner_text(), "it is no error that a person must act on"
    monkeypatch.setattr(acting.hub.seats, "limit", 200)
    live(page)
    assert not_reloaded(page)


@pytest.mark.parametrize("path", ["/live?topics=fleet", "/api/v1/stream"])
def test_live_connections_are_bounded_and_their_seats_are_given_back(
    path: str, acting: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seats = acting.hub.seats
    wait_until(lambda: not seats.taken, what="the end of other tests' pages")
    monkeypatch.setattr(seats, "limit", 1)
    with httpx.stream("GET", acting.url + path) as first:
        assert first.status_code == 200
        parts = first.iter_text()  # kept: its end would end the connection
        assert next(parts)
        refused = httpx.get(acting.url + path)
        assert refused.status_code == 503
        assert refused.json()["code"] == "resource.too_many_streams"
        assert int(refused.headers["retry-after"]) > 0
    wait_until(lambda: seats.taken < seats.limit, what="the seat that was given back")


def test_a_rollout_is_started_watched_paused_resumed_and_succeeds(
    acting: Served, watched: Open, speaker: Speaker
) -> None:
    page = watched(acting.url + "/models/vibration").page
    page.get_by_role("link", name="Roll out :2").click()
    page.wait_for_url("**/rollouts/new*")

    page.get_by_label("Model version").select_option("vibration:1")
    page.get_by_label("Target").fill("kind=gate")
    page.get_by_text("unschedulable.engine").wait_for()
    page.get_by_label("Target").fill("kind=cam,site=nowhere")
    page.get_by_text("No device has these tags").wait_for()
    page.get_by_label("Target").fill("kind=cam,ring=canary")
    page.locator(".preview-number", has_text="2 of 2 matching devices").wait_for()
    page.get_by_label("Waves", exact=True).fill("1, 100 %")
    page.get_by_label("Soak on each device").fill("0")
    page.get_by_label("Why").fill("first try on cameras")
    page.get_by_role("button", name="Start the rollout").click()
    page.wait_for_url(re.compile(r"/rollouts/\d+$"))
    number = int(page.url.rsplit("/", 1)[1])
    live(page)
    mark(page)
    state = page.locator("#state")
    assert "Running" in state.inner_text()
    assert "first try on cameras" in page.locator("#timeline + *, .timeline").first.inner_text()

    page.get_by_role("button", name="Pause").click()
    page.locator("#state", has_text="Paused").wait_for()
    page.get_by_role("button", name="Resume").click()
    page.locator("#state", has_text="Running").wait_for()

    _prove(acting, speaker, number, page, progress=True)
    page.locator("#state", has_text="Succeeded").wait_for()
    assert not_reloaded(page), "all of it was watched on one page"
    assert page.locator("#wave-0 .pill").inner_text() == "Succeeded"
    assert not page.get_by_role("button", name="Abort…").count()


def _prove(acting: Served, speaker: Speaker, number: int, page: Any, *, progress: bool = False) -> None:
    """Devices report as agents would, until the rollout has no more to assign."""
    proven: set[str] = set()

    def step() -> bool:
        with acting.hub.db.read() as session:
            row = session.get(Rollout, number)
            assert row is not None
            wanted = select(Assignment).where(col(Assignment.rollout) == number)
            waiting = [
                (one.device, _revision(session, one.device)) for one in session.exec(wanted) if one.device not in proven
            ]
        for device, revision in waiting:
            if progress and not proven:
                speaker.module(
                    device, "vibration", 1, ModulePhase.TRANSITIONING, revision=revision,
                    step="download", role="candidate", progress=0.4,
                )  # fmt: skip
                page.locator(f"#progress-{device}", has_text="download").wait_for()
            speaker.module(device, "vibration", 1, ModulePhase.HEALTHY, revision=revision, step="serve", role="current")
            proven.add(device)
        return row.state != "running"

    wait_until(step, what=f"rollout {number}'s end")


def _revision(session: Any, device: str) -> int:
    from skerry_hub.tables import Device

    row = session.get(Device, device)
    assert row is not None
    return int(row.desired_revision)


def test_a_failing_rollout_shows_the_reason_and_turns_back(acting: Served, watched: Open, speaker: Speaker) -> None:
    from skerry_hub.rules.rollout import Plan, Wave

    plan = Plan(waves=(Wave(count=1), Wave(percent=100)), soak_s=0)
    number = acting.hub.rollouts.create(
        module="vibration", version=1, target="kind=cam,site=plant-3,line=1", plan=plan, actor="mira", reason="again"
    )
    page = watched(acting.url + f"/rollouts/{number}", viewport=PHONE, scheme="dark").page
    live(page)
    mark(page)
    with acting.hub.db.read() as session:
        first = session.exec(select(Assignment).where(col(Assignment.rollout) == number)).one()
        revision = _revision(session, first.device)
    speaker.module(
        first.device, "vibration", 1, ModulePhase.FAILED, revision=revision, step="golden", role="candidate",
        reason="install.golden_failed", message="9 of 64 golden cases differ",
    )  # fmt: skip
    page.locator("#reason-install\\.golden_failed", has_text="9 of 64 golden cases differ").wait_for()
    page.locator("#state", has_text="Rolling back").or_(page.locator("#state", has_text="Rolled back")).wait_for()
    assert not_reloaded(page)


def test_abort_asks_first_and_is_in_the_audit_log(acting: Served, watched: Open) -> None:
    page = watched(acting.url + "/rollouts/6").page
    live(page)
    page.get_by_role("button", name="Abort…").click()
    dialog = page.locator("#abort-dialog")
    dialog.get_by_label("Why").fill("the night shift has no one to watch")
    acting.hub.bus.publish("rollout:6")
    page.wait_for_timeout(1_500)
    assert dialog.is_visible(), "a live update does not close what someone reads"
    dialog.get_by_label("Also bring back devices").uncheck()
    dialog.get_by_role("button", name="Abort").click()
    page.locator("#state", has_text="Rolling back").wait_for()  # devices at work go back before it is aborted
    assert not page.get_by_role("button", name="Pause").count()
    page.goto(acting.url + "/audit?subject=rollout:6")
    assert "the night shift has no one to watch" in page.locator("main").inner_text()


def test_a_rollout_that_cannot_be_keeps_the_form(acting: Served, watched: Open) -> None:
    page = watched(acting.url + "/rollouts/new?version=digits:4").page
    page.get_by_label("Target").fill("site=harbour")
    page.get_by_label("Why").fill("one more")
    page.get_by_role("button", name="Start the rollout").click()
    assert "rollout 5 of digits still runs" in page.locator("#problem").inner_text()
    assert page.get_by_label("Target").input_value() == "site=harbour"
    assert page.get_by_label("Why").input_value() == "one more"


def test_an_action_that_is_too_late_says_so_in_place(acting: Served, watched: Open) -> None:
    page = watched(acting.url + "/rollouts/5", strict=False).page
    live(page)
    page.evaluate("document.getElementById('main').removeAttribute('hx-get'); htmx.process(document.body, true)")
    acting.hub.rollouts.abort(5, actor="jonas", rollback=False)
    page.locator("#resume").click()
    notice = page.locator("#flash")
    notice.locator("text=rollout.wrong_state").wait_for()
    page.get_by_role("button", name="Dismiss").click()
    assert not notice.inner_text()
